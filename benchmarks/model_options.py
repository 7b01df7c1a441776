"""`--model`, `--labels` and `--images` of `resizers` and `scaled_decoding`: what they measure on."""

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from consumer import bootstrap_model
from consumer.adapters.image import PillowDecoder, Resize
from consumer.ports import ModelRuntime
from consumer.settings import Settings

Resizer = Literal["pillow", "simd"]
PHOTOGRAPHS = Path(__file__).parents[1] / "consumer" / "data" / "photographs"
ROUNDS = 15


@dataclass(frozen=True, slots=True)
class Chosen:
    """A warm model, its preprocessing, and photographs."""

    runtime: ModelRuntime
    resize: Resize
    crop: float
    bodies: dict[str, bytes]
    """JPEGs by file name."""

    def decoder(self, *, resizer: Resizer = "pillow", scaled: bool = False) -> PillowDecoder:
        """To the model's pixels."""
        size = self.runtime.input_size
        return PillowDecoder(size, resize=self.resize, crop=self.crop, resizer=resizer, jpeg_scaled=scaled)


def chosen(description: str | None) -> Chosen:
    """What the command line names, else the default model and the demo's photographs."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="default")
    parser.add_argument("--labels", default="")
    parser.add_argument("--images", type=Path, default=PHOTOGRAPHS)
    options = parser.parse_args()
    described = {"source": options.model, "labels": options.labels, "device": "cpu"}
    runtime = bootstrap_model.load_model(Settings.model_validate({"model": described})).runtime
    runtime.warm_up([1])
    bodies = {path.name: path.read_bytes() for path in sorted(options.images.glob("*.jpg"))}
    if options.model == "default":
        return Chosen(runtime, "bicubic", 0.875, bodies)
    return Chosen(runtime, "bilinear", 1.0, bodies)
