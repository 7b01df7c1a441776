"""What can go wrong, as one tree. The branch decides what happens; nothing else does.

OuzelError
├── InvalidMessage          one dead letter, the partition moves on
│   ├── MalformedMessage    not JSON, wrong schema, unknown major version, an empty value   [content]
│   ├── ReferenceRefused    a scheme, root or form of URI that the settings do not allow    [content]
│   ├── NotAnImage          bytes of no image format that is known                          [content]
│   ├── UnsupportedFormat   an image of a format that is not decoded here                   [content]
│   ├── TruncatedImage      an image that ends too soon                                     [content]
│   ├── CorruptImage        an image that is whole and damaged                              [content]
│   ├── ImageTooLarge       more bytes than the settings allow                              [content]
│   ├── TooManyPixels       more pixels than the settings allow                             [content]
│   ├── DecompressionBomb   a few bytes of metadata that unpack to very many                [content]
│   ├── DecoderCrashed      alone in its sandbox, the decoder ends or hangs on it            [content]
│   ├── ChecksumMismatch    the bytes are not the ones the message promised                 [content]
│   ├── ImageNotFound       the store answers, and has no such image                        [system]
│   ├── StoreFailed         a store that serves others keeps failing for this image         [system]
│   ├── InferenceFailed     the model fails on this image alone                             [system]
│   ├── EventTooLarge       its label event is larger than the output topic takes           [system]
│   ├── ProcessingFailed    a defect of ours that this message brought out                  [system]
│   └── DeliveriesExhausted a share group handed it out too often: next it would be gone    [system]
├── Retryable               tried again with backoff; never a dead letter by itself
│   ├── StoreUnavailable    a store that times out, throttles or answers 5xx
│   │   └── StoreBusy       our own bounds leave no room at the store: no failed attempt
│   ├── SchemaUnavailable   the schema registry that does not give the schema of a message for now
│   ├── SchemaNotLoaded     the schema of a message that has to be asked for first
│   ├── ModelsUnavailable   the registry of models that does not answer for now
│   ├── OutputUnavailable   the output topic that cannot be written for now
│   └── TransactionBroken   the open transaction cannot be committed: all of it is done again
└── Fatal                   the process ends: own exit code, a remedy, nothing committed past it
    ├── SettingsError       2
    ├── ModelError          3   absent, unreadable, or not one we can run
    │   ├── DeviceMissing   3   a GPU that was asked for and is not there
    │   ├── ModelNotFound   3   no such model, version or alias
    │   ├── ModelCorrupt    3   its bytes are not those of its manifest, or of the pin
    │   ├── CacheFull       3   no room on the disk for a model that is fetched or converted
    │   ├── ModelRefused    3   an optimised variant whose labels do not agree, or not surely
    │   └── CannotRun       3   a runtime that is not installed, or not for this model or machine
    ├── RuntimeStuck        4   a model call past its deadline: it cannot be cancelled
    ├── BrokerUnreachable   5
    ├── RegistryUnreachable 5
    ├── ModelSourceUnreachable 5  the model's registry does not answer, and nothing of it is in the cache; or an
    │                           unreadable file of it
    ├── TopicMissing        6
    ├── SchemaMissing       6   a schema that nobody has registered
    ├── NotAuthorized       7
    ├── OutputRefused       8   the output is refused for good
    ├── InstanceFenced      9   another member uses this group.instance.id
    ├── DeadLetterLimit    10   only with dead_letters.on_limit = "exit"
    ├── ReplayFenced       11   another `ouzel dlq replay` took over
    ├── RecordsLost        12   with kafka.on_offset_lost = "stop", or of a range that is relabelled
    ├── DecoderStuck       13   a decode past its deadline: it cannot be cancelled
    ├── SandboxFailed      14   no child process can be started to decode suspects in
    ├── RangeUnfinished    15   `run --from` that was stopped; the same command goes on
    ├── BucketFailed       16   a bucket or inventory that `send` cannot read to its end
    ├── Stalled            17   a partition without progress though the broker has more of it, and no remedy helped
    ├── TransactionFenced  18   another replica uses this transactional.id
    ├── ShareGroupRefused  19   the broker has no share groups, or this one is not set as the settings want it
    └── CommandRefused      1   a command that cannot, or must not, do what it was asked
"""

