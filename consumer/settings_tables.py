"""The tables of settings.toml: every key, its default and its bounds. Imports nothing of ours."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, SecretStr

Property = str | int | float | bool
RawProperties = dict[str, Property]
"""librdkafka's properties by their own names, with dots."""

Milliseconds = Annotated[int, Field(ge=0)]
Count = Annotated[int, Field(ge=1)]
Bytes = Annotated[int, Field(ge=1)]


class Section(BaseModel):
    """A table of settings.toml: frozen, and a name it does not know is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True, allow_inf_nan=False)


class KafkaSettings(Section):
    """[kafka]"""

    bootstrap_servers: str = "localhost:9092"
    group_id: str = "ouzel"
    group_protocol: Literal["classic", "consumer"] = "classic"
    group_instance_id: str = ""
    """Template for static membership: `{hostname}` is replaced; empty for a dynamic member."""
    input_topics: Annotated[list[str], Field(min_length=1)] = ["images"]
    output_topic: str = "predictions"
    dead_letter_topic: str = "images.dlq"
    start: str = "earliest"
    """`earliest`, `latest` or an RFC 3339 time: where a group without committed offsets starts."""
    on_offset_lost: Literal["earliest", "stop"] = "earliest"
    max_message_bytes: Bytes = 16 * 1024 * 1024
    metadata_interval_ms: Annotated[int, Field(ge=100)] = 10_000
    request_timeout_ms: Annotated[int, Field(ge=100)] = 10_000
    topic_gone_ms: Milliseconds = 30_000
    """How long a deleted input topic may stay away (it may be made anew) before the replica ends."""
    client: RawProperties = {}
    consumer: RawProperties = {}
    producer: RawProperties = {}
    admin: RawProperties = {}


class TopicSettings(Section):
    """[topics]: what `ouzel topics create` makes."""

    partitions: Count = 6
    replication_factor: Annotated[int, Field(ge=-1)] = -1
    """-1 is the broker's default."""
    input_retention_ms: Annotated[int, Field(ge=-1)] = 7 * 24 * 3_600_000
    output_retention_ms: Annotated[int, Field(ge=-1)] = 7 * 24 * 3_600_000
    dead_letter_retention_ms: Annotated[int, Field(ge=-1)] = 28 * 24 * 3_600_000


class BatchSettings(Section):
    """[batch]"""

    max_size: Annotated[int, Field(ge=1, le=4096)] = 16
    max_wait_ms: Milliseconds = 20
    max_bytes: Bytes = 64 * 1024 * 1024


class PipelineSettings(Section):
    """[pipeline]"""

    max_in_flight_messages: Count = 256
    max_in_flight_bytes: Bytes = 256 * 1024 * 1024
    max_uncommitted_messages: Count = 5_000
    fetch_concurrency: Count = 32
    decode_threads: Annotated[int, Field(ge=0)] = 0
    """0: one for each core of the cgroup's quota."""


class ModelSettings(Section):
    """[model]"""

    source: str = "default"
    """`default`, a folder, `file://`, `s3://` or `wandb-artifact://`, with `:ALIAS` and `@sha256:...` if wanted."""
    name: str = ""
    version: str = ""
    labels: str = ""
    """CSV `id,name` in any order, or one name a line."""
    runtime: Literal["auto", "tensorflow", "openvino", "onnxruntime", "litert", "null"] = "auto"
    device: str = "auto"
    """`auto`, `cpu`, `gpu:0`, ..."""
    signature: str = ""
    """Empty: `serving_default`, else the only one there is."""
    input_range: Annotated[list[float], Field(min_length=2, max_length=2)] = [0.0, 1.0]
    """What pixel values 0 and 255 become, before mean and std."""
    mean: list[float] = []
    std: list[float] = []
    resize: Literal["bilinear", "bicubic", "lanczos", "nearest", "box", "hamming"] = "bilinear"
    crop: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0
    """Share of the shorter side kept by a centre crop; 1.0 squeezes the whole image in. See `docs/`."""
    output: Literal["auto", "probabilities", "logits"] = "auto"
    top_k: Annotated[int, Field(ge=1, le=1000)] = 5
    min_score: Annotated[float, Field(ge=0.0, le=1.0)] = 0.0
    infer_deadline_ms: Milliseconds = 120_000
    threads: Annotated[int, Field(ge=0)] = 0
    """0: as many as the cgroup's quota has cores."""
    streams: Annotated[int, Field(ge=0)] = 0
    """Of OpenVINO; 0: as many as it thinks best."""
    autotune: bool = False
    autotune_budget_ms: Annotated[int, Field(ge=500)] = 5_000
    allow_provisional: bool = False
    download_deadline_ms: Annotated[int, Field(ge=1_000)] = 600_000
    cache_versions: Count = 3
    """Versions of a model that the cache keeps."""


