"""Wires ports to adapters: the only module that imports them. Reads like the list of what the service is made of."""

import faulthandler
import gc
import math
import os
import random
import signal
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, cast

from loguru import logger

from consumer import share_group
from consumer.bootstrap_clouds import s3_access, s3_endpoint
from consumer.bootstrap_model import Model
from consumer.bootstrap_roofline import build_meter
from consumer.bootstrap_serving import SourceWatch, build_serving, swap_rules
from consumer.clock import SystemClock
from consumer.cpu import quota_cores
from consumer.errors import SettingsError, TopicMissing
from consumer.extras import missing
from consumer.flow import Flow
from consumer.health import Health
from consumer.kafka_properties import (
    consumer_properties,
    producer_properties,
    service_properties,
    share_properties,
    transactional_properties,
)
from consumer.memory import available_bytes
from consumer.messages import Outcome, Partition
from consumer.metrics import Metrics
from consumer.observer import Observer
from consumer.pipeline import Pipeline
from consumer.ports import (
    Clock,
    EventEncoder,
    GroupView,
    ImageStore,
    MessageSource,
    RecordDecoder,
    ResultSink,
    ShareSource,
    Transactions,
)
from consumer.roofline_meter import calibrate
from consumer.rules import Rules
from consumer.settings import Settings
from consumer.settings_tables import FetchCacheSettings, HttpStoreSettings
from consumer.share_pipeline import SharePipeline, ShareRules
from consumer.silence import SilenceLimit
from consumer.stages.batch import Batcher
from consumer.stages.dead_letter_limit import DeadLetterLimit
from consumer.stages.events import EventContext, JsonEncoder
from consumer.stages.fetch_cache import FetchCache
from consumer.stages.intake import ByteBudget, Intake
from consumer.stages.parse import Parser
from consumer.stages.publish import Publisher
from consumer.stages.relabel import Progress
from consumer.stages.retry import Retries
from consumer.stages.shadow import HandOff
from consumer.stages.shadow_events import ShadowEvents
from consumer.stages.start import RangePart
from consumer.swap import Swapper
from consumer.times import rfc3339_ms
from consumer.tracking import Notebook

if TYPE_CHECKING:
    from confluent_kafka.schema_registry import SchemaRegistryClient

    from consumer.adapters.stores.s3_listing import S3Listing

_FLUSH_S = 2.0  # after a drain nothing is under way, or its deadline has passed
DEFAULT_MAX_POLL_INTERVAL_MS = 300_000  # librdkafka's own


@dataclass(frozen=True, slots=True)
class Ports:
    """Everything that the service reaches the world by."""

    source: MessageSource | ShareSource
    sink: ResultSink
    view: GroupView
    stores: Sequence[ImageStore]
    model: Model
    encoder: EventEncoder = field(default_factory=JsonEncoder)
    transactions: Transactions | None = None
    """What commits offsets together with the sink's records; None where the source does, after them."""
    shadow_sink: ResultSink | None = None
    """For what is no part of any promise, where the sink's records are; None where the sink takes it too."""


# --- the flow -------------------------------------------------------------------------------------------------------


def build_stores(settings: Settings) -> list[ImageStore]:
    """The stores that the settings allow.

    Raises:
        SettingsError: a store's extra is not installed, or a file that a store needs cannot be read.
    """
    from consumer.adapters.stores.data_store import DataStore

    stores: list[ImageStore] = [DataStore()]
    if settings.stores.file.roots:
        from consumer.adapters.stores.file_store import FileStore

        stores.append(FileStore(settings.stores.file.roots))
    if settings.stores.http.hosts:
        stores.append(_http_store(settings.stores.http))
    stores.extend(_bucket_stores(settings))
    return stores


