"""What the stages need from the world, in our own types. Adapters fulfil these; `bootstrap` wires them.

Each Protocol states what blocks, what is raised and from which thread it may be called. The contract suites under
`tests/contract/` run over every implementation, fakes included.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from consumer.messages import (
    CommitPoint,
    Decoded,
    Delivery,
    ImageHeader,
    Lease,
    ModelInfo,
    OpenedImage,
    OutputRecord,
    Parsed,
    Partition,
    StoredImage,
)


class Clock(Protocol):
    """Time, passed in so that policies can be tested without waiting."""

    def monotonic_s(self) -> float:
        """Seconds that never go back; for durations and deadlines."""
        ...

    def utc_now(self) -> str:
        """RFC 3339 UTC with milliseconds, e.g. `2026-01-31T09:30:00.125Z`; for events."""
        ...


# --- source ---------------------------------------------------------------------------------------------------------


class AssignmentListener(Protocol):
    """Told of the group's decisions, inside `MessageSource.poll` and on its thread. Must not raise."""

    def on_assigned(self, partitions: Sequence[Partition]) -> None:
        """These are ours now and paused; `start` each one at its offset to begin."""
        ...

    def on_revoked(self, partitions: Sequence[Partition]) -> None:
        """These go away when this returns: drain and commit before."""
        ...

    def on_lost(self, partitions: Sequence[Partition]) -> None:
        """These went away already: another member may have them. Discard, commit nothing."""
        ...


@dataclass(frozen=True, slots=True)
class OffsetLost:
    """The broker has no record at our position any more (retention overtook us, or the topic is a new one)."""

    partition: Partition


@dataclass(frozen=True, slots=True)
class CommitResult:
    """The broker's answer to one commit; `errors` has the partitions that it did not take."""

    committed: Mapping[Partition, CommitPoint]
    errors: Mapping[Partition, str]
    undone: str = ""
    """Why nothing since the last commit holds, neither offsets nor records; empty where it does (`Transactions`)."""


class OffsetCommitter(Protocol):
    """Where the group's progress is noted. For the thread that owns the source."""

    def commit(self, points: Mapping[Partition, CommitPoint]) -> None:
        """Send a commit. Returns at once; its answer comes by `commit_result`. Never more than one under way."""
        ...

    @property
    def commit_under_way(self) -> bool:
        """Whether a commit was sent whose answer has not come."""
        ...

    def commit_result(self) -> CommitResult | None:
        """The answer that came since the last call, if one came. May raise Fatal."""
        ...

    def confirm_commit(self, points: Mapping[Partition, CommitPoint], timeout_s: float) -> bool:
        """Whether the group's committed offsets are these (or beyond), waiting up to `timeout_s`. For drains."""
        ...


class Transactions(OffsetCommitter, Protocol):
    """A committer whose commits also end the transaction that the sink's records went into: both hold, or neither.

    Commit only while no record is under way and none is published (`Publisher.seal`).
    """

    @property
    def unresolved(self) -> bool:
        """Whether it is not known yet that the last transaction is settled for good, at the start that of an earlier
        producer of our name. Until then committed offsets mean nothing, and no partition may begin."""
        ...

    def undo(self) -> None:
        """Give up what is open. Returns at once; `unresolved` until it is done, however long the brokers are away."""
        ...


class MessageSource(OffsetCommitter, Protocol):
    """A consumer group's member. Every method is called from one thread, the owner's, and none of them blocks on a
    broker for longer than it says."""

    def subscribe(self, listener: AssignmentListener) -> None:
        """Join the group. Returns at once."""
        ...

    def leave(self) -> None:
        """Ask to leave the group, for `subscribe` to join it again. Returns at once: the listener is told, in later
        polls, of all that was assigned. A static member keeps its place."""
        ...

    @property
    def joined(self) -> bool:
        """Whether the group has taken us in, with partitions or without. Stays true through rebalances."""
        ...

    def poll(self, timeout_s: float) -> Delivery | OffsetLost | None:
        """The next message, or None after `timeout_s`. Runs the listener.

        Raises:
            Fatal: the group, the topic or our rights are gone; nothing that was handed over is lost by it.
        """
        ...

    def start(self, lease: Lease, offset: int) -> None:
        """Begin, or begin anew, delivering an assigned partition at `offset`, on the books of `lease`."""
        ...

    def pause(self, partitions: Iterable[Partition]) -> None:
        """Deliver nothing more of these."""
        ...

    def resume(self, partitions: Iterable[Partition]) -> None:
        """Deliver these again."""
        ...

    def position(self, partition: Partition) -> int | None:
        """The offset after the last message handed over, past transaction markers; None where there is none yet."""
        ...

    @property
    def throttled_until_s(self) -> float:
        """Monotonic second until which a broker has us wait, by its quotas."""
        ...

    def lag(self) -> Mapping[Partition, int]:
        """Messages between the position and the last stable offset of each partition, as last known. Never asks."""
        ...

    def close(self) -> None:
        """Leave the group (a static member stays in it). Idempotent."""
        ...


