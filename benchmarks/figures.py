"""The figures of the README: `python -m benchmarks.figures all`, or stream, s3, decoder-crash.

Every figure is a ratio taken side by side in one run; it says the spread over its rounds and what machine
it was measured on. A broker is started for the purpose; nothing else should run beside it.
"""

import argparse
import json
import os
import platform
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.harness import BirdModel, Follower, broker, fill, replica
from benchmarks.s3_clients import static_server
from consumer import bootstrap_model
from consumer.adapters.cpu_flags import cpu_flags, cpu_name, noted
from consumer.cpu import quota_cores
from consumer.settings import Settings
from consumer.stages.batch import padded_sizes
from tests.hostile_decoder import with_mark
from tests.hostile_replica import ENTRY as HOSTILE

PHOTOGRAPHS = Path(__file__).resolve().parent.parent / "consumer" / "data" / "photographs"


def main() -> None:
    """Measure what is asked for; one JSON line for each figure on stdout, words on stderr."""
    parser = argparse.ArgumentParser(description=__doc__)
    figures: dict[str, Callable[[argparse.Namespace], dict[str, Any]]] = {
        "stream": stream,
        "s3": from_s3,
        "decoder-crash": decoder_crash,
    }
    parser.add_argument("figure", choices=["all", *figures])
    parser.add_argument("--rounds", type=int, default=5, help="pairs of measurements")
    parser.add_argument("--images", type=int, default=0, help="images a round")
    arguments = parser.parse_args()
    for name, measure in figures.items():
        if arguments.figure in ("all", name):
            found = {"figure": name, **measure(arguments), "machine": machine()}
            sys.stdout.write(json.dumps(found) + "\n")
            sys.stdout.flush()


def machine() -> dict[str, Any]:
    """What was measured on."""
    return {
        "cores": quota_cores(),
        "python": platform.python_version(),
        "cpu": cpu_name(),
        "cpu_flags": noted(cpu_flags()),
    }


def _say(text: str) -> None:
    sys.stderr.write(text + "\n")


def _settings() -> Settings:
    """The bird model where it lies beside the project, else the default model."""
    birds = BirdModel.find()
    if birds is None:
        return Settings()
    model = Settings().model.model_copy(
        update={"source": str(birds.folder / "model"), "labels": str(birds.folder / "labelmap.csv"), "name": "birds"}
    )
    return Settings().model_copy(update={"model": model})


def _small_photographs() -> list[bytes]:
    """Real photographs as JPEGs of 0.3 megapixels (640x480), the size that peers are measured with."""
    from io import BytesIO

    birds = BirdModel.find()
    values = []
    for path in birds.photographs if birds else sorted(PHOTOGRAPHS.glob("*.jpg")):
        with Image.open(path) as image:
            small = BytesIO()
            image.convert("RGB").resize((640, 480), Image.Resampling.LANCZOS).save(small, "JPEG", quality=90)
            values.append(small.getvalue())
    return values


# --- the stream against a loop --------------------------------------------------------------------------------------


def stream(arguments: argparse.Namespace) -> dict[str, Any]:
    """Images/s through the real broker over an in-process loop on the same images, model and cores.

    The loop decodes in as many threads and infers in batches as large as the service; the broker's and the follower's
    CPU is taken off the service's cores, since the loop has neither.
    """
    count = arguments.images or 2_000
    settings, values, cores = _settings(), _small_photographs(), quota_cores()
    birds = BirdModel.find()
    loop = _InProcess(settings)
    rounds = []
    topics = [{part: f"{part}-{n}" for part in ("input", "output", "letters")} for n in range(arguments.rounds)]
    with broker([name for names in topics for name in names.values()]) as node:
        for number, names in enumerate(topics):
            looped_s = loop.run(values, count)
            fill(node, names["input"], values, count + 200)
            with replica(node, names, birds.environment if birds else {}) as running:
                running.wait_ready()
                follower = Follower(node, names["output"])
                started_s = follower.until(200)
                broker_cpu, service_cpu = node.cpu_seconds(), running.cpu_seconds()
                own = time.process_time()
                wall_s = follower.until(count + 200) - started_s
                broker_cpu = node.cpu_seconds() - broker_cpu + time.process_time() - own
                service_cpu = running.cpu_seconds() - service_cpu
                follower.close()
            share = 1 - broker_cpu / (cores * wall_s)
            ratio = (count / wall_s) / share / (count / looped_s)
            rounds.append(ratio)
            _say(
                f"round {number + 1}: loop {count / looped_s:.0f} images/s, service {count / wall_s:.0f} images/s, "
                f"broker {broker_cpu:.1f} and service {service_cpu:.1f} CPU-s in {wall_s:.1f} s, ratio {ratio:.3f}"
            )
    return {"ratio": spread(rounds), "images": count, "image_pixels": 640 * 480, "target": ">= 0.85"}