def _http_store(http: HttpStoreSettings) -> ImageStore:
    from consumer.adapters.stores.http_store import HttpStore

    try:
        return HttpStore(
            http.hosts,
            schemes=http.schemes,
            allow_networks=http.allow_networks,
            headers={
                host: {name: value.get_secret_value() for name, value in headers.items()}
                for host, headers in http.headers.items()
            },
            ca_file=http.ca_file,
            proxy=http.proxy.get_secret_value(),
            max_redirects=http.max_redirects,
            max_connections_per_host=http.max_connections_per_host,
            requests_per_second_per_host=http.requests_per_second_per_host,
            connect_timeout_s=http.connect_timeout_ms / 1000,
        )
    except OSError as error:
        raise SettingsError(
            f"stores.http.ca_file: {http.ca_file} cannot be used: {error.strerror or error}",
            remedy="name a PEM file with certificates that this user may read",
        ) from None


def _bucket_stores(settings: Settings) -> Iterator[ImageStore]:
    from consumer.adapters.stores.clouds import Endpoint, azure_store, gcs_store, s3_store

    s3, gcs, azure = settings.stores.s3, settings.stores.gcs, settings.stores.azure
    if s3.buckets:
        yield s3_store(
            s3.buckets,
            endpoint=s3_endpoint(settings),
            region=s3.region,
            path_style=s3.path_style,
            access=s3_access(settings),
            max_concurrency=s3.max_concurrency,
        )
    if gcs.buckets:
        yield gcs_store(
            gcs.buckets,
            endpoint=Endpoint(url=gcs.endpoint_url),
            anonymous=gcs.anonymous,
            max_concurrency=gcs.max_concurrency,
        )
    if azure.containers:
        yield azure_store(
            azure.containers,
            endpoint=Endpoint(url=azure.endpoint_url),
            account=azure.account,
            anonymous=azure.anonymous,
            max_concurrency=azure.max_concurrency,
        )


def _fetch_cache(settings: FetchCacheSettings, clock: Clock, observer: Observer) -> FetchCache | None:
    if settings.max_bytes == 0:
        return None
    return FetchCache(
        max_bytes=settings.max_bytes,
        max_age_s=settings.max_age_ms / 1000,
        monotonic_s=clock.monotonic_s,
        told=observer.fetch_cache,
    )


def open_s3_listing(settings: Settings) -> "S3Listing":
    """What lists buckets, as `[stores.s3]` says. Raises SettingsError."""
    from consumer.adapters.stores.s3_listing import S3Listing

    s3 = settings.stores.s3
    return S3Listing(
        endpoint=s3_endpoint(settings), region=s3.region, path_style=s3.path_style, access=s3_access(settings)
    )


def build_parser(settings: Settings, schemas: RecordDecoder | None) -> Parser:
    """What reads messages, with what reads Avro and Protobuf (see `build_records`)."""
    return Parser(
        max_metadata_bytes=settings.input.max_metadata_bytes,
        max_image_bytes=settings.stores.max_image_bytes,
        max_records=settings.input.max_records,
        schemas=schemas,
    )


def build_flow(
    settings: Settings,
    model: Model,
    *,
    stores: Sequence[ImageStore],
    budget: ByteBudget,
    observer: Observer,
    on_outcome: Callable[[Outcome], None],
    on_crash: Callable[[BaseException], None],
    hand_off: HandOff | None = None,
) -> Flow:
    """The stages from parse to infer."""
    clock = SystemClock()
    batch, pipeline, retry = settings.batch, settings.pipeline, settings.retry
    schemas = build_records(settings)
    return Flow(
        parser=build_parser(settings, schemas),
        stores=stores,
        cache=_fetch_cache(settings.stores.cache, clock, observer),
        serving=build_serving(settings, model),
        batcher=Batcher(max_size=batch.max_size, max_bytes=batch.max_bytes, max_wait_ms=batch.max_wait_ms),
        retries=Retries(
            max_attempts=retry.max_attempts,
            initial_backoff_ms=retry.initial_backoff_ms,
            max_backoff_ms=retry.max_backoff_ms,
            max_retry_after_ms=retry.max_retry_after_ms,
            dice=random.random,
        ),
        budget=budget,
        clock=clock,
        observer=observer,
        tombstones=settings.input.tombstones,
        max_image_bytes=settings.stores.max_image_bytes,
        fetch_deadline_s=settings.stores.fetch_deadline_ms / 1000,
        infer_deadline_s=settings.model.infer_deadline_ms / 1000,
        decode_deadline_s=settings.decode.deadline_ms / 1000,
        # All cores at work use as much within the deadline, and no less than the deadline has passed then.
        silence=SilenceLimit(settings.decode.deadline_ms / 1000 * quota_cores()),
        decode_threads=pipeline.decode_threads or quota_cores(),
        fetch_concurrency=pipeline.fetch_concurrency,
        on_outcome=on_outcome,
        on_crash=on_crash,
        schemas=schemas,
        hand_off=hand_off,
    )


