"""Capacity on paper: replicas, partitions, network and cost by load, from what `ouzel bench --json` said. Pure.

images/s of a core      = 1000 * ratio / (t_fetch + t_decode + t_infer(b) + t_ovh)
images/s of a replica   = cores * that
replicas                = ceil(images an hour / 3600 / (images/s of a replica * load)), and one to lose
core-hours of a million = 1e6 / (images/s of a core * load) / 3600, and the brokers'
"""

import argparse
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PER_HOUR = (1_000, 100_000, 10_000_000)
Rows = list[list[str]]
_FEWEST_PARTITIONS = 6
"""As `topics.partitions`."""
_FORMS: Mapping[str, tuple[float, int]] = {"raw": (1.0, 120), "inline": (4 / 3, 110), "reference": (0.0, 180)}
"""Of an image's bytes how many times, and bytes of key, headers and framing: base64 makes 4 of 3."""


@dataclass(frozen=True, slots=True)
class Measured:
    """What a bench said of one image."""

    limit_cpu_ms: float
    """The sum of the roofline's terms."""
    decode_side_cpu_ms: float
    """The same without the model: what stays on the CPU where a GPU has it."""
    infer_cpu_ms: float
    ratio: float
    """Achieved over roofline; at most 1, as nothing is planned above the limit."""
    less_others: bool
    """Whether the ratio has the CPU of other processes taken off the limit: that of a machine that was not quiet."""
    broker_cpu_ms: float
    image_bytes: float
    event_bytes: float
    megapixels: float
    loads: Sequence[tuple[float, float]]
    """Share of the throughput, p99 in milliseconds."""
    about: str

    @property
    def per_core(self) -> float:
        """Images/s that one core does, all told."""
        return 1000 * self.ratio / self.limit_cpu_ms

    @property
    def decode_limit_per_core(self) -> float:
        """Images/s that one core brings before a model that costs no CPU."""
        return 1000 / self.decode_side_cpu_ms


@dataclass(frozen=True, slots=True)
class Asked:
    """What it is planned for."""

    cores: int = 2
    """Of a replica."""
    load: float = 0.7
    """Share of the throughput that is used."""
    p99_ms: float | None = None
    """If given, the load is the highest measured one whose p99 is within it."""
    price: float = 0.05
    """Of a core-hour, in whatever currency."""
    replication: int = 3
    readers: int = 1
    """Groups that read the label events."""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Those of `planner`."""
    default = Asked()
    parser.add_argument("--bench", type=Path, required=True, help="what `ouzel bench --json` wrote")
    parser.add_argument("--cores", type=int, default=default.cores, help=f"of a replica; {default.cores}")
    parser.add_argument("--load", type=float, default=default.load, help="share of the throughput that is used; 0.7")
    parser.add_argument("--p99-ms", type=float, help="wanted; the load is then the highest measured one that keeps it")
    parser.add_argument(
        "--price", type=float, default=default.price, help=f"of a core-hour; {default.price:g}, assumed"
    )
    parser.add_argument("--replication", type=int, default=default.replication, help="of the topics; 3")
    parser.add_argument("--readers", type=int, default=default.readers, help="groups that read the label events; 1")


def asked(options: argparse.Namespace) -> Asked:
    """From the command line."""
    return Asked(options.cores, options.load, options.p99_ms, options.price, options.replication, options.readers)


def measured(bench: Mapping[str, Any]) -> Measured:
    """From a bench's JSON. Raises ValueError where it is no such thing."""
    try:
        terms, facts = bench["terms"], bench["facts"]
        loads = (bench.get("latency") or {}).get("loads", [])
        model = facts["model"]
        infer = terms["infer_used_ms"]["median"]
        limit = terms["sum_ms"]["median"]
        less_others = bench.get("ratio_less_others")
        return Measured(
            limit_cpu_ms=limit,
            decode_side_cpu_ms=limit - infer,
            infer_cpu_ms=infer,
            ratio=min(1.0, (less_others or bench["ratio"])["median"]),
            less_others=bool(less_others),
            broker_cpu_ms=(bench["broker_cpu_ms"] or {"median": 0.0})["median"],
            image_bytes=facts["image_bytes"],
            event_bytes=facts["event_bytes"],
            megapixels=facts["megapixels"],
            loads=[(each["load"], each["p99_ms"]["median"]) for each in loads if "p99_ms" in each],
            about=f"{model['name']}, {model['runtime']} {model['precision']}; {bench['machine']['cpu']}",
        )
    except (KeyError, TypeError) as error:
        raise ValueError(f"this is not what `ouzel bench --json` writes: {error!r}") from None


def usable_load(found: Measured, wanted: Asked) -> float:
    """The share of the throughput that is planned with. Raises ValueError where no measured load is quick enough."""
    if wanted.p99_ms is None:
        return wanted.load
    quick = [load for load, p99_ms in found.loads if p99_ms <= wanted.p99_ms]
    if not quick:
        raise ValueError(f"at no measured load is the p99 within {wanted.p99_ms:g} ms: leave --p99-ms out, or raise it")
    return max(quick)


