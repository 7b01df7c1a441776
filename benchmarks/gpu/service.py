"""The real service with its model on a GPU, beside the same service on the cores alone: replicas that share the GPU,
each on its share of the cores, on a topic that is filled."""

import os
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from benchmarks.gpu.rounds import Figures, Turns, say
from benchmarks.growth.replicas import figures, pinned, watch
from benchmarks.growth.stream import Backlog, Stream, facts, photographs, stream

_MEGAPIXELS = 0.3
_PARTITIONS = 12
BATCH = 64
IN_FLIGHT = 256
"""Messages that a replica holds: the default."""
_DONE_UNSEEN = 1_500
"""How many messages wait is a second old when it is looked at: all replicas together do so many meanwhile."""


@dataclass(frozen=True, slots=True)
class Case:
    """One way to run it."""

    name: str
    replicas: int
    settings: Mapping[str, str] = field(default_factory=dict)
    """By dotted key, over those of the environment."""
    share: float = 1.0
    """Of the images: less for what is slow."""


def cases(counts: Sequence[int], *, half: str = "", alone: bool = False) -> list[Case]:
    """On the GPU by number of replicas, and with the resizer by SIMD. `half`: an artifact in float16 as well, or empty;
    `alone`: on the cores alone as well."""
    gpu, cpu, simd = {"model.device": "gpu:0"}, {"model.device": "cpu"}, {"decode.resizer": "simd"}
    most = max(counts)
    found = [Case(f"GPU, {_replicas(count)}", count, gpu) for count in counts]
    found.append(Case(f"GPU, {_replicas(most)}, simd", most, gpu | simd))
    if half:
        artifact = {"model.source": half, "model.labels": "", "model.name": "", "model.allow_provisional": "true"}
        found.append(Case(f"GPU in f16, {_replicas(most)}, simd", most, gpu | simd | artifact))
    if alone:
        found.append(Case(f"cores alone, {_replicas(most)}", most, cpu, 0.5))
    return found


def _replicas(count: int) -> str:
    return f"{count} replicas" if count > 1 else "1 replica"


def measure(wanted: Sequence[Case], *, rounds: int, images: int) -> dict[str, Any]:
    """All cases in turn on one broker."""
    turns = Turns()
    with stream() as running:
        bodies = list(photographs(running, _MEGAPIXELS).bodies)
        say(f"filling topics with {images} images")
        backlogs = {
            share: running.fill(f"gpu-{share:g}", bodies, int(share * images), partitions=_PARTITIONS)
            for share in sorted({case.share for case in wanted})
        }
        for case in wanted:
            turns.add(case.name, partial(partial, _once, running, backlogs[case.share], case))
        turns.run(rounds)
        about = facts(running, rounds=rounds, megapixels=_MEGAPIXELS, images=images, batch=BATCH, in_flight=IN_FLIGHT)
    return {"facts": about, "points": turns.points(), "failed": turns.failed}


def _once(running: Stream, backlog: Backlog, case: Case) -> Figures:
    cores = sorted(os.sched_getaffinity(0))
    each = len(cores) // case.replicas
    settings = {
        "batch.max_size": str(BATCH),
        "pipeline.max_in_flight_messages": str(IN_FLIGHT),
        "pipeline.max_in_flight_bytes": str(2**30),
        "model.runtime": "onnxruntime",
        **case.settings,
    }
    names = running.names(backlog.topic, partitions=backlog.partitions)
    began_s = time.monotonic()
    with ExitStack() as stack:
        services = []
        for number in range(case.replicas):
            with pinned(cores[number * each : (number + 1) * each]):
                services.append(stack.enter_context(running.service(names, settings)))
        for service in services:
            service.wait_until_ready()
        ready_s = time.monotonic() - began_s
        looks = watch(running, names, services, backlog.count)
        padding, batches, sent = _batches([service.metrics() for service in services])
    running.topics.delete([names.output_topic, names.dead_letter_topic], [names.group_id])
    return figures(looks, IN_FLIGHT + _DONE_UNSEEN // case.replicas) | {
        "mean_batch": sent / max(1.0, batches),
        "padding_share": padding / max(1.0, sent),
        "ready_s": ready_s,
    }


def _batches(metrics: Sequence[Mapping[str, float]]) -> tuple[float, float, float]:
    """Of all replicas: blank images, batches, and images in them."""
    names = ("ouzel_batch_padding_images_total", "ouzel_batch_images_count", "ouzel_batch_images_sum")
    padding, batches, images = (sum(each.get(name, 0.0) for each in metrics) for name in names)
    return padding, batches, images
