"""What `decode.resizer = "simd"` gains, and what it changes: CPU, pixels, scores and the first label.

    python -m benchmarks.resizers [--model FOLDER --labels FILE --images FOLDER]

Both shrink the same decoded pictures in turns. `--model` takes a SavedModel with input 0 to 1, squeezed bilinear;
without it, the default model with its own preprocessing.
"""

import io
import statistics
import time

import numpy as np
from PIL import Image

from benchmarks.model_options import ROUNDS, Resizer, chosen
from consumer.adapters.simd_resize import SimdResize

SIZES = ((640, 480), (1600, 1200), (4000, 3000))


def main() -> None:
    """Two tables on stdout."""
    model = chosen(__doc__)
    runtime, bodies = model.runtime, list(model.bodies.values())
    resizers: tuple[Resizer, ...] = ("pillow", "simd")
    pixels = {resizer: [model.decoder(resizer=resizer).decode(body).pixels for body in bodies] for resizer in resizers}
    scores = {resizer: [runtime.infer(each[None])[0] for each in found] for resizer, found in pixels.items()}
    moved = [np.abs(one.astype(int) - other) for one, other in zip(pixels["pillow"], pixels["simd"], strict=True)]
    pairs = list(zip(scores["pillow"], scores["simd"], strict=True))
    kept = sum(int(one.argmax()) == int(other.argmax()) for one, other in pairs)
    print("| model, filter | samples that differ | mean | largest | largest change of a score | first label kept |")
    print("| --- | --- | --- | --- | --- | --- |")
    print(
        f"| {runtime.info.name}, {model.resize} | {statistics.fmean(float((each > 0).mean()) for each in moved):.3f} "
        f"| {max(float(each.mean()) for each in moved):.3f} | {max(int(each.max()) for each in moved)} "
        f"| {max(float(np.abs(one - other).max()) for one, other in pairs):.4f} | {kept} of {len(bodies)} |"
    )
    _times(bodies[0], runtime.input_size[::-1])


def _times(body: bytes, target: tuple[int, int]) -> None:
    """CPU-milliseconds of shrinking alone, median of rounds in turn."""
    print(f"\n| pixels, bilinear to {target[0]} x {target[1]} | pillow, ms | simd, ms | times |")
    print("| --- | --- | --- | --- |")
    simd = SimdResize(Image.Resampling.BILINEAR)
    original = Image.open(io.BytesIO(body)).convert("RGB")
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
