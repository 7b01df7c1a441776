"""The plain script that a consumer service replaces: the model is loaded once, then one image after the other is
decoded by Pillow, given to the SavedModel's signature, and its labels printed.

For the benchmark it waits for a line with file names on stdin (JSON), labels them, and answers how long that took.
"""

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import numpy as np
import tensorflow as tf
from same_model import SETTINGS, TOP, decode


def main() -> None:
    """Load, then answer line by line."""
    loaded = tf.saved_model.load(SETTINGS["model"])
    signature = next(iter(loaded.signatures.values()))
    name = next(iter(signature.structured_input_signature[1]))

    def infer(pixels: Any) -> Any:
        images = (pixels.astype(np.float32)[None] - SETTINGS["mean"]) / SETTINGS["scale"]
        return next(iter(signature(**{name: tf.constant(images)}).values())).numpy()[0]

    infer(np.zeros((*SETTINGS["size"], 3), np.uint8))
    print(json.dumps({"ready": True, "versions": {"tensorflow": tf.__version__}}), flush=True)
    for line in sys.stdin:
        first, decode_ms, infer_ms = [], [], []
        cpu_s, started_s = time.process_time(), time.perf_counter()
        for path in json.loads(line):
            before_s = time.perf_counter()
            pixels = decode(Path(path).read_bytes())
            between_s = time.perf_counter()
            scores = infer(pixels)
            infer_ms.append(1000 * (time.perf_counter() - between_s))
            decode_ms.append(1000 * (between_s - before_s))
            best = scores.argsort()[::-1][:TOP]
            print(
                path, [(SETTINGS["labels"][index], round(float(scores[index]), 3)) for index in best], file=sys.stderr
            )
            first.append((int(best[0]), float(scores[best[0]])))
        wall_s = time.perf_counter() - started_s
        cpu_s = time.process_time() - cpu_s
        print(
            json.dumps(
                {"wall_s": wall_s, "cpu_s": cpu_s, "first": first, "decode_ms": decode_ms, "infer_ms": infer_ms}
            ),
            flush=True,
        )


if __name__ == "__main__":
    main()
