"""What each setting alone cannot tell: values that are wrong together, or that would break a promise."""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from ipaddress import ip_network
from pathlib import Path
from urllib.parse import urlsplit

from pydantic import SecretStr

from consumer.errors import SettingsError
from consumer.host_names import HostPattern
from consumer.http_headers import check_header
from consumer.kafka_properties import HEADROOM_BYTES, LARGEST_MESSAGE_BYTES, canonical, refusals
from consumer.model_reference import DEFAULT, parse_reference
from consumer.names import is_bucket_pattern, replay_marker_topic
from consumer.settings_tables import HttpStoreSettings, Settings
from consumer.times import rfc3339_ms

# Kafka's own rule (org.apache.kafka.common.internals.Topic): letters, digits, ".", "_" and "-", at most 249.
_TOPIC_NAME = re.compile(r"[A-Za-z0-9._-]{1,249}")
_PROXY = re.compile(r"(http://([^\s/@]+@)?[A-Za-z0-9.\[\]:_-]+:[1-9][0-9]{0,4}/?)?")
_ENDPOINT = re.compile(r"https?://[^\s@/?#]+(/[^\s?#@]*)?")
_PLACEHOLDER = re.compile(r"\{[^}]*\}?")


@dataclass(frozen=True, slots=True)
class Conflict:
    """A check that failed. `keys` are the settings involved, the one to change first."""

    keys: tuple[str, ...]
    wrong: str
    fix: str


def conflicts(settings: Settings) -> Iterator[Conflict]:
    """Every check over more than one value."""
    checks: tuple[Callable[[Settings], Iterator[Conflict]], ...] = (
        _properties,
        _topics,
        _kafka,
        _model,
        _stores,
        _schema_registry,
        _bounds,
        _deadlines,
        _transactions,
        _share,
    )
    for check in checks:
        yield from check(settings)


def _properties(settings: Settings) -> Iterator[Conflict]:
    for key, reason in refusals(settings.kafka, share=settings.delivery.guarantee == "share").items():
        yield Conflict((key,), "refused, as it would break a promise", reason)


def _topics(settings: Settings) -> Iterator[Conflict]:
    kafka = settings.kafka
    for topic in kafka.input_topics:
        if topic.startswith("^"):
            yield Conflict(
                ("kafka.input_topics",),
                f"{topic!r} is a pattern; topics are named one by one, since each is checked at start, created with "
                "its size and watched for being recreated",
                "list the topics",
            )
    named = [("kafka.input_topics", topic) for topic in kafka.input_topics if not topic.startswith("^")]
    named += [("kafka.output_topic", kafka.output_topic), ("kafka.dead_letter_topic", kafka.dead_letter_topic)]
    shadow = settings.swap.shadow_topic
    named += [("swap.shadow_topic", shadow)] if shadow else []
    for key, topic in named:
        if not _TOPIC_NAME.fullmatch(topic) or topic in {".", ".."}:
            fix = "use letters, digits, '.', '_' and '-', at most 249 of them"
            yield Conflict((key,), f"{topic!r} is no name for a topic", fix)
    if len(set(kafka.input_topics)) != len(kafka.input_topics):
        yield Conflict(("kafka.input_topics",), "a topic is listed twice", "list each once")
    inputs = set(kafka.input_topics)
    if kafka.output_topic in inputs:
        yield Conflict(
            ("kafka.output_topic", "kafka.input_topics"),
            f"{kafka.output_topic!r} is an input topic too: every label event would come back as an image",
            "give the label events a topic of their own",
        )
    taken = {*inputs, kafka.output_topic}
    for topic in (kafka.dead_letter_topic, replay_marker_topic(kafka.dead_letter_topic)):
        if topic in taken:
            yield Conflict(
                ("kafka.dead_letter_topic", "kafka.input_topics", "kafka.output_topic"),
                f"{topic!r} is an input or the output topic too: letters would be taken for images or label events",
                "give the dead letters a topic of their own",
            )
    letters = kafka.dead_letter_topic
    if shadow in {*taken, letters, replay_marker_topic(letters)}:
        yield Conflict(
            ("swap.shadow_topic",),
            f"{shadow!r} has another use: what a new model says would be taken for images, label events or letters",
            "give it a topic of its own, or leave it empty",
        )


