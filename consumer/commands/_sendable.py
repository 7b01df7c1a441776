"""What `ouzel send` sends: from paths, URIs and JSON lines to records. Pure but for reading the files."""

import re
from base64 import b64encode
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any

from consumer.errors import MalformedMessage
from consumer.headers import CONTENT_TYPE, IMAGE_ID
from consumer.names import MEDIA_TYPES
from consumer.redact import redact_uri

if TYPE_CHECKING:  # it brings numpy, and `ouzel --help` is to be quick
    from consumer.messages import Headers

_JSON = (CONTENT_TYPE, b"application/json")
_URI = re.compile(r"[A-Za-z][A-Za-z0-9+.\-]*://")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")


class Form(StrEnum):
    """How an image goes into a message."""

    RAW = "raw"
    INLINE = "inline"
    REFERENCE = "reference"


@dataclass(frozen=True, slots=True)
class Options:
    """What is the same for every image of one `send`."""

    form: Form = Form.RAW
    key: str | None = None
    """Of every record; None: the image's id."""
    top_k: int | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)

    def extras(self) -> dict[str, Any]:
        """What they add to an image reference."""
        found: dict[str, Any] = {}
        if self.top_k is not None:
            found["top_k"] = self.top_k
        if self.metadata:
            found["metadata"] = dict(self.metadata)
        return found

    def key_for(self, image_id: str) -> bytes:
        """The record's key in UTF-8."""
        return (self.key if self.key is not None else image_id).encode("utf-8", "replace")


@dataclass(frozen=True, slots=True)
class Image:
    """One image to send: a file, or a URI that is passed on."""

    image_id: str
    path: Path | None = None
    uri: str | None = None

    def form(self, options: Options) -> Form:
        """A URI is always a reference."""
        return Form.REFERENCE if self.path is None else options.form


@dataclass(frozen=True, slots=True)
class Outgoing:
    """A record for the input topic."""

    image_id: str
    form: str
    value: bytes = field(repr=False)
    key: bytes
    headers: "Headers"
    place: Any = None
    """Where its source can go on after it."""

    @property
    def size_bytes(self) -> int:
        """Key, value and headers."""
        return len(self.key) + len(self.value) + sum(len(name) + len(value or b"") for name, value in self.headers)


def suffix_filter(suffixes: str | None, *, everything: bool) -> Callable[[str], bool]:
    """Whether a name is an image's. `suffixes` are such as `.jpg,.png`; None: those that images have."""
    if everything:
        return lambda _name: True
    wanted = tuple(MEDIA_TYPES)
    if suffixes is not None:
        wanted = tuple("." + each.strip().lstrip(".").lower() for each in suffixes.split(",") if each.strip(" ."))
    return lambda name: name.lower().endswith(wanted)


def find_images(names: Sequence[str], takes: Callable[[str], bool]) -> tuple[list[Image], list[str]]:
    """The images under these paths and URIs, in order, and the paths that do not exist.

    A file is known by its name, one in a folder by its path below that folder, a URI by itself without its
    user-info, query and fragment: an image id goes into keys, events and logs.
    """
    found: list[Image] = []
    missing: list[str] = []
    for name in names:
        path = Path(name)
        if _URI.match(name):
            found.append(Image(_tidy(redact_uri(name)), uri=name))
        elif path.is_dir():
            files = sorted(each for each in path.rglob("*") if each.is_file())
            found += [Image(_tidy(each.relative_to(path).as_posix()), path=each) for each in files if takes(each.name)]
        elif path.exists():
            found.append(Image(_tidy(path.name), path=path))
        else:
            missing.append(name)
    return found, missing


def record_for(image: Image, options: Options) -> Outgoing:
    """The record of one image. Raises `OSError` where its file cannot be read."""
    form = image.form(options)
    key = options.key_for(image.image_id)
    if image.path is not None and form is Form.RAW:
        headers = [(IMAGE_ID, image.image_id.encode())]
        media_type = MEDIA_TYPES.get(image.path.suffix.lower())
        if media_type is not None:
            headers.append((CONTENT_TYPE, media_type.encode()))
        return Outgoing(image.image_id, form, image.path.read_bytes(), key, tuple(headers))
    reference: dict[str, Any] = {"image_id": image.image_id}
    if image.path is not None and form is Form.INLINE:
        reference["data"] = b64encode(image.path.read_bytes()).decode()
    else:
        reference["uri"] = image.uri if image.path is None else image.path.resolve().as_uri()
    return Outgoing(image.image_id, form, _json(reference | options.extras()), key, (_JSON,))


def size_hint_bytes(image: Image, options: Options) -> int:
    """About how large its value will be, without reading it; 0 for references. Raises `OSError`."""
    form = image.form(options)
    if image.path is None or form is Form.REFERENCE:
        return 0
    size = image.path.stat().st_size
    return size if form is Form.RAW else (size + 2) // 3 * 4


def records_of_lines(
    lines: Iterable[bytes], options: Options, check: Callable[[bytes], str]
) -> Iterable[Outgoing | MalformedMessage]:
    """A record for each JSON line; for a bad one, the error with its number. Blank lines are passed over.

    `check` returns the image id that a value asks for, or raises an `InvalidMessage`.
    """
    import orjson

    from consumer.errors import InvalidMessage

    for number, line in enumerate(lines, start=1):
        value = line.strip()
        if not value:
            continue
        try:
            if extras := options.extras():
                value = _with_extras(orjson.loads(value), extras)
            image_id = check(value)
        except (InvalidMessage, orjson.JSONDecodeError) as error:
            yield MalformedMessage(f"line {number}: {error}")
        else:
            yield Outgoing(image_id, "line", value, options.key_for(image_id), (_JSON,))


def _with_extras(document: object, extras: Mapping[str, Any]) -> bytes:
    """The line's own fields win; metadata is joined name by name."""
    if not isinstance(document, dict):
        return _json(document)
    if "specversion" in document and isinstance(document.get("data"), dict):  # a CloudEvent around a reference
        return _json({**document, "data": _joined(document["data"], extras)})
    return _json(_joined(document, extras))


def _joined(reference: dict[str, Any], extras: Mapping[str, Any]) -> dict[str, Any]:
    joined = {**extras, **reference}
    theirs = reference.get("metadata")
    if "metadata" in extras and isinstance(theirs, dict):
        joined["metadata"] = {**extras["metadata"], **theirs}
    return joined


def _json(document: object) -> bytes:
    import orjson

    return orjson.dumps(document)


def _tidy(name: str) -> str:
    """File names may hold bytes that are no UTF-8, and control characters; an image id may not."""
    return _CONTROL.sub("_", name.encode("utf-8", "replace").decode())