class SwapSettings(Section):
    """[swap]: how a new version of the model goes live in a running replica."""

    watch_interval_ms: Annotated[int, Field(ge=0)] = 60_000
    """0: only SIGHUP has the replica look."""
    min_agreement: Annotated[float, Field(ge=0.0, le=1.0)] = 0.95
    shadow_images: Annotated[int, Field(ge=0)] = 500
    cpu_share: Annotated[float, Field(gt=0.0, le=1.0)] = 0.25
    shadow_topic: str = ""
    """Empty: what the candidate says goes to no topic."""


class WandbSettings(Section):
    """[wandb]: the W&B server that models come from and runs go to."""

    base_url: str = ""
    """Empty: W&B's own cloud, or what WANDB_BASE_URL says."""
    api_key: SecretStr = SecretStr("")
    """Empty: what WANDB_API_KEY or a netrc file says."""
    timeout_ms: Annotated[int, Field(ge=100)] = 10_000


class TrackingSettings(Section):
    """[tracking]: a W&B run for each replica."""

    enabled: bool = False
    mode: Literal["online", "offline"] = "online"
    project: str = "ouzel"
    entity: str = ""
    folder: str = ""
    """Where runs are written; empty: the user's state folder."""
    interval_ms: Annotated[int, Field(ge=1_000)] = 30_000
    images_per_interval: Annotated[int, Field(ge=0, le=100)] = 0
    image_max_bytes: Bytes = 256 * 1024
    finish_timeout_ms: Milliseconds = 5_000


class FileStoreSettings(Section):
    """[stores.file]"""

    roots: list[str] = []
    """Directories below which `file://` may read; empty: `file://` is off."""


class FetchCacheSettings(Section):
    """[stores.cache]"""

    max_bytes: Annotated[int, Field(ge=0)] = 0
    max_age_ms: Milliseconds = 10_000


class HttpStoreSettings(Section):
    """[stores.http]"""

    hosts: list[str] = []
    """`images.example.org`, `*.cdn.example.org`, each with `:port` where it is not the scheme's; empty: off."""
    schemes: Annotated[list[Literal["https", "http"]], Field(min_length=1)] = ["https"]
    allow_networks: list[str] = []
    """Networks (CIDR) that hosts may lead to though they are not public."""
    headers: dict[str, dict[str, SecretStr]] = {}
    """By host: headers that this host alone is sent."""
    ca_file: str = ""
    """PEM file; empty: the system's authorities."""
    proxy: SecretStr = SecretStr("")
    """`http://[user:password@]host:port`; empty: none, whatever the environment says."""
    max_redirects: Annotated[int, Field(ge=0, le=20)] = 0
    max_connections_per_host: Count = 8
    requests_per_second_per_host: Annotated[float, Field(ge=0.0)] = 0.0
    """0: no bound."""
    connect_timeout_ms: Annotated[int, Field(ge=1)] = 3_000


class S3StoreSettings(Section):
    """[stores.s3]"""

    buckets: list[str] = []
    """`photos`, `photos-*`, `photos/2026/`; empty: `s3://` is off."""
    endpoint_url: str = ""
    region: str = ""
    path_style: bool = True
    anonymous: bool = False
    profile: str = ""
    access_key_id: str = ""
    secret_access_key: SecretStr = SecretStr("")
    session_token: SecretStr = SecretStr("")
    requester_pays: bool = False
    ca_file: str = ""
    proxy_url: str = ""
    connect_timeout_ms: Annotated[int, Field(ge=1)] = 3_000
    read_timeout_ms: Annotated[int, Field(ge=1)] = 5_000
    max_concurrency: Count = 64


class GcsStoreSettings(Section):
    """[stores.gcs]"""

    buckets: list[str] = []
    """As in [stores.s3]; empty: `gs://` is off."""
    endpoint_url: str = ""
    anonymous: bool = False
    max_concurrency: Count = 64


class AzureStoreSettings(Section):
    """[stores.azure]"""

    containers: list[str] = []
    """As the buckets of [stores.s3]; empty: `az://` is off."""
    account: str = ""
    endpoint_url: str = ""
    anonymous: bool = False
    max_concurrency: Count = 64


class StoresSettings(Section):
    """[stores]"""

    file: FileStoreSettings = FileStoreSettings()
    cache: FetchCacheSettings = FetchCacheSettings()
    http: HttpStoreSettings = HttpStoreSettings()
    s3: S3StoreSettings = S3StoreSettings()
    gcs: GcsStoreSettings = GcsStoreSettings()
    azure: AzureStoreSettings = AzureStoreSettings()
    max_image_bytes: Bytes = 32 * 1024 * 1024
    fetch_deadline_ms: Milliseconds = 10_000


