"""Sections of a configuration: plain data becomes frozen values, and all that is wrong with it is named by its key."""

from __future__ import annotations

import re
from functools import cache
from types import NoneType, UnionType
from typing import (
    Annotated,
    Any,
    Final,
    Literal,
    NamedTuple,
    Self,
    TypeVar,
    Union,
    cast,
    get_args,
    get_origin,
    get_type_hints,
)

from msgspec import Struct, ValidationError, convert
from msgspec.structs import fields

S = TypeVar("S", bound="Section")

_NUMBER: Final = re.compile("0|[1-9][0-9]{0,9}")
_hints = cache(get_type_hints)


class Given(str):
    """A value as a text, that of numbers and truth values too. ``source``: the variable that gave it."""

    __slots__ = ("source",)
    source: str

    def __new__(cls, text: str, source: str) -> Self:
        given = super().__new__(cls, text)
        given.source = source
        return given


class Problem(NamedTuple):
    """What is wrong with a value. ``source``: the variable that gave it, "" for none."""

    source: str
    text: str


class Section(Struct, frozen=True):
    """A table. Fields are annotated with what msgspec checks, and with functions from the value to the one that is
    kept, which raise ValueError. Only :func:`read` checks: who knows that the values are right makes sections directly.
    """

    def check(self) -> None:
        """What no field can tell alone. Raises ValueError."""


def read(kind: type[S], raw: object) -> tuple[S, list[Problem]]:
    """``raw`` as ``kind``, and every problem: ``key: what``, or only what, if a variable gave the value.

    If there is one, the value must not be used.
    """
    reading = _Reading()
    return cast(S, reading.section(kind, raw, "")), reading.problems


class _Reading:
    """What is wrong makes None, and a problem."""

    def __init__(self) -> None:
        self.problems: list[Problem] = []

    def _wrong(self, key: str, what: object, raw: object = None) -> Any:
        if isinstance(raw, Given):
            self.problems.append(Problem(raw.source, str(what)))
        else:
            self.problems.append(Problem("", f"{key}: {what}" if key else str(what)))
        return None

    def section(self, kind: type[Section], raw: object, key: str) -> Any:
        if not isinstance(raw, dict):
            return self._wrong(key, "expected a table")
        before, hints = len(self.problems), _hints(kind, include_extras=True)
        values = {}
        for field in fields(kind):
            if field.name in raw:
                values[field.name] = self._value(hints[field.name], raw[field.name], _under(key, field.name))
            elif field.required:
                self._wrong(_under(key, field.name), "is missing")
        for name in raw:
            if name not in hints:
                self._wrong(_under(key, name), "unknown key")
        if len(self.problems) > before:
            return None
        section = kind(**values)
        try:
            section.check()
        except ValueError as error:
            return self._wrong(key, error)
        return section

    def _value(self, kind: Any, raw: object, key: str) -> Any:
        origin, parts = get_origin(kind), get_args(kind)
        if origin in (Union, UnionType):
            some = next(part for part in parts if part is not NoneType)
            return None if raw is None else self._value(some, raw, key)
        if origin is tuple:
            return self._array(parts[0], raw, key)
        if origin is dict:
            return self._table(parts[0], parts[1], raw, key)
        if origin is None and issubclass(kind, Section):
            return self.section(kind, raw, key)
        try:
            value = convert(str(raw), kind, strict=False) if isinstance(raw, Given) else convert(raw, kind)
            for change in filter(callable, kind.__metadata__ if origin is Annotated else ()):
                value = change(value)
        except ValidationError as error:
            wanted = f"Expected {' or '.join(map(repr, parts))}" if origin is Literal else str(error)
            if isinstance(raw, Given):
                wanted = f"{wanted.removesuffix(', got `str`')}, got {str(raw)!r}"
            return self._wrong(key, wanted[:1].lower() + wanted[1:], raw)
        except ValueError as error:
            return self._wrong(key, error, raw)
        return value

    def _array(self, kind: Any, raw: object, key: str) -> Any:
        if not isinstance(raw, list | tuple):
            return self._wrong(key, "expected an array")
        return tuple(self._value(kind, item, _under(key, place)) for place, item in enumerate(raw))

    def _table(self, name_kind: Any, kind: Any, raw: object, key: str) -> Any:
        """Of items by the ids of nodes."""
        if not isinstance(raw, dict):
            return self._wrong(key, "expected a table")
        found = {}
        for name, item in raw.items():
            place, node = _under(key, name), name
            if isinstance(name, str):  # as keys of TOML are
                if not _NUMBER.fullmatch(name):
                    self._wrong(place, f"{str(name)!r} is not the id of a node", name)
                    continue
                node = int(name)
            found[self._value(name_kind, node, place)] = self._value(kind, item, place)
        return found


def _under(key: str, name: object) -> str:
    return f"{key}.{name}" if key else str(name)
