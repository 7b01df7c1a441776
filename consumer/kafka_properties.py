"""librdkafka's properties: what passes through, what is refused and why, and what we set ourselves.

A client is opened with, each over the one before: our defaults, `[kafka.client]`, the role's own table, our fixed
properties. `refusals` is asked when settings are loaded, so nothing in the tables ever meets a fixed property.
"""

import re
import uuid
from collections.abc import Callable, Mapping
from typing import Literal

from consumer.librdkafka_names import NAMES
from consumer.names import transactional_ids
from consumer.settings_tables import KafkaSettings, Property, RawProperties, TransactionSettings

Role = Literal["consumer", "producer", "admin"]

PROPERTY_TABLES = ("client", "consumer", "producer", "admin")
"""The tables below `[kafka]` whose keys are librdkafka's own names, with dots."""

# librdkafka's range of message.max.bytes (its CONFIGURATION.md).
LARGEST_MESSAGE_BYTES = 1_000_000_000
HEADROOM_BYTES = 64 * 1024
"""What headers and framing may add to a message of `kafka.max_message_bytes`; the dead-letter topic takes this more."""

# Names that mean the same; only the first of a pair is ever handed on, so that a default of ours and a value of yours
# for the other name cannot contradict each other (librdkafka's CONFIGURATION.md, "Alias for").
ALIASES: Mapping[str, str] = {
    "metadata.broker.list": "bootstrap.servers",
    "max.in.flight": "max.in.flight.requests.per.connection",
    "request.required.acks": "acks",
    "delivery.timeout.ms": "message.timeout.ms",
    "compression.type": "compression.codec",
    "queue.buffering.max.ms": "linger.ms",
    "retries": "message.send.max.retries",
    "max.partition.fetch.bytes": "fetch.message.max.bytes",
    "sasl.mechanisms": "sasl.mechanism",
}


def canonical(name: str) -> str:
    """The one name that we use for a property and its alias."""
    return ALIASES.get(name, name)


# --- what is refused ------------------------------------------------------------------------------------------------

_OFFSETS = "offsets are committed by the service, after the label events are acknowledged; delete it"

REFUSED: Mapping[str, str] = {
    "bootstrap.servers": "use kafka.bootstrap_servers: every client of the service talks to the same cluster",
    "group.id": "use kafka.group_id",
    "group.protocol": "use kafka.group_protocol",
    "group.instance.id": "use kafka.group_instance_id, a template that differs from replica to replica ({hostname})",
    "message.max.bytes": "use kafka.max_message_bytes: one size for topics, producers and consumers",
    "enable.auto.commit": _OFFSETS,
    "auto.commit.enable": _OFFSETS,
    "enable.auto.offset.store": _OFFSETS,
    "offset.store.method": _OFFSETS,
    "auto.offset.reset": "use kafka.start and kafka.on_offset_lost: librdkafka's own reset skips records in silence",
    "transactional.id": 'use transaction.id, with delivery.guarantee = "exactly_once"',
    "transaction.timeout.ms": "use transaction.timeout_ms",
    "enable.gapless.guarantee": "one record refused for its size would stop all that follow; delete it",
    "delivery.report.only.error": "a success that is not reported is an offset that is never committed; delete it",
    "enable.partition.eof": "lag is a metric, and an end of partition is no message; delete it",
    "default.topic.config": "it is a table of properties from times gone by; give each by its own name beside it",
    "allow.auto.create.topics": "a topic made by accident has the wrong size and partitions; `ouzel topics create`",
    "share.acknowledgement.mode": "each message is acknowledged by the service, when its label event is; delete it",
}
"""Refused whatever the value: name -> why, and what to do."""


def _says_false(value: Property) -> bool:
    return str(value).strip().lower() in {"false", "f", "0"}


def _whole(value: Property) -> int | None:
    try:
        return int(str(value).strip())
    except ValueError:
        return None


def _eager(value: Property) -> bool:
    return {part.strip() for part in str(value).split(",")} != {"cooperative-sticky"}


