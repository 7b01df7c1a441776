"""From what was measured to what is said: medians with their spread, as one JSON document. Pure but for the machine."""

import platform
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any, TypeVar

from consumer import __version__
from consumer.adapters.cpu_flags import cpu_flags, cpu_name, noted
from consumer.bench.latency import Level
from consumer.bench.open_loop import ARRIVALS
from consumer.bench.results import LatencyRound, Result, Round, StageTerms
from consumer.bench.roofline import FORMULA, Spread, mean_parts
from consumer.cpu import quota_cores

T = TypeVar("T")

_NOISY_SHARE = 0.03
_SHORT_S = 2.0
BUDGET_LOAD = 0.7
"""The load whose p99 is held against the sum of what it cannot do without."""


def summarize(result: Result) -> dict[str, Any]:
    """Everything that terminal, page and JSON tell."""
    rounds, facts = result.rounds, result.facts
    return {
        "machine": machine(),
        "facts": asdict(facts),
        "rounds": len(rounds),
        "formula": FORMULA,
        "terms": _terms(rounds),
        "cores": rounds[0].window.cores,
        "free_cores": _spread(rounds, lambda each: each.window.free_cores),
        "roofline": _spread(rounds, lambda each: each.roofline),
        "achieved": _spread(rounds, lambda each: each.window.rate),
        "ratio": _spread(rounds, lambda each: each.ratio),
        "ratio_less_others": _known(rounds, lambda each: each.ratio_less_others),
        "service_cpu_ms": _spread(rounds, lambda each: each.window.per_image_ms(each.window.service_cpu_s)),
        "broker_cpu_ms": _known(
            rounds,
            lambda each: (
                None if each.window.broker_cpu_s is None else each.window.per_image_ms(each.window.broker_cpu_s)
            ),
        ),
        "peak_rss_mib": _spread(rounds, lambda each: each.peak_rss_bytes / 2**20),
        "mean_batch": _spread(rounds, lambda each: each.mean_batch),
        "padding_share": _spread(rounds, lambda each: each.window.padding_share),
        "first_event_s": _spread(rounds, lambda each: each.first_event_s),
        "window_s": _spread(rounds, lambda each: each.window.wall_s),
        "window_images": _spread(rounds, lambda each: each.window.images),
        "parts": [asdict(part) for part in mean_parts([each.parts for each in rounds])],
        "latency": _latency(result.latency),
        "budget": _budget(result),
        "warnings": list(warnings(result)),
        "each_round": [_round(each) for each in rounds],
    }


def machine() -> dict[str, Any]:
    """What was measured on."""
    return {
        "cores": quota_cores(),
        "cpu": cpu_name(),
        "cpu_flags": noted(cpu_flags()),
        "python": platform.python_version(),
        "ouzel": __version__,
    }


def _said(spread: Spread) -> dict[str, Any]:
    return {"median": spread.median, "least": spread.least, "most": spread.most}


def _spread(rounds: Sequence[Round], of: Callable[[Round], float]) -> dict[str, Any]:
    return _said(Spread.of(of(each) for each in rounds))


def _known(rounds: Sequence[Round], of: Callable[[Round], float | None]) -> dict[str, Any] | None:
    """None where it is not known in every round."""
    found = [of(each) for each in rounds]
    known = [value for value in found if value is not None]
    return _said(Spread.of(known)) if len(known) == len(found) else None


def _by(
    rounds: Sequence[Round], keys: Iterable[T], of: Callable[[StageTerms, T], float], name: Callable[[T], str] = str
) -> dict[str, Any]:
    """A spread for each form, size or batch."""
    return {name(key): _said(Spread.of(of(each.stages, key) for each in rounds)) for key in keys}


def _terms(rounds: Sequence[Round]) -> dict[str, Any]:
    """CPU-milliseconds an image; of decoding and inference the wall-clock too."""
    first = rounds[0].stages
    return {
        "fetch_ms": _by(rounds, first.fetch, lambda stages, form: stages.fetch[form].cpu_ms),
        "decode_ms": _by(rounds, first.decode, lambda stages, size: stages.decode[size].cpu_ms, _size),
        "decode_p99_ms": _by(rounds, first.decode, lambda stages, size: stages.decode[size].p99_ms, _size),
        "infer_ms": _by(rounds, first.infer, lambda stages, batch: stages.infer[batch].cpu_ms),
        "batch_ms": _by(rounds, first.infer, lambda stages, batch: stages.infer[batch].p50_ms),
        "overhead_ms": _spread(rounds, lambda each: each.bare_cpu_ms),
        "batches": [each.terms.batch for each in rounds],
        "sum_ms": _spread(rounds, lambda each: each.terms.total_ms),
        "fetch_used_ms": _spread(rounds, lambda each: each.terms.fetch_ms),
        "decode_used_ms": _spread(rounds, lambda each: each.terms.decode_ms),
        "infer_used_ms": _spread(rounds, lambda each: each.terms.infer_ms),
    }


