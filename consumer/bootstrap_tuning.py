"""`model.autotune`: batch size, threads and streams that do most images here, found at the first start, remembered.

model loaded ──> remembered for this model, CPU and versions? ──yes──> used
                          │no
                          └──> search (tuning) by looks at the flow itself (tuning_rig) ──> held against what is set
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol

from loguru import logger

from consumer import bootstrap_model
from consumer.bootstrap_model import Model, Progress, cache_folder
from consumer.bootstrap_serving import needed_bytes
from consumer.cpu import quota_cores
from consumer.errors import Fatal
from consumer.memory import available_bytes
from consumer.model_spec import ModelPackage
from consumer.settings import Settings
from consumer.tuning import Axis, Found, Gain, Point, compare, looks_at_most, search
from consumer.tuning_rig import Rig
from consumer.tuning_settings import (
    NAMES,
    STREAMS,
    THREADS,
    applied,
    axes_around,
    by_name,
    held,
    present,
    said,
    with_values,
)

MEGAPIXELS = 0.3
IMAGES = f"of {MEGAPIXELS} MP made for it"
_QUALITY = 90
_FILE = "tuned-settings.json"
# Raised when what is measured changes.
_RECIPE = 1
_SEARCH_SHARE = 0.65
"""Of the budget; the rest is for holding what was found against what is set."""
_LEAST_LOOK_S = 0.05
_LOOKS_AT_LEAST = 8
_COMPARE_ROUNDS = 7
# What a search takes of `looks_at_most`: most races end after two rounds, and the second way is short.
_USUAL_SHARE = 0.5


class Looking(Protocol):
    """Measures a point: see `Rig.look`."""

    def __call__(self, point: Point, seconds: float, *, most_s: float) -> float | None:
        """Images/s, or None."""
        ...


@dataclass(frozen=True, slots=True)
class Tuned:
    """What holds from now on."""

    values: Mapping[str, int]
    """Of the settings that were free, by dotted name."""
    why: str
    """For people: the figures."""


@dataclass(frozen=True, slots=True)
class Loaded:
    """A model, and the settings that it is used with."""

    settings: Settings
    model: Model
    tuned: Mapping[str, int] = field(default_factory=dict)

    def read(self, settings: Settings) -> Settings:
        """Settings that were read anew, with what was tuned: it holds until a restart. But for what the user has set
        since, so that it is told that this holds from then on."""
        since = held(settings)
        return with_values(settings, {name: value for name, value in self.tuned.items() if name not in since})


def load_model(settings: Settings, *, progress: Progress = lambda _share, _what: None) -> Loaded:
    """The model that the settings name, as `bootstrap_model.load_model` loads it; with `model.autotune` tuned.

    Raises: see there. That tuning fails is said, and the settings hold as they are.
    """
    if not settings.model.autotune:
        return Loaded(settings, bootstrap_model.load_model(settings, progress=progress))
    if settings.model.runtime == "null":
        model = bootstrap_model.load_model(settings)
        return _with_remembered(settings, model) or _tuned_now(settings, model)
    package = bootstrap_model.obtain_package(settings, progress=progress)
    choice = bootstrap_model.choose_runtime(settings, package)
    found = remembered(settings, package.digest, choice.runtime)
    if found is None:
        return _tuned_now(settings, bootstrap_model.load_package(settings, package))
    if settings.model.runtime == "auto":
        logger.info("runtime {}: {}", choice.runtime, choice.why)
    _say(found, settings, again=True)
    settings = with_values(settings, found.values)
    # With its name, as `auto` would look for what it chose by the batch size, which is another one now.
    on = settings.model.model_copy(update={"runtime": choice.runtime})
    model = bootstrap_model.load_package(settings.model_copy(update={"model": on}), package)
    return Loaded(settings, model, found.values)


def _with_remembered(settings: Settings, model: Model) -> Loaded | None:
    info = model.runtime.info
    found = remembered(settings, info.digest, info.runtime)
    if found is None:
        return None
    _say(found, settings, again=True)
    return Loaded(with_values(settings, found.values), model, found.values)


def _tuned_now(settings: Settings, model: Model) -> Loaded:
    """Never what a start fails by: whatever befalls the search, the model is there."""
    try:
        return _searched(settings, model)
    except Exception as error:
        cause = f"{error}".partition("\n")[0] or type(error).__name__
        remedy = f"; {error.remedy}" if isinstance(error, Fatal) and error.remedy else ""
        logger.warning(
            "not tuned, the settings hold as they are: {}{} (tuning labels JPEGs of {} MP; model.autotune = false does"
            " without)",
            cause,
            remedy,
            MEGAPIXELS,
        )
        return Loaded(settings, model)


def _searched(settings: Settings, model: Model) -> Loaded:
    """Raises whatever befalls it; the model is then open still."""
    budget_s = settings.model.autotune_budget_ms / 1000
    logger.info("tuning for this machine, once, in up to {:.1f} s (model.autotune_budget_ms)", budget_s)
    info = model.runtime.info
    bodies = workload()
    rig = Rig(settings, model, bodies)
    try:
        start = present(settings)
        rig.holds(start[THREADS], start[STREAMS])
        session = Tuning(settings, model, budget_s=budget_s)
        point, why, knows = session.run(rig.look, settled=lambda best: rig.keep_open([best]))
        used = _at(point, start, rig, model)
    finally:
        rig.close()
    free = {name: value for name, value in by_name(point).items() if name not in held(settings)}
    tuned = Tuned(free, why)
    keep(settings, info.digest, info.runtime, tuned, knows=knows)
    _say(tuned, settings)
    if used is not model:
        model.runtime.close()
    return Loaded(applied(settings, point, leaving=held(settings)), used, free)


def _at(point: Point, start: Point, rig: Rig, model: Model) -> Model:
    """The model with the threads and streams of a point."""
    if (point[THREADS], point[STREAMS]) == (start[THREADS], start[STREAMS]):
        return model
    return replace(model, runtime=rig.runtime(point))


def _say(tuned: Tuned, settings: Settings, *, again: bool = False) -> None:
    left = held(settings)
    kept = f"; left as set: {', '.join(left)}" if left else ""
    values = ", ".join(f"{name} {value}" for name, value in tuned.values.items()) or "nothing is free"
    logger.info("tuned: {}: {}{}{}", values, tuned.why, kept, " (remembered)" if again else "")


# --- the search -----------------------------------------------------------------------------------------------------


class Tuning:
    """One search within a budget of time, and what is made of it."""

    def __init__(
        self,
        settings: Settings,
        model: Model,
        *,
        budget_s: float,
        now_s: Callable[[], float] = time.monotonic,
        cores: int | None = None,
    ) -> None:
        self._start = present(settings)
        self._budget_s = budget_s
        self._now_s = now_s
        self._began_s = now_s()
        runtime = model.runtime.info.runtime
        has_streams, threads_stay = _kind(runtime)

        def axes(*, roomy: bool) -> list[Axis]:
            return axes_around(
                self._start,
                cores=cores or quota_cores(),
                on_gpu=on_gpu(settings),
                threads_stay=threads_stay or not roomy,
                has_streams=has_streams and roomy,
                held=held(settings),
                most_batch=most_batch(settings),
            )

        self._axes = axes(roomy=model.package is not None)
        if model.package is not None and not _has_room(model.package, settings, _at_once(self._axes)):
            self._axes = axes(roomy=False)
        looks = max(1.0, _USUAL_SHARE * looks_at_most(self._axes))
        self._look_s = max(_LEAST_LOOK_S, _SEARCH_SHARE * budget_s / looks)

    def run(self, look: Looking, *, settled: Callable[[Point], None] = lambda _point: None) -> tuple[Point, str, bool]:
        """The point to use, why, and whether the time was enough to know. `settled`: see `tuning.search`."""
        if all(len(axis.values) == 1 for axis in self._axes):
            return self._start, "there is nothing to choose", True

        def look_at(point: Point) -> float | None:
            left_s = self._budget_s - (self._now_s() - self._began_s)
            most_s = max(_LEAST_LOOK_S, min(self._budget_s / _LOOKS_AT_LEAST, left_s))
            return look(point, min(self._look_s, most_s), most_s=most_s)

        found = search(self._axes, self._start, look_at, may_go_on=self._until(_SEARCH_SHARE), settled=settled)
        gain = Gain(())
        if found.point != self._start:
            gain = compare(found.point, self._start, look_at, rounds=_COMPARE_ROUNDS, may_go_on=self._until(1.0))
        point, why = decide(self._start, found, gain)
        took_s = self._now_s() - self._began_s
        measured = f"{found.looks} looks at decoding and inference side by side, {took_s:.1f} s, images {IMAGES}"
        knows = found.finished if found.point == self._start else gain.is_known
        return point, f"{why} ({measured})", knows

    def _until(self, share: float) -> Callable[[], bool]:
        return lambda: self._now_s() - self._began_s < share * self._budget_s


def decide(start: Point, found: Found, gain: Gain) -> tuple[Point, str]:
    """The point to use, and why. What was found holds where it was faster in every round, or is smaller and as fast."""
    rates = {each.point: each.rate for each in found.tried}
    if found.point == start:
        if not found.finished:
            return start, "there was no time to find better (raise model.autotune_budget_ms)"
        return start, f"{rates.get(start, 0.0):.0f} images/s, and nothing tried was better"
    against = f"{gain.median:.2f} times ({gain.least:.2f} to {gain.most:.2f}) the images/s of {said(start)}"
    if not gain.is_known:
        return start, f"{said(found.point)} seemed better, with no time to be sure (raise model.autotune_budget_ms)"
    smaller = all(mine <= other for mine, other in zip(found.point, start, strict=True))
    if gain.is_one:
        return found.point, f"{rates.get(found.point, 0.0):.0f} images/s, {against}"
    if smaller and gain.is_no_loss:
        return found.point, f"{rates.get(found.point, 0.0):.0f} images/s, as fast with less: {against}"
    return start, f"{rates.get(start, 0.0):.0f} images/s; {said(found.point)} did {against}, which is no gain"


def workload() -> list[bytes]:
    """JPEGs of 0.3 MP, cut from the photographs that come with Ouzel: what images will come is not known yet."""
    from consumer.adapters.bench_images import jpeg_of_size

    paths = sorted((Path(__file__).parent / "data" / "photographs").glob("*.jpg"))
    made = (
        jpeg_of_size(path.read_bytes(), megapixels=MEGAPIXELS, quality=_QUALITY, variant=variant)
        for variant in range(2)
        for path in paths
    )
    return [body for body in made if body is not None]


def _kind(runtime: str) -> tuple[bool, bool]:
    """Whether it has streams, and whether its threads stay."""
    from consumer.adapters.runtimes.kinds import find_kind

    kind = find_kind(runtime)
    return (False, True) if kind is None else (kind.has_streams, kind.threads_stay)


def on_gpu(settings: Settings) -> bool:
    """As far as the settings say; `auto` is a CPU here, where the axes are those of one."""
    return settings.model.device.startswith("gpu")


def most_batch(settings: Settings) -> int:
    """Images; a larger batch could never fill while another one is inferred."""
    return settings.pipeline.max_in_flight_messages // 2


def _at_once(axes: Sequence[Axis]) -> int:
    """Runtimes that are open side by side at most beside the first: as many as the longer of the races between numbers
    of threads and of streams compares, after which those that lost are closed."""
    return max(len(axes[place].values) for place in (THREADS, STREAMS))


def _has_room(package: ModelPackage, settings: Settings, times: int) -> bool:
    """Whether the model fits so many times."""
    left = available_bytes()
    return left is None or left > times * needed_bytes(package, settings.batch.max_size)


# --- remembered -----------------------------------------------------------------------------------------------------


def keep(
    settings: Settings, digest: str, runtime: str, tuned: Tuned, *, knows: bool, nothing_held: bool = False
) -> None:
    """For later starts; where there was no time to know better, for those with no larger budget. With `nothing_held`
    for those that hold none of the settings, or the same values."""
    from consumer.adapters.runtimes.remembered import remember

    key = _key(settings, digest, runtime, {} if nothing_held else held(settings))
    budget_ms = None if knows else settings.model.autotune_budget_ms
    remember(cache_folder() / _FILE, key, {"values": dict(tuned.values), "why": tuned.why, "budget_ms": budget_ms})


def remembered(settings: Settings, digest: str, runtime: str) -> Tuned | None:
    """What an earlier start, or `ouzel bench --tune`, found for this model on this machine."""
    from consumer.adapters.runtimes.remembered import read_remembered

    choices, left = read_remembered(cache_folder() / _FILE), held(settings)
    budget_ms = settings.model.autotune_budget_ms
    found = _checked(choices.get(_key(settings, digest, runtime, left)), set(NAMES) - set(left), budget_ms)
    if found is not None or not left:
        return found
    # What was found with nothing held holds too where it has the same value for each setting that is.
    found = _checked(choices.get(_key(settings, digest, runtime, {})), set(NAMES), budget_ms)
    if found is None or any(found.values[name] != value for name, value in left.items()):
        return None
    return replace(found, values={name: value for name, value in found.values.items() if name not in left})


def _checked(found: Any, free: set[str], budget_ms: int) -> Tuned | None:
    """None where it is not as we write it: the file is in a cache, and anyone may have been there."""
    if not isinstance(found, Mapping) or not isinstance(values := found.get("values"), Mapping):
        return None
    if set(values) != free or not all(type(value) is int and 0 <= value <= 4096 for value in values.values()):
        return None
    if any(value == 0 for name, value in values.items() if name != NAMES[STREAMS]):
        return None
    had_ms = found.get("budget_ms")
    if isinstance(had_ms, int) and had_ms < budget_ms:
        return None
    return Tuned({name: values[name] for name in NAMES if name in values}, str(found.get("why", "")))


def _key(settings: Settings, digest: str, runtime: str, left: Mapping[str, int]) -> str:
    from consumer.adapters.cpu_flags import cpu_flags, cpu_name
    from consumer.adapters.runtimes.choose import version_of
    from consumer.adapters.runtimes.compiled_cache import key_of
    from consumer.adapters.runtimes.kinds import find_kind

    kind = find_kind(runtime)
    return key_of(
        {
            "recipe": _RECIPE,
            "digest": digest,
            "runtime": [runtime, version_of(kind) if kind is not None else ""],
            "decoder": version("pillow"),  # how it decodes is part of the digest
            "cpu": [cpu_name(), *sorted(cpu_flags())],
            "cores": quota_cores(),
            "device": settings.model.device,
            "held": dict(left),
            "max_wait_ms": settings.batch.max_wait_ms,
            "in_flight": settings.pipeline.max_in_flight_messages,
        }
    )
