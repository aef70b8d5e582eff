"""A run's folder: ``history.jsonl``, what clients did, and ``events.jsonl``, what happened to the cluster.

Both are written as things happen, one JSON object a line, so that a run that breaks off leaves what it saw.
``docs/chaos.md`` documents the lines for other checkers. Times are seconds since the run began, of one clock.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from faults.check.history import History, Kind, Operation, Outcome
from raftkv.errors import RaftKVError

HISTORY: Final = "history.jsonl"
EVENTS: Final = "events.jsonl"

_TYPES: Final = {Outcome.OK: "ok", Outcome.REFUSED: "fail", Outcome.UNKNOWN: "info"}
_OUTCOMES: Final = {name: outcome for outcome, name in _TYPES.items()}
_ASKED: Final = ("value", "expect", "expected", "ttl", "steps")
_TOLD: Final = ("done", "found", "version")
_KINDS: Final[dict[str, type | tuple[type, ...]]] = {
    "value": str,
    "expect": int,
    "expected": str,
    "ttl": (int, float),
    "steps": str,
    "found": str,
    "version": int,
}


class JournalError(RaftKVError):
    """A file of a run cannot be read; the message names file and line."""


class Journal:
    """Writes both files of ``folder``, which is made. ``now``: seconds since the run began."""

    def __init__(self, folder: Path, now: Callable[[], float]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._now = now
        self._history = (folder / HISTORY).open("w", encoding="utf-8")
        self._events = (folder / EVENTS).open("w", encoding="utf-8", buffering=1)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Nothing is written any more; may be called again."""
        self._history.close()
        self._events.close()

    def event(self, event: str, **fields: Any) -> None:
        """Something happened to the cluster or the run."""
        self._events.write(
            json.dumps({"t": round(self._now(), 6), "event": event, **fields}, ensure_ascii=False) + "\n"
        )

    def invoked(self, operation: Operation) -> None:
        """A client asks for ``operation``."""
        self._history.write(_line(invocation(operation)))

    def completed(self, operation: Operation) -> None:
        """The client has its answer, whatever it says."""
        self._history.write(_line(completion(operation)))


def _line(fields: Mapping[str, Any]) -> str:
    return json.dumps(fields, ensure_ascii=False, separators=(",", ":")) + "\n"


def invocation(operation: Operation) -> dict[str, Any]:
    """The line that says what a client asked for."""
    asked = {name: value for name in _ASKED if (value := getattr(operation, name)) is not None}
    stale = {"stale": True} if operation.stale else {}
    return {
        "t": round(operation.began, 6),
        "type": "invoke",
        "op": operation.number,
        "client": operation.client,
        "f": str(operation.kind),
        "key": operation.key,
        **asked,
        **stale,
    }


def completion(operation: Operation) -> dict[str, Any]:
    """The line that says what it was told."""
    told: dict[str, Any] = {}
    if operation.outcome is Outcome.OK:
        told = {name: value for name in _TOLD if (value := getattr(operation, name)) is not None}
    elif operation.error:
        told = {"error": operation.error}
    return {
        "t": round(operation.answered, 6),
        "type": _TYPES[operation.outcome],
        "op": operation.number,
        "client": operation.client,
        "definite": operation.outcome is not Outcome.UNKNOWN,
        **told,
    }


@dataclass(slots=True)
class Recorded:
    """What a run's folder holds. ``events`` are plain objects, in the order of their times."""

    history: History = field(default_factory=History)
    events: list[dict[str, Any]] = field(default_factory=list)

    def of(self, event: str) -> list[dict[str, Any]]:
        """The events of that name."""
        return [one for one in self.events if one["event"] == event]


def load(folder: Path) -> Recorded:
    """Read a run's folder; the events may be missing. Raises JournalError."""
    events = folder / EVENTS
    return Recorded(load_history(folder / HISTORY), list(_events(events)) if events.exists() else [])


def load_history(path: Path) -> History:
    """Read a history. Raises JournalError that names the line; a last line that was cut short is left out."""
    operations: dict[int, Operation] = {}
    for number, raw in _lines(path):
        try:
            kind = raw["type"]
            if kind == "invoke":
                one = Operation(int(raw["op"]), str(raw["client"]), Kind(raw["f"]), str(raw["key"]), float(raw["t"]))
                for name in _ASKED:
                    setattr(one, name, _checked(raw, name))
                one.stale = bool(raw.get("stale", False))
                if operations.setdefault(one.number, one) is not one:
                    raise JournalError(f"{path}:{number}: operation {one.number} is invoked twice")
                continue
            one = operations[int(raw["op"])]
            if one.outcome is not Outcome.OPEN:
                raise JournalError(f"{path}:{number}: operation {one.number} is completed twice")
            one.outcome, one.answered = _OUTCOMES[kind], float(raw["t"])
            if one.outcome is not Outcome.UNKNOWN:
                one.ended = one.answered
            one.done = bool(raw.get("done", False))
            one.found, one.version = _checked(raw, "found"), _checked(raw, "version")
            one.error = str(raw.get("error", ""))
        except (KeyError, TypeError, ValueError) as problem:
            raise JournalError(f"{path}:{number}: not a line of a history: {problem!r}") from None
    history = History(sorted(operations.values(), key=lambda one: one.number))
    for number, one in enumerate(history.operations):
        one.number = number
    return history


def _checked(raw: Mapping[str, Any], name: str) -> Any:
    """Raises ValueError."""
    value = raw.get(name)
    if value is not None and (not isinstance(value, _KINDS[name]) or isinstance(value, bool)):
        raise ValueError(f"{name} cannot be {value!r}")
    return value


def _events(path: Path) -> Iterator[dict[str, Any]]:
    for number, raw in _lines(path):
        if not isinstance(raw.get("event"), str) or not isinstance(raw.get("t"), int | float):
            raise JournalError(f"{path}:{number}: not an event: it needs t and event")
        yield raw


def _lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as problem:
        raise JournalError(f"{path}: cannot be read: {problem}") from None
    lines = text.split("\n")
    for number, line in enumerate(lines, 1):
        if not line:
            continue
        try:
            raw = json.loads(line)
        except ValueError as problem:
            if number == len(lines):
                return  # the run ended in the middle of it
            raise JournalError(f"{path}:{number}: not JSON: {problem}") from None
        if not isinstance(raw, dict):
            raise JournalError(f"{path}:{number}: not an object")
        yield number, raw
