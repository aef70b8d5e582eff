"""Transactions as people write them, a line for each check and operation, and as JSON."""

from __future__ import annotations

import base64
import json
import shlex
from collections.abc import Callable, Sequence
from typing import Any, Final, TypeVar

from raftkv.cli.common import argument_bytes
from raftkv.cli.parameters import parse_duration
from raftkv.client.transaction import TransactionBuilder
from raftkv.commands.transactions import DeleteStep, GetStep, IncrementStep, PutStep, Step
from raftkv.errors import InvalidArgument
from raftkv.text import shown

T = TypeVar("T")

WORDS: Final[dict[type[Step], str]] = {GetStep: "get", PutStep: "put", DeleteStep: "delete", IncrementStep: "incr"}
"""The word for each operation."""


def fill(txn: TransactionBuilder, text: str) -> None:
    """Add what ``text`` says to ``txn``: lines, or JSON if it begins with ``{``. Raises InvalidArgument."""
    if text.lstrip().startswith("{"):
        _fill_json(txn, text)
        return
    # Not splitlines(): that cuts values at characters which end no line in a shell.
    for number, line in enumerate(text.split("\n"), 1):
        try:
            words = shlex.split(line, comments=True)
            if words:
                _add_line(txn, words)
        except ValueError as problem:  # InvalidArgument is one
            raise InvalidArgument(f"line {number}: {problem}") from None


def _add_line(txn: TransactionBuilder, words: Sequence[str]) -> None:
    word, *rest = words
    match word, [argument_bytes(one) for one in rest]:
        case "check", [key, b"version", number]:
            txn.check(key, version=_number(number))
        case "check", [key, b"value", value]:
            txn.check(key, value=value)
        case "check", [key, b"absent"]:
            txn.check(key, absent=True)
        case "put", [key, value]:
            txn.put(key, value)
        case "put", [key, value, b"ttl", time]:
            txn.put(key, value, ttl=parse_duration(time.decode(errors="replace")))
        case "delete", [key]:
            txn.delete(key)
        case "get", [key]:
            txn.get(key)
        case "incr", [key]:
            txn.incr(key)
        case "incr", [key, number]:
            txn.incr(key, _number(number))
        case "incr", [key, b"ttl", time]:
            txn.incr(key, ttl=parse_duration(time.decode(errors="replace")))
        case "incr", [key, number, b"ttl", time]:
            txn.incr(key, _number(number), ttl=parse_duration(time.decode(errors="replace")))
        case "otherwise", []:
            txn.otherwise()
        case _:
            raise InvalidArgument(f"{shown(' '.join(words))} is not understood: see raftkv txn --help")


def _number(word: bytes) -> int:
    try:
        return int(word)
    except ValueError:
        raise InvalidArgument(f"{shown(word)} is not a number") from None


def _fill_json(txn: TransactionBuilder, text: str) -> None:
    try:
        asked = json.loads(text)
    except (ValueError, RecursionError) as problem:
        raise InvalidArgument(f"not JSON: {problem}") from None
    lists = {name: asked.pop(name, []) for name in ("checks", "operations", "otherwise")}
    if asked or not all(isinstance(one, list) for one in lists.values()):
        raise InvalidArgument("the object of a transaction has the lists checks, operations and otherwise")
    for at, check in enumerate(lists["checks"], 1):
        _add_json(f"check {at}", check, lambda one: _check(txn, one))
    for at, operation in enumerate(lists["operations"], 1):
        _add_json(f"operation {at}", operation, lambda one: _operation(txn, one))
    if lists["otherwise"]:
        txn.otherwise()
    for at, operation in enumerate(lists["otherwise"], 1):
        _add_json(f"operation {at} of otherwise", operation, lambda one: _operation(txn, one))


def _add_json(where: str, fields: Any, add: Callable[[dict[str, Any]], object]) -> None:
    try:
        if not isinstance(fields, dict):
            raise InvalidArgument("it must be an object")
        left = dict(fields)
        add(left)
        if left:
            raise InvalidArgument(f"unknown fields: {', '.join(sorted(left))}")
    except ValueError as problem:
        raise InvalidArgument(f"{where}: {problem}") from None


def _check(txn: TransactionBuilder, fields: dict[str, Any]) -> None:
    txn.check(
        _data(fields, "key"),
        version=_typed(fields, "version", int),
        value=_data(fields, "value") if {"value", "value_b64"} & set(fields) else None,
        absent=bool(_typed(fields, "absent", bool)),
    )


def _operation(txn: TransactionBuilder, fields: dict[str, Any]) -> None:
    named = [word for word in WORDS.values() if word in fields or f"{word}_b64" in fields]
    if len(named) != 1:
        raise InvalidArgument(f"it must have one of {', '.join(WORDS.values())} with a key")
    key = _data(fields, named[0])
    match named[0]:
        case "get":
            txn.get(key)
        case "delete":
            txn.delete(key)
        case "put":
            txn.put(key, _data(fields, "value"), ttl=_ttl(fields))
        case "incr":
            delta = _typed(fields, "delta", int)
            txn.incr(key, 1 if delta is None else delta, ttl=_ttl(fields))


def _typed(fields: dict[str, Any], name: str, kind: type[T]) -> T | None:
    value = fields.pop(name, None)
    if value is not None and type(value) is not kind:
        raise InvalidArgument(f"{name} is {shown(value)}: it must be of type {kind.__name__}")
    return value


def _ttl(fields: dict[str, Any]) -> float | None:
    """Seconds, as a number or a duration."""
    value = fields.pop("ttl", None)
    return parse_duration(value) if isinstance(value, str) else value


def _data(fields: dict[str, Any], name: str) -> bytes:
    """The bytes of text under ``name``, or of base64 under ``name_b64``."""
    text, encoded = fields.pop(name, None), fields.pop(f"{name}_b64", None)
    if isinstance(text, str) and encoded is None:
        return text.encode("utf-8", "surrogateescape")
    if isinstance(encoded, str) and text is None:
        return base64.b64decode(encoded, validate=True)
    raise InvalidArgument(f"{name} must be text, or {name}_b64 base64")