# --- the schema registry --------------------------------------------------------------------------------------------


def _check_registry_extra() -> None:
    """Raises SettingsError where what reads by a schema registry is not installed."""
    absent = missing("fastavro", "google.protobuf", "authlib")
    if absent:
        raise SettingsError(
            f"schema_registry.url is set, and {', '.join(absent)} is not installed",
            remedy="pip install '.[registry]'",
        )


def open_registry(settings: Settings) -> "SchemaRegistryClient":
    """The client of `schema_registry.url`. Connects to nothing yet.

    Raises:
        SettingsError: no registry is set, the extra is not installed, or the CA file is absent.
    """
    registry = settings.schema_registry
    if not registry.url:
        raise SettingsError("no schema registry is set", remedy='set schema_registry.url to "http(s)://host:port"')
    _check_registry_extra()
    if registry.ca_file and not Path(registry.ca_file).is_file():
        raise SettingsError(
            f"schema_registry.ca_file: {registry.ca_file!r} is no file",
            remedy="give the PEM file of who signs the registry's certificate",
        )
    from consumer.adapters.schema_registry.client import open_client

    return open_client(
        registry.url,
        username=registry.username,
        password=registry.password.get_secret_value(),
        ca_file=registry.ca_file,
        timeout_ms=registry.timeout_ms,
    )


def build_records(settings: Settings) -> RecordDecoder | None:
    """What reads Avro and Protobuf; None where no schema registry is set."""
    if not settings.schema_registry.url:
        return None
    client, descriptors = open_registry(settings), open_registry(settings)
    from consumer.adapters.schema_registry.records import RegistryRecords

    return RegistryRecords(client, descriptors)


def build_encoder(settings: Settings) -> EventEncoder:
    """What writes label events. Asks the registry where `output.format` needs one.

    Raises:
        SchemaMissing, RegistryUnreachable, NotAuthorized: see `open_encoder`.
    """
    written_as = settings.output.format
    if written_as == "json":
        return JsonEncoder()
    with open_registry(settings) as client:
        from consumer.adapters.schema_registry.encoders import open_encoder

        return open_encoder(client, settings.kafka.output_topic, written_as)


# --- the service ----------------------------------------------------------------------------------------------------


def open_view(settings: Settings) -> GroupView:
    """Questions about the cluster and the group."""
    from consumer.adapters.kafka.group_view import KafkaGroupView

    kafka = settings.kafka
    return KafkaGroupView(service_properties(kafka), group_id=kafka.group_id, timeout_ms=kafka.request_timeout_ms)


