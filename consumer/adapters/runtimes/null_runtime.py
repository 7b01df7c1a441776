"""No model: the same scores for every image. For tests, and for measuring the stream alone."""

import time
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from consumer.adapters.model_digest import model_digest
from consumer.messages import ModelInfo

_NOTHING: Mapping[str, object] = {}


class NullRuntime:
    """Fulfils `ports.ModelRuntime`: class 0 gets 1/2, class 1 gets 1/4, ... whatever the pixels are."""

    def __init__(
        self,
        *,
        input_size: tuple[int, int] = (224, 224),
        class_count: int = 10,
        delay_s: float = 0.0,
        name: str = "",
        version: str = "",
        labels_digest: str = "",
        preprocessing: Mapping[str, object] = _NOTHING,
    ) -> None:
        """`delay_s`: seconds that each batch takes, for tests of a slow model."""
        self._input_size = input_size
        self._delay_s = delay_s
        row = np.ldexp(np.ones(class_count, np.float32), -np.arange(1, class_count + 1))
        row[-1] *= 2  # so that the row sums to 1
        self._row = row.astype(np.float32)
        self._info = ModelInfo(
            name=name or "null",
            version=version or "1",
            digest=model_digest(
                weights={"null": f"{class_count} classes"},
                labels=labels_digest,
                preprocessing={**preprocessing, "input_size": list(input_size)},
                precision="f32",
            ),
            runtime="null",
            precision="f32",
        )

    @property
    def info(self) -> ModelInfo:
        """Which model this is: none."""
        return self._info

    @property
    def input_size(self) -> tuple[int, int]:
        """(height, width) in pixels that `infer` takes."""
        return self._input_size

    @property
    def class_count(self) -> int:
        """C, the length of a score row."""
        return len(self._row)

    def warm_up(self, batch_sizes: Sequence[int]) -> None:
        """Nothing to warm."""

    def infer(self, pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """uint8 [N, H, W, 3] in, the same row N times out: float32 [N, C]."""
        if self._delay_s:
            time.sleep(self._delay_s)
        return np.tile(self._row, (len(pixels), 1))

    def close(self) -> None:
        """Nothing to free."""
