"""Messages for the whole pipeline: good ones of every form, hostile ones of every kind, and what each must come to.

Everything follows from the seed. What was made by hand says itself what it must come to. Of random damage the parser
and the decoder are asked, each alone: the pipeline must give the same, whoever is beside it in its batch.
"""

import base64
import gzip
import hashlib
import io
import json
import pickle
import random
import struct
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from PIL import Image

from consumer import headers as names
from consumer.adapters.image import PillowDecoder
from consumer.errors import InvalidMessage
from consumer.messages import Delivery, ImageJob, Lease, Partition, Records, Rejected, Skipped
from consumer.stages.fetch import verify
from consumer.stages.parse import Parser
from tests.contract.test_decoder_hostile import BOMBS, COSTLY, LARGE
from tests.fuzz import corpus
from tests.fuzz.mutate import mutated
from tests.kafka_clients import Headers
from tests.models import PHOTOGRAPHS
from tests.notifications import s3_record
from tests.uri_tricks import SPELLINGS

MAX_IMAGE_BYTES = 32 * 1024 * 1024
COSTLY_EVERY = 400
"""One in so many is one of the exhibits of 4 MB that are costly to parse."""
_LEASE = Lease(Partition("images", 0), epoch=1, topic_id="t")
_ANY_LETTER = frozenset[str]()
_MALFORMED = frozenset({"MalformedMessage"})


@dataclass(frozen=True, slots=True)
class Message:
    """What is sent, and what must come of it: exactly so many label events and dead letters."""

    kind: str
    value: bytes | None = field(repr=False)
    key: bytes | None = None
    headers: Headers = field(default_factory=list)
    events: int = 0
    letters: int = 1
    errors: frozenset[str] = _ANY_LETTER
    """The letters' classes; empty for any."""
    image_id: str | None = None
    """What its label event must say; None for any."""
    image_sha256: str | None = None

    @property
    def is_good(self) -> bool:
        return self.letters == 0


@dataclass(frozen=True)
class Places:
    """Where references may lead: a folder and a bucket with the same photographs under the same names."""

    folder: Path
    bucket: str
    photographs: Mapping[str, bytes]

    def uri(self, name: str) -> str:
        """Of a photograph in the folder."""
        return (self.folder / name).as_uri()


def photographs() -> dict[str, bytes]:
    """Real photographs, small, by file name."""
    found = {}
    for path in sorted(PHOTOGRAPHS.glob("*.jpg")):
        with Image.open(path) as opened:
            picture = opened.convert("RGB")
        picture.thumbnail((128, 128))
        for kind in ("JPEG", "PNG", "WEBP"):
            file = io.BytesIO()
            picture.save(file, kind)
            found[f"{path.stem}.{kind.lower()}"] = file.getvalue()
    return found


def make_places(folder: Path, bucket: str) -> Places:
    """Write the photographs below `folder`, and beside them what must not be read."""
    found = photographs()
    for name, body in found.items():
        (folder / name).write_bytes(body)
    (folder / "a-folder").mkdir()
    (folder / "a-link.jpg").symlink_to("/etc/hostname")
    (folder / "empty.jpg").touch()
    return Places(folder, bucket, found)