class _InProcess:
    """What one would write without Kafka: decode in threads, infer in batches, the next batch decoded meanwhile."""

    def __init__(self, settings: Settings) -> None:
        self._model = bootstrap_model.load_model(settings)
        self._size = settings.batch.max_size
        self._model.runtime.warm_up(padded_sizes(self._size))

    def run(self, values: Sequence[bytes], count: int) -> float:
        """Seconds for `count` images."""
        decode = self._model.decoder.decode
        started_s = time.monotonic()
        with ThreadPoolExecutor(quota_cores()) as pool:
            ahead: list[Any] = []
            submitted = done = 0
            while done < count:
                while submitted < count and len(ahead) < 4 * self._size:
                    ahead.append(pool.submit(decode, values[submitted % len(values)]))
                    submitted += 1
                batch, ahead = ahead[: self._size], ahead[self._size :]
                pixels = np.stack([each.result().pixels for each in batch])
                if len(pixels) < self._size:
                    pixels = np.concatenate([pixels, np.zeros((self._size - len(pixels), *pixels.shape[1:]), np.uint8)])
                self._model.runtime.infer(pixels)
                done += len(batch)
        return time.monotonic() - started_s


# --- from S3 against inline -----------------------------------------------------------------------------------------


def from_s3(arguments: argparse.Namespace) -> dict[str, Any]:
    """Images/s end to end from S3 over inline: the same photographs, replica, model and broker, in turn in one run.

    S3 is a process of its own on the same cores that answers from memory with S3's headers, and cheaper than the
    broker, which has the photographs to carry in the other case: neither's CPU is taken off. `cpu_ratio` is of the
    replica's own CPU an image, and holds on a machine that is not quiet too.
    """
    count, warm = arguments.images or 1_000, 200
    values = _small_photographs()
    birds = BirdModel.find()
    topics = [
        {part: f"{kind}-{part}-{number}" for part in ("input", "output", "letters")}
        for number in range(arguments.rounds)
        for kind in (("inline", "s3") if number % 2 == 0 else ("s3", "inline"))
    ]
    rates: dict[str, list[float]] = {"inline": [], "s3": []}
    cpu_ms: dict[str, list[float]] = {"inline": [], "s3": []}
    with (
        tempfile.TemporaryDirectory() as folder,
        broker([name for names in topics for name in names.values()]) as node,
    ):
        for number, value in enumerate(values):
            (Path(folder) / f"{number}.jpg").write_bytes(value)
        uris = [f"s3://photographs/birds/{number}.jpg" for number in range(len(values))]
        references = [json.dumps({"image_id": uri, "uri": uri}).encode() for uri in uris]
        with static_server(Path(folder)) as (endpoint, _):
            for names in topics:
                kind = names["input"].partition("-")[0]
                fill(node, names["input"], values if kind == "inline" else references, count + warm)
                environment = (birds.environment if birds else {}) | _s3_environment(endpoint)
                with replica(node, names, environment) as running:
                    running.wait_ready()
                    follower = Follower(node, names["output"])
                    started_s = follower.until(warm)
                    seen, cpu_s = follower.seen, running.cpu_seconds()
                    wall_s = follower.until(count + warm) - started_s
                    rates[kind].append((follower.seen - seen) / wall_s)
                    cpu_ms[kind].append((running.cpu_seconds() - cpu_s) / (follower.seen - seen) * 1000)
                    follower.close()
                load = os.getloadavg()[0]
                _say(f"{kind}: {rates[kind][-1]:.0f} images/s, {cpu_ms[kind][-1]:.1f} CPU-ms each, load {load:.1f}")
    return {
        "ratio": spread(_pairs(rates)),
        "cpu_ratio": spread(_pairs(cpu_ms)),
        "images_per_s": {kind: spread(found) for kind, found in rates.items()},
        "service_cpu_ms_an_image": {kind: spread(found) for kind, found in cpu_ms.items()},
        "images": count,
        "object_bytes": round(statistics.mean(len(value) for value in values)),
    }


