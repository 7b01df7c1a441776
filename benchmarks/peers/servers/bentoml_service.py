"""BentoML: an API of lists that BentoML batches over requests; images in base64."""

from typing import Any

import bentoml
import pybase64
from same_model import SETTINGS, Model


@bentoml.service(
    workers=SETTINGS["workers"],
    threads=SETTINGS["lanes"],
    traffic={"timeout": 120, "max_concurrency": 1000},
    logging={"access": {"enabled": False}},
    metrics={"enabled": False},
)
class Labeler:
    """One model a worker."""

    def __init__(self) -> None:
        self._model = Model()

    @bentoml.api(
        batchable=True,
        batch_dim=0,
        max_batch_size=SETTINGS["batch"],
        max_latency_ms=SETTINGS["max_latency_ms"],
    )
    def predict(self, images: list[str]) -> list[list[dict[str, Any]]]:
        """Images in base64 -> the labels of each."""
        return self._model.label([pybase64.b64decode(each) for each in images])
