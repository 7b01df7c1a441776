"""What librdkafka says, in our words: unknown properties with the name that was meant, and errors with their remedy."""

import difflib
import logging
import re
import time
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from confluent_kafka import Consumer, KafkaError, KafkaException, Producer, ShareConsumer
from confluent_kafka.admin import AdminClient

from consumer.adapters.tls import tls_refusal
from consumer.errors import BrokerUnreachable, Denied, Fatal, NotAuthorized, SettingsError, TopicMissing

T = TypeVar("T")

_AGAIN_S = 0.2

# librdkafka's own log lines, which it would write to stderr by itself. A client hands them over in its poll().
# Where nobody has configured logging they are dropped: our own errors say what matters.
CLIENT_LOG = logging.getLogger("librdkafka")
CLIENT_LOG.addHandler(logging.NullHandler())

PRODUCER_FENCED = frozenset({KafkaError._FENCED, KafkaError.PRODUCER_FENCED, KafkaError.INVALID_PRODUCER_EPOCH})
"""Another producer of the same `transactional.id` took over, or the broker gave the transaction up."""

UNREACHABLE = frozenset(
    {
        KafkaError._TRANSPORT,
        KafkaError._ALL_BROKERS_DOWN,
        KafkaError._TIMED_OUT,
        KafkaError._TIMED_OUT_QUEUE,
        KafkaError._RESOLVE,
        KafkaError._DESTROY_BROKER,  # the one that was asked left the cluster meanwhile
        KafkaError.REQUEST_TIMED_OUT,
    }
)
"""No broker answered, and one may in a while."""
_UNAUTHENTICATED = frozenset({KafkaError._AUTHENTICATION, KafkaError.SASL_AUTHENTICATION_FAILED})
_DENIED: Mapping[int, Denied] = {
    KafkaError.TOPIC_AUTHORIZATION_FAILED: "topic",
    KafkaError.GROUP_AUTHORIZATION_FAILED: "group",
    KafkaError.TRANSACTIONAL_ID_AUTHORIZATION_FAILED: "transactional-id",
}
_FORBIDDEN = frozenset({*_DENIED, KafkaError.CLUSTER_AUTHORIZATION_FAILED})
COORDINATOR_AWAY = frozenset(
    {
        KafkaError.NOT_COORDINATOR,
        KafkaError.COORDINATOR_NOT_AVAILABLE,
        KafkaError.COORDINATOR_LOAD_IN_PROGRESS,
    }
)
"""Passes by itself: the first question about a group has the broker make its own topic, which takes a moment."""
_NO_TOPIC = frozenset({KafkaError.UNKNOWN_TOPIC_OR_PART, KafkaError._UNKNOWN_TOPIC})


def denied_by(error: KafkaError) -> Denied:
    """What a right is missing on."""
    return _DENIED.get(error.code(), "")


def in_our_words(
    error: KafkaError | KafkaException,
    *,
    doing: str,
    servers: str,
    topic: str = "",
    properties: Mapping[str, Any] | None = None,
) -> Fatal:
    """The error of ours that a person can act on. `doing` completes "while ...": `"describing topic 'images'"`.

    With `properties`, those of the client, a certificate that is not believed is looked at (see `tls_refusal`).
    """
    fault: Any = error.args[0] if isinstance(error, KafkaException) and error.args else error
    if not isinstance(fault, KafkaError):
        return Fatal(f"while {doing}: {fault}")
    refusal = tls_refusal(fault, servers=servers, properties=properties)
    return refusal or _answered(fault, doing, servers, topic)


