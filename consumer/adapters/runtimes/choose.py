"""`model.runtime = "auto"`: the fastest runtime that is installed and gives the same scores.

Each that runs the model's format is tried in a process of its own: loaded, warmed, its scores for real pictures
compared, and timed, in turns, so that what else the machine does meets each of them. What is found is remembered by all
that it depends on. One candidate alone is neither compared nor timed.
"""

import statistics
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from loguru import logger

from consumer.adapters.cpu_flags import cpu_flags, cpu_name
from consumer.adapters.runtimes.compiled_cache import key_of
from consumer.adapters.runtimes.kinds import KINDS, NATIVE, Kind, candidates, made_for
from consumer.adapters.runtimes.remembered import read_remembered, remember
from consumer.adapters.runtimes.trial import Trial, TrialFailed
from consumer.errors import CannotRun, DeviceMissing, ModelError
from consumer.model_spec import ModelFormat, ModelPackage

TOLERANCE = 1e-3
"""Of a score: labels of one precision agree within it on every runtime."""
_TIE = 0.95
_ROUNDS = 5
_SECONDS = 0.3
_DEADLINE_S = 300.0
"""For each answer of a trial; a runtime may have to convert the model first."""
_FILE = "runtime-choices.json"
# Raised when what is compared or timed changes.
_RECIPE = 2


@dataclass(frozen=True, slots=True)
class Choice:
    """Which runtime, and why."""

    runtime: str
    why: str
    """For people: the figures, and what is the matter with those passed over."""


@dataclass(slots=True)
class Tried:
    """What came of one candidate's trial."""

    kind: Kind
    scores: npt.NDArray[np.float32] | None = None
    """None where it failed."""
    rates: list[float] = field(default_factory=list)
    """Images/s, a value a round."""
    failed: TrialFailed | None = None

    @property
    def images_per_s(self) -> float:
        return statistics.median(self.rates) if self.rates else 0.0


def choose_runtime(
    package: ModelPackage, *, threads: int, device: str, batch_size: int, cache: Path, streams: int = 0
) -> Choice:
    """The runtime for this model here: remembered, or tried now, which takes some seconds a candidate.

    Args:
        package: the model.
        threads: cores that it may use.
        device: `auto`, `cpu`, `gpu:0`, ...
        batch_size: the largest, at which they are timed.
        cache: where the choice is remembered, and runtimes keep what they compile.
        streams: `model.streams`: where it is set, one that has none is passed over.

    Raises:
        CannotRun: no runtime that is installed runs it.
        DeviceMissing: a GPU that is asked for, and none of them sees it.
        ModelError: the model is broken.
    """
    fit = candidates(package)
    if len(fit) == 1:
        reason = (
            "the one it was made for" if made_for(package.spec) else f"the only one installed for {package.spec.format}"
        )
        return Choice(fit[0].name, f"{fit[0].title}: {reason}, neither compared nor timed")
    key = key_of(
        {
            "recipe": _RECIPE,
            "digest": package.digest,
            "runtimes": {kind.name: version_of(kind) for kind in fit},
            "cpu": [cpu_name(), *sorted(cpu_flags())],
            "threads": threads,
            "device": device,
            "batch_size": batch_size,
            **({"streams": streams} if streams else {}),
        }
    )
    names = [kind.name for kind in fit]
    remembered = read_remembered(cache / _FILE).get(key)
    if isinstance(remembered, Mapping) and remembered.get("runtime") in names:
        return Choice(str(remembered["runtime"]), f"{remembered.get('why', '')} (remembered)")
    logger.info("trying {} with {}, once", ", ".join(kind.title for kind in fit), package.spec.name)
    tried = _try_all(fit, package, threads=threads, device=device, batch_size=batch_size, cache=cache, streams=streams)
    choice = decide(tried, batch_size, package.spec.format)
    remember(cache / _FILE, key, {"runtime": choice.runtime, "why": choice.why})
    return choice


def decide(tried: Sequence[Tried], batch_size: int, form: ModelFormat) -> Choice:
    """The fastest that agrees; of two within 5 %, the one that `KINDS` has first. Raises: see `choose_runtime`."""
    reference, agreeing = _agreeing(tried, form)
    best = max(each.images_per_s for each in agreeing)
    order = [kind.name for kind in KINDS]
    chosen = min(
        (each for each in agreeing if each.images_per_s >= best * _TIE), key=lambda each: order.index(each.kind.name)
    )
    return Choice(chosen.kind.name, "; ".join(_reasons(tried, chosen, reference, batch_size)))