def open_ports(
    settings: Settings,
    model: Model,
    view: GroupView,
    encoder: EventEncoder | None = None,
    *,
    tell_ends: bool = False,
) -> Ports:
    """The real adapters. Connects to nothing yet, but for the transactions' producer."""
    from consumer.adapters.kafka.sink import KafkaSink
    from consumer.adapters.kafka.source import KafkaSource

    kafka, clock = settings.kafka, SystemClock()
    hostname = socket.gethostname()
    stores = build_stores(settings)
    encoder = encoder or JsonEncoder()
    if settings.delivery.guarantee == "share":
        members = _share_source(settings, hostname, clock)
        sink = KafkaSink(producer_properties(kafka, hostname), clock=clock)
        return Ports(source=members, sink=sink, view=view, stores=stores, model=model, encoder=encoder)
    source = KafkaSource(consumer_properties(kafka, hostname, tell_ends=tell_ends), kafka.input_topics, clock=clock)
    if settings.delivery.guarantee != "exactly_once":
        sink = KafkaSink(producer_properties(kafka, hostname), clock=clock)
        return Ports(source=source, sink=sink, view=view, stores=stores, model=model, encoder=encoder)
    from consumer.adapters.kafka.transactional_sink import TransactionalSink

    transaction = settings.transaction
    transactional = TransactionalSink(
        transactional_properties(kafka, transaction, hostname),
        group_metadata=source.group_metadata,
        shared_id=bool(transaction.id),
        clock=clock,
    )
    plain = KafkaSink(producer_properties(kafka, hostname), clock=clock) if settings.swap.shadow_topic else None
    return Ports(
        source=source,
        sink=transactional,
        view=view,
        stores=stores,
        model=model,
        encoder=encoder,
        transactions=transactional,
        shadow_sink=plain,
    )