class ShareMember(Protocol):
    """One member of a share group. Every method is called from one thread, the member's own, and may block for as long
    as it says."""

    @property
    def joined(self) -> bool:
        """Whether the group has taken it in. Any thread."""
        ...

    def subscribe(self, lease_of: Callable[[Partition, float], Lease]) -> None:
        """Join the group. `lease_of` gives each message its own lease; it is told the monotonic second before which the
        message was not locked for us."""
        ...

    def poll(self, timeout_s: float) -> Sequence[Delivery]:
        """What the group hands out next, none after `timeout_s`. All of it has to be settled before the next call.

        Raises:
            Fatal: the group, the topic or our rights are gone.
        """
        ...

    def accept(self, deliveries: Sequence[Delivery], timeout_s: float) -> Mapping[Partition, str]:
        """These are done, and never handed out again. Waits for the broker's answer, up to `timeout_s`; returns why,
        for the partitions whose messages it did not take off: their locks are gone, or nobody knows.

        Raises:
            Fatal: as `poll`.
        """
        ...

    def release(self, deliveries: Sequence[Delivery], timeout_s: float) -> None:
        """These are not done: where a lock still holds it ends, and another member is handed the message."""
        ...

    def close(self) -> None:
        """Leave the group. Blocks while the broker is away, for up to a minute. Idempotent."""
        ...


class ShareSource(Protocol):
    """The members of a share group that one replica has: while the images of one are labelled, another fetches."""

    @property
    def members(self) -> Sequence[ShareMember]:
        """All of them."""
        ...

    @property
    def joined(self) -> bool:
        """Whether the group has taken one of them in. Any thread."""
        ...


@dataclass(frozen=True, slots=True)
class TopicFacts:
    """What the cluster says of a topic."""

    topic_id: str
    """Changes when a topic is deleted and made again; empty where the broker gives none."""
    partitions: int


class GroupView(Protocol):
    """Questions about the cluster and the group. Blocks; used by a thread of its own.

    Every method raises `BrokerUnreachable` where no answer comes in time, and `NotAuthorized`.
    """

    def cluster_id(self) -> str:
        """The cluster's id; empty where the broker gives none."""
        ...

    def topics(self, names: Sequence[str]) -> Mapping[str, TopicFacts]:
        """The topics that exist, by name."""
        ...

    def committed(self, partitions: Sequence[Partition]) -> Mapping[Partition, CommitPoint]:
        """Those of the partitions that the group has committed an offset for, with its metadata."""
        ...

    def commit_while_empty(self, points: Mapping[Partition, CommitPoint]) -> bool:
        """Commit these in the name of a group that has no member. False where it has one; then nothing is changed."""
        ...

    def offsets(self, partitions: Sequence[Partition], at: str | int) -> Mapping[Partition, int]:
        """`earliest`, `latest` (the end), `stable` (the last stable offset: as far as can be read now), or the first
        offset at or after a time in milliseconds since the epoch (the end where there is none)."""
        ...

    def close(self) -> None:
        """Let go of the connection. Idempotent."""
        ...


# --- sink -----------------------------------------------------------------------------------------------------------


class ResultSink(Protocol):
    """Where label events and dead letters go."""

    def publish(self, record: OutputRecord, done: Callable[[Exception | None], None]) -> None:
        """Hand over one record. Returns at once; records of one key go out in the order of the calls.

        `done` is called exactly once, from the sink's own thread: with None once every in-sync replica has it, or with

        * `EventTooLarge` if this record can never be written for its size,
        * `OutputUnavailable` if it may or may not have been written: publish it again (same event id),
        * `OutputRefused`, `NotAuthorized` or `TopicMissing` if the topic refuses it for good.
        """
        ...

    def close(self, timeout_s: float) -> int:
        """Wait up to `timeout_s` for what is under way; returns how many records are still unconfirmed."""
        ...


# --- images and models ----------------------------------------------------------------------------------------------