def _agreeing(tried: Sequence[Tried], form: ModelFormat) -> tuple[Tried, list[Tried]]:
    """Whose scores are right, and all who give them. Raises: see `choose_runtime`."""
    ran = [each for each in tried if each.scores is not None]
    _refuse_broken(tried, ran)
    reference = _reference(ran, NATIVE[form])
    return reference, [each for each in ran if _difference(each, reference) <= TOLERANCE]


def agreeing_runtimes(
    package: ModelPackage, *, threads: int, device: str, batch_size: int, cache: Path
) -> tuple[list[str], list[str]]:
    """All that are installed and give the same scores, the lightest first; and what is the matter with the others, for
    people. Each is tried in a process of its own, one after the other. Arguments and errors as of `choose_runtime`."""
    fit = candidates(package)
    if len(fit) == 1:
        return [fit[0].name], []
    tried = _try_all(fit, package, threads=threads, device=device, batch_size=batch_size, cache=cache, rounds=0)
    reference, agreeing = _agreeing(tried, package.spec.format)
    passed_over = [_why_not(each, reference) for each in tried if each is not reference]
    return [each.kind.name for each in agreeing], [said for said in passed_over if said is not None]


def _reasons(tried: Sequence[Tried], chosen: Tried, reference: Tried, batch_size: int) -> list[str]:
    said = [f"{chosen.kind.title}: {chosen.images_per_s:.0f} images/s at batch {batch_size}"]
    for each in tried:
        if each is chosen:
            continue
        said.append(_why_not(each, reference) or f"{each.kind.title}: {each.images_per_s:.0f}")
    return said


def _why_not(each: Tried, reference: Tried) -> str | None:
    """Why it is passed over, for people; None where it is not."""
    if each.failed is not None:
        return f"not {each.kind.title}: {each.failed}"
    if (difference := _difference(each, reference)) > TOLERANCE:
        return f"not {each.kind.title}: its scores differ from those of {reference.kind.title} by {difference:.2g}"
    return None


def _reference(ran: Sequence[Tried], native: str) -> Tried:
    """Whose scores are right: those of the runtime whose own format it is; where that is not there, those that most
    agree with."""
    for each in ran:
        if each.kind.name == native:
            return each
    return max(ran, key=lambda one: sum(_difference(one, other) <= TOLERANCE for other in ran))


def _difference(one: Tried, other: Tried) -> float:
    """The largest of any score."""
    if one.scores is None or other.scores is None or one.scores.shape != other.scores.shape:
        return float("inf")
    return float(np.abs(one.scores - other.scores).max())


def _refuse_broken(tried: Sequence[Tried], ran: Sequence[Tried]) -> None:
    """Where TensorFlow says that a SavedModel is broken, another's scores are not to be trusted: OpenVINO checks no
    sums of what it reads."""
    for each in tried:
        if each.kind.name == "tensorflow" and each.failed is not None and each.failed.error == "ModelError":
            raise ModelError(str(each.failed), remedy=each.failed.remedy)
    if ran:
        return
    reasons = "; ".join(f"{each.kind.title}: {each.failed}" for each in tried)
    remedy = next((each.failed.remedy for each in reversed(tried) if each.failed and each.failed.remedy), "")
    classes = {each.failed.error for each in tried if each.failed}
    error = DeviceMissing if classes == {"DeviceMissing"} else CannotRun
    raise error(f"no runtime that is installed runs the model: {reasons}", remedy=remedy or "`ouzel doctor` says more")


def _try_all(
    fit: Sequence[Kind], package: ModelPackage, *, batch_size: int, rounds: int = _ROUNDS, **given: Any
) -> list[Tried]:
    """Loaded one after the other, then timed in turns."""
    tried = [Tried(kind) for kind in fit]
    with ExitStack() as stack:
        trials = []
        for each in tried:
            trial = stack.enter_context(
                Trial(each.kind.name, package, batch_size=batch_size, deadline_s=_DEADLINE_S, **given)
            )
            try:
                each.scores = trial.load()
                trials.append((each, trial))
            except TrialFailed as error:
                each.failed = error
        for _ in range(rounds if len(trials) > 1 else min(rounds, 1)):
            for each, trial in trials:
                _measure(each, trial)
    return tried


def _measure(each: Tried, trial: Trial) -> None:
    if each.failed is None:
        try:
            each.rates.append(trial.measure(_SECONDS))
        except TrialFailed as error:
            each.failed, each.scores = error, None


def version_of(kind: Kind) -> str:
    """The package that brings it, and its version."""
    for package in kind.packages:
        try:
            return f"{package} {version(package)}"
        except PackageNotFoundError:
            continue
    return "unknown"
