"""All curves, in the order of docs/performance.md."""

from benchmarks.growth import (
    backlog,
    cold_start,
    guarantees,
    image_size,
    labels,
    memory,
    message_size,
    partitions,
    replicas,
    soak,
)
from benchmarks.growth.curve import Curve

CURVES: dict[str, Curve] = {
    module.CURVE.name: module.CURVE
    for module in (
        image_size,
        message_size,
        partitions,
        replicas,
        guarantees,
        backlog,
        labels,
        cold_start,
        memory,
        soak,
    )
}
