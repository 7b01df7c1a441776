"""What flows through the stages, in order: Delivery -> ImageJob -> FetchedImage -> DecodedImage -> Batch -> Outcome.

All of it is frozen. Only a `Lease` changes: it is the one word between the thread that owns the consumer and the
stages, and says whether work for a partition is still wanted.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, Literal, NamedTuple

from consumer.errors import InvalidMessage

if TYPE_CHECKING:
    # Not at run time: commands that only speak of messages answer sooner without it.
    import numpy as np
    import numpy.typing as npt

Headers = tuple[tuple[str, bytes | None], ...]
TimestampType = Literal["create", "log_append", "none"]
SkipReason = Literal["tombstone", "removed", "folder", "other_event", "test_event", "subscription", "no_records"]
"""Why a message asks for nothing: a null value, or a notification of a bucket that tells of no new image."""
StallRemedy = Literal["restart", "rejoin", "exit"]
"""What is done about a partition without progress: see `stages.stalls`."""


class Partition(NamedTuple):
    """One partition of one topic."""

    topic: str
    number: int

    def __str__(self) -> str:
        return f"{self.topic}[{self.number}]"


class LeaseState(Enum):
    """How much of a partition's work is still wanted."""

    ACTIVE = "active"  # ours: start work and finish it
    DRAINING = "draining"  # being revoked: finish what has started, start nothing
    ENDED = "ended"  # fenced: whatever still comes of it is discarded


class Lease:
    """One assignment of one partition to this process. A reassignment is a new lease, so late results stand out."""

    __slots__ = ("epoch", "partition", "state", "topic_id")

    def __init__(self, partition: Partition, *, epoch: int, topic_id: str) -> None:
        self.partition = partition
        self.epoch = epoch
        self.topic_id = topic_id
        self.state = LeaseState.ACTIVE

    @property
    def wants_new_work(self) -> bool:
        """Whether work that has not begun should begin."""
        return self.state is LeaseState.ACTIVE

    @property
    def ended(self) -> bool:
        """Whether results are to be thrown away."""
        return self.state is LeaseState.ENDED


class LockLease(Lease):
    """The lock that a share group holds for us on one message: over when its time is up, whoever looks.

    It still wants work then: what waits for a store that is down may go on to ask for the others.
    """

    __slots__ = ("_ends_s", "_now_s")

    def __init__(
        self, partition: Partition, *, epoch: int, topic_id: str, ends_s: float, now_s: Callable[[], float]
    ) -> None:
        """`ends_s`: the monotonic second at which the lock is taken as lapsed; `now_s` says which one it is."""
        super().__init__(partition, epoch=epoch, topic_id=topic_id)
        self._ends_s = ends_s
        self._now_s = now_s

    @property
    def ended(self) -> bool:
        """See `Lease`."""
        return self.state is LeaseState.ENDED or self._now_s() >= self._ends_s


@dataclass(frozen=True, slots=True)
class Delivery:
    """One message as the source handed it over, bytes untouched (a dead letter sends them back unchanged)."""

    lease: Lease
    offset: int
    value: bytes | None = field(repr=False)
    """None is a tombstone."""
    key: bytes | None = None
    headers: Headers = ()
    timestamp_ms: int | None = None
    """Milliseconds since the epoch, as the broker or the producer wrote it."""
    timestamp_type: TimestampType = "none"
    received_s: float = 0.0
    """Monotonic seconds when the source handed it over."""
    part_of: "Delivery | None" = field(default=None, repr=False, compare=False)
    """The message that this is one record of, where a message carries several; each goes through the stages alone."""
    suspect: bool = False
    """Whether it may have ended the process of its partition's last owner: it is decoded in a sandbox."""
    delivery_count: int = 0
    """How often a share group has handed it out, this time included; 0 where no share group did."""

    @property
    def partition(self) -> Partition:
        """Where it came from."""
        return self.lease.partition

    @property
    def message(self) -> "Delivery":
        """The message as it was delivered: of a part, the whole."""
        return self if self.part_of is None else self.part_of

    @property
    def size_bytes(self) -> int:
        """Bytes that the message itself holds in memory: value, key and headers."""
        headers = sum(len(name) + len(value or b"") for name, value in self.headers)
        return len(self.value or b"") + len(self.key or b"") + headers

    def header(self, name: str) -> bytes | None:
        """The last header of this name, as Kafka clients read it; None where there is none."""
        found: bytes | None = None
        for key, value in self.headers:
            if key == name:
                found = value
        return found


@dataclass(frozen=True, slots=True)
class ImageJob:
    """What a message asks for: one image to label. `uri` or `data` is set, never both."""

    delivery: Delivery
    image_id: str
    uri: str | None = None
    data: bytes | None = field(default=None, repr=False)
    sha256: str | None = None
    """Lower-case hex of the image's bytes, to be verified; None where the sender gave none."""
    etag: str | None = None
    """The ETag that the message says the image has, without quotes; bytes of another are labelled and marked."""
    top_k: int | None = None
    """Labels wanted for this image; None means the setting."""
    metadata: dict[str, str] = field(default_factory=dict)
    record_index: int = 0
    """Which record of the message this is; 0 unless a message carries several."""


@dataclass(frozen=True, slots=True)
class StoredVersion:
    """Which version of an object a store gave; None where the store has no such notion."""

    etag: str | None = None
    """Without quotes, as the store gave it."""
    version_id: str | None = None


@dataclass(frozen=True, slots=True)
class StoredImage:
    """What a store gave for a URI."""

    body: bytes = field(repr=False)
    version: StoredVersion = StoredVersion()


