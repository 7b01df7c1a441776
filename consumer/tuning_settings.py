"""What is tuned: which settings, which values, which of them the user holds, and how a point becomes settings."""

from collections.abc import Mapping
from typing import Any

from consumer.cpu import quota_cores
from consumer.settings import Settings, value_of
from consumer.settings_tables import Section
from consumer.tuning import Axis, Point

NAMES = ("batch.max_size", "model.threads", "model.streams", "pipeline.decode_threads")
"""The settings of a point, in its order: that which matters most first."""
BATCH, THREADS, STREAMS, DECODERS = range(len(NAMES))

# Beyond, an image waits longer than it gains: the CPU runtimes were at their best by 32. One alone fills no two cores.
_BATCHES = (2, 4, 8, 16, 32)
_BATCHES_ON_A_GPU = (*_BATCHES, 64, 128, 256)


def present(settings: Settings) -> Point:
    """Where the settings stand, each 0 as what it comes to."""
    cores = quota_cores()
    model = settings.model
    return (
        settings.batch.max_size,
        model.threads or cores,
        model.streams,
        settings.pipeline.decode_threads or cores,
    )


def held(settings: Settings) -> dict[str, int]:
    """Those that the user set: file, variable or secret. A 0 says "as you think best"."""
    found = {}
    for name in NAMES:
        table, key = name.split(".")
        value: int = value_of(settings, name)
        if key in getattr(settings, table).model_fields_set and value:
            found[name] = value
    return found


def applied(settings: Settings, point: Point, *, leaving: Mapping[str, int] | None = None) -> Settings:
    """The settings with a point's values in them, but for those that are to be left."""
    return with_values(settings, {name: value for name, value in by_name(point).items() if name not in (leaving or {})})


def with_values(settings: Settings, values: Mapping[str, int]) -> Settings:
    """The settings with these values, by dotted name. What the user set (see `held`) stays what it was."""
    tables: dict[str, dict[str, Any]] = {}
    for name, value in values.items():
        table, key = name.split(".")
        tables.setdefault(table, {})[key] = value
    return settings.model_copy(
        update={table: _changed(getattr(settings, table), keys) for table, keys in tables.items()}
    )


def _changed(table: Section, values: Mapping[str, Any]) -> Section:
    return type(table).model_construct(_fields_set=table.model_fields_set, **{**dict(table), **values})


def by_name(point: Point) -> dict[str, int]:
    """A point's values by the names of the settings."""
    return dict(zip(NAMES, point, strict=True))


def said(point: Point) -> str:
    """For people."""
    return ", ".join(f"{name} {value}" for name, value in by_name(point).items())


def axes_around(
    start: Point,
    *,
    cores: int,
    on_gpu: bool,
    threads_stay: bool,
    has_streams: bool,
    held: Mapping[str, int],
    most_batch: int,
) -> list[Axis]:
    """What is searched along; an axis of one value where there is nothing to choose.

    Args:
        start: the point that the search begins at; its values are always among them.
        cores: that are ours.
        on_gpu: where the model runs.
        threads_stay: a process cannot change the model's threads.
        has_streams: whether the runtime runs images side by side.
        held: settings that are left as they are.
        most_batch: images that may be held at once, so that a larger batch could never fill.
    """
    batches = [size for size in (_BATCHES_ON_A_GPU if on_gpu else _BATCHES) if size <= most_batch]
    parts = (1, cores // 4, cores // 2, 3 * cores // 4, cores)
    choices: dict[str, tuple[int, ...]] = {
        "batch.max_size": tuple(batches),
        "model.threads": () if threads_stay or on_gpu else parts,
        # On two cores 0 is two streams already.
        "model.streams": (0, 1, *(parts[1:] if cores > 2 else ())) if has_streams and not on_gpu else (),
        "pipeline.decode_threads": (*parts, cores + max(1, cores // 2)),
    }
    found = []
    for name, at in by_name(start).items():
        least = 0 if name == "model.streams" else 1
        values = (at,) if name in held else sorted({at, *(value for value in choices[name] if value >= least)})
        found.append(Axis(name, tuple(values)))
    return found
