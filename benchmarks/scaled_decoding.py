"""What `decode.jpeg_scaled` gains, and what it changes: pixels, scores and the first label, on real photographs.

    python -m benchmarks.scaled_decoding [--model FOLDER --labels FILE --images FOLDER]

Full and scaled decoding are timed in turns, in one run, so that what else the machine does meets both. `--model` takes
a SavedModel with input 0 to 1, squeezed bilinear; without it, the default model with its own preprocessing.
"""

import io
import statistics
import time
from collections.abc import Sequence

import numpy as np
from PIL import Image

from benchmarks.model_options import ROUNDS, chosen
from consumer.adapters import image as decoding
from consumer.adapters.image import PillowDecoder

MARGINS = (1, 2, 3, 4)
LARGE = (4000, 3000)


def main() -> None:
    """Two tables on stdout."""
    model = chosen(__doc__)
    (height, width), bodies = model.runtime.input_size, model.bodies
    plain, scaled = model.decoder(), model.decoder(scaled=True)
    full = {name: plain.decode(body).pixels for name, body in bodies.items()}
    scores = {name: model.runtime.infer(pixels[None])[0] for name, pixels in full.items()}
    print(f"{len(bodies)} photographs, model {model.runtime.info.name}, input {width} x {height}")
    print("| at least | scaled | mean difference | largest | largest change of a score | first label kept |")
    print("| --- | --- | --- | --- | --- | --- |")
    for margin in MARGINS:
        decoding.SCALED_MARGIN = margin
        means, largest, moved, kept, steps = [], [], [], 0, 0
        for name, body in bodies.items():
            found = scaled.decode(body)
            steps += any(step.startswith("draft") for step in found.facts.applied)
            difference = np.abs(found.pixels.astype(int) - full[name])
            means.append(float(difference.mean()))
            largest.append(int(difference.max()))
            row = model.runtime.infer(found.pixels[None])[0]
            moved.append(float(np.abs(row - scores[name]).max()))
            kept += int(row.argmax()) == int(scores[name].argmax())
        print(
            f"| {margin} x | {steps} | {max(means):.2f} | {max(largest)} | {max(moved):.4f} | {kept} of {len(bodies)} |"
        )
    decoding.SCALED_MARGIN = 2
    _times(bodies, plain, scaled)


def _times(bodies: dict[str, bytes], full: PillowDecoder, scaled: PillowDecoder) -> None:
    print("\n| photograph | megapixels | full, ms | scaled, ms | times |\n| --- | --- | --- | --- | --- |")
    name, body = max(bodies.items(), key=lambda each: len(each[1]))
    file = io.BytesIO()
    Image.open(io.BytesIO(body)).resize(LARGE).save(file, "JPEG", quality=90)
    for name, body in [*bodies.items(), (f"{name} enlarged", file.getvalue())]:  # noqa: B020
        size = full.measure(body)
        taken: tuple[list[float], list[float]] = ([], [])
        for _ in range(ROUNDS):
            for decoder, times in zip((full, scaled), taken, strict=True):
                began_s = time.process_time()
                decoder.decode(body)
                times.append((time.process_time() - began_s) * 1000)
        one, other = _middle(taken[0]), _middle(taken[1])
        print(f"| {name} | {size.width * size.height / 1e6:.1f} | {one:.1f} | {other:.1f} | {one / other:.1f} |")


def _middle(times: Sequence[float]) -> float:
    return statistics.median(times)


if __name__ == "__main__":
    main()
