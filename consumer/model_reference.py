"""What `model.source` says, read once: where a model's versions lie, which of them is meant, and which bytes alone
will do.

/models/birds            file:///models/birds:production            file:///models/birds:3@sha256:...
s3://bucket/models/birds:production
wandb-artifact://entity/project/birds:production        wandb-artifact://wandb-registry-NAME/birds:production
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal
from urllib.parse import quote, unquote

from consumer.errors import SettingsError

ReferenceScheme = Literal["file", "s3", "wandb-artifact"]
DEFAULT = "default"
"""The source that is built here and comes from no registry."""

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://(.*)", re.DOTALL)
_PIN = re.compile(r"sha256:[0-9a-f]{64}")
_ALIAS = re.compile(r"[^\s/:@?#%\\\x00-\x1f\x7f]{1,128}")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_BUCKET = re.compile(r"[a-z0-9][a-z0-9._-]{1,62}")
_REGISTRY = "wandb-registry-"


@dataclass(frozen=True, slots=True)
class ModelReference:
    """One model, or one version of it."""

    scheme: ReferenceScheme
    location: str
    """A path, `bucket/prefix`, or `entity/project/name`; without a slash at its end."""
    alias: str = ""
    """An alias or a version's own name; empty: the newest version, or the model that lies there itself."""
    pin: str = ""
    """`sha256:` and hex of the only manifest that will do; empty: any."""

    def __str__(self) -> str:
        """As it may be written in `model.source`."""
        if self.scheme == "file":
            # A colon or an `@` of the path is not to be taken for an alias or a pin.
            absolute = self.location.startswith("/")
            written = "file://" + quote(self.location) if absolute else self.location
        else:
            written = f"{self.scheme}://{self.location}"
        return f"{written}{':' if self.alias else ''}{self.alias}{'@' if self.pin else ''}{self.pin}"

    @property
    def name(self) -> str:
        """The model's, by its place."""
        return self.location.rpartition("/")[2]

    @property
    def model(self) -> "ModelReference":
        """The model with all its versions: without alias and pin."""
        return replace(self, alias="", pin="")


def parse_reference(text: str, *, exists: Callable[[str], bool] = lambda path: Path(path).exists()) -> ModelReference:
    """Read a reference.

    Args:
        text: as in `model.source`, `default` excepted.
        exists: whether something lies at a path. A path that lies there as it is written wins over reading its end as
        an
            alias or a pin.

    Raises:
        SettingsError: it is none; says what is wrong, and never repeats user-info.
    """
    if not text.strip() or _CONTROL.search(text):
        raise _wrong("it is empty, or has control characters in it")
    found = _SCHEME.fullmatch(text)
    if found is None:
        return _local(text, exists)
    scheme, rest = found[1].lower(), found[2]
    if scheme == "file":
        host, slash, path = rest.partition("/")
        if host not in {"", "localhost"} or not slash:
            raise _wrong("file:// is followed by a whole path: file:///models/birds")
        return _local(slash + path, exists, decode=unquote)
    rest, pin = _split_pin(rest)
    rest, alias = _split_alias(rest)
    location = rest.rstrip("/")
    if "@" in location:
        raise _wrong("user names and passwords have no place in it: [stores.s3] and [wandb] have the credentials")
    if scheme == "s3":
        bucket, _, prefix = location.partition("/")
        if not _BUCKET.fullmatch(bucket) or not _is_path(prefix):
            raise _wrong("a bucket and a prefix are needed: s3://bucket/models/birds")
        return ModelReference("s3", location, alias, pin)
    if scheme == "wandb-artifact":
        parts = location.split("/")
        registry = len(parts) in {2, 3} and parts[-2].startswith(_REGISTRY)
        if not (len(parts) == 3 or registry) or not _is_path(location):
            raise _wrong(
                "entity, project and name are needed: wandb-artifact://entity/project/birds,"
                f" or of a registry wandb-artifact://{_REGISTRY}models/birds"
            )
        return ModelReference("wandb-artifact", location, alias, pin)
    raise _wrong(f"nothing is known of {scheme}://")


def _local(text: str, exists: Callable[[str], bool], decode: Callable[[str], str] = str) -> ModelReference:
    if exists(decode(text)):
        return ModelReference("file", _without_end(decode(text)))
    path, pin = _split_pin(text)
    if pin and exists(decode(path)):
        return ModelReference("file", _without_end(decode(path)), pin=pin)
    path, alias = _split_alias(path)
    if not decode(path).strip("/") or _CONTROL.search(decode(path)):
        raise _wrong("no path is in it")
    return ModelReference("file", _without_end(decode(path)), alias, pin)


def _without_end(path: str) -> str:
    return path.rstrip("/") or "/"


def _split_pin(text: str) -> tuple[str, str]:
    head, found, hexadecimal = text.rpartition("@sha256:")
    if not found:
        return text, ""
    pin = f"sha256:{hexadecimal}"
    if not _PIN.fullmatch(pin):
        raise _wrong("a pin is @sha256: and 64 digits of lower-case hex, at its end")
    return head, pin


def _split_alias(text: str) -> tuple[str, str]:
    """The last colon after the last slash begins an alias."""
    before, slash, last = text.rpartition("/")
    name, colon, alias = last.partition(":")
    if not colon:
        return text, ""
    if not name or not _ALIAS.fullmatch(alias):
        raise _wrong("after the colon comes an alias or a version, without blanks and slashes: birds:production")
    return before + slash + name, alias


def _is_path(text: str) -> bool:
    """Whether every part of it is a plain name."""
    return all(part not in {"", ".", ".."} and not re.search(r"[\s:?#%\\]", part) for part in text.split("/"))


def _wrong(why: str) -> SettingsError:
    return SettingsError(
        f"this is no reference to a model: {why}",
        remedy='model.source is "default", a path, "file://...", "s3://bucket/prefix" or'
        ' "wandb-artifact://entity/project/name", with ":ALIAS" and "@sha256:..." behind it if wanted',
    )