REFUSED_VALUES: Mapping[str, tuple[Callable[[Property], bool], str]] = {
    "acks": (
        lambda value: str(value).strip().lower() not in {"all", "-1"},
        'only "all": a record that fewer replicas have can be lost with its offset already committed',
    ),
    "enable.idempotence": (_says_false, "only true: a retry would repeat and reorder label events"),
    "max.in.flight.requests.per.connection": (
        lambda value: (_whole(value) or 0) > 5,
        "at most 5: beyond it the idempotent producer cannot keep the order of a key",
    ),
    "partitioner": (
        lambda value: str(value).strip() != "murmur2_random",
        'only "murmur2_random" (the Java default): with another, input and output topics would not join by key',
    ),
    "isolation.level": (
        lambda value: str(value).strip().lower() != "read_committed",
        'only "read_committed": otherwise images of aborted transactions are labelled',
    ),
    "partition.assignment.strategy": (
        _eager,
        'only "cooperative-sticky": an eager assignor takes every partition away at each rebalance',
    ),
    "statistics.interval.ms": (
        lambda value: (_whole(value) or 0) <= 0,
        "more than 0: lag, and the watch for a stuck partition, come from the statistics",
    ),
}
"""Refused for some values: name -> (is this value refused?, why)."""

BROKER_SIDE: Mapping[str, str] = {
    "session.timeout.ms": "with kafka.group_protocol = consumer the broker decides it: set the group's "
    "consumer.session.timeout.ms or the broker's group.consumer.session.timeout.ms",
    "heartbeat.interval.ms": "with kafka.group_protocol = consumer the broker decides it: set the group's "
    "consumer.heartbeat.interval.ms or the broker's group.consumer.heartbeat.interval.ms",
    "partition.assignment.strategy": "with kafka.group_protocol = consumer the broker assigns: choose among its "
    "assignors with group.remote.assignor (uniform or range)",
    "group.protocol.type": "with kafka.group_protocol = consumer there is no such thing; delete it",
}
"""Refused with KIP-848 only: name -> where it is set instead."""


_NO_PREFETCH = "a share consumer fetches nothing ahead: max.poll.records bounds what it is handed; delete it"
_NO_SUCH_THING = "a share group knows no such thing; delete it"

NOT_OF_SHARE_GROUPS: Mapping[str, str] = {
    "session.timeout.ms": "of a share group the broker decides it: set the group's share.session.timeout.ms",
    "heartbeat.interval.ms": "of a share group the broker decides it: set the group's share.heartbeat.interval.ms",
    "isolation.level": "of a share group it is the group's share.isolation.level, which `ouzel topics create` sets",
    "partition.assignment.strategy": "a share group's partitions belong to nobody; delete it",
    "group.remote.assignor": _NO_SUCH_THING,
    "group.protocol.type": _NO_SUCH_THING,
    "topic.blacklist": _NO_SUCH_THING,
    "consume.callback.max.messages": _NO_SUCH_THING,
    "message.copy.max.bytes": _NO_SUCH_THING,
    "socket.max.fails": _NO_SUCH_THING,
    "queued.min.messages": _NO_PREFETCH,
    "queued.max.messages.kbytes": _NO_PREFETCH,
    "fetch.queue.backoff.ms": _NO_PREFETCH,
    "fetch.error.backoff.ms": _NO_PREFETCH,
}
"""Refused with `delivery.guarantee = "share"` only, in the tables that its consumers read: name -> why."""


def refusals(kafka: KafkaSettings, *, share: bool = False) -> dict[str, str]:
    """What the tables may not say: dotted key (`kafka.producer.acks`) -> why and what to do. Empty when all is well.
    `share`: whether a share group is read."""
    found: dict[str, str] = {}
    for table in PROPERTY_TABLES:
        properties: RawProperties = getattr(kafka, table)
        seen: dict[str, str] = {}
        for name, value in properties.items():
            reason = _refusal(name, value, "" if share else kafka.group_protocol)
            if share and table in {"client", "consumer"}:
                reason = NOT_OF_SHARE_GROUPS.get(canonical(name)) or reason
            twin = seen.setdefault(canonical(name), name)
            if reason is None and twin != name:
                reason = f"{twin} is the same property and is set too; keep one of them"
            if reason is not None:
                found[f"kafka.{table}.{name}"] = reason
    return found


_PYTHON_OBJECTS = frozenset({"logger", "on_commit", "on.commit", "on_delivery", "on.delivery"})


def _refusal(name: str, value: Property, group_protocol: str) -> str | None:
    name = canonical(name)
    # In an environment variable's name `_` stands for the dot.
    if name in _PYTHON_OBJECTS or name.endswith(("_cb", ".cb")):
        return "a call-back or logger is a Python object, which cannot come from settings; delete it"
    if group_protocol == "consumer" and name in BROKER_SIDE:
        return BROKER_SIDE[name]
    if name in REFUSED:
        return REFUSED[name]
    refused, reason = REFUSED_VALUES.get(name, (None, ""))
    return reason if refused is not None and refused(value) else None


