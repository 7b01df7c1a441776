"""librdkafka's errors in our words. None means: not fatal, it may pass."""

from confluent_kafka import KafkaError

from consumer.adapters.librdkafka import denied_by
from consumer.errors import (
    Denied,
    EventTooLarge,
    Fatal,
    NotAuthorized,
    OutputRefused,
    OutputUnavailable,
    SettingsError,
    ShareGroupRefused,
    TopicMissing,
)

_NOT_AUTHORIZED = {
    KafkaError.TOPIC_AUTHORIZATION_FAILED,
    KafkaError.GROUP_AUTHORIZATION_FAILED,
    KafkaError.CLUSTER_AUTHORIZATION_FAILED,
    KafkaError.TRANSACTIONAL_ID_AUTHORIZATION_FAILED,
}
_NOT_AUTHENTICATED = {KafkaError.SASL_AUTHENTICATION_FAILED, KafkaError._AUTHENTICATION}
_GROUP_REFUSED = {
    KafkaError.INCONSISTENT_GROUP_PROTOCOL,
    KafkaError.INVALID_SESSION_TIMEOUT,
    KafkaError.INVALID_GROUP_ID,
    KafkaError.GROUP_MAX_SIZE_REACHED,
    KafkaError.UNSUPPORTED_ASSIGNOR,
    KafkaError.UNSUPPORTED_VERSION,
    KafkaError._UNSUPPORTED_FEATURE,
}
_OF_ANOTHER_KIND = "The group id does not exist"
"""Within the text of a fatal error, whose own code is no more than that. Said of a group that is there, too."""
_GROUP_DENIED = KafkaError(KafkaError.GROUP_AUTHORIZATION_FAILED).str()
"""The same, where a heartbeat of KIP-848 is refused."""
_FENCED = {
    KafkaError._FATAL,
    KafkaError._FENCED,
    KafkaError.FENCED_INSTANCE_ID,
    KafkaError.UNRELEASED_INSTANCE_ID,
}
_NO_SHARE_GROUPS = {KafkaError.UNSUPPORTED_VERSION, KafkaError._UNSUPPORTED_FEATURE}
_NO_SUCH_SHARE_GROUP = {KafkaError.GROUP_ID_NOT_FOUND, KafkaError.INCONSISTENT_GROUP_PROTOCOL}
_TOO_LARGE = {KafkaError.MSG_SIZE_TOO_LARGE, KafkaError.RECORD_LIST_TOO_LARGE}
_UNKNOWN_TOPIC = {
    KafkaError.UNKNOWN_TOPIC_OR_PART,
    KafkaError._UNKNOWN_TOPIC,
    KafkaError._UNKNOWN_PARTITION,
    KafkaError.TOPIC_EXCEPTION,
}
_REFUSED = {
    KafkaError.INVALID_RECORD,
    KafkaError.POLICY_VIOLATION,
    KafkaError.INVALID_REQUIRED_ACKS,
    KafkaError.INVALID_TIMESTAMP,
    KafkaError.UNSUPPORTED_COMPRESSION_TYPE,
    KafkaError.UNSUPPORTED_FOR_MESSAGE_FORMAT,
}


def is_fenced(error: KafkaError) -> bool:
    """Whether a static member lost its id to another. It comes once, with `.fatal()` False, and then silence."""
    return error.code() in _FENCED


def authentication_error(error: KafkaError) -> NotAuthorized | None:
    """The broker does not believe who we are. librdkafka tells it to `error_cb` alone; calls only time out."""
    if error.code() not in _NOT_AUTHENTICATED:
        return None
    return NotAuthorized(
        f"the broker refuses who we are: {error.str()}",
        remedy="check security.protocol and sasl.* in [kafka.client] against the broker's listener",
    )


def consumer_error(error: KafkaError, topic: str | None) -> Fatal | None:
    """What an error of the consumer means."""
    code = error.code()
    refusal = authentication_error(error)
    if refusal is not None:
        return refusal
    denied: Denied = "group" if _GROUP_DENIED in error.str() else denied_by(error)
    if denied or code in _NOT_AUTHORIZED:
        where = f" on topic {topic}" if topic else ""
        return NotAuthorized(
            f"the broker refuses us{where}: {error.str()}",
            remedy="`ouzel doctor` shows which right is missing",
            denied=denied,
            topic=topic or "",
        )
    if code in _GROUP_REFUSED:
        return SettingsError(
            f"the group coordinator refuses us: {error.str()}",
            remedy="check kafka.group_protocol and that no member of kafka.group_id uses an eager assignor",
        )
    if code == KafkaError.GROUP_ID_NOT_FOUND or _OF_ANOTHER_KIND in error.str():
        return SettingsError(
            f"the group is of another kind than its new member: {error.str()}",
            remedy='stop every replica of a group before its first one has kafka.group_protocol = "consumer"; take '
            "another kafka.group_id where it is a share group's (docs/operations.md, upgrades)",
        )
    if error.fatal() or code in _FENCED:
        return Fatal(f"the consumer cannot go on: {error.str()}", remedy="start the replica again")
    return None


def share_error(error: KafkaError, topic: str | None, *, group_id: str) -> Fatal | None:
    """What an error of a share group's member means."""
    code = error.code()
    if code in _NO_SHARE_GROUPS:
        return ShareGroupRefused(
            f"the broker has no share groups: {error.str()}",
            remedy="Apache Kafka 4.2 has them, with its feature share.version=1; or set another delivery.guarantee",
        )
    if code in _NO_SUCH_SHARE_GROUP:
        return ShareGroupRefused(
            f"{group_id} is a consumer group at the broker, and cannot be a share group: {error.str()}",
            remedy="give the share group a kafka.group_id of its own, then ouzel topics create",
        )
    return consumer_error(error, topic)


def delivery_error(error: KafkaError, topic: str) -> Exception:
    """What a failed delivery means (see `ports.ResultSink`). What we do not know may have been written."""
    code = error.code()
    if code in _TOO_LARGE:
        return EventTooLarge(f"{topic} refuses the record as too large: {error.str()}")
    refusal = authentication_error(error)
    if refusal is not None:
        return refusal
    if code in _NOT_AUTHORIZED:
        return NotAuthorized(
            f"the broker refuses our records on {topic}: {error.str()}",
            remedy=f"Write on {topic} is needed; `ouzel doctor` shows which right is missing",
            denied=denied_by(error),
            topic=topic,
        )
    if code in _UNKNOWN_TOPIC:
        return TopicMissing(f"topic {topic} does not exist", remedy="ouzel topics create")
    if code in _REFUSED:
        remedy = f"{topic} needs cleanup.policy=delete (records may have no key); see `ouzel topics describe`"
        if code == KafkaError.INVALID_TIMESTAMP:
            remedy = f"set this machine's clock: {topic} takes no times so far from the broker's (message.timestamp.*)"
        return OutputRefused(f"{topic} refuses our records: {error.str()}", remedy=remedy)
    return OutputUnavailable(f"{topic} was not written, or we cannot know: {error.str()}")