def _kafka(settings: Settings) -> Iterator[Conflict]:
    kafka = settings.kafka
    if settings.topics.replication_factor == 0:
        fix = "give 1 or more, or -1 for the broker's default"
        yield Conflict(("topics.replication_factor",), "none at all cannot be", fix)
    if kafka.start not in {"earliest", "latest"}:
        try:
            rfc3339_ms(kafka.start)
        except ValueError:
            fix = 'give "earliest", "latest" or an RFC 3339 time with its offset, such as "2026-01-31T09:30:00Z"'
            yield Conflict(("kafka.start",), f"{kafka.start!r} is no place to start", fix)
    if not kafka.bootstrap_servers.strip():
        yield Conflict(("kafka.bootstrap_servers",), "is empty", 'give "host:port", several with commas')
    if not kafka.group_id.strip():
        yield Conflict(("kafka.group_id",), "is empty", "give the name of the consumer group")
    for placeholder in _PLACEHOLDER.findall(kafka.group_instance_id):
        if placeholder != "{hostname}":
            fix = "{hostname} is the only placeholder"
            yield Conflict(("kafka.group_instance_id",), f"{placeholder!r} cannot be filled in", fix)
    largest = LARGEST_MESSAGE_BYTES - HEADROOM_BYTES
    if not 1024 <= kafka.max_message_bytes <= largest:
        yield Conflict(("kafka.max_message_bytes",), "is outside what clients can do", f"give 1024 to {largest} bytes")


def _model(settings: Settings) -> Iterator[Conflict]:
    model = settings.model
    if model.source != DEFAULT:
        try:
            parse_reference(model.source)
        except SettingsError as error:
            yield Conflict(("model.source",), str(error), error.remedy)
    if model.input_range[0] == model.input_range[1]:
        fix = "give what pixel values 0 and 255 become, such as [0.0, 1.0]"
        yield Conflict(("model.input_range",), "makes every pixel the same", fix)
    for key, values in (("model.mean", model.mean), ("model.std", model.std)):
        if len(values) not in {0, 1, 3}:
            fix = "give none, one for all channels, or three: red, green, blue"
            yield Conflict((key,), f"has {len(values)} values", fix)
    if any(value == 0 for value in model.std):
        yield Conflict(("model.std",), "has a zero, and pixels are divided by it", "give values other than zero")
    if not re.fullmatch(r"auto|cpu|gpu(:\d+)?", model.device):
        fix = 'give "auto", "cpu", or "gpu:0" and so on'
        yield Conflict(("model.device",), f"{model.device!r} is no device", fix)
    if model.streams and model.runtime not in {"auto", "openvino"}:
        fix = 'set model.streams = 0, or model.runtime = "openvino"'
        yield Conflict(("model.streams", "model.runtime"), f"{model.runtime} has no streams", fix)


def _stores(settings: Settings) -> Iterator[Conflict]:
    for root in settings.stores.file.roots:
        if not Path(root).is_absolute():
            said = f"{root!r} is relative, and what it means depends on the folder that the service is started in"
            yield Conflict(("stores.file.roots",), said, "give the whole path, from /")
    yield from _http(settings.stores.http)
    stores = settings.stores
    lists = {
        "s3.buckets": stores.s3.buckets,
        "gcs.buckets": stores.gcs.buckets,
        "azure.containers": stores.azure.containers,
    }
    for name, entries in lists.items():
        for entry in entries:
            if not is_bucket_pattern(entry):
                fix = 'give names such as "photos", "photos-*" or "photos/2026/", without a scheme'
                yield Conflict((f"stores.{name}",), f"{entry!r} is not the name of a bucket", fix)
    endpoints = {
        "s3.endpoint_url": stores.s3.endpoint_url,
        "s3.proxy_url": stores.s3.proxy_url,
        "gcs.endpoint_url": stores.gcs.endpoint_url,
        "azure.endpoint_url": stores.azure.endpoint_url,
    }
    for name, url in endpoints.items():
        if url and not _ENDPOINT.fullmatch(url):
            # Not shown: there may be a password in it.
            fix = "give https://host or https://host:port, without a user name or password"
            yield Conflict((f"stores.{name}",), "is not the URL of an endpoint", fix)
    yield from _s3_access(settings)