@dataclass(frozen=True, slots=True)
class FetchedImage:
    """A job with its image's encoded bytes."""

    job: ImageJob
    body: bytes = field(repr=False)
    fetch_ms: float = 0.0
    version: StoredVersion = StoredVersion()


@dataclass(frozen=True, slots=True)
class ImageHeader:
    """What an image's header declares, before anything is decoded."""

    width: int
    height: int
    """In pixels, as they are stored: an orientation may turn them."""
    format: str
    """Pillow's name, see `ImageFacts`."""
    decode_bytes: int
    """The most memory that decoding takes at once, beyond the encoded bytes and the model's pixels."""


@dataclass(frozen=True, slots=True)
class ImageFacts:
    """What is said of an image in its label event."""

    width: int
    height: int
    """In pixels, the right way up: as the model and people see it."""
    format: str
    """Pillow's name: JPEG, PNG, WEBP, BMP, GIF, TIFF, AVIF, HEIF."""
    sha256: str
    """Lower-case hex of the encoded bytes."""
    size_bytes: int = 0
    """Of the encoded bytes."""
    applied: tuple[str, ...] = ()
    """What was done to the pixels beyond decoding and resizing, in order, such as `exif-orientation`."""


@dataclass(frozen=True, slots=True)
class Decoded:
    """What a decoder makes of encoded bytes."""

    pixels: "npt.NDArray[np.uint8]" = field(repr=False)
    """uint8 [H, W, 3], RGB, H and W being the model's input size."""
    facts: ImageFacts


@dataclass(frozen=True, slots=True)
class OpenedImage:
    """An image whose header is read, and no more of it."""

    header: ImageHeader
    decode: Callable[[], Decoded] = field(repr=False)
    """Makes its pixels: once, on the thread that opened it, as `ports.ImageDecoder.decode` does."""


@dataclass(frozen=True, slots=True)
class DecodedImage:
    """A job with its pixels, ready for the model."""

    job: ImageJob
    pixels: "npt.NDArray[np.uint8]" = field(repr=False)
    """uint8 [H, W, 3], RGB, H and W being the model's input size."""
    facts: ImageFacts
    fetch_ms: float
    decode_ms: float
    ready_s: float
    """Monotonic seconds when it was ready for a batch."""
    version: StoredVersion = StoredVersion()
    serving: int = 0
    """Whose pixels these are (`stages.serving`): that model labels it."""
    body: bytes | None = field(default=None, repr=False)
    """Its encoded bytes, kept only for a new model that is being compared and needs other pixels."""


class CloseReason(Enum):
    """Why a batch was closed."""

    SIZE = "size"
    BYTES = "bytes"
    MODEL = "model"
    AGE = "age"
    IDLE = "idle"


@dataclass(frozen=True, slots=True)
class Batch:
    """Images that go through the model together."""

    images: tuple[DecodedImage, ...]
    closed_by: CloseReason


@dataclass(frozen=True, slots=True)
class Label:
    """One class of the model's answer."""

    index: int
    """Position in the model's output: the class index."""
    label: str
    score: float
    """Probability in [0, 1]."""


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """Which model made a label."""

    name: str
    version: str
    digest: str
    """`sha256:` and hex over weights, labels, preprocessing and precision (I7)."""
    runtime: str
    precision: str


@dataclass(frozen=True, slots=True)
class Labelled:
    """An image with its labels."""

    job: ImageJob
    labels: tuple[Label, ...]
    facts: ImageFacts
    model: ModelInfo
    timings_ms: dict[str, float]
    """fetch, decode, queue, infer: milliseconds."""
    version: StoredVersion = StoredVersion()

    @property
    def delivery(self) -> Delivery:
        """The message it answers."""
        return self.job.delivery


@dataclass(frozen=True, slots=True)
class Rejected:
    """A message that can never be labelled: one dead letter."""

    delivery: Delivery
    error: InvalidMessage
    stage: str
    image_id: str | None = None
    """None where the message could not be parsed."""


@dataclass(frozen=True, slots=True)
class Skipped:
    """A message, or a record of one, that asks for nothing: counted and committed."""

    delivery: Delivery
    reason: SkipReason


@dataclass(frozen=True, slots=True)
class Abandoned:
    """A message whose lease went away before it was done. Someone else has it; it is only taken off the books."""

    delivery: Delivery


OneOutcome = Labelled | Rejected | Skipped
"""What becomes of one image."""


@dataclass(frozen=True, slots=True)
class Several:
    """What became of each record of a message, in their order."""

    delivery: Delivery
    outcomes: tuple[OneOutcome, ...]
    """Each one's delivery is a part of this message (`Delivery.part_of`)."""


Outcome = OneOutcome | Several | Abandoned
"""What becomes of a message."""


@dataclass(frozen=True, slots=True)
class Records:
    """What a message with several records asks for, in their order. Each entry's delivery is a part of it; a record
    that cannot be understood is rejected already."""

    delivery: Delivery
    entries: tuple[ImageJob | Rejected | Skipped, ...]


Parsed = ImageJob | Skipped | Records
"""What a message asks for: one image, nothing, or several."""


@dataclass(frozen=True, slots=True)
class OutputRecord:
    """One record for the output or dead-letter topic."""

    topic: str
    value: bytes | None = field(repr=False)
    key: bytes | None = None
    headers: Headers = ()


@dataclass(frozen=True, slots=True)
class CommitPoint:
    """What is committed for a partition: the next offset to read, and a note for the next owner."""

    offset: int
    metadata: str = ""
