"""Names that follow from other names."""

import hashlib
import re
from collections.abc import Mapping

MEDIA_TYPES: Mapping[str, str] = {
    ".jpg": "image/jpeg",
    ".jpeg": "image/jpeg",
    ".png": "image/png",
    ".webp": "image/webp",
    ".bmp": "image/bmp",
    ".gif": "image/gif",
    ".tif": "image/tiff",
    ".tiff": "image/tiff",
    ".avif": "image/avif",
    ".heic": "image/heic",
    ".heif": "image/heif",
}
"""The suffixes that count as images in a folder, in lower case, and what they say."""


def replay_marker_topic(dead_letter_topic: str) -> str:
    """The compacted topic where `ouzel dlq replay` notes which letters went back."""
    return f"{dead_letter_topic}.replayed"


def replay_transactional_id(dead_letter_topic: str) -> str:
    """The transactional id of `ouzel dlq replay`, which lets one replay of the topic at a time commit."""
    return f"ouzel-dlq-replay-{dead_letter_topic}"


def transactional_ids(group_id: str, own: str) -> str:
    """What the ids of the service's transactional producers begin with; `own` is `transaction.id`."""
    return own.split("{", 1)[0] if own else f"ouzel-{group_id}-"


def is_bucket_pattern(entry: str) -> bool:
    """Whether a store's allow-list takes it: `photos`, `photos-*`, or with a beginning of the key, `photos/2026/`."""
    return re.fullmatch(r"[A-Za-z0-9*][A-Za-z0-9._\-*]{0,222}", entry.partition("/")[0]) is not None


_MAX_ID_CHARS = 1024  # as schemas/image-reference.v1.json has it
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")


def object_id(bucket: str, key: str) -> str:
    """The image id of an object: `bucket/key`, or where that is no id, `sha256:` and its digest."""
    name = f"{bucket}/{key}"
    if len(name) > _MAX_ID_CHARS or _CONTROL.search(name):
        return "sha256:" + hashlib.sha256(name.encode()).hexdigest()
    return name