def _s3_access(settings: Settings) -> Iterator[Conflict]:
    s3 = settings.stores.s3
    if bool(s3.access_key_id) != bool(s3.secret_access_key.get_secret_value()):
        keys = ("stores.s3.access_key_id", "stores.s3.secret_access_key")
        yield Conflict(keys, "is a half of a key: one is given and the other is not", "give both, or neither")
    ways = {
        "stores.s3.anonymous": s3.anonymous,
        "stores.s3.profile": bool(s3.profile),
        "stores.s3.access_key_id": bool(s3.access_key_id),
    }
    given = tuple(key for key, is_given in ways.items() if is_given)
    if len(given) > 1:
        yield Conflict(given, f"and {', '.join(given[1:])} say differently who asks", "keep one of them")


def _http(http: HttpStoreSettings) -> Iterator[Conflict]:
    for text in http.hosts:
        try:
            HostPattern.of(text)
        except ValueError as error:
            fix = 'give "images.example.org" or "*.cdn.example.org", with ":port" where it is not the scheme\'s own'
            yield Conflict(("stores.http.hosts",), f"{text!r} is {error}", fix)
    for text in http.allow_networks:
        try:
            ip_network(text)
        except ValueError:
            fix = 'give an address range such as "10.20.0.0/16", its bits beyond the prefix zero'
            yield Conflict(("stores.http.allow_networks",), f"{text!r} is no network", fix)
    for host, headers in http.headers.items():
        if wrong := _wrong_headers(host, headers):
            fix = 'give one host as in stores.http.hosts, and headers such as Authorization = "Bearer ..."'
            yield Conflict(("stores.http.headers",), f"{host!r}: {wrong}", fix)
    if http.ca_file and not Path(http.ca_file).is_file():
        yield Conflict(("stores.http.ca_file",), f"{http.ca_file!r} is no file", "name a PEM file")
    if not _PROXY.fullmatch(http.proxy.get_secret_value()):
        yield Conflict(("stores.http.proxy",), "is no proxy", 'give "http://host:port", user:password@ before the host')


def _wrong_headers(host: str, headers: Mapping[str, SecretStr]) -> str:
    """What is wrong with one host's headers, without a value; empty where nothing is."""
    try:
        if HostPattern.of(host).wild:
            return "a wild card: anybody may own a name below it, and would be sent the headers"
        for name, value in headers.items():
            check_header(name, value.get_secret_value())
    except ValueError as error:
        return str(error)
    return ""


def _schema_registry(settings: Settings) -> Iterator[Conflict]:
    registry = settings.schema_registry
    for url in registry.url.split(",") if registry.url else ():
        parts = urlsplit(url.strip())
        if parts.scheme not in {"http", "https"} or not parts.netloc:
            yield Conflict(("schema_registry.url",), "is no address of a registry", 'give "http(s)://host:port"')
        elif "@" in parts.netloc:
            fix = "take them out, and set schema_registry.username and schema_registry.password"
            yield Conflict(("schema_registry.url",), "carries a user name or password, which would be shown", fix)
    if bool(registry.username) != bool(registry.password.get_secret_value()):
        keys = ("schema_registry.username", "schema_registry.password")
        yield Conflict(keys, "is one of a pair, and the other is missing", "give both, or none")
    if settings.output.format != "json" and not registry.url:
        yield Conflict(
            ("output.format", "schema_registry.url"),
            f"{settings.output.format!r} is written with the id of a registered schema, and no registry is set",
            'give schema_registry.url, or output.format = "json"',
        )