# --- secrets --------------------------------------------------------------------------------------------------------

_SECRET_WORDS = re.compile(
    r"password|passphrase|secret|token|jaas|credential|oauthbearer\.config|kinit\.cmd|(^|[._-])key([._]pem)?$"
    r"|authorization|cookie"
    # A whole table, given as something else than a table.
    r"|^kafka\.(client|consumer|producer|admin)$"
    r"|^stores\.http\.(headers|proxy)(\.|$)"
)
_PROPERTY = re.compile(r"kafka\.(client|consumer|producer|admin)\.")
_PUBLIC = frozenset(
    {
        "sasl.oauthbearer.token.endpoint.url",
        "sasl.oauthbearer.client.credentials.client.id",
        "enable.sasl.oauthbearer.unsecure.jwt",
    }
)


def is_secret(name: str) -> bool:
    """Whether the value of this key, a librdkafka property or any other, is never to be shown."""
    lowered = name.lower()
    if any(lowered.endswith(public) for public in _PUBLIC):
        return False
    table = _PROPERTY.match(lowered)
    # Of a property that librdkafka does not have nobody knows whether it is a misspelt password.
    return _SECRET_WORDS.search(lowered) is not None or (table is not None and lowered[table.end() :] not in NAMES)


# --- what clients are opened with -----------------------------------------------------------------------------------


def client_properties(kafka: KafkaSettings, role: Role) -> RawProperties:
    """A plain client of this role, for commands and tools. Consumers add their own `group.id`."""
    defaults: RawProperties = {"client.id": "ouzel", "socket.keepalive.enable": True}
    if role == "producer":
        return _merged(kafka, role, {**defaults, "linger.ms": 5}, _producer_promises(kafka))
    if role == "admin":
        return _merged(kafka, role, defaults, {})
    fixed: RawProperties = {
        "enable.auto.commit": False,
        "enable.auto.offset.store": False,
        "allow.auto.create.topics": False,
        "isolation.level": "read_committed",
    }
    return _merged(kafka, role, {**defaults, **_fetch_sizes(kafka)}, fixed)


def service_properties(kafka: KafkaSettings) -> RawProperties:
    """What the service asks its questions with: who it is, and not the `[kafka.admin]` of the commands."""
    yours = {canonical(name): value for name, value in kafka.client.items()}
    return {"client.id": "ouzel", **yours, "bootstrap.servers": kafka.bootstrap_servers}


def consumer_properties(kafka: KafkaSettings, hostname: str, *, tell_ends: bool = False) -> RawProperties:
    """The service's member of the group. `hostname` fills `{hostname}` of `kafka.group_instance_id`; with `tell_ends`
    it hears when it is at the end of a partition."""
    defaults: RawProperties = {
        "client.id": f"ouzel-{hostname}",
        "socket.keepalive.enable": True,
        # A pause throws away what was fetched ahead, and a resume fetches it again. Measured with images of 63 kB and a
        # saturated replica: with 32 MiB ahead each image came 3.1 times over the network, with 4 MiB 1.1 times.
        "queued.max.messages.kbytes": 4 * 1024,
        # With so little ahead, librdkafka's 1000 ms until it looks whether it may fetch again left replicas waiting:
        # 4 MiB are 50 images of 80 kB.
        "fetch.queue.backoff.ms": 20,
        # librdkafka looks every five minutes: so long would messages on a partition that was added lie unread.
        "topic.metadata.refresh.interval.ms": kafka.metadata_interval_ms,
        # Lag and positions are as fresh as this.
        "statistics.interval.ms": 1_000,
        **_fetch_sizes(kafka),
    }
    fixed: RawProperties = {
        "group.id": kafka.group_id,
        "group.protocol": kafka.group_protocol,
        # We commit what is finished, and nothing else may.
        "enable.auto.commit": False,
        "enable.auto.offset.store": False,
        # We decide where a partition begins (kafka.start, kafka.on_offset_lost); librdkafka would skip in silence.
        "auto.offset.reset": "error",
        "isolation.level": "read_committed",
        "allow.auto.create.topics": False,
        "enable.partition.eof": tell_ends,
    }
    if kafka.group_protocol == "classic":
        fixed["partition.assignment.strategy"] = "cooperative-sticky"
    if kafka.group_instance_id:
        fixed["group.instance.id"] = kafka.group_instance_id.replace("{hostname}", hostname)
    return _merged(kafka, "consumer", defaults, fixed)


