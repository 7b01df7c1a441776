"""What all of them do: which model, which images, in which message."""

import base64
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from io import BytesIO
from pathlib import Path
from random import Random
from typing import Any

import orjson
from PIL import Image

from benchmarks.harness import ROOT, BirdModel
from consumer import bootstrap_model
from consumer.adapters.labels import load_labels
from consumer.model_spec import InputSpec
from consumer.settings import Settings

BUILD = ROOT / "build" / "peers"
"""Environments, scratch files and artifacts made here; ignored by git."""
_PHOTOGRAPHS = ROOT / "consumer" / "data" / "photographs"
_SMALL = (640, 480)
_OF = "__"
"""In the name of a crop, after the photograph that it is of."""
_CROPS = 40
"""Of each photograph."""


@dataclass(frozen=True, slots=True)
class Pair:
    """What is the same on both sides of a comparison."""

    runtime: str
    """`openvino` or `tensorflow`."""
    precision: str = "f32"

    def __str__(self) -> str:
        return f"{self.runtime}-{self.precision}"


class PeerError(Exception):
    """A comparison cannot be made; the message says why, and what to do."""


class Work:
    """The bird model and its photographs where they lie beside the project, else the default model and its own."""

    def __init__(self) -> None:
        self._birds = BirdModel.find()
        settings = Settings()
        if self._birds is not None:
            found = {"source": str(self._birds.folder / "model"), "labels": str(self._birds.folder / "labelmap.csv")}
            settings = settings.model_copy(update={"model": settings.model.model_copy(update=found)})
        self.package = bootstrap_model.obtain_package(settings)
        self.model = "birds" if self._birds else "default"

    @cached_property
    def photographs(self) -> list[Path]:
        """Five JPEGs as they are."""
        return self._birds.photographs if self._birds else sorted(_PHOTOGRAPHS.glob("*.jpg"))[:5]

    @cached_property
    def small(self) -> list[bytes]:
        """The photographs as JPEGs of 0.3 megapixels."""
        values = []
        for path in self.photographs:
            with Image.open(path) as image:
                shrunk = BytesIO()
                image.convert("RGB").resize(_SMALL, Image.Resampling.LANCZOS).save(shrunk, "JPEG", quality=90)
                values.append(shrunk.getvalue())
        return values

    def peer_settings(self, pair: Pair) -> dict[str, Any]:
        """What `servers/same_model.py` must know of the model."""
        image = self.package.spec.input
        mean, scale = as_offset(image)
        assert self.package.labels is not None
        count = self.package.spec.output.classes
        labels = load_labels(self.package.labels, count)
        # int8 is in the graph itself, bf16 in how a graph in float32 is run.
        int8 = pair.precision == "int8"
        return {
            "model": str(variant(self, pair) / "model" / "model.xml" if int8 else self.package.files),
            "runtime": pair.runtime,
            "precision": "f32" if int8 else pair.precision,
            "size": list(image.size),
            "crop": image.crop,
            "resize": image.resize.upper(),
            "mean": mean,
            "scale": scale,
            "logits": self.package.spec.output.kind == "logits",
            "labels": [labels.name(index) for index in range(count)],
        }

    def ouzel_environment(self, pair: Pair) -> dict[str, str]:
        """The variables that have Ouzel run the same. Raises PeerError where a variant cannot be made."""
        own = dict(self._birds.environment) if self._birds else {}
        if pair.precision != "f32":
            own = {"OUZEL_MODEL__SOURCE": str(variant(self, pair)), "OUZEL_MODEL__ALLOW_PROVISIONAL": "true"}
        return {**own, "OUZEL_MODEL__RUNTIME": pair.runtime}


def as_offset(image: InputSpec) -> tuple[float, float]:
    """Mean and scale of the pixels themselves: what the model takes is `(pixel - mean) / scale`.

    Raises:
        ValueError: the channels differ.
    """
    if len(set(image.mean)) > 1 or len(set(image.std)) > 1:
        raise ValueError("the peers' graphs know one mean and one std for all channels")
    low, high = image.range
    a_step = 255 / (high - low)
    mean, std = (image.mean or (0.0,))[0], (image.std or (1.0,))[0]
    return (mean - low) * a_step, std * a_step


def variant(work: Work, pair: Pair) -> Path:
    """Ouzel's artifact of the model in another precision, made at the first call by `ouzel model optimize`.

    Raises:
        PeerError: it cannot be made here.
    """
    kind = f"{pair.runtime}-{pair.precision}"
    folder = BUILD / f"{work.model}-{kind}"
    if not folder.exists():
        BUILD.mkdir(parents=True, exist_ok=True)
        environment = {name: value for name, value in os.environ.items() if not name.startswith("OUZEL_")}
        labels = {"OUZEL_MODEL__LABELS": str(work.package.labels)} if work.model == "birds" else {}
        made = subprocess.run(
            [
                *(sys.executable, "-m", "consumer", "model", "optimize"),
                str(work.package.files) if work.model == "birds" else "default",
                *("--to", kind, "--output", str(folder), "--images", str(_crops(work.photographs))),
                *("--cluster-by", _OF, "--calibration", str(_CROPS), "--allow-small", "--rounds", "1"),
            ],
            cwd=ROOT,
            env=environment | labels,
            capture_output=True,
            text=True,
            check=False,
        )
        if made.returncode:
            raise PeerError(f"ouzel model optimize --to {kind} ended with {made.returncode}:\n{made.stderr[-2000:]}")
    return folder


def _crops(photographs: Sequence[Path]) -> Path:
    """A folder of crops, flipped or not: too few are the photographs themselves to calibrate int8 on."""
    folder, random = BUILD / "crops", Random(0)  # noqa: S311  no secret
    folder.mkdir(parents=True, exist_ok=True)
    for path in photographs:
        with Image.open(path) as opened:
            image = opened.convert("RGB")
        for number in range(_CROPS):
            width, height = (round(side * random.uniform(0.6, 1)) for side in image.size)
            left, top = random.randint(0, image.width - width), random.randint(0, image.height - height)
            crop = image.crop((left, top, left + width, top + height))
            if random.random() < 0.5:
                crop = crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
            crop.thumbnail((800, 800))
            crop.save(folder / f"{path.stem.replace(_OF, '-')}{_OF}{number}.jpg", quality=92)
    return folder


def inline_message(body: bytes, name: str) -> bytes:
    """Ouzel's own inline form: JSON with the image in base64."""
    return orjson.dumps({"image_id": name, "data": base64.b64encode(body).decode()})


def inference_request(body: bytes) -> bytes:
    """MLServer's own form: an inference request with the image in base64."""
    data = [base64.b64encode(body).decode()]
    image = {"name": "image", "shape": [1, 1], "datatype": "BYTES", "parameters": {"content_type": "base64"}}
    return orjson.dumps({"inputs": [{**image, "data": data}]})


def bentoml_request(body: bytes) -> bytes:
    """BentoML's JSON for the argument `images`."""
    return orjson.dumps({"images": [base64.b64encode(body).decode()]})