def _share_source(settings: Settings, hostname: str, clock: Clock) -> ShareSource:
    from consumer.adapters.kafka.share_source import KafkaShareSource

    kafka, members = settings.kafka, settings.share.consumers
    # One batch is on the model while the next one is made ready; what waits beyond that only has its lock run.
    most = max(1, min(2 * settings.batch.max_size, settings.pipeline.max_in_flight_messages // members))
    properties = share_properties(kafka, hostname, max_poll_records=most)
    return KafkaShareSource(properties, kafka.input_topics, members=members, clock=clock)


def check_share_group(settings: Settings) -> None:
    """The share group is at the broker as the settings want it, where `delivery.guarantee` asks for one.

    Raises:
        ShareGroupRefused: it is not, or the broker has no share groups.
        BrokerUnreachable, NotAuthorized: nobody answers, or not to us.
    """
    if settings.delivery.guarantee != "share":
        return
    from consumer.adapters.kafka_admin import KafkaAdmin

    kafka = settings.kafka
    admin = KafkaAdmin(service_properties(kafka), timeout_s=kafka.request_timeout_ms / 1000)
    share_group.check(settings, share_group.found(admin.group_config(kafka.group_id), admin.broker_config))


def check_topics(settings: Settings, view: GroupView) -> None:
    """All topics that the service needs exist.

    Raises:
        TopicMissing: names every one that does not.
        BrokerUnreachable, NotAuthorized: nobody answers, or not to us.
    """
    kafka = settings.kafka
    names = [*kafka.input_topics, kafka.output_topic, kafka.dead_letter_topic]
    names += filter(None, [settings.swap.shadow_topic])
    found = view.topics(names)
    missing = [name for name in names if name not in found]
    if missing:
        what = f"topic {missing[0]} does not" if len(missing) == 1 else f"topics {', '.join(missing)} do not"
        raise TopicMissing(f"{what} exist at {kafka.bootstrap_servers}", remedy="ouzel topics create")


class Service:
    """A replica: everything wired, ready to run once."""

    def __init__(
        self,
        settings: Settings,
        ports: Ports,
        *,
        metrics: Metrics,
        health: Health,
        resume: bool,
        read_settings: Callable[[], Settings] | None = None,
        parts: Mapping[Partition, RangePart] | None = None,
        on_progress: Callable[[Progress], None] = lambda _progress: None,
        notebook: Notebook | None = None,
    ) -> None:
        """With `read_settings`, the settings as they are at a later time, new versions of the model are taken."""
        clock = SystemClock()
        self._meter = build_meter(metrics)
        observer = Observer(metrics, clock, notebook, self._meter)
        observer.serves(ports.model.runtime.info, settings.model.source)
        context = _context(settings, ports.view, ports.encoder)
        self._ports = ports
        self._health = health
        budget = ByteBudget(settings.pipeline.max_in_flight_bytes)
        limit = _limit(settings)
        intake = Intake(
            max_messages=settings.pipeline.max_in_flight_messages,
            max_bytes=settings.pipeline.max_in_flight_bytes,
            max_uncommitted=settings.pipeline.max_uncommitted_messages,
        )
        self.pipeline: Pipeline | SharePipeline
        on_broken = None
        if settings.delivery.guarantee == "share":
            self.pipeline = SharePipeline(
                source=cast("ShareSource", ports.source),
                view=ports.view,
                intake=intake,
                budget=budget,
                clock=clock,
                observer=observer,
                rules=_share_rules(settings),
            )
        else:
            pipeline = self.pipeline = Pipeline(
                source=cast("MessageSource", ports.source),
                view=ports.view,
                intake=intake,
                budget=budget,
                limit=limit,
                clock=clock,
                observer=observer,
                rules=_rules(settings, ignore_earlier_trips=resume),
                parts=parts,
                on_progress=on_progress,
                transactions=ports.transactions,
            )
            on_broken = None if ports.transactions is None else pipeline.broken
        self.publisher = Publisher(
            ports.sink,
            context=context,
            limit=limit,
            clock=clock,
            observer=observer,
            forward_tombstones=settings.input.tombstones == "forward",
            redo_backoff_s=settings.retry.initial_backoff_ms / 1000,
            on_settled=self.pipeline.settled,
            on_crash=self.pipeline.crashed,
            on_broken=on_broken,
        )
        hand_off = HandOff(budget)
        self.flow = build_flow(
            settings,
            ports.model,
            stores=ports.stores,
            budget=budget,
            observer=observer,
            on_outcome=self.publisher.submit,
            on_crash=self.pipeline.crashed,
            hand_off=hand_off,
        )
        self._shadow = ShadowEvents(
            ports.shadow_sink or ports.sink, context, topic=settings.swap.shadow_topic, clock=clock
        )
        self._swapper: Swapper | None = None
        if read_settings is not None:
            watch = SourceWatch(settings, read_settings)
            self._swapper = Swapper(
                self.flow,
                hand_off,
                look=watch.look,
                rules=swap_rules(settings.swap),
                running_key=watch.first_key,
                available_bytes=available_bytes,
                shadow_decode_bytes=settings.batch.max_bytes,
                infer_deadline_s=settings.model.infer_deadline_ms / 1000,
                clock=clock,
                observer=observer,
                shadow_event=self._shadow.publish,
            )

    def look_for_new_model(self) -> None:
        """At once. May be called from a signal handler; without `read_settings` it does nothing."""
        if self._swapper is not None:
            self._swapper.tell()

    def run(self) -> None:
        """Until SIGTERM or SIGINT, or the end of the range. A second signal ends the process at once. SIGUSR1 goes on
        after the dead-letter limit.

        Raises:
            Fatal: see `errors`.
        """
        self.flow.start()
        self._calibrate()
        _settle_heap()
        self._listen_to_signals()
        self._health.attach(self.pipeline, self.flow, self.publisher, self._ports.source)
        if self._swapper is not None:
            self._swapper.start()
        try:
            self.pipeline.run(self.flow, self.publisher)
        finally:
            if self._swapper is not None:
                self._swapper.stop()
            self.flow.close()
            self.publisher.close()
            unconfirmed = self._ports.sink.close(_FLUSH_S)
            if self._ports.shadow_sink is not None:
                self._ports.shadow_sink.close(_FLUSH_S)
            else:
                unconfirmed -= self._shadow.under_way
            if unconfirmed > 0:
                logger.warning("{} records are not confirmed: their messages will be delivered again", unconfirmed)
            self._ports.view.close()

    def _calibrate(self) -> None:
        """What the model costs, now that nothing else runs."""
        inference = self.flow.serving.inference
        try:
            infer_ms = calibrate(inference.run_blank, inference.sizes)
        except Exception as error:
            logger.warning("what a batch costs cannot be measured, ouzel_roofline_ratio stays NaN: {}", error)
        else:
            self._meter.calibrated(inference.info.digest, infer_ms)

    def _listen_to_signals(self) -> None:
        """A handler only sets a flag: one that raised would lose the messages that poll has in hand."""

        def stop(number: int, _frame: object) -> None:
            if self.pipeline.stopping:
                os._exit(128 + number)
            self.pipeline.stop()

        signal.signal(signal.SIGTERM, stop)
        signal.signal(signal.SIGINT, stop)
        # Where everything stood, to stderr, before the default ends the process: see `silence`.
        faulthandler.register(signal.SIGPROF, chain=True)
        signal.signal(signal.SIGUSR1, lambda _number, _frame: self.pipeline.resume())


def _settle_heap() -> None:
    """What a warm service is made of lives as long as it does. The garbage collector would look through all of it, with
    a model's libraries hundreds of thousands of objects, again and again while images wait."""
    gc.collect()
    gc.freeze()


def _limit(settings: Settings) -> DeadLetterLimit:
    rules = settings.dead_letters
    return DeadLetterLimit(
        window_s=rules.window_s,
        min_sample=rules.min_sample,
        content_ratio=rules.content_ratio,
        system_ratio=rules.system_ratio,
        system_consecutive=rules.system_consecutive,
    )


def _context(settings: Settings, view: GroupView, encoder: EventEncoder) -> EventContext:
    kafka = settings.kafka
    return EventContext(
        cluster_id=view.cluster_id(),
        group_id=kafka.group_id,
        replica=socket.gethostname(),
        output_topic=kafka.output_topic,
        dead_letter_topic=kafka.dead_letter_topic,
        max_message_bytes=kafka.max_message_bytes,
        spring_headers=settings.dead_letters.spring_headers,
        encoder=encoder,
    )


def _commit_interval_ms(settings: Settings) -> int:
    exactly_once = settings.delivery.guarantee == "exactly_once"
    return settings.transaction.max_ms if exactly_once else settings.commit.interval_ms


def _share_rules(settings: Settings) -> ShareRules:
    return ShareRules(
        lock_duration_s=settings.share.lock_duration_ms / 1000,
        delivery_count_limit=settings.share.delivery_count_limit,
        drain_timeout_s=settings.drain.timeout_ms / 1000,
        metadata_interval_s=settings.kafka.metadata_interval_ms / 1000,
        topic_gone_s=settings.kafka.topic_gone_ms / 1000,
        topics=tuple(settings.kafka.input_topics),
        exit_on_limit=settings.dead_letters.on_limit == "exit",
    )


def _longest_drain_ms(settings: Settings) -> float:
    """A transaction lasts as long as the drain before its end, and the broker gives it up after its own time-out."""
    return settings.transaction.timeout_ms / 2 if settings.delivery.guarantee == "exactly_once" else math.inf


def _rules(settings: Settings, *, ignore_earlier_trips: bool) -> Rules:
    kafka = settings.kafka
    properties = consumer_properties(kafka, "")
    max_poll_interval_ms = int(properties.get("max.poll.interval.ms", DEFAULT_MAX_POLL_INTERVAL_MS))
    start: str | int = kafka.start
    if kafka.start not in ("earliest", "latest"):
        start = rfc3339_ms(kafka.start)
    return Rules(
        commit_interval_s=_commit_interval_ms(settings) / 1000,
        drain_timeout_s=min(settings.drain.timeout_ms, max_poll_interval_ms / 2, _longest_drain_ms(settings)) / 1000,
        metadata_interval_s=kafka.metadata_interval_ms / 1000,
        topic_gone_s=kafka.topic_gone_ms / 1000,
        # What is finished is committed once an interval, and that is no standing still.
        stall_s=settings.health.stall_ms and max(settings.health.stall_ms, 2 * _commit_interval_ms(settings)) / 1000,
        topics=tuple(kafka.input_topics),
        max_uncommitted_messages=settings.pipeline.max_uncommitted_messages,
        start=start,
        stop_on_offset_lost=kafka.on_offset_lost == "stop",
        exit_on_limit=settings.dead_letters.on_limit == "exit",
        ignore_earlier_trips=ignore_earlier_trips,
    )