def _answered(fault: KafkaError, doing: str, servers: str, topic: str) -> Fatal:
    code, text = fault.code(), fault.str()
    if code in _UNAUTHENTICATED:
        remedy = "check security.protocol, sasl.* and ssl.* in [kafka.client] against the broker's listener"
        return NotAuthorized(f"the broker at {servers} refuses who we are, while {doing}: {text}", remedy=remedy)
    if code in _FORBIDDEN:
        remedy = "have the cluster's owner allow it (kafka-acls), or put another user into [kafka.admin]"
        said = f"the broker does not allow us {doing}: {text}"
        return NotAuthorized(said, remedy=remedy, denied=denied_by(fault), topic=topic)
    if code in _NO_TOPIC:
        named = f"topic {topic!r} does not exist" if topic else text
        return TopicMissing(f"{named} (while {doing})", remedy="create it: ouzel topics create")
    if code in UNREACHABLE or code == KafkaError.BROKER_NOT_AVAILABLE:
        remedy = "check kafka.bootstrap_servers, that the broker runs, and that its advertised listeners can be reached"
        return BrokerUnreachable(f"no answer from the broker at {servers} while {doing}: {text}", remedy=remedy)
    return Fatal(f"the broker at {servers} answered with {fault.name()} while {doing}: {text}")


def until_coordinated(ask: Callable[[], T], *, timeout_s: float, wait: Callable[[float], None] = time.sleep) -> T:
    """The answer of `ask`, asked again while the group's coordinator is being found or is loading.

    Raises:
        KafkaException: any other error, and this one after `timeout_s` seconds.
    """
    deadline_s = time.monotonic() + timeout_s
    while True:
        try:
            return ask()
        except KafkaException as error:
            if error.args[0].code() not in COORDINATOR_AWAY or time.monotonic() >= deadline_s:
                raise
        wait(_AGAIN_S)


# --- properties -----------------------------------------------------------------------------------------------------

_UNKNOWN = 'No such configuration property: "'
# The same fault for every client is said once.
_CREATING = re.compile(r"^Failed to create [a-z ]+: ")
_ONE_PROPERTY = (_UNKNOWN, "Invalid value", "Expected bool")


_CLIENTS: Mapping[str, type[Any]] = {
    "consumer": Consumer,
    "share": ShareConsumer,
    "producer": Producer,
    "admin": AdminClient,
}


def check_properties(clients: Mapping[str, Mapping[str, Any]], places: Mapping[str, str]) -> None:
    """Open each client on no network, and say every property that librdkafka does not take.

    `clients`: role (`consumer`, `share`, `producer`, `admin`) -> the properties that it is opened with. `places`:
    property -> the settings key that it came from (`kafka.client.sasl.password`).

    Raises:
        SettingsError: one or more properties are unknown or have a value that will not do.
    """
    problems: dict[str, None] = {}
    for role, properties in clients.items():
        problems |= dict.fromkeys(_problems(role, dict(properties), places))
    if problems:
        remedy = "https://github.com/confluentinc/librdkafka/blob/master/CONFIGURATION.md lists the properties"
        raise SettingsError("librdkafka refuses properties:\n  " + "\n  ".join(problems), remedy=remedy)


def _problems(role: str, properties: dict[str, Any], places: Mapping[str, str]) -> list[str]:
    # Without brokers there is no network, and log_level 0 keeps librdkafka from remarking on that.
    properties.pop("bootstrap.servers", None)
    properties["log_level"] = 0
    if role in {"consumer", "share"}:
        properties.setdefault("group.id", "ouzel")
    found: list[str] = []
    while True:
        try:
            # With a logger nothing of it is written: `debug` has librdkafka tell its whole configuration.
            client = _CLIENTS[role](properties, logger=CLIENT_LOG)
        except KafkaException as error:
            text = error.args[0].str()
        except (AttributeError, TypeError, ValueError) as error:
            text = str(error)
        else:
            if isinstance(client, Consumer | ShareConsumer):
                client.close()
            return found
        named = next((name for name in properties if f'"{name}"' in text or f"`{name}`" in text), "")
        found.append(_explained(text, named, places.get(named, named)))
        if not named or not text.startswith(_ONE_PROPERTY):
            return found
        del properties[named]  # and see what else there is


def _explained(text: str, name: str, place: str) -> str:
    text = _CREATING.sub("", text)
    if not text.startswith(_UNKNOWN):
        return f"{place}: {text}" if place else text
    from consumer.librdkafka_names import NAMES

    meant = difflib.get_close_matches(name, NAMES, n=1)
    return f"{place}: there is no such property" + (f"; did you mean {meant[0]}?" if meant else "")