class Messages:
    """Good and bad ones, dealt from one seed.

    Random damage leaves some images whole, and some notifications that ask for nothing. They are sent too, must come to
    what they are, and count as neither good nor bad.
    """

    def __init__(self, seed: int, places: Places, *, max_pixels: int) -> None:
        self._dice = random.Random(seed)
        self._seed = seed
        self._places = places
        self._parse = Parser(max_image_bytes=MAX_IMAGE_BYTES)
        self._decoder = PillowDecoder((32, 32), max_pixels=max_pixels, formats=corpus.FORMATS)
        self._images = [body for _name, body in corpus.images()]
        self._forms = [body for _name, body in corpus.messages()]
        self._numbers = iter(range(1 << 40))
        self._damaged: list[Message] = []
        self._makers: list[tuple[float, Callable[[], Message]]] = [
            (10, self._wrong_json),
            (8, self._refused_reference),
            (3, self._nothing_there),
            (4, self._wrong_checksum),
            (4, self._no_image),
            (4, self._bomb),
            (25, self._damaged_image),
            (10, self._damaged_inline),
            (14, self._damaged_message),
            (6, self._notification),
            (4, self._framing),
            (2, self._without_value),
            (2, self._wrong_id),
            (4, self._lying_headers),
        ]

    def dealt(self, good: int, bad: int) -> Iterator[Message]:
        """So many of each in a random order, and between them what damage has left whole."""
        order = [True] * good + [False] * bad
        self._dice.shuffle(order)
        weights, makers = zip(*self._makers, strict=True)
        bad_so_far = 0
        for is_good in order:
            if is_good:
                yield self._good(next(self._numbers))
                continue
            bad_so_far += 1
            if bad_so_far % COSTLY_EVERY == 0:
                name = list(COSTLY)[bad_so_far // COSTLY_EVERY % len(COSTLY)]
                yield Message("costly structure", _exhibit(name), b"costly", errors=frozenset({"CorruptImage"}))
                continue
            yield self._dice.choices(makers, weights)[0]()
            yield from self._damaged
            self._damaged.clear()

    # --- good ones ----------------------------------------------------------------------------------------------------

    def _good(self, number: int) -> Message:
        dice, places, image_id = self._dice, self._places, f"good-{number:06d}"
        name = dice.choice(list(places.photographs))
        body = _with_comment(places.photographs[name], image_id)
        stored = hashlib.sha256(places.photographs[name]).hexdigest()
        key = b"key-%d" % dice.randrange(50)
        reference = {"image_id": image_id, "uri": places.uri(name), "sha256": stored, "metadata": {"n": str(number)}}
        inline = {"image_id": image_id, "data": base64.b64encode(body).decode()}
        event = {"specversion": "1.0", "id": image_id, "source": "/a", "type": "b", "data": reference}
        notice = {"Records": [s3_record(name, bucket=places.bucket)]}
        forms: list[tuple[float, str, bytes, Headers, str]] = [
            (6, "the image itself", body, [("image-id", image_id)], hashlib.sha256(body).hexdigest()),
            (6, "an image inline", _json(inline), [], hashlib.sha256(body).hexdigest()),
            (4, "a reference", _json(reference), [("content-type", "application/json")], stored),
            (2, "a cloud event", _json(event), [], stored),
            (1, "a list of one URI", places.uri(name).encode(), [*_uri_list(), ("image-id", image_id)], stored),
            (1, "framed JSON", b"\0\0\0\0\x07" + _json(reference), [], stored),
            (0.4, "a bucket's event", _json(notice), [], stored),
        ]
        _, kind, value, headers, sha256 = dice.choices(forms, [form[0] for form in forms])[0]
        known = f"{places.bucket}/{name}" if kind == "a bucket's event" else image_id
        return Message(kind, value, key, headers, events=1, letters=0, image_id=known, image_sha256=sha256)

    # --- bad ones by hand ---------------------------------------------------------------------------------------------

    def _wrong_json(self) -> Message:
        data = base64.b64encode(self._some_photograph()).decode()
        return Message("wrong JSON", self._dice.choice(_wrong_documents(data)), self._key(), errors=_MALFORMED)

    def _refused_reference(self) -> Message:
        uris = [*SPELLINGS.values(), "file:///etc/passwd", "s3://another/a.jpg", "gs://photos/a.jpg", "az://a/b.jpg"]
        uris += [self._places.uri("a-link.jpg"), self._places.folder.as_uri() + "/../a.jpg"]
        uri = self._dice.choice(uris)
        errors = _MALFORMED if "\ud800" in uri else frozenset({"ReferenceRefused"})  # half a pair is no JSON
        return Message("refused references", _json({"image_id": "a trick", "uri": uri}), self._key(), errors=errors)

    def _nothing_there(self) -> Message:
        absent = f"absent-{self._dice.randrange(1000)}.jpg"
        uri = self._dice.choice([self._places.uri(absent), self._places.uri("a-folder"), self._places.uri("empty.jpg")])
        errors = frozenset({"ImageNotFound", "ReferenceRefused", "NotAnImage", "TruncatedImage"})
        return Message("references to no image", _json({"image_id": "b", "uri": uri}), self._key(), errors=errors)

    def _wrong_checksum(self) -> Message:
        name = self._dice.choice(list(self._places.photographs))
        inline = {"data": base64.b64encode(self._places.photographs[name]).decode()}
        what = self._dice.choice([inline, {"uri": self._places.uri(name)}])
        value = _json({"image_id": "c", **what, "sha256": self._dice.randbytes(32).hex()})
        return Message("another checksum", value, self._key(), errors=frozenset({"ChecksumMismatch"}))

    def _no_image(self) -> Message:
        says = [("content-type", self._dice.choice(["image/jpeg", "image/png", "application/octet-stream", "x", ""]))]
        noise = self._dice.randbytes(200).replace(b"\xff", b"\xfe")
        bodies = [
            *(b"good morning", b"<!doctype html><title>404</title>", b"%PDF-1.7\n", b"%!PS-Adobe-3.0 EPSF-3.0\n"),
            *(b"<svg xmlns='http://www.w3.org/2000/svg'/>", b"PK\3\4" + bytes(99), b"\x7fELF" + bytes(99)),
            *(gzip.compress(b"a", mtime=0), b"\x00\x00\x00\x0cJXL \r\n\x87\n" + bytes(99), b"!" + noise),
        ]
        headers: Headers = [*says] if self._dice.random() < 0.7 else []
        errors = frozenset({"NotAnImage", "UnsupportedFormat", "MalformedMessage"})
        return Message("no image at all", self._dice.choice(bodies), self._key(), headers, errors=errors)

    def _bomb(self) -> Message:
        is_large = self._dice.random() < 0.6
        body = _exhibit(self._dice.choice(list(LARGE if is_large else BOMBS)))
        errors = frozenset({"TooManyPixels" if is_large else "DecompressionBomb"})
        value = body if self._dice.random() < 0.5 else _inline(body)
        return Message("bombs", value, self._key(), errors=errors)

    def _notification(self) -> Message:
        """Several records, each of which is answered for itself: a photograph, a letter, or nothing at all."""
        name, bucket = self._dice.choice(list(self._places.photographs)), self._places.bucket
        choices: list[tuple[Any, int, int]] = [
            (s3_record(name, bucket=bucket), 1, 0),
            (s3_record(name, bucket=bucket, event="ObjectRemoved:Delete"), 0, 0),
            (s3_record("absent.jpg", bucket=bucket), 0, 1),
            (s3_record("..%2F..%2Fetc%2Fpasswd", bucket=bucket), 0, 1),
            (s3_record("a.jpg", bucket="another"), 0, 1),
            (s3_record("a" * 2000, bucket=bucket), 0, 1),
            (s3_record("%ff%fe", bucket=bucket), 0, 1),
            (s3_record("a.jpg", bucket="a/b@c"), 0, 1),
            ({"eventName": "ObjectCreated:Put", "s3": {"bucket": {"name": bucket}}}, 0, 1),
            ({"eventName": "ObjectCreated:Put", "s3": "x"}, 0, 1),
            ("no object", 0, 1),
            (None, 0, 1),
        ]
        if self._dice.random() < 0.1:
            value = _json({"Records": [choices[2][0]] * 101})
            return Message("hostile notifications", value, self._key(), errors=_MALFORMED)
        records = [
            self._dice.choice(choices[2:]),
            *(self._dice.choice(choices) for _ in range(self._dice.randrange(4))),
        ]
        self._dice.shuffle(records)
        return Message(
            "hostile notifications",
            _json({"Records": [record for record, _, _ in records]}),
            self._key(),
            events=sum(events for _, events, _ in records),
            letters=sum(letters for _, _, letters in records),
        )

    def _framing(self) -> Message:
        dice, plain = self._dice, _json({"image_id": "a", "uri": "file:///etc/passwd"})
        bodies: list[tuple[bytes, Headers]] = [
            (b"\0", []),
            (b"\0\0\0\0\x07", []),
            (b"\0\0\0\0\x07" + dice.randbytes(60).replace(b"{", b"x"), []),
            (b"\0\0\0\0\x07\x02a\x1efile:///a.jpg", []),  # Avro
            (b"\0\0\0\0\0\0\0\0\x07" + plain, []),  # Apicurio's
            (b"\0\0\0\0\x07{" + dice.randbytes(60), []),
            (b"\xac\xed\0\5" + dice.randbytes(60), []),  # Java's own
            (pickle.dumps({"image_id": "a"}), []),
            (b"\x03\0" + uuid.UUID(int=dice.getrandbits(128)).bytes + dice.randbytes(40), []),  # Glue's
            (dice.randbytes(40), [("__value_schema_id", b"\1" + dice.randbytes(7))]),
            (b"\2a", [("__value_schema_id", b"\1" + dice.randbytes(16))]),
        ]
        value, headers = dice.choice(bodies)
        return Message("framings", value, self._key(), headers, errors=_MALFORMED)

    def _without_value(self) -> Message:
        """A tombstone is a letter by `input.tombstones = "dead_letter"`."""
        return Message("no value", self._dice.choice([b"", None]), self._key(), errors=_MALFORMED)

    def _wrong_id(self) -> Message:
        bad_keys: list[bytes] = [b"k" * 1025, b"\xff" * 600, b"k" * 100_000]
        bad_ids: list[bytes] = [b"\xff\xfe", b"", b"a\nb", b"i" * 1025]
        body = self._some_photograph()
        if self._dice.random() < 0.5:
            return Message("keys and ids that are none", body, self._dice.choice(bad_keys), errors=_MALFORMED)
        headers: Headers = [("image-id", self._dice.choice(bad_ids))]
        return Message("keys and ids that are none", body, self._key(), headers, errors=_MALFORMED)

    def _lying_headers(self) -> Message:
        dice = self._dice
        forged: Headers = [
            *((names.ORIGIN_CLUSTER_ID, b"c"), (names.ORIGIN_TOPIC_ID, b"t"), (names.ORIGIN_TOPIC, b"images")),
            *((names.ORIGIN_PARTITION, b"0"), (names.ORIGIN_OFFSET, b"0"), (names.ORIGIN_TIMESTAMP_TYPE, b"none")),
            *((names.ERROR_TOPIC, b"elsewhere"), (names.ERROR_PARTITION, b"99"), (names.ERROR_OFFSET, b"7")),
        ]
        choices: list[Headers] = [
            [(f"h{number}", dice.randbytes(40)) for number in range(2_000)],
            [("large", bytes(600_000))],
            [("content-type", None), ("content-type", b"\xff" * 9), ("content-type", "image/jpeg")],
            [("traceparent", b"\r\n" * 99), ("ce_type", bytes(300)), ("", b"no name")],
            forged,
            [(names.ORIGIN_RECORD_INDEX, b"9" * 9)],
            [(names.REPLAY_COUNT, b"-1"), (names.ORIGIN_OFFSET, b"9" * 400)],
        ]
        return Message("lying headers", b"good morning", self._key(), dice.choice(choices))

    # --- damage -------------------------------------------------------------------------------------------------------

    def _damaged_image(self) -> Message:
        return self._until_bad("damaged images", lambda: mutated(self._next_seed(), self._images)[1])

    def _damaged_inline(self) -> Message:
        return self._until_bad("damaged images inline", lambda: _inline(mutated(self._next_seed(), self._images)[1]))

    def _damaged_message(self) -> Message:
        return self._until_bad("damaged messages", lambda: mutated(self._next_seed(), self._forms)[1])

    def _until_bad(self, kind: str, make: Callable[[], bytes]) -> Message:
        while True:
            message = self._judged(kind, make(), self._key())
            if message is None:
                continue
            if message.letters and not message.events:
                return message
            self._damaged.append(message)

    def _judged(self, kind: str, value: bytes, key: bytes | None) -> Message | None:
        """With what the stages alone make of it; None for a `data:` URI, whose image its store unpacks."""
        try:
            parsed = self._parse(Delivery(_LEASE, 0, value, key=key))
        except InvalidMessage as error:
            return Message(kind, value, key, errors=frozenset({type(error).__name__}))
        entries = parsed.entries if isinstance(parsed, Records) else (parsed,)
        asked = [entry for entry in entries if not isinstance(entry, Skipped)]
        if any(isinstance(entry, ImageJob) and str(entry.uri).lower().startswith("data:") for entry in asked):
            return None
        refusals = [self._refusal_of(entry) for entry in asked]
        errors = frozenset(error for error in refusals if error is not None)
        letters = sum(error is not None for error in refusals)
        if not asked:
            kind += ", and nothing asked"
        elif letters < len(asked):
            kind += ", and whole"
        return Message(kind, value, key, events=len(asked) - letters, letters=letters, errors=errors)

    def _refusal_of(self, entry: ImageJob | Rejected) -> str | None:
        """The class of error, None where it is labelled. All URIs in the samples lead out of what is allowed."""
        if isinstance(entry, Rejected):
            return type(entry.error).__name__
        if entry.data is None:
            return "ReferenceRefused"
        try:
            verify(entry, entry.data, max_bytes=MAX_IMAGE_BYTES)
            self._decoder.open(entry.data).decode()
        except InvalidMessage as error:
            return type(error).__name__
        return None

    # --- pieces -------------------------------------------------------------------------------------------------------

    def _next_seed(self) -> int:
        return (self._seed << 40) + next(self._numbers)

    def _key(self) -> bytes | None:
        """Any key that an image may have; most are shared with good ones."""
        return self._dice.choice([None, b"\xff\xfe\0\1", "ключ".encode(), *(b"key-%d" % n for n in range(20))])

    def _some_photograph(self) -> bytes:
        return self._dice.choice(list(self._places.photographs.values()))


@cache
def _exhibit(name: str) -> bytes:
    return (COSTLY | BOMBS | LARGE)[name]()


def _wrong_documents(data: str) -> Sequence[bytes]:
    good = {"image_id": "a", "data": data}
    bad: dict[str, list[Any]] = {
        "image_id": [1, None, "", "a\nb", "a" * 1025, [], {"a": "b"}, True],
        "data": [1, None, "", "*", "AAA", data[:-1] + "*", [data], data + "\n"],
        "sha256": [1, "12", "g" * 64, "0" * 65],
        "top_k": [0, -1, 1001, 1.5, "5", 10**30, []],
        "captured_at": [1, "yesterday", "2026-13-01T00:00:00Z", "2026-01-31"],
        "metadata": [[], "a", {"a": 1}, {"a": None}, {"a": {"b": "c"}}, {"a": "b" * 9000}],
        "version": [0, 2, "1", 1.5, []],
    }
    bad_uris: list[Any] = [1, None, "", "file:///" + "a" * 9000, ["file:///a.jpg"]]
    event = {"specversion": "1.0", "id": "1", "source": "/a", "type": "b"}
    wrong: list[dict[str, Any]] = [
        *({}, {"image_id": "a"}, {"uri": "file:///a.jpg"}, good | {"uri": "file:///a.jpg"}),
        *(good | {name: value} for name, values in bad.items() for value in values),
        *({"image_id": "a", "uri": uri} for uri in bad_uris),
        *(event, event | {"specversion": "0.3", "data": good}, event | {"data_base64": data}, event | {"data": data}),
        event | {"datacontenttype": "image/png", "data": good},
    ]
    whole = _json(good)
    texts = [
        *(b"{", b"[", b"[]", b"[{}]", b"{}{}", b"{'image_id': 'a'}", b'{"image_id"}', b'{"image_id": NaN}', b"{\0}"),
        *(b"[" * 100_000, b'{"a":' * 2_000, b"\xef\xbb\xbf", b"\xef\xbb\xbf{", b"  {", b'{"image_id": "\\ud800"}'),
        *(whole[:-1], whole + b"x", whole.decode().encode("utf-16"), whole.decode().encode("utf-32-le"), b"null", b"1"),
        *(whole[:20] + b"\xff" + whole[20:], b'{"image_id": "a", "uri": "\xc3\x28"}', b'"a"', b"\n\n\n"),
    ]
    return [*texts, *(_json(document) for document in wrong)]


def _with_comment(body: bytes, text: str) -> bytes:
    """A JPEG that no other is equal to; other formats as they are."""
    if not body.startswith(b"\xff\xd8"):
        return body
    return body[:2] + b"\xff\xfe" + struct.pack(">H", len(text) + 2) + text.encode() + body[2:]


def _inline(body: bytes) -> bytes:
    return _json({"image_id": "inline", "data": base64.b64encode(body).decode()})


def _json(document: object) -> bytes:
    return json.dumps(document).encode()


def _uri_list() -> Headers:
    return [("content-type", "text/uri-list")]
