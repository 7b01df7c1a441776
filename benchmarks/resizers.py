"""What `decode.resizer = "simd"` gains, and what it changes: CPU, pixels, scores and the first label.

    python -m benchmarks.resizers [--model FOLDER --labels FILE --images FOLDER]

Both shrink the same decoded pictures in turns. `--model` takes a SavedModel with input 0 to 1, squeezed bilinear;
without it, the default model with its own preprocessing.
"""

import argparse
import statistics
import time
from pathlib import Path

import numpy as np
from PIL import Image

from consumer import bootstrap_model
from consumer.adapters.image import PillowDecoder
from consumer.adapters.simd_resize import SimdResize
from consumer.settings import Settings

PHOTOGRAPHS = Path(__file__).parents[1] / "consumer" / "data" / "photographs"
SIZES = ((640, 480), (1600, 1200), (4000, 3000))
ROUNDS = 15


def main() -> None:
    """Two tables on stdout."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="default")
    parser.add_argument("--labels", default="")
    parser.add_argument("--images", type=Path, default=PHOTOGRAPHS)
    options = parser.parse_args()
    described = {"source": options.model, "labels": options.labels, "device": "cpu"}
    runtime = bootstrap_model.load_model(Settings.model_validate({"model": described})).runtime
    runtime.warm_up([1])
    resize, crop = ("bicubic", 0.875) if options.model == "default" else ("bilinear", 1.0)
    bodies = [path.read_bytes() for path in sorted(options.images.glob("*.jpg"))]
    pixels = {
        resizer: [
            PillowDecoder(runtime.input_size, resize=resize, crop=crop, resizer=resizer).decode(body).pixels  # type: ignore[arg-type]
            for body in bodies
        ]
        for resizer in ("pillow", "simd")
    }
    scores = {resizer: [runtime.infer(each[None])[0] for each in found] for resizer, found in pixels.items()}
    moved = [np.abs(one.astype(int) - other) for one, other in zip(pixels["pillow"], pixels["simd"], strict=True)]
    pairs = list(zip(scores["pillow"], scores["simd"], strict=True))
    kept = sum(int(one.argmax()) == int(other.argmax()) for one, other in pairs)
    print("| model, filter | samples that differ | mean | largest | largest change of a score | first label kept |")
    print("| --- | --- | --- | --- | --- | --- |")
    print(
        f"| {runtime.info.name}, {resize} | {statistics.fmean(float((each > 0).mean()) for each in moved):.3f} "
        f"| {max(float(each.mean()) for each in moved):.3f} | {max(int(each.max()) for each in moved)} "
        f"| {max(float(np.abs(one - other).max()) for one, other in pairs):.4f} | {kept} of {len(bodies)} |"
    )
    _times(options.images, runtime.input_size[::-1])


def _times(images: Path, target: tuple[int, int]) -> None:
    """CPU-milliseconds of shrinking alone, median of rounds in turn."""
    print(f"\n| pixels, bilinear to {target[0]} x {target[1]} | pillow, ms | simd, ms | times |")
    print("| --- | --- | --- | --- |")
    simd = SimdResize(Image.Resampling.BILINEAR)
    original = Image.open(next(iter(sorted(images.glob("*.jpg"))))).convert("RGB")
    for size in SIZES:
        image = original.resize(size)
        box = (0.0, 0.0, float(size[0]), float(size[1]))
        taken: tuple[list[float], list[float]] = ([], [])
        for _ in range(ROUNDS):
            began_s = time.thread_time()
            image.resize(target, Image.Resampling.BILINEAR)
            between_s = time.thread_time()
            simd(image, target, box)
            taken[0].append((between_s - began_s) * 1000)
            taken[1].append((time.thread_time() - between_s) * 1000)
        one, other = (statistics.median(each) for each in taken)
        print(f"| {size[0]} x {size[1]} | {one:.2f} | {other:.2f} | {one / other:.1f} |")


if __name__ == "__main__":
    main()