def _pairs(found: Mapping[str, Sequence[float]]) -> list[float]:
    """S3 over inline, round by round."""
    return [s3 / inline for s3, inline in zip(found["s3"], found["inline"], strict=True)]


def _s3_environment(endpoint: str) -> dict[str, str]:
    return {
        "OUZEL_STORES__S3__BUCKETS": "photographs",
        "OUZEL_STORES__S3__ENDPOINT_URL": endpoint,
        "OUZEL_STORES__S3__REGION": "us-east-1",
        "OUZEL_STORES__S3__ACCESS_KEY_ID": "measure",
        "OUZEL_STORES__S3__SECRET_ACCESS_KEY": "measure",
    }


# --- a decoder that crashes -----------------------------------------------------------------------------------------


def decoder_crash(arguments: argparse.Namespace) -> dict[str, Any]:
    """From a segmentation fault in the decoder, in the midst of work, until the replica that is started at once after
    it is ready, and until the culprit's dead letter is out.

    It is a static member: another kind would first be missed by the group, after its session timeout.
    """
    birds, values = BirdModel.find(), _small_photographs()
    settings = (birds.environment if birds else {}) | {
        "OUZEL_KAFKA__GROUP_PROTOCOL": "classic",
        "OUZEL_KAFKA__GROUP_INSTANCE_ID": "bench",
    }
    count = arguments.images or 200
    ready, letter, plain = [], [], []
    topics = [{part: f"{part}-crash-{n}" for part in ("input", "output", "letters")} for n in range(arguments.rounds)]
    with broker([name for names in topics for name in names.values()]) as node:
        for number, names in enumerate(topics):
            started_s = time.monotonic()
            with replica(node, names, settings, entry=HOSTILE) as first:
                first.wait_ready()
                plain.append(time.monotonic() - started_s)
                fill(node, names["input"], values, count // 2)
                fill(node, names["input"], [with_mark(values[0], "segfault")], 1)
                fill(node, names["input"], values, count // 2)
                if first.process.wait(60) != -signal.SIGSEGV:
                    raise RuntimeError(f"it ended with {first.process.returncode}")
            crashed_s = time.monotonic()
            with replica(node, names, settings, entry=HOSTILE) as second:
                second.wait_ready()
                ready.append(time.monotonic() - crashed_s)
                letters = Follower(node, names["letters"])
                letter.append(letters.until(1) - crashed_s)
                letters.close()
            _say(
                f"round {number + 1}: ready after {ready[-1]:.2f} s (a plain start {plain[-1]:.2f} s), "
                f"letter {letter[-1]:.2f} s"
            )
    return {
        "ready_over_plain_start": spread([each / start for each, start in zip(ready, plain, strict=True)]),
        "ready_s": spread(ready),
        "letter_after_ready_s": spread([out - each for out, each in zip(letter, ready, strict=True)]),
        "images": count,
    }


def spread(values: Sequence[float]) -> dict[str, float]:
    return {
        "median": round(statistics.median(values), 3),
        "min": round(min(values), 3),
        "max": round(max(values), 3),
        "rounds": len(values),
    }


if __name__ == "__main__":
    main()
