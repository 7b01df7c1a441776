"""What these cores could do, and where the rest goes. Pure arithmetic.

    X = 1000 * C / (t_fetch + t_decode + t_infer(b) + t_ovh)      images/s

`t` are CPU-milliseconds an image. `C` is the CPU that the service can have, in cores: all cores, less what the broker
and `ouzel bench` itself used, over the seconds in which the service was measured.
"""

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

FORMULA = "X = 1000 * C / (t_fetch + t_decode + t_infer(b) + t_ovh)"


@dataclass(frozen=True, slots=True)
class Spread:
    """A figure of several rounds: the median, and how far apart they were."""

    median: float
    least: float
    most: float
    values: tuple[float, ...]

    @classmethod
    def of(cls, values: Iterable[float]) -> "Spread":
        """Raises ValueError where there is none."""
        found = tuple(values)
        if not found:
            raise ValueError("no figure to tell the spread of")
        return cls(statistics.median(found), min(found), max(found), found)


@dataclass(frozen=True, slots=True)
class Terms:
    """What one image costs, in CPU-milliseconds, with the thread counts of the run."""

    fetch_ms: float
    """From a message's bytes to the image's encoded bytes: parsing, and what its form needs."""
    decode_ms: float
    infer_ms: float
    """Of one image of a batch of `batch`."""
    overhead_ms: float
    """Of a bare consume-produce loop: not the service's doing."""
    batch: int

    @property
    def total_ms(self) -> float:
        """Their sum."""
        return self.fetch_ms + self.decode_ms + self.infer_ms + self.overhead_ms


def cheapest_batch(infer_ms: Mapping[int, float]) -> int:
    """The batch size with the least CPU an image; of equals the smallest."""
    return min(sorted(infer_ms), key=lambda size: infer_ms[size])


def roofline(terms: Terms, free_cores: float) -> float:
    """Images/s. Raises ValueError where the terms are not positive."""
    if terms.total_ms <= 0:
        raise ValueError(f"the terms sum to {terms.total_ms} ms")
    return 1000 * free_cores / terms.total_ms


@dataclass(frozen=True, slots=True)
class Window:
    """What was used while the service worked on the backlog."""

    images: int
    wall_s: float
    cores: int
    service_cpu_s: float
    bench_cpu_s: float
    """Of this process, which asks the broker how far the service is."""
    broker_cpu_s: float | None
    """None where it cannot be known: another machine, or no process id given."""
    others_cpu_s: float | None = None
    """Of everything else on this machine; None where its processors are not the cores that are ours."""
    padding_share: float = 0.0
    """Blank images for each real one in the model's batches."""

    @property
    def rate(self) -> float:
        """Images/s."""
        return self.images / self.wall_s

    @property
    def free_cores(self) -> float:
        """C: cores that the service can have had."""
        return self.cores - ((self.broker_cpu_s or 0.0) + self.bench_cpu_s) / self.wall_s

    def per_image_ms(self, cpu_s: float) -> float:
        """CPU-milliseconds an image."""
        return 1000 * cpu_s / self.images


@dataclass(frozen=True, slots=True)
class Part:
    """A part of the whole CPU, in CPU-milliseconds an image. `kind`: `term`, `overhead`, `outside` or `idle`."""

    name: str
    kind: str
    cpu_ms: float


def account(terms: Terms, window: Window) -> list[Part]:
    """Where all CPU of the window went; the parts sum to cores x wall, an image.

    "Service beyond these" is what the service used above its terms and padding; it is negative where a term costs less
    in the service than alone. Idle is what nobody is known to have used.
    """
    service_ms = window.per_image_ms(window.service_cpu_s)
    padding_ms = terms.infer_ms * window.padding_share
    beyond_ms = service_ms - terms.total_ms - padding_ms
    broker_ms = window.per_image_ms(window.broker_cpu_s or 0.0)
    bench_ms = window.per_image_ms(window.bench_cpu_s)
    others_ms = window.per_image_ms(window.others_cpu_s or 0.0)
    whole_ms = window.per_image_ms(window.cores * window.wall_s)
    return [
        Part("fetch", "term", terms.fetch_ms),
        Part("decode", "term", terms.decode_ms),
        Part(f"infer (batch of {terms.batch})", "term", terms.infer_ms),
        Part("bare Kafka loop", "term", terms.overhead_ms),
        Part("padding", "overhead", padding_ms),
        Part("service beyond these", "overhead", beyond_ms),
        Part("broker", "outside", broker_ms),
        Part("bench itself", "outside", bench_ms),
        Part("other processes", "outside", others_ms),
        Part("idle", "idle", whole_ms - service_ms - broker_ms - bench_ms - others_ms),
    ]


def mean_parts(rounds: Sequence[Sequence[Part]]) -> list[Part]:
    """The parts of several rounds, each the mean: so they still sum to the whole. The batch named is the first's."""
    return [
        Part(each[0].name, each[0].kind, statistics.fmean(part.cpu_ms for part in each))
        for each in zip(*rounds, strict=True)
    ]