class ImageStore(Protocol):
    """Where images live, chosen by the scheme of the URI. Thread-safe; blocks its caller, within `deadline_s`."""

    @property
    def schemes(self) -> frozenset[str]:
        """The URI schemes it serves, lower case, e.g. `{"file"}`."""
        ...

    def health_key(self, uri: str) -> str:
        """What fails together: scheme and host, or scheme and bucket. Never carries a secret."""
        ...

    def fetch(self, uri: str, *, max_bytes: int, deadline_s: float) -> StoredImage:
        """The image's bytes and their version, at most `max_bytes` of them, within `deadline_s` seconds in all.

        Raises:
            ReferenceRefused: the settings do not allow this URI. Decided before anything is opened; where a server
                redirects, before anything is opened there.
            ImageNotFound: the store answers, and has no such image.
            ImageTooLarge: it has more than `max_bytes`; no more than that was read.
            StoreUnavailable: anything that may be better later; `StoreBusy` where the store's own bounds leave no room
                now, which is no failed attempt. Never raises another type.
        """
        ...


class ImageDecoder(Protocol):
    """From encoded bytes to the model's pixels. Thread-safe; releases the GIL for most of its work."""

    def measure(self, body: bytes) -> ImageHeader:
        """What the header declares, and what decoding will need: allocates no pixels.

        Raises:
            NotAnImage, UnsupportedFormat, TruncatedImage, CorruptImage, DecompressionBomb: see `errors`.
            TooManyPixels: declares more pixels than the settings allow.
        """
        ...

    def open(self, body: bytes) -> OpenedImage:
        """What `measure` says, and what then makes the pixels without reading the header again: room for them is
        reserved between. What is never decoded is dropped.

        Raises:
            what `measure` raises; so does the image's `decode`.
        """
        ...

    def decode(self, body: bytes) -> Decoded:
        """uint8 [H, W, 3] RGB at the model's input size, and what was done to get there.

        Raises:
            what `measure` raises; no other type.
        """
        ...


class SandboxedDecoder(ImageDecoder, Protocol):
    """A decoder whose end is not ours. One image at a time; blocks its caller, within its own deadline."""

    def measure(self, body: bytes) -> ImageHeader:
        """See `ImageDecoder`. Raises also:

        DecoderCrashed: the decoder ended, or did not come back in time, on this image alone.
        SandboxFailed: it cannot be started.
        """
        ...

    def open(self, body: bytes) -> OpenedImage:
        """See `ImageDecoder` and `measure`."""
        ...

    def decode(self, body: bytes) -> Decoded:
        """See `ImageDecoder` and `measure`."""
        ...

    def close(self) -> None:
        """Let go of what it runs in: the next image starts another. An image that is being decoded fails, as nobody
        waits for it any more. Any thread; never waits."""
        ...