def _bounds(settings: Settings) -> Iterator[Conflict]:
    batch, pipeline = settings.batch, settings.pipeline
    if batch.max_size > pipeline.max_in_flight_messages:
        yield Conflict(
            ("batch.max_size", "pipeline.max_in_flight_messages"),
            f"{batch.max_size} images never gather while only {pipeline.max_in_flight_messages} are let in flight",
            "lower it, or raise pipeline.max_in_flight_messages to twice it",
        )
    if batch.max_bytes > pipeline.max_in_flight_bytes:
        yield Conflict(
            ("batch.max_bytes", "pipeline.max_in_flight_bytes"),
            f"{batch.max_bytes} bytes never gather while only {pipeline.max_in_flight_bytes} are let in flight",
            "lower it, or raise pipeline.max_in_flight_bytes",
        )
    if settings.retry.initial_backoff_ms > settings.retry.max_backoff_ms:
        yield Conflict(
            ("retry.initial_backoff_ms", "retry.max_backoff_ms"),
            "is more than retry.max_backoff_ms",
            "lower it, or raise retry.max_backoff_ms",
        )


def _transactions(settings: Settings) -> Iterator[Conflict]:
    transaction, kafka = settings.transaction, settings.kafka
    if 2 * transaction.max_ms > transaction.timeout_ms:
        yield Conflict(
            ("transaction.max_ms", "transaction.timeout_ms"),
            f"a transaction of {transaction.max_ms} ms would often be given up by the broker after "
            f"{transaction.timeout_ms} ms, and its images labelled again",
            "lower it, or raise transaction.timeout_ms to at least twice it",
        )
    if settings.delivery.guarantee != "exactly_once":
        return
    for table in ("client", "producer"):
        for name in getattr(kafka, table):
            if canonical(name) == "message.timeout.ms":
                yield Conflict(
                    (f"kafka.{table}.{name}",),
                    "a record has as long as its transaction, where delivery.guarantee is exactly_once",
                    "delete it; transaction.timeout_ms is that time",
                )


def _deadlines(settings: Settings) -> Iterator[Conflict]:
    """`/livez` fails past a stage's deadline; a stage that may rightly last longer would have the replica killed."""
    deadline_ms = settings.health.stage_deadline_ms
    waits = {
        "batch.max_wait_ms": settings.batch.max_wait_ms,
        "stores.fetch_deadline_ms": settings.stores.fetch_deadline_ms,
        "decode.deadline_ms": settings.decode.deadline_ms,
        "model.infer_deadline_ms": settings.model.infer_deadline_ms,
    }
    for key, wait_ms in waits.items():
        if wait_ms >= deadline_ms:
            yield Conflict(
                (key, "health.stage_deadline_ms"),
                f"{wait_ms} ms is not below health.stage_deadline_ms ({deadline_ms}): a replica that only waits as it "
                "should would be restarted",
                "lower it, or raise health.stage_deadline_ms",
            )
    for key, value_ms in {
        "health.stage_deadline_ms": deadline_ms,
        "health.loop_deadline_ms": settings.health.loop_deadline_ms,
        "model.infer_deadline_ms": settings.model.infer_deadline_ms,
        "stores.fetch_deadline_ms": settings.stores.fetch_deadline_ms,
    }.items():
        if value_ms == 0:
            yield Conflict((key,), "0 ms leaves no time at all", "give milliseconds, above zero")


def _share(settings: Settings) -> Iterator[Conflict]:
    """What a share group cannot do."""
    kafka, guarantee = settings.kafka, "delivery.guarantee"
    if settings.delivery.guarantee != "share":
        return
    if kafka.group_instance_id:
        said = "a share group has no static members: nothing is kept for one that comes back"
        yield Conflict(("kafka.group_instance_id", guarantee), said, "leave it empty")
    if kafka.start not in {"earliest", "latest"}:
        said = "a share group begins at the earliest or at the latest message, not at a time"
        yield Conflict(("kafka.start", guarantee), said, 'give "earliest" or "latest"')
    if kafka.on_offset_lost == "stop":
        said = "a share group goes on after what retention took and tells nobody"
        yield Conflict(("kafka.on_offset_lost", guarantee), said, 'set "earliest", and keep messages for long enough')
    if settings.share.consumers > settings.pipeline.max_in_flight_messages:
        said = f"only {settings.pipeline.max_in_flight_messages} messages are let in flight, less than one for each"
        yield Conflict(("share.consumers", "pipeline.max_in_flight_messages"), said, "lower it")
