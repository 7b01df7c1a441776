"""A share group's own configuration, which lives at the broker: what the settings want, and whether it is so. Pure.

`ouzel topics create` sets it; `ouzel run` and `ouzel doctor` only look.
"""

from collections.abc import Callable, Mapping

from consumer.errors import ShareGroupRefused
from consumer.settings_tables import Settings

COUNT_LIMIT = "share.delivery.count.limit"
BROKERS_COUNT_LIMIT = "group.share.delivery.count.limit"
"""Of brokers before 4.3, where a group has no limit of its own."""


def wanted(settings: Settings) -> dict[str, str]:
    """The group's configuration as the settings want it."""
    return {
        "share.isolation.level": "read_committed",
        "share.auto.offset.reset": settings.kafka.start,
        "share.record.lock.duration.ms": str(settings.share.lock_duration_ms),
        COUNT_LIMIT: str(settings.share.delivery_count_limit),
    }


def found(group: Mapping[str, str], brokers: Callable[[], Mapping[str, str]]) -> dict[str, str]:
    """What holds for the group: its own configuration, and the broker's (asked for only then) where it has no limit."""
    if COUNT_LIMIT in group:
        return dict(group)
    limit = brokers().get(BROKERS_COUNT_LIMIT)
    return {**group, **({} if limit is None else {COUNT_LIMIT: limit})}


def check(settings: Settings, found: Mapping[str, str]) -> None:
    """Whether the group is as the settings want it. `found` is its configuration at the broker.

    Raises:
        ShareGroupRefused: it is not, or the broker knows of no share groups.
    """
    group = settings.kafka.group_id
    if not any(name in found for name in wanted(settings)):
        raise ShareGroupRefused(
            f"the broker at {settings.kafka.bootstrap_servers} has no share groups",
            remedy="Apache Kafka 4.2 has them, with its feature share.version=1; or set another delivery.guarantee",
        )
    if different := differences(settings, found):
        said = ", ".join(f"{name} is {now or 'not there'}, wanted {value}" for name, (now, value) in different.items())
        remedy = "ouzel topics create, which sets them for the group; or change kafka.start and [share]"
        raise ShareGroupRefused(f"share group {group} is not as the settings want it: {said}", remedy=remedy)


def differences(settings: Settings, found: Mapping[str, str]) -> dict[str, tuple[str, str]]:
    """What is not as wanted: configuration -> (what it is, empty where the broker does not know it; what is wanted)."""
    return {
        name: (found.get(name, ""), value) for name, value in wanted(settings).items() if found.get(name, "") != value
    }
