"""Opening clients for a command, and their errors in our terms."""

import logging
from collections.abc import Mapping
from typing import Any, cast

from confluent_kafka import Consumer, KafkaError, KafkaException, Producer
from confluent_kafka.admin import AdminClient

from consumer.adapters import librdkafka
from consumer.adapters.tls import tls_refusal
from consumer.errors import BrokerUnreachable, Fatal, NotAuthorized, OutputRefused, SettingsError, TopicMissing

Properties = Mapping[str, str | int | float | bool]
"""librdkafka properties, as `[kafka.client]` and the role's table give them."""

KAFKA_ERRORS = cast("tuple[type[Exception], ...]", (KafkaException, KafkaError))
"""What confluent-kafka raises: a fatal error comes out of `poll` and `flush` as a bare KafkaError."""

OPENING_ERRORS = (KafkaException, AttributeError, TypeError, ValueError)
"""What opening a client raises for a property that will not do: the binding reads some of them before librdkafka."""

UNREACHABLE = librdkafka.UNREACHABLE | {KafkaError._MSG_TIMED_OUT}
NOT_AUTHORIZED = frozenset(
    {
        KafkaError._AUTHENTICATION,
        KafkaError.SASL_AUTHENTICATION_FAILED,
        KafkaError.TOPIC_AUTHORIZATION_FAILED,
        KafkaError.GROUP_AUTHORIZATION_FAILED,
        KafkaError.CLUSTER_AUTHORIZATION_FAILED,
        KafkaError.TRANSACTIONAL_ID_AUTHORIZATION_FAILED,
    }
)
NO_SUCH_TOPIC = frozenset({KafkaError.UNKNOWN_TOPIC_OR_PART, KafkaError._UNKNOWN_TOPIC, KafkaError._UNKNOWN_PARTITION})
_TELLING = UNREACHABLE | NOT_AUTHORIZED | {KafkaError._SSL}


class Complaints:
    """The last thing that librdkafka said of a connection: a time-out alone does not say why."""

    def __init__(self) -> None:
        self._last: KafkaError | None = None

    def __call__(self, error: KafkaError) -> None:
        # _ALL_BROKERS_DOWN follows the error that says why.
        if error.code() in _TELLING and (self._last is None or error.code() != KafkaError._ALL_BROKERS_DOWN):
            self._last = error

    def explain(self, error: KafkaError) -> KafkaError:
        """What was complained of, where `error` is only that nothing came of it."""
        return self._last if self._last is not None and error.code() in UNREACHABLE else error


def silent_logger() -> logging.Logger:
    """librdkafka's own lines are not for the user of a command: the errors that matter are raised."""
    logger = logging.getLogger("ouzel.kafka_tools")
    logger.propagate = False
    logger.setLevel(logging.CRITICAL + 1)
    return logger


def _configuration(properties: Properties, complaints: Complaints, ours: Properties) -> dict[str, Any]:
    return {**properties, **ours, "error_cb": complaints, "logger": silent_logger()}


def open_producer(properties: Properties, complaints: Complaints, **ours: str | int | bool) -> Producer:
    """A producer that loses nothing and places keys as Java does; `ours` win, with `_` for the dot.

    Raises `SettingsError` where librdkafka refuses a property.
    """
    fixed: Properties = {
        "acks": "all",
        "enable.idempotence": True,
        "partitioner": "murmur2_random",
        **{name.replace("_", "."): value for name, value in ours.items()},
    }
    try:
        return Producer(_configuration(properties, complaints, fixed))
    except OPENING_ERRORS as error:
        raise refused_properties(error) from error


def open_reader(properties: Properties, complaints: Complaints) -> Consumer:
    """A consumer to assign by hand: no group is joined, nothing is committed, only committed records are read.

    Raises `SettingsError` where librdkafka refuses a property.
    """
    fixed: Properties = {
        "group.id": "ouzel-tools",  # librdkafka wants one; it is never joined
        "enable.auto.commit": False,
        "enable.auto.offset.store": False,
        "enable.partition.eof": True,
        "isolation.level": "read_committed",
        "auto.offset.reset": "earliest",  # where retention overtakes a command
        "queued.max.messages.kbytes": 16 * 1024,
    }
    try:
        return Consumer(_configuration(properties, complaints, fixed))
    except OPENING_ERRORS as error:
        raise refused_properties(error) from error


def open_admin(properties: Properties, complaints: Complaints) -> AdminClient:
    """An admin client. Raises `SettingsError` where librdkafka refuses a property."""
    try:
        return AdminClient(_configuration(properties, complaints, {}))
    except OPENING_ERRORS as error:
        raise refused_properties(error) from error


def refused_properties(error: Exception) -> SettingsError:
    """librdkafka's refusal of a property, as ours."""
    return SettingsError(
        f"librdkafka refuses its properties: {kafka_error(error).str()}",
        remedy="correct [kafka.client], [kafka.consumer], [kafka.producer] or [kafka.admin]",
    )


def kafka_error(error: object) -> KafkaError:
    """The KafkaError that an exception of confluent-kafka carries."""
    if isinstance(error, KafkaError):
        return error
    carried = next(iter(getattr(error, "args", ())), None)
    return carried if isinstance(carried, KafkaError) else KafkaError(KafkaError._FAIL, str(error))


def translated(error: KafkaError, doing: str, complaints: Complaints | None = None) -> Fatal:
    """A KafkaError as one of ours; `doing` says what was tried, e.g. `reading images.dlq`."""
    cause = complaints.explain(error) if complaints else error
    text = f"{doing}: {cause.str()} ({cause.name()})"
    refusal = tls_refusal(cause, servers="kafka.bootstrap_servers")
    if refusal is not None:
        return NotAuthorized(text, remedy=refusal.remedy)
    if cause.code() in NOT_AUTHORIZED:
        return NotAuthorized(text, remedy="check the credentials in [kafka.client] and the ACLs of this user")
    if cause.code() in NO_SUCH_TOPIC:
        return TopicMissing(text, remedy="create it: ouzel topics create")
    if cause.code() in UNREACHABLE:
        return BrokerUnreachable(text, remedy="check kafka.bootstrap_servers, and that a broker listens there")
    return Fatal(text, remedy="see the broker's log; try again if its cluster is being changed")


def translated_write(error: KafkaError, doing: str, complaints: Complaints | None = None) -> Fatal:
    """As `translated`, of a write: what is nothing else is a refusal of the output."""
    found = translated(error, doing, complaints)
    return OutputRefused(str(found), remedy=found.remedy) if type(found) is Fatal else found


def partitions_of(
    client: Consumer | Producer | AdminClient, topic: str, complaints: Complaints, timeout_s: float
) -> list[int]:
    """The partition numbers of a topic, in order.

    Raises `TopicMissing` where there is none, `BrokerUnreachable` and `NotAuthorized`.
    """
    try:
        found = client.list_topics(topic, timeout=timeout_s).topics[topic]
    except KafkaException as error:
        client.poll(0)  # serves the callback that says why
        raise translated(kafka_error(error), f"looking for the topic {topic}", complaints) from error
    if found.error is not None and found.error.code() in NO_SUCH_TOPIC:
        raise TopicMissing(f"the topic {topic} does not exist", remedy="create it: ouzel topics create")
    if found.error is not None:
        raise translated(found.error, f"looking for the topic {topic}", complaints)
    return sorted(found.partitions)
