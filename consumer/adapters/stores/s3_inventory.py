"""Amazon S3 Inventory: a bucket's objects as AWS lists them daily or weekly, in gzipped CSV or in Parquet.

The layout is https://docs.aws.amazon.com/AmazonS3/latest/userguide/storage-inventory-location.html, and the columns
https://docs.aws.amazon.com/AmazonS3/latest/userguide/storage-inventory.html: CSV has no header, its columns are those
of the manifest's `fileSchema`, and its keys are encoded as in a form (a space is `+`); Parquet has column names of its
own, and keys as they are. A manifest that names a file which is not the one its checksum says is refused.
"""

import csv
import gzip
import hashlib
import io
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, BinaryIO
from urllib.parse import unquote_plus

import orjson

from consumer.adapters.stores.s3_listing import need_extra
from consumer.errors import BucketFailed

_ARN = "arn:aws:s3:::"
_MANIFEST_BYTES = 64 * 1024 * 1024
# Ours -> the manifest's for CSV, and Parquet's own.
_CSV_COLUMNS = {
    "bucket": "Bucket",
    "key": "Key",
    "version_id": "VersionId",
    "is_latest": "IsLatest",
    "is_delete_marker": "IsDeleteMarker",
}

Copy = Callable[[str, str, BinaryIO], None]
"""(bucket, key, to): the bytes of an object."""


@dataclass(frozen=True, slots=True)
class Row:
    """One object, or one version of it, as an inventory has it."""

    place: tuple[int, int]
    """(number of the file, number of the row in it), from 0."""
    bucket: str
    key: str
    version_id: str | None
    is_latest: bool
    is_delete_marker: bool


@dataclass(frozen=True, slots=True)
class _File:
    key: str
    md5: str


class Inventory:
    """A manifest, and the rows of the files that it names.

    Args:
        place: a path, or `s3://bucket/key`, of a `manifest.json`.
        copy: reads an object; called only for what is in a bucket.

    Raises:
        BucketFailed: there is no such manifest, or it is none.
    """

    def __init__(self, place: str, copy: Copy) -> None:
        self._place = place
        self._copy = copy
        self._folder = None if place.startswith("s3://") else Path(place).resolve().parent
        text = self._manifest()
        self.digest = hashlib.sha256(text).hexdigest()
        """Of the manifest: tells one inventory from the next."""
        try:
            manifest = orjson.loads(text)
            self.format = str(manifest["fileFormat"])
            self._schema = [name.strip() for name in str(manifest["fileSchema"]).split(",")]
            self._bucket = str(manifest["destinationBucket"]).removeprefix(_ARN)
            self._files = [_File(str(each["key"]), str(each.get("MD5checksum", ""))) for each in manifest["files"]]
        except (orjson.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
            raise self._wrong(f"not a manifest of an S3 Inventory: {type(error).__name__}") from None
        if self.format not in ("CSV", "Parquet"):
            raise self._wrong(f"its format is {self.format}, and CSV and Parquet are those that are read")
        if self.format == "CSV" and not {"Bucket", "Key"} <= set(self._schema):
            raise self._wrong("its fileSchema has no Bucket and Key")
        if self.format == "Parquet":
            need_extra("inventory", "arro3", "an inventory in Parquet")

    def rows(self, *, after: tuple[int, int] | None = None) -> Iterator[Row]:
        """Every row, those up to and with `after` left out.

        Raises:
            BucketFailed: a file is not there, or not the one that the manifest means.
        """
        first_file, first_row = (after[0], after[1] + 1) if after is not None else (0, 0)
        for number in range(first_file, len(self._files)):
            file = self._files[number]
            read = _csv_rows if self.format == "CSV" else _parquet_rows
            with self._opened(file) as opened:
                try:
                    for row_number, fields in enumerate(read(opened, self._schema)):
                        if number > first_file or row_number >= first_row:
                            yield _row((number, row_number), fields)
                except (OSError, EOFError, KeyError, ValueError, csv.Error) as error:
                    raise self._wrong(f"{file.key} cannot be read: {type(error).__name__}: {error}") from error

    def _manifest(self) -> bytes:
        if self._folder is None:
            found = io.BytesIO()
            bucket, _, key = self._place.removeprefix("s3://").partition("/")
            self._copy(bucket, key, found)
            return found.getvalue()
        try:
            with Path(self._place).open("rb") as file:
                return file.read(_MANIFEST_BYTES)
        except OSError as error:
            raise self._wrong(error.strerror or "cannot be read") from None

    @contextmanager
    def _opened(self, file: _File) -> Iterator[BinaryIO]:
        """A file of the inventory, checked: beside a local manifest where it was put there, else from its bucket."""
        path = self._beside(file.key)
        opened: Any
        with path.open("rb") if path is not None else tempfile.TemporaryFile() as opened:
            if path is None:
                self._copy(self._bucket, file.key, opened)
                opened.seek(0)
            if file.md5 and hashlib.file_digest(opened, _md5).hexdigest() != file.md5.lower():
                raise self._wrong(f"{file.key} is not the file that the manifest means: its MD5 is another")
            opened.seek(0)
            yield opened

    def _beside(self, key: str) -> Path | None:
        """In the bucket the manifest is at CONFIG/TIME/manifest.json and the files are at CONFIG/data/."""
        if self._folder is None:
            return None
        name = key.rpartition("/")[2]
        places = (self._folder / name, self._folder / "data" / name, self._folder.parent / "data" / name)
        return next((each for each in places if name and each.is_file()), None)

    def _wrong(self, what: str) -> BucketFailed:
        return BucketFailed(
            f"{self._place}: {what}", remedy="give the path or s3:// URI of an inventory's manifest.json"
        )


def _md5() -> Any:
    return hashlib.md5(usedforsecurity=False)


def _csv_rows(file: IO[bytes], schema: Sequence[str]) -> Iterator[dict[str, Any]]:
    places = {ours: schema.index(theirs) for ours, theirs in _CSV_COLUMNS.items() if theirs in schema}
    with gzip.open(file, "rt", encoding="utf-8", newline="") as text:
        for line in csv.reader(text):
            fields: dict[str, Any] = {ours: line[place] for ours, place in places.items() if place < len(line)}
            fields["key"] = unquote_plus(fields["key"], errors="strict")
            yield fields


def _parquet_rows(file: IO[bytes], _schema: Sequence[str]) -> Iterator[dict[str, Any]]:
    from arro3.io import read_parquet

    for batch in read_parquet(file):
        there = [name for name in _CSV_COLUMNS if name in batch.schema.names]
        columns = [batch.column(name).to_pylist() for name in there]
        for values in zip(*columns, strict=True):
            yield dict(zip(there, values, strict=True))


def _row(place: tuple[int, int], fields: Mapping[str, Any]) -> Row:
    return Row(
        place=place,
        bucket=str(fields["bucket"]),
        key=str(fields["key"]),
        version_id=str(fields.get("version_id") or "") or None,
        # Without the column only current versions are listed.
        is_latest=_truth(fields.get("is_latest"), otherwise=True),
        is_delete_marker=_truth(fields.get("is_delete_marker"), otherwise=False),
    )


def _truth(value: object, *, otherwise: bool) -> bool:
    if value is None or value == "":
        return otherwise
    return value if isinstance(value, bool) else str(value).lower() == "true"
