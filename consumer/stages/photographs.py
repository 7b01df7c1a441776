"""Which images are of one photograph: they say the same of a model twice, and must not be counted twice. Pure.

Images are of one photograph if their bytes are equal, if they look alike but for encoding and size, or if their names
say so. Looking alike is a difference hash: the picture in 8 rows of 9 greys, and of each two neighbours which is the
brighter. Crops and mirrored copies do not look alike; for them there are names.
"""

import hashlib
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

ALIKE_BITS = 4
"""Of the 64, so many may differ. JPEG at quality 30 to 95 and half the size changed at most 2 of the photographs here
(tests/unit/test_photographs.py); of different photographs some 30 differ."""


def difference_hash(pixels: npt.NDArray[np.uint8]) -> int:
    """64 bits of uint8 [H, W, 3] RGB."""
    height, width, _ = pixels.shape
    grey = pixels.astype(np.float32).mean(axis=2)
    rows = np.array_split(np.arange(height), min(8, height))
    columns = np.array_split(np.arange(width), min(9, width))
    small = np.array([[grey[np.ix_(row, column)].mean() for column in columns] for row in rows])
    brighter = (small[:, 1:] > small[:, :-1]).ravel()
    return int.from_bytes(np.packbits(brighter).tobytes(), "big")


def photograph_ids(
    names: Sequence[str], digests: Sequence[str], hashes: Sequence[int], *, cluster_by: str = ""
) -> list[str]:
    """For each image an id of its photograph, which does not depend on the others' order.

    Args:
        names: of the images.
        digests: SHA-256 of their bytes, in hex.
        hashes: see `difference_hash`.
        cluster_by: images whose names are equal up to this text are of one photograph; empty: names say nothing.
    """
    parents = list(range(len(names)))

    def root(index: int) -> int:
        while parents[index] != index:
            parents[index] = parents[parents[index]]
            index = parents[index]
        return index

    def join(first: int, second: int) -> None:
        parents[root(second)] = root(first)

    seen: dict[str, int] = {}
    for index, (name, digest) in enumerate(zip(names, digests, strict=True)):
        keys = [f"digest:{digest}"]
        if cluster_by and cluster_by in name:
            keys.append(f"name:{name.partition(cluster_by)[0]}")
        for key in keys:
            join(seen.setdefault(key, index), index)
    packed = np.array(hashes, np.uint64)
    for index in range(len(packed)):
        for other in np.flatnonzero(np.bitwise_count(packed[:index] ^ packed[index]) <= ALIKE_BITS):
            join(int(other), index)
    least: dict[int, str] = {}
    for index, digest in enumerate(digests):
        found = root(index)
        least[found] = min(digest, least.get(found, digest))
    return [hashlib.sha256(least[root(index)].encode()).hexdigest() for index in range(len(names))]