from typing import ClassVar, Literal

Family = Literal["content", "system"]
"""`content` errors are the sender's; `system` ones point at us or at a store (see the dead-letter limit)."""

Denied = Literal["", "topic", "group", "transactional-id"]
"""What a right is missing on; empty where nobody says."""


class OuzelError(Exception):
    """The root; never raised itself."""


class InvalidMessage(OuzelError):
    """This message can never be labelled. Raised by parse, fetch, decode and infer; ends as one dead letter."""

    family: ClassVar[Family] = "content"
    withheld: ClassVar[bool] = True
    """Whether its letter waits while the dead-letter limit holds."""


class MalformedMessage(InvalidMessage):
    """Not JSON, the wrong schema, an unknown major version, or an empty value."""


class ReferenceRefused(InvalidMessage):
    """A scheme, root or form of URI that the settings do not allow."""


class NotAnImage(InvalidMessage):
    """The bytes are of no image format that is known: a text, a page, an archive. Look at what is sent."""


class UnsupportedFormat(InvalidMessage):
    """An image of a format that `input.formats` leaves out or that nothing here decodes. Allow it, or convert it."""


class TruncatedImage(InvalidMessage):
    """An image that ends before its own structure says. Look at the upload or the copy."""


class CorruptImage(InvalidMessage):
    """An image that is all there and damaged. Look at who wrote it."""


class ImageTooLarge(InvalidMessage):
    """More bytes than the settings allow (`stores.max_image_bytes`)."""


class TooManyPixels(InvalidMessage):
    """More pixels than the settings allow (`input.max_pixels`), declared or met further inside."""


class DecompressionBomb(InvalidMessage):
    """Compressed metadata that unpack to far more than any real image's. Look at who sends it."""


class DecoderCrashed(InvalidMessage):
    """Alone in a fresh sandbox, the decoder ended, or did not come back from this image. Outside it the image would end
    every replica that takes it."""


class ChecksumMismatch(InvalidMessage):
    """The bytes fetched are not the ones that the message promised by its `sha256`."""


class ImageNotFound(InvalidMessage):
    """The store answers, and has no such image."""

    family = "system"


class StoreFailed(InvalidMessage):
    """A store that serves other images keeps failing for this one."""

    family = "system"


class InferenceFailed(InvalidMessage):
    """The model fails on this image alone, its batch neighbours being fine."""

    family = "system"


class EventTooLarge(InvalidMessage):
    """The label event is larger than the output topic takes."""

    family = "system"


class ProcessingFailed(InvalidMessage):
    """A defect of ours that this message brought out; the letter carries the stack trace. Without it the message
    would end every replica that takes it."""

    family = "system"


class DeliveriesExhausted(InvalidMessage):
    """A share group has handed it out so often that the broker would soon discard it without a word: each time its lock
    lapsed, or its replica ended."""

    family = "system"
    withheld = False