class ModelRuntime(Protocol):
    """A resident model. `infer` is called from one thread at a time."""

    @property
    def info(self) -> ModelInfo:
        """Which model this is; in every label event."""
        ...

    @property
    def input_size(self) -> tuple[int, int]:
        """(height, width) in pixels that `infer` takes."""
        ...

    @property
    def class_count(self) -> int:
        """C, the length of a score row."""
        ...

    def warm_up(self, batch_sizes: Sequence[int]) -> None:
        """Run every batch size once, so that no later call compiles or traces.

        Raises:
            ModelError: it cannot be run.
        """
        ...

    def infer(self, pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """uint8 [N, H, W, 3] RGB in, float32 [N, C] probabilities out; N is one of the warmed sizes.

        Raises whatever the runtime raises: the batch is then bisected to find the culprit.
        """
        ...

    def close(self) -> None:
        """Free what it holds. Idempotent."""
        ...


class Labels(Protocol):
    """Names by class index."""

    def __len__(self) -> int:
        """How many classes have a name."""
        ...

    def name(self, index: int) -> str:
        """The name of a class index; the index itself as text where the file has no such id."""
        ...


class MessageParser(Protocol):
    """From a message's bytes to what it asks for. Never blocks; any thread."""

    def __call__(self, delivery: Delivery) -> Parsed:
        """One image, several, or nothing.

        Raises `MalformedMessage`, `ReferenceRefused`, or `ImageTooLarge` for inline bytes; `SchemaNotLoaded` for a
        message that cannot be read before a `RecordDecoder` has loaded its schema; nothing else.
        """
        ...


# --- the registry of models -----------------------------------------------------------------------------------------

BytesMoved = Callable[[int, int | None], None]
"""Told the bytes that were moved so far, and of how many, where that is known. Any thread; must not block."""


@dataclass(frozen=True, slots=True)
class ModelVersion:
    """One version of a model in its registry. A version's files never change once they are there; one that others copy
    into a folder or a bucket may be met half-way."""

    version: str
    """The registry's own name of it: `3`, of W&B `v3`."""
    digest: str = ""
    """`sha256:` and hex of the manifest, where the registry knows it without a download; else empty."""
    state: str = ""
    """Hash over what a listing shows of its files; another one where any of them changed or came. Empty where the
    registry itself sees to it that a version's files never change."""
    aliases: tuple[str, ...] = ()
    created_at: str = ""
    """RFC 3339 UTC; empty where the registry does not say."""
    size_bytes: int | None = None
    gate: str = ""
    """`model_spec.GateStatus`, where the registry knows it without a download; else empty."""


class ModelRegistry(Protocol):
    """The versions of one model, where they are kept. Blocks its caller, within the own deadline. Any thread, one
    call at a time.

    Every method raises `ModelsUnavailable` where no answer comes, or one that may be better later; `ModelNotFound`
    where there is no such model, version or alias; `NotAuthorized` where the registry knows us not. No other type.
    """

    def versions(self) -> Sequence[ModelVersion]:
        """All of them, the newest first."""
        ...

    def resolve(self, alias: str) -> ModelVersion:
        """The version that an alias, or a version's own name, stands for now; nothing, or `latest`, is the newest.
        Cheap: replicas ask often."""
        ...

    def download(self, version: ModelVersion, into: Path, moved: BytesMoved) -> None:
        """Every file of a version into an empty folder. Not verified: the caller does.

        Raises also OSError: the folder cannot be written, for example as the disk is full.
        """
        ...

    def upload(self, folder: Path, *, aliases: Sequence[str], moved: BytesMoved) -> ModelVersion:
        """An artifact as a new version, complete before anybody sees it. Bytes that are there already (the same digest)
        are no new version; that one is returned, with the aliases added.

        Raises also `ModelCorrupt`: it is not as its manifest says; and OSError: a folder cannot be written.
        """
        ...

    def point(self, alias: str, version: str) -> str:
        """Have an alias stand for a version; returns the one that it stood for before, empty for none. What an alias
        stood for is kept, for `roll_back`."""
        ...

    def roll_back(self, alias: str) -> ModelVersion:
        """Have an alias stand for the version that it stood for before, and return that.

        Raises also `ModelNotFound`: it stood for no other.
        """
        ...


# --- a run's notebook -----------------------------------------------------------------------------------------------


class RunTracker(Protocol):
    """Where a replica's figures are noted over time. Every method but `close` returns at once, whatever the other side
    does, and none raises; what cannot be taken is dropped and counted. Any thread."""

    def figures(self, values: Mapping[str, float]) -> None:
        """Figures of the interval that ends now, by name."""
        ...

    def image(self, body: bytes, row: Mapping[str, object]) -> None:
        """One sampled image, encoded, with what was said of it; shown with the next figures."""
        ...

    def model(self, info: ModelInfo, source: str) -> None:
        """The model that labels from now on, and where it came from."""
        ...

    def close(self, timeout_s: float) -> None:
        """Send what is held, within `timeout_s`, and end: the one method that waits. What comes later is dropped.
        Idempotent."""
        ...


# --- schema registry ------------------------------------------------------------------------------------------------


class RecordDecoder(Protocol):
    """Reads Avro and Protobuf by the schemas of a registry. Thread-safe."""

    def decode(self, schema: int | str, payload: bytes) -> dict[str, object]:
        """The fields of a record that was written with this schema (its id, or its GUID). Never blocks.

        Raises:
            SchemaNotLoaded: `load` it first.
            MalformedMessage: the payload is none of that schema.
        """
        ...

    def load(self, schema: int | str) -> bool:
        """Ask the registry for a schema, and keep it for ever; False where it was here already. Blocks within the
        client's time-outs.

        Raises:
            MalformedMessage: the registry has no such schema, or one that cannot be read.
            SchemaUnavailable: anything that may be better later. Never raises another type.
        """
        ...


class EventEncoder(Protocol):
    """From a label event to the bytes of its value. Called by the publisher's thread; never blocks."""

    @property
    def content_type(self) -> bytes:
        """The event's `content-type` header."""
        ...

    def encode(self, event: Mapping[str, Any]) -> bytes:
        """An event with the fields of `schemas/label-event.v1.json`."""
        ...
