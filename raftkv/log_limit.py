"""A log that nobody can fill: lines that others can cause at will are written once a minute for each kind and source.

Such a line is marked where it is logged, ``log.warning(..., extra=limited(host))``. The node's log (``node/logs.py``)
passes every record through :class:`LogLimit`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

WINDOW: Final = 60.0
"""Seconds in which a source gets one line of a kind."""

MAX_SOURCES: Final = 64
"""Sources told apart at a time for a kind of line: further ones share one, so that many addresses cost neither memory
nor disk, nor hide lines of another kind."""

_SOURCE: Final = "limited_source"
REQUEST: Final = "request"
"""Attribute of a record: the id of the request that it is about, where that is known."""
_OTHERS: Final = "other sources"

Kind = tuple[str, ...]
Key = tuple[Kind, str]


def limited(source: str, request: str = "") -> dict[str, str]:
    """``extra`` of a log call whose lines are limited; ``source`` is whoever causes them, such as a host.

    ``request``: the id of the request that the line is about, "" if there is none.
    """
    return {_SOURCE: source, REQUEST: request} if request else {_SOURCE: source}


@dataclass(slots=True)
class _Window:
    until: float
    source: str
    left_out: int = 0
    latest: logging.LogRecord | None = None


class LogLimit:
    """Decides which records are written. Lines of other packages than raftkv are limited for each distinct text.

    What was left out is counted, and said with the latest of it when the minute is over; that line is then the one of
    the next minute. ``now``: monotonic seconds. Not for several threads at once.
    """

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        # In the order in which they end, as all are of one length.
        self._windows: dict[Key, _Window] = {}

    def take(self, record: logging.LogRecord) -> list[logging.LogRecord]:
        """What is to be written now that ``record`` has come."""
        written = self.due()
        source: str | None = getattr(record, _SOURCE, None)
        if source is not None:
            key: Key = ((record.name, record.msg), source)
        elif record.name.partition(".")[0] != "raftkv":
            source, key = record.name, ((record.name,), record.getMessage())
        else:
            return [*written, record]
        if key not in self._windows and self._sources(key[0]) >= MAX_SOURCES:
            source, key = _OTHERS, (key[0], "")
        window = self._windows.get(key)
        if window is None:
            self._windows[key] = _Window(self._now() + WINDOW, source)
            return [*written, record]
        window.left_out += 1
        window.latest = _like(record, record.getMessage())
        return written

    def _sources(self, kind: Kind) -> int:
        return sum(known == kind for known, _ in self._windows)

    def due(self) -> list[logging.LogRecord]:
        """What is to be written of minutes that are over."""
        now = self._now()
        written = []
        while self._windows:
            key, window = next(iter(self._windows.items()))
            if window.until > now:
                break
            del self._windows[key]
            if window.latest is not None:
                written.append(_summary(window, window.latest))
                self._windows[key] = _Window(now + WINDOW, window.source)
        return written

    def rest(self) -> list[logging.LogRecord]:
        """What was left out and not said yet: the log ends."""
        windows, self._windows = self._windows, {}
        return [_summary(window, window.latest) for window in windows.values() if window.latest is not None]


def _summary(window: _Window, latest: logging.LogRecord) -> logging.LogRecord:
    text = f"{window.left_out} more from {window.source} in the last minute, the latest: {latest.msg}"
    return _like(latest, text)


def _like(record: logging.LogRecord, text: str) -> logging.LogRecord:
    """``text`` as a record of its own, without what arguments and traceback of ``record`` hold."""
    return logging.LogRecord(record.name, record.levelno, record.pathname, record.lineno, text, None, None)
