"""`python -m consumer.bench.tune_process FOLDER MEGAPIXELS [SETTINGS]`: looks at points with one runtime.

A process of its own for each runtime, so that one that crashes ends a search and no more, and TensorFlow's threads can
be other ones.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from consumer import bootstrap_model
from consumer.bench.children import answer_on_workload
from consumer.bench.workload import read_bodies
from consumer.log import configure
from consumer.settings import load
from consumer.tuning_rig import Rig
from consumer.tuning_settings import STREAMS, THREADS, present


class TuneProcess:
    """Answers `look`: images/s of a point, or null; `keep_open`: frees the runtimes of all points but those."""

    def __init__(self, folder: Path, megapixels: float, settings_file: Path | None) -> None:
        settings = load(settings_file)
        configure(settings.log.model_copy(update={"level": "WARNING", "file": ""}))
        model = bootstrap_model.load_model(settings)
        self._info = model.runtime.info
        self._rig = Rig(settings, model, read_bodies(folder, megapixels))
        at = present(settings)
        self._rig.holds(at[THREADS], at[STREAMS])

    def answer(self, asked: dict[str, Any]) -> Mapping[str, Any]:
        """One question."""
        if asked["ask"] == "facts":
            return {"digest": self._info.digest, "name": f"{self._info.name} {self._info.version}"}
        if asked["ask"] == "keep_open":
            self._rig.keep_open([tuple(point) for point in asked["points"]])
            return {}
        point = tuple(asked["point"])
        return {"images_per_s": self._rig.look(point, asked["seconds"], most_s=asked["most_s"])}


if __name__ == "__main__":
    answer_on_workload(TuneProcess)