class InputSettings(Section):
    """[input]"""

    tombstones: Literal["skip", "forward", "dead_letter"] = "skip"
    max_pixels: Count = 50_000_000
    formats: list[Literal["JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "AVIF", "HEIF"]] = [
        "JPEG",
        "PNG",
        "WEBP",
        "BMP",
        "GIF",
        "TIFF",
        "AVIF",
    ]
    max_metadata_bytes: Bytes = 8 * 1024
    max_records: Count = 100
    """Records of one bucket notification."""


class OutputSettings(Section):
    """[output]"""

    format: Literal["json", "json-schema", "avro", "protobuf"] = "json"


class SchemaRegistrySettings(Section):
    """[schema_registry]"""

    url: str = ""
    """Empty: none is used."""
    username: str = ""
    password: SecretStr = SecretStr("")
    ca_file: str = ""
    timeout_ms: Annotated[int, Field(ge=1)] = 5_000


class DecodeSettings(Section):
    """[decode]: what the pixels become (part of the model's digest), and how long that may take."""

    background: Annotated[str, Field(pattern=r"^#[0-9A-Fa-f]{6}$")] = "#ffffff"
    """`#rrggbb`: what shows where an image is clear."""
    icc: Literal["ignore", "srgb"] = "ignore"
    jpeg_scaled: bool = False
    resizer: Literal["pillow", "simd"] = "pillow"
    """Who shrinks colour pictures to the model's input."""
    deadline_ms: Annotated[int, Field(ge=100)] = 30_000


class RetrySettings(Section):
    """[retry]"""

    max_attempts: Count = 5
    initial_backoff_ms: Milliseconds = 100
    max_backoff_ms: Milliseconds = 10_000
    max_retry_after_ms: Milliseconds = 300_000
    """The longest that a store's own word of when to ask again is heeded."""


class DeadLetterSettings(Section):
    """[dead_letters]"""

    on_limit: Literal["hold", "exit"] = "hold"
    window_s: Count = 300
    min_sample: Count = 100
    content_ratio: Annotated[float, Field(gt=0.0, le=1.0)] = 0.95
    system_ratio: Annotated[float, Field(gt=0.0, le=1.0)] = 0.5
    system_consecutive: Count = 50
    spring_headers: bool = False
    """Whether letters also carry the headers of Spring for Apache Kafka (`kafka_dlt-...`)."""


class DrainSettings(Section):
    """[drain]"""

    timeout_ms: Milliseconds = 30_000


class CommitSettings(Section):
    """[commit]"""

    interval_ms: Annotated[int, Field(ge=10)] = 1_000


class DeliverySettings(Section):
    """[delivery]"""

    guarantee: Literal["at_least_once", "exactly_once", "share"] = "at_least_once"


class TransactionSettings(Section):
    """[transaction], for `delivery.guarantee = "exactly_once"`"""

    max_ms: Annotated[int, Field(ge=10)] = 500
    timeout_ms: Annotated[int, Field(ge=1_000)] = 15_000
    id: str = ""
    """The producer's `transactional.id`; a template that differs from replica to replica."""


class ShareSettings(Section):
    """[share], for `delivery.guarantee = "share"`"""

    consumers: Annotated[int, Field(ge=1, le=16)] = 2
    lock_duration_ms: Annotated[int, Field(ge=1_000)] = 30_000
    delivery_count_limit: Annotated[int, Field(ge=3)] = 5
    """A message becomes a dead letter at the delivery before the last; so that it is tried at all, 3 or more."""


class HealthSettings(Section):
    """[health]"""

    enabled: bool = True
    host: str = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65_535)] = 8080
    """0: any free port, said at start."""
    loop_deadline_ms: Milliseconds = 60_000
    stage_deadline_ms: Milliseconds = 300_000
    stall_ms: Milliseconds = 120_000
    """How long a partition may stand still though the broker has more of it; 0: nobody looks."""


class LogSettings(Section):
    """[log]"""

    level: Literal["TRACE", "DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"
    format: Literal["auto", "human", "json"] = "auto"
    file: str = ""
    rotation: str = "50 MB"
    retention: str = "7 days"


class Settings(Section):
    """All of settings.toml."""

    kafka: KafkaSettings = KafkaSettings()
    topics: TopicSettings = TopicSettings()
    batch: BatchSettings = BatchSettings()
    pipeline: PipelineSettings = PipelineSettings()
    model: ModelSettings = ModelSettings()
    swap: SwapSettings = SwapSettings()
    wandb: WandbSettings = WandbSettings()
    tracking: TrackingSettings = TrackingSettings()
    stores: StoresSettings = StoresSettings()
    input: InputSettings = InputSettings()
    output: OutputSettings = OutputSettings()
    schema_registry: SchemaRegistrySettings = SchemaRegistrySettings()
    decode: DecodeSettings = DecodeSettings()
    retry: RetrySettings = RetrySettings()
    dead_letters: DeadLetterSettings = DeadLetterSettings()
    drain: DrainSettings = DrainSettings()
    commit: CommitSettings = CommitSettings()
    delivery: DeliverySettings = DeliverySettings()
    transaction: TransactionSettings = TransactionSettings()
    share: ShareSettings = ShareSettings()
    health: HealthSettings = HealthSettings()
    log: LogSettings = LogSettings()