def share_properties(kafka: KafkaSettings, hostname: str, *, max_poll_records: int) -> RawProperties:
    """A member of the share group; `max_poll_records` is what one poll should bring at most (the broker counts whole
    batches of a producer's, and may go beyond)."""
    defaults: RawProperties = {
        "client.id": f"ouzel-{hostname}",
        "socket.keepalive.enable": True,
        "max.poll.records": max_poll_records,
        # While a store or the output is down nothing is polled, for however long. Locks lapse by the broker's clock.
        "max.poll.interval.ms": 86_400_000,
        # Whether the group has taken a member in comes from the statistics.
        "statistics.interval.ms": 1_000,
        **_fetch_sizes(kafka),
    }
    return _merged(kafka, "consumer", defaults, {"group.id": kafka.group_id, "share.acknowledgement.mode": "explicit"})


def producer_properties(kafka: KafkaSettings, hostname: str = "") -> RawProperties:
    """The service's producer of label events and dead letters."""
    defaults: RawProperties = {
        "client.id": f"ouzel-{hostname}" if hostname else "ouzel",
        "socket.keepalive.enable": True,
        # A time-out leaves it unknown whether the record was written (it often was): the record would be sent again and
        # read twice. So there is none; while a broker is away intake pauses and the record waits. 0 is "for ever".
        "message.timeout.ms": 0,
        # Label events are small and come a batch at a time: 5 ms gathers a batch into one request.
        "linger.ms": 5,
        # Label events are JSON, each much like the last: lz4 makes them several times smaller for next to no CPU. Dead
        # letters carry images, which do not shrink, but they are few.
        "compression.codec": "lz4",
        # Room for several of the largest dead letters; past it intake pauses.
        "queue.buffering.max.kbytes": max(64 * 1024, 4 * _largest_record_bytes(kafka) // 1024),
    }
    return _merged(kafka, "producer", defaults, _producer_promises(kafka))


def transactional_properties(kafka: KafkaSettings, transaction: TransactionSettings, hostname: str) -> RawProperties:
    """The producer of label events, dead letters and offsets in one. Without `transaction.id` it has an id that nobody
    had before: what a predecessor left open then ends by its own time-out."""
    own_id = transaction.id.replace("{hostname}", hostname)
    any_id = f"{transactional_ids(kafka.group_id, '')}{uuid.uuid4()}"
    plain = producer_properties(kafka, hostname)
    if int(plain.get("socket.timeout.ms", 0)) > transaction.timeout_ms:  # librdkafka refuses it, said for all clients
        plain["socket.timeout.ms"] = transaction.timeout_ms
    return {
        **plain,
        "transactional.id": own_id or any_id,
        "transaction.timeout.ms": transaction.timeout_ms,
        # librdkafka wants it within the transaction's time. Past that the transaction is undone and done again.
        "message.timeout.ms": transaction.timeout_ms,
    }


def _producer_promises(kafka: KafkaSettings) -> RawProperties:
    return {
        "enable.idempotence": True,
        "acks": "all",
        "partitioner": "murmur2_random",
        "message.max.bytes": _largest_record_bytes(kafka),
    }


def _fetch_sizes(kafka: KafkaSettings) -> RawProperties:
    """A broker always hands over one batch, however large; the answer as a whole must fit what we accept."""
    fetch_max_bytes = max(32 * 1024 * 1024, _largest_record_bytes(kafka))
    return {
        "message.max.bytes": _largest_record_bytes(kafka),
        "fetch.max.bytes": fetch_max_bytes,
        # librdkafka's default of 100 MB also reads topics whose own limit is above ours.
        "receive.message.max.bytes": max(100_000_000, fetch_max_bytes + 1024 * 1024),
    }


def _largest_record_bytes(kafka: KafkaSettings) -> int:
    return min(kafka.max_message_bytes + HEADROOM_BYTES, LARGEST_MESSAGE_BYTES)


def places(kafka: KafkaSettings) -> dict[str, str]:
    """Property, by its canonical name -> the settings key that sets it; to say where a refused one came from."""
    return {canonical(name): f"kafka.{table}.{name}" for table in PROPERTY_TABLES for name in getattr(kafka, table)}


def _merged(kafka: KafkaSettings, role: Role, defaults: RawProperties, fixed: RawProperties) -> RawProperties:
    own: RawProperties = {"consumer": kafka.consumer, "producer": kafka.producer, "admin": kafka.admin}[role]
    yours = {canonical(name): value for name, value in (kafka.client | own).items()}
    return {**defaults, **yours, **fixed, "bootstrap.servers": kafka.bootstrap_servers}
