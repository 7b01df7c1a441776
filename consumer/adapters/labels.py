"""Label files: names by class index. The order of the rows means nothing where the file has ids."""

import csv
import io
from collections.abc import Iterator, Mapping
from pathlib import Path

from loguru import logger

from consumer.errors import ModelError
from consumer.ports import Labels

_HEADER = {"id", "name"}


class LabelMap:
    """Names by class index, fulfilling `ports.Labels`."""

    def __init__(self, names: Mapping[int, str]) -> None:
        self._names = dict(names)

    def __len__(self) -> int:
        """How many classes have a name."""
        return len(self._names)

    def name(self, index: int) -> str:
        """The name of a class index; the index itself as text where the file has no such id."""
        return self._names.get(index) or str(index)


def no_labels() -> Labels:
    """For a model without a label file: every class goes by its index."""
    return LabelMap({})


def load_labels(path: Path, class_count: int) -> Labels:
    """Read a label file for a model of `class_count` classes.

    Two forms, in UTF-8: CSV `id,name` with its rows in any order (with a header, more columns are passed over), or one
    name a line, the first line being class 0. A CSV may leave ids out; a list may not, for its names would shift.

    Raises:
        ModelError: absent, unreadable, or not the labels of this model. Says which line.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise ModelError(f"{path}: no such label file", remedy="set model.labels to a label file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ModelError(f"{path}: cannot be read as UTF-8 text: {error}", remedy="set model.labels") from error
    rows = _csv_rows(path, text)
    names = _by_line(path, text, class_count) if rows is None else _by_id(path, rows, class_count)
    if len(names) < class_count:
        missing = [index for index in range(class_count) if index not in names]
        logger.warning(
            "{} of {} classes have no name in {} (first: {}); their index stands for it",
            len(missing),
            class_count,
            path,
            missing[0],
        )
    return LabelMap(names)


def _csv_rows(path: Path, text: str) -> Iterator[tuple[int, str, str]] | None:
    """(line, id, name) for each row; None where this is no CSV `id,name` but one name a line."""
    first = next((line for line in text.splitlines() if line.strip()), "")
    try:
        fields = [field.strip().lower() for field in next(csv.reader([first]), [])]
    except csv.Error:
        return None
    if set(fields) >= _HEADER:
        return _rows(path, text, fields)
    if len(fields) > 1 and _as_int(fields[0]) is not None:
        return _rows(path, text, None)
    return None


def _rows(path: Path, text: str, header: list[str] | None) -> Iterator[tuple[int, str, str]]:
    columns = header or ["id", "name"]
    at_id, at_name = columns.index("id"), columns.index("name")
    reader = csv.reader(io.StringIO(text), strict=True)
    skip = header is not None
    try:
        for row in reader:
            if not any(field.strip() for field in row):
                continue
            if skip:
                skip = False
                continue
            if len(row) != len(columns):
                raise _error(
                    path,
                    reader.line_num,
                    f"{len(row)} fields where {len(columns)} are expected",
                    remedy='put names that hold a comma in quotes: 0,"tench, Tinca tinca"',
                )
            yield reader.line_num, row[at_id].strip(), row[at_name].strip()
    except csv.Error as error:
        raise _error(path, reader.line_num, f"broken CSV: {error}") from error


def _by_id(path: Path, rows: Iterator[tuple[int, str, str]], class_count: int) -> dict[int, str]:
    names: dict[int, str] = {}
    for line, raw_id, name in rows:
        index = _as_int(raw_id)
        if index is None:
            raise _error(path, line, f"id {raw_id!r} is not a whole number")
        if index in names:
            raise _error(path, line, f"id {index} comes a second time ({names[index]!r}, then {name!r})")
        if not 0 <= index < class_count:
            raise _error(
                path,
                line,
                f"id {index} is outside 0 to {class_count - 1}: the model has {class_count} classes",
                remedy="check that model.labels belongs to model.source",
            )
        if not name:
            raise _error(path, line, f"id {index} has an empty name")
        names[index] = name
    if not names:
        raise ModelError(f"{path}: no labels in it", remedy="set model.labels")
    return names


def _by_line(path: Path, text: str, class_count: int) -> dict[int, str]:
    lines = [line.strip() for line in text.rstrip().splitlines()]
    if "" in lines:
        raise _error(path, lines.index("") + 1, "an empty line would shift every name after it")
    if len(lines) != class_count:
        raise ModelError(
            f"{path}: {len(lines)} names, and the model has {class_count} classes",
            remedy="check that model.labels belongs to model.source, or name the ids in a CSV `id,name`",
        )
    return dict(enumerate(lines))


def _as_int(text: str) -> int | None:
    """A whole number in plain ASCII digits; not what `int` takes besides, such as `1_0`."""
    digits = text.removeprefix("-")
    return int(text) if digits.isascii() and digits.isdigit() and len(digits) < 10 else None


def _error(path: Path, line: int, what: str, *, remedy: str = "correct the file that model.labels names") -> ModelError:
    return ModelError(f"{path}, line {line}: {what}", remedy=remedy)
