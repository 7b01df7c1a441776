"""What a maker of variants is given, and what it gives."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from consumer.model_spec import InputSpec, ModelFormat, ModelPackage, OutputSpec, Precision

Pixels = Sequence[npt.NDArray[np.uint8]]
"""uint8 [H, W, 3] each, at the model's input size."""


@dataclass(frozen=True, slots=True)
class Task:
    """What is to be made."""

    package: ModelPackage
    """The original, in float32."""
    folder: Path
    """Empty; what is made goes into it."""
    calibration: Pixels
    """Images to measure the activations on; none for kinds that need none."""
    threads: int
    levels: Sequence[float] = ()
    """Shares of the weights to prune, ascending."""
    tell: Callable[[int], None] = lambda _more: None
    """Told of each calibration image that was seen."""


@dataclass(frozen=True, slots=True)
class Made:
    """One variant, not compared with anything yet."""

    name: str
    """Of the kind, with its level where there are several: `pruned-50`."""
    format: ModelFormat
    files: Path
    """What a runtime loads."""
    input: InputSpec
    output: OutputSpec
    precision: Precision
    runtime: str = ""
    """The one that it is made for; empty: any that runs the original."""
    signature: str = ""
    options: Mapping[str, str] = field(default_factory=dict)
    tools: Mapping[str, str] = field(default_factory=dict)
    """Versions of what made it."""
    notes: Mapping[str, float] = field(default_factory=dict)
    """Figures of how it was made."""


def versions(*distributions: str) -> dict[str, str]:
    """Of the installed ones among these."""
    from importlib.metadata import PackageNotFoundError, version

    found = {}
    for name in distributions:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
