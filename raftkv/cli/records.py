"""Records as lines: what ``raftkv load`` reads and ``raftkv dump`` writes."""

from __future__ import annotations

import base64
import binascii
import csv
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple, TypeAlias

from raftkv.cli.common import field
from raftkv.errors import InvalidArgument
from raftkv.limits import MAX_KEY_BYTES, MAX_VALUE_BYTES

Format: TypeAlias = Literal["jsonl", "csv"]

_JSON_FIELDS: Final = frozenset({"key", "key_b64", "value", "value_b64", "version", "expires_at"})


class Item(NamedTuple):
    """A record to be written. ``line``: where it stands in the file, from 1. ``expires_at``: Unix time in seconds."""

    line: int
    key: bytes
    value: bytes
    expires_at: float | None = None


def format_of(path: Path) -> Format:
    """By the file's suffix. Raises InvalidArgument if it tells nothing."""
    formats: dict[str, Format] = {".csv": "csv", ".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "jsonl"}
    found = formats.get(path.suffix.lower())
    if found is None:
        raise InvalidArgument(f"{path}: say --format jsonl or --format csv, its name does not")
    return found


def read_items(path: Path, kind: Format, key_column: str = "key", value_column: str = "value") -> Iterator[Item]:
    """All records of a file, in order. Raises InvalidArgument that names file and line of the first damage."""
    try:
        if kind == "csv":
            yield from _read_csv(path, key_column, value_column)
        else:
            yield from _read_jsonl(path, key_column, value_column)
    except OSError as error:
        raise InvalidArgument(f"{path}: cannot read it: {error.strerror or error}") from None


def _read_jsonl(path: Path, key_column: str, value_column: str) -> Iterator[Item]:
    known = _JSON_FIELDS | {key_column, f"{key_column}_b64", value_column, f"{value_column}_b64"}
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if line.isspace():
                continue
            try:
                raw = json.loads(line)
                if not isinstance(raw, dict):
                    raise InvalidArgument("not a JSON object")
                if not known.issuperset(raw):
                    raise InvalidArgument(f"unknown field {next(name for name in raw if name not in known)!r}")
                expires = raw.get("expires_at")
                if expires is not None and not _is_time(expires):
                    raise InvalidArgument("expires_at is not a time in seconds")
                yield _checked(number, _bytes(raw, key_column), _bytes(raw, value_column), expires)
            except InvalidArgument as error:
                raise InvalidArgument(f"{path}: line {number}: {error}") from None
            except json.JSONDecodeError as error:
                raise InvalidArgument(f"{path}: line {number}: not JSON: {error.msg}") from None
            except UnicodeDecodeError:
                raise InvalidArgument(f"{path}: line {number}: not UTF-8") from None
            except (RecursionError, ValueError) as error:
                raise InvalidArgument(f"{path}: line {number}: not a record: {error}") from None


def _is_time(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


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


def _read_csv(path: Path, key_column: str, value_column: str) -> Iterator[Item]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        rows = csv.reader(file, strict=True)
        line = 1
        try:
            header = next(rows, [])
            for column in (key_column, value_column):
                if header.count(column) != 1:
                    raise InvalidArgument(f"{path}: line 1: needs exactly one column named {column!r}")
            key, value = header.index(key_column), header.index(value_column)
            line = rows.line_num + 1
            for row in rows:
                if row:
                    if len(row) != len(header):
                        raise InvalidArgument(f"{path}: line {line}: {len(row)} fields, the header has {len(header)}")
                    try:
                        yield _checked(line, row[key].encode(), row[value].encode(), None)
                    except InvalidArgument as error:
                        raise InvalidArgument(f"{path}: line {line}: {error}") from None
                line = rows.line_num + 1
        except csv.Error as error:
            raise InvalidArgument(f"{path}: line {line}: {error}") from None
        except UnicodeDecodeError:
            raise InvalidArgument(f"{path}: line {line} or later: not UTF-8") from None


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