def replicas(found: Measured, wanted: Asked, per_hour: float) -> int:
    """That are needed; at least one. Without the one to lose."""
    return max(1, math.ceil(per_hour / 3600 / (found.per_core * wanted.cores * usable_load(found, wanted))))


def partitions(count: int) -> int:
    """For so many replicas: twice as many, so that these can be doubled; at least what `ouzel topics create` makes."""
    return max(_FEWEST_PARTITIONS, 2 * count)


def core_hours(found: Measured, wanted: Asked) -> tuple[float, float]:
    """For a million images: the service's, and the brokers' with all copies."""
    service = 1e6 / (found.per_core * usable_load(found, wanted)) / 3600
    return service, 1e6 * found.broker_cpu_ms * wanted.replication / 1000 / 3600


def message_bytes(found: Measured, form: str) -> float:
    """Of one image's message."""
    share, more = _FORMS[form]
    return share * found.image_bytes + more


def network_mb_per_s(found: Measured, wanted: Asked, form: str, rate: float) -> tuple[float, float]:
    """MB/s into all brokers and out of them: what clients write and what followers fetch comes in; what followers fetch
    and what groups read goes out."""
    image, event = message_bytes(found, form), found.event_bytes
    copies = wanted.replication
    into = rate * copies * (image + event)
    out = rate * ((copies - 1) * (image + event) + image + wanted.readers * event)
    return into / 1e6, out / 1e6


# --- tables ---------------------------------------------------------------------------------------------------------


def tables(bench: Mapping[str, Any], wanted: Asked) -> dict[str, Rows]:
    """By name: `planner-inputs`, `planner-replicas`, `planner-network`, `planner-cost`."""
    found = measured(bench)
    return {
        "planner-inputs": list(_inputs(found, wanted)),
        "planner-replicas": list(_replicas(found, wanted)),
        "planner-network": list(_network(found, wanted)),
        "planner-cost": list(_cost(found, wanted)),
    }


def _inputs(found: Measured, wanted: Asked) -> Iterator[list[str]]:
    yield ["figure", "here"]
    yield ["measured with", f"{found.about}; {found.megapixels:g} MP, {found.image_bytes / 1000:.0f} KB"]
    yield ["terms of the roofline, CPU-ms an image", f"{found.limit_cpu_ms:.2f}"]
    yield ["of these the model's", f"{found.infer_cpu_ms:.2f}"]
    others = ", other processes' CPU taken off" if found.less_others else ""
    yield [f"achieved over roofline{others}", f"{found.ratio:.2f}"]
    yield ["images/s of a core", f"{found.per_core:.0f}"]
    yield [f"images/s of a replica with {wanted.cores} cores", f"{found.per_core * wanted.cores:.0f}"]
    for load, p99_ms in found.loads:
        yield [f"p99 at {load:.0%} of the images/s measured", f"{p99_ms:.0f} ms"]
    yield ["load that is planned with", f"{usable_load(found, wanted):.0%}"]
    yield ["images/s that a core decodes for a GPU", f"{found.decode_limit_per_core:.0f}"]


def _replicas(found: Measured, wanted: Asked) -> Iterator[list[str]]:
    yield ["images an hour", "images/s", "replicas", "and one to lose", "cores", "partitions"]
    for per_hour in PER_HOUR:
        count = replicas(found, wanted, per_hour)
        rate = per_hour / 3600
        cores = str((count + 1) * wanted.cores)
        yield [f"{per_hour:,}", f"{rate:,.1f}", str(count), str(count + 1), cores, str(partitions(count + 1))]


def _network(found: Measured, wanted: Asked) -> Iterator[list[str]]:
    yield ["message", "KB", *(f"{per_hour:,} an hour: in, out, MB/s" for per_hour in PER_HOUR)]
    for form in _FORMS:
        both = [network_mb_per_s(found, wanted, form, per_hour / 3600) for per_hour in PER_HOUR]
        yield [form, f"{message_bytes(found, form) / 1000:.1f}", *(f"{into:,.2f}, {out:,.2f}" for into, out in both)]


def _cost(found: Measured, wanted: Asked) -> Iterator[list[str]]:
    service, broker = core_hours(found, wanted)
    yield ["for a million images", "core-hours", f"at {wanted.price:g} a core-hour (assumed)"]
    yield ["service", f"{service:.2f}", f"{service * wanted.price:.2f}"]
    yield [f"brokers, {wanted.replication} copies", f"{broker:.2f}", f"{broker * wanted.price:.2f}"]
    yield ["both", f"{service + broker:.2f}", f"{(service + broker) * wanted.price:.2f}"]


def page(bench: Mapping[str, Any], wanted: Asked) -> str:
    """All tables, in Markdown."""
    return "\n\n".join(markdown(rows) for rows in tables(bench, wanted).values())


def markdown(rows: Rows) -> str:
    """A table of Markdown; the first row is the heading."""
    heading, *others = rows
    lines = [heading, ["---"] * len(heading), *others]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def read(path: Path) -> dict[str, Any]:
    """A bench's JSON."""
    found: dict[str, Any] = json.loads(path.read_text())
    return found