def _size(megapixels: float) -> str:
    return f"{megapixels:g}"


def _round(each: Round) -> dict[str, Any]:
    return {
        "terms": asdict(each.terms),
        "window": asdict(each.window),
        "roofline": each.roofline,
        "achieved": each.window.rate,
        "ratio": each.ratio,
        "ratio_less_others": each.ratio_less_others,
        "parts": [asdict(part) for part in each.parts],
    }


# --- latency --------------------------------------------------------------------------------------------------------


def _latency(rounds: Sequence[LatencyRound]) -> dict[str, Any] | None:
    if not rounds:
        return None
    return {
        "arrivals": ARRIVALS,
        "rounds": len(rounds),
        "loads": [_level(levels) for levels in zip(*(each.levels for each in rounds), strict=True)],
        "round_trip": _level([each.round_trip for each in rounds]),
    }


def _level(levels: Sequence[Level]) -> dict[str, Any]:
    answered = [each.latency for each in levels if each.latency is not None]
    figures: Mapping[str, Iterable[float]] = {
        "p50_ms": (each.p50_ms for each in answered),
        "p95_ms": (each.p95_ms for each in answered),
        "p99_ms": (each.p99_ms for each in answered),
        "most_ms": (each.most_ms for each in answered),
    }
    return {
        "load": levels[0].load,
        "rate": levels[0].rate,
        "images": sum(each.images for each in answered),
        "unanswered": sum(each.unanswered for each in levels),
        "late_p99_ms": max(each.late_p99_ms for each in levels),
        "generator_lagged": any(each.generator_lagged for each in levels),
        **({name: _said(Spread.of(values)) for name, values in figures.items()} if answered else {}),
    }


def _budget(result: Result) -> dict[str, Any] | None:
    """What the p99 at 70 % load cannot do without, and how often that goes into it."""
    facts, rounds = result.facts, result.rounds
    levels = [
        (level, each.round_trip)
        for each in result.latency
        for level in each.levels
        if level.load == BUDGET_LOAD and level.latency is not None and each.round_trip.latency is not None
    ]
    if not levels:
        return None
    largest = max(facts.batch_sizes)
    decode_ms = Spread.of(each.stages.decode[facts.megapixels].p99_ms for each in rounds).median
    batch_ms = Spread.of(each.stages.infer[largest].p50_ms for each in rounds).median
    round_trip_ms = Spread.of(trip.latency.p99_ms for _, trip in levels if trip.latency).median
    p99_ms = Spread.of(level.latency.p99_ms for level, _ in levels if level.latency).median
    whole_ms = facts.max_wait_ms + decode_ms + batch_ms + round_trip_ms
    return {
        "load": BUDGET_LOAD,
        "max_wait_ms": facts.max_wait_ms,
        "decode_p99_ms": decode_ms,
        "batch_ms": batch_ms,
        "batch": largest,
        "round_trip_p99_ms": round_trip_ms,
        "sum_ms": whole_ms,
        "p99_ms": p99_ms,
        "ratio": p99_ms / whole_ms,
    }


# --- what to mind ---------------------------------------------------------------------------------------------------


def warnings(result: Result) -> Iterator[str]:
    """Why figures may mean less than they seem to."""
    windows = [each.window for each in result.rounds]
    if result.facts.broker_kind == "embedded":
        yield "the broker is librdkafka's mock, not a real one: these figures say nothing of a service with Kafka"
    if not result.facts.broker_cpu_known:
        yield "the broker's CPU is not known, and counts as if the service could have had it: give --broker-pid"
    others = [each.others_cpu_s / (each.cores * each.wall_s) for each in windows if each.others_cpu_s is not None]
    if others and max(others) > _NOISY_SHARE:
        yield (
            f"other processes used up to {max(others):.0%} of this machine: stop them and measure again; until then "
            "look at the ratio with their CPU taken off"
        )
    shortest_s = min(each.wall_s for each in windows)
    if shortest_s < _SHORT_S:
        yield f"the service was measured over {shortest_s:.1f} s only: raise --seconds or --messages"
    if any(each.ratio > 1 for each in result.rounds):
        yield "above the roofline: a term cost less in the service than alone, or the machine changed its speed"
    yield from _latency_warnings(result.latency)


def _latency_warnings(rounds: Sequence[LatencyRound]) -> Iterator[str]:
    levels = [level for each in rounds for level in (*each.levels, each.round_trip)]
    if late := [level for level in levels if level.generator_lagged]:
        loads = ", ".join(sorted({f"{level.load:.0%}" if level.load else "the round trip" for level in late}))
        yield f"the generator itself was late ({loads}): part of these latencies is its own"
    unanswered = sum(level.unanswered for level in levels)
    if unanswered:
        yield f"{unanswered} images of the latency loads got no answer"