class Retryable(OuzelError):
    """May succeed later: backed off with full jitter and tried again.

    `retry_after_s` is the least wait that the other side asked for, in seconds, if it asked.
    """

    def __init__(self, message: str, *, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class StoreUnavailable(Retryable):
    """A store that times out, throttles, or fails on its own side."""


class StoreBusy(StoreUnavailable):
    """Our own bounds on a store (connections, requests a second) leave no room now. Nothing was asked of the store, so
    it counts as no failed attempt."""


class SchemaUnavailable(Retryable):
    """The schema registry cannot be asked for a message's schema for now."""


class SchemaNotLoaded(Retryable):
    """A message's schema is not known here yet: `ports.RecordDecoder.load` asks for it."""

    def __init__(self, schema: int | str) -> None:
        super().__init__(f"schema {schema} is not loaded yet")
        self.schema = schema


class ModelsUnavailable(Retryable):
    """The registry of models cannot be asked, or does not deliver, for now."""


class OutputUnavailable(Retryable):
    """The output topic cannot be written for now."""


class TransactionBroken(Retryable):
    """A record of the open transaction was not written, so that all of it can only be undone. Its cause, if any, is
    what a plain producer would have told of that record."""


class Fatal(OuzelError):
    """The process cannot go on. `remedy` says what a person should do; `exit_code` is documented in the README."""

    exit_code: ClassVar[int] = 70

    def __init__(self, message: str, *, remedy: str = "") -> None:
        super().__init__(message)
        self.remedy = remedy


class SettingsError(Fatal):
    """Settings that are wrong, together or alone; the message lists all of them."""

    exit_code = 2


class ModelError(Fatal):
    """A model or label file that is absent, unreadable, or not one that we can run."""

    exit_code = 3


class DeviceMissing(ModelError):
    """A GPU that `model.device` asks for and that is not there."""


class ModelNotFound(ModelError):
    """No such model, version or alias where `model.source` says."""


class ModelCorrupt(ModelError):
    """A model whose bytes are not those that its manifest lists, or not those that were pinned."""


class CacheFull(ModelError):
    """No room on the disk for a model that is fetched or converted. May be better later, as what fills a disk goes."""


class ModelRefused(ModelError):
    """An optimised variant whose labels do not agree with its parent's, or on too few images to tell."""


class CannotRun(ModelError):
    """A runtime that is not installed, or that cannot run this model, in its precision, on this machine."""


class RuntimeStuck(Fatal):
    """A model call past its deadline. It cannot be cancelled, so the process ends with nothing committed past it."""

    exit_code = 4


class BrokerUnreachable(Fatal):
    """No broker answers at `kafka.bootstrap_servers`."""

    exit_code = 5


class RegistryUnreachable(Fatal):
    """The schema registry at `schema_registry.url` does not answer, or not as one."""

    exit_code = 5


class ModelSourceUnreachable(Fatal):
    """The registry of `model.source` does not answer, and the cache holds nothing of it to start with; or a file of it
    cannot be read."""

    exit_code = 5


class SchemaMissing(Fatal):
    """The schema of `output.format` is not registered, and only a person registers it."""

    exit_code = 6


class TopicMissing(Fatal):
    """A topic that does not exist, or that was deleted and stayed away."""

    exit_code = 6


class NotAuthorized(Fatal):
    """The broker refuses who we are, or what we may do; or one of us does not trust the other's certificate.

    `denied` is the resource that a right is missing on, where the broker says so, and `topic` which topic it is, where
    it can be but one.
    """

    exit_code = 7

    def __init__(self, message: str, *, remedy: str = "", denied: Denied = "", topic: str = "") -> None:
        super().__init__(message, remedy=remedy)
        self.denied = denied
        self.topic = topic


class OutputRefused(Fatal):
    """The output or dead-letter topic refuses our records for good."""

    exit_code = 8


class InstanceFenced(Fatal):
    """Another member of the group uses the same `group.instance.id`."""

    exit_code = 9


class RecordsLost(Fatal):
    """Retention took records before they were read, with `kafka.on_offset_lost = "stop"`; or a topic went away while a
    range of it was relabelled."""

    exit_code = 12


class DecoderStuck(Fatal):
    """A decode past its deadline. It cannot be cancelled, so the process ends with nothing committed past it, and the
    next owner decodes the suspects in a sandbox."""

    exit_code = 13


class SandboxFailed(Fatal):
    """No child process can be started, and decoding suspects without one could end the replica again and again."""

    exit_code = 14


class RangeUnfinished(Fatal):
    """A run over a range was stopped before all of it was done. Not 0: a scheduler would take the range as done."""

    exit_code = 15


class BucketFailed(Fatal):
    """A bucket or an inventory that cannot be listed, or not to its end; what was sent is noted."""

    exit_code = 16


class TransactionFenced(Fatal):
    """Another producer uses our `transactional.id`, and each of us fences the other."""

    exit_code = 18


class Stalled(Fatal):
    """A partition stands still though the broker has more of it and nothing is known to be away; neither beginning it
    anew nor joining the group again helped. Or a call about a transaction does not come back."""

    exit_code = 17


class ShareGroupRefused(Fatal):
    """`delivery.guarantee = "share"`, and the broker has no share groups, or not this one as the settings want it."""

    exit_code = 19


class DeadLetterLimit(Fatal):
    """Too many dead letters, with `dead_letters.on_limit = "exit"`."""

    exit_code = 10


class ReplayFenced(Fatal):
    """Another `ouzel dlq replay` of the same dead-letter topic took over; what was committed stays committed."""

    exit_code = 11


class CommandRefused(Fatal):
    """A command that cannot, or must not, do what it was asked: nothing was changed."""

    exit_code = 1
