"""Records as lines: what ``raftkv load`` reads and ``raftkv dump`` writes."""

from __future__ import annotations

import base64
import binascii
import codecs
import csv
import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, Final, Literal, NamedTuple, TypeAlias, TypeVar

from raftkv.cli.common import field
from raftkv.errors import InvalidArgument
from raftkv.limits import MAX_KEY_BYTES, MAX_VALUE_BYTES

Format: TypeAlias = Literal["jsonl", "csv"]
Line = TypeVar("Line", str, bytes)

_JSON_FIELDS: Final = frozenset({"key", "key_b64", "value", "value_b64", "version", "expires_at"})
_MAX_LINE: Final = 16 * MAX_VALUE_BYTES
"""A value of the largest size with all of it escaped takes six times that, and there may be other columns."""
_MAX_TIME: Final = 1e15
"""Unix times are far below, also those in milliseconds."""


class Item(NamedTuple):
    """A record to be written. ``line``: where it stands in the file, from 1. ``expires_at``: Unix time in seconds."""

    line: int
    key: bytes
    value: bytes
    expires_at: float | None = None


def format_of(path: Path, default: Format | None = None) -> Format:
    """By the file's suffix, or the ``default``. Raises InvalidArgument if neither tells."""
    formats: dict[str, Format] = {".csv": "csv", ".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "jsonl"}
    found = formats.get(path.suffix.lower(), default)
    if found is None:
        raise InvalidArgument(f"{path}: give --format jsonl or --format csv, its name does not")
    return found


def read_items(
    file: BinaryIO, name: str, kind: Format, key_column: str = "key", value_column: str = "value"
) -> Iterator[Item]:
    """All records of a file, in order. Raises OSError, InvalidArgument that says where in ``name`` the damage is."""
    if kind == "csv":
        return _read_csv(file, name, key_column, value_column)
    return _read_jsonl(file, name, key_column, value_column)


def _read_jsonl(file: BinaryIO, name: str, key_column: str, value_column: str) -> Iterator[Item]:
    known = _JSON_FIELDS | {key_column, f"{key_column}_b64", value_column, f"{value_column}_b64"}
    for number, line in enumerate(_lines(file.readline, name), 1):
        text = line.removeprefix(codecs.BOM_UTF8) if number == 1 else line
        if not text or text.isspace():
            continue
        try:
            raw = _DECODER.decode(text.decode())
            if not isinstance(raw, dict):
                raise InvalidArgument("not a JSON object")
            if not known.issuperset(raw):
                raise InvalidArgument(f"unknown field {next(field for field in raw if field not in known)!r}")
            expires = raw.get("expires_at")
            if expires is not None and not _is_time(expires):
                raise InvalidArgument("expires_at is not a time in seconds")
            yield _checked(number, _bytes(raw, key_column), _bytes(raw, value_column), expires)
        except InvalidArgument as error:
            raise InvalidArgument(f"{name}: line {number}: {error}") from None
        except json.JSONDecodeError as error:
            raise InvalidArgument(f"{name}: line {number}: not JSON: {error.msg}") from None
        except UnicodeDecodeError:
            raise InvalidArgument(f"{name}: line {number}: not UTF-8") from None
        except (RecursionError, ValueError) as error:
            raise InvalidArgument(f"{name}: line {number}: not a record: {error}") from None


def _lines(readline: Callable[[int], Line], name: str) -> Iterator[Line]:
    """The lines of a file; refuses one that would fill the memory, such as those of /dev/zero."""
    number = 0
    while line := readline(_MAX_LINE):
        number += 1
        if len(line) == _MAX_LINE:
            raise InvalidArgument(f"{name}: line {number}: longer than {_MAX_LINE} bytes")
        yield line


def _fields(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise InvalidArgument(f"field {next(name for name in names if names.count(name) > 1)!r} comes more than once")
    return found


_DECODER: Final = json.JSONDecoder(object_pairs_hook=_fields)


def _is_time(value: object) -> bool:
    # Compared, not converted: JSON's integers may be too large for a float. NaN is not within any bounds.
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < _MAX_TIME


def _bytes(raw: dict[str, Any], name: str) -> bytes:
    encoded = f"{name}_b64"
    if (name in raw) == (encoded in raw):
        raise InvalidArgument(f"needs either {name} or {encoded}")
    text = raw[name] if name in raw else raw[encoded]
    if not isinstance(text, str):
        raise InvalidArgument(f"{name} is not a string")
    try:
        return text.encode() if name in raw else base64.b64decode(text, validate=True)
    except UnicodeEncodeError:
        raise InvalidArgument(f"{name} is not valid Unicode") from None
    except (binascii.Error, ValueError):
        raise InvalidArgument(f"{encoded} is not base64") from None


def _read_csv(file: BinaryIO, name: str, key_column: str, value_column: str) -> Iterator[Item]:
    # Of the whole process, but nothing else in it reads CSV. Columns that are not loaded may be longer than values.
    csv.field_size_limit(_MAX_LINE)
    text = io.TextIOWrapper(file, encoding="utf-8-sig", newline="")
    rows = csv.reader(_lines(text.readline, name), strict=True)
    line = 1
    try:
        header = next(rows, [])
        for column in (key_column, value_column):
            if header.count(column) != 1:
                raise InvalidArgument(f"{name}: line 1: needs exactly one column named {column!r}")
        key, value = header.index(key_column), header.index(value_column)
        line = rows.line_num + 1
        for row in rows:
            if row:
                if len(row) != len(header):
                    raise InvalidArgument(f"{name}: line {line}: {len(row)} fields, the header has {len(header)}")
                try:
                    yield _checked(line, row[key].encode(), row[value].encode(), None)
                except InvalidArgument as error:
                    raise InvalidArgument(f"{name}: line {line}: {error}") from None
            line = rows.line_num + 1
    except csv.Error as error:
        raise InvalidArgument(f"{name}: line {line}: {error}") from None
    except UnicodeDecodeError:
        raise InvalidArgument(f"{name}: line {line} or later: not UTF-8") from None


def _checked(line: int, key: bytes, value: bytes, expires_at: float | None) -> Item:
    if not key:
        raise InvalidArgument("the key is empty")
    if len(key) > MAX_KEY_BYTES:
        raise InvalidArgument(f"the key has {len(key)} bytes, the limit is {MAX_KEY_BYTES}")
    if len(value) > MAX_VALUE_BYTES:
        raise InvalidArgument(f"the value has {len(value)} bytes, the limit is {MAX_VALUE_BYTES}")
    return Item(line, key, value, expires_at)


def dump_line(key: bytes, value: bytes, version: int, expires_at: float | None) -> bytes:
    """A record as one line of JSON that :func:`read_items` understands."""
    raw: dict[str, Any] = {**field("key", key), **field("value", value), "version": version}
    if expires_at is not None:
        raw["expires_at"] = round(expires_at, 3)
    return json.dumps(raw, ensure_ascii=False).encode() + b"\n"
