"""Guarantee: whoever causes log lines, the log grows by a few lines a minute, and says what was left out."""

from __future__ import annotations

import gc
import logging
import sys
import weakref
from typing import Any

import pytest

from raftkv.log_limit import MAX_SOURCES, WINDOW, LogLimit, limited

PEER = "raftkv.peer"


class Log:
    """A limited log on a clock that the test moves."""

    def __init__(self) -> None:
        self.now = 100.0
        self.limit = LogLimit(lambda: self.now)
        self.lines: list[str] = []

    def __call__(self, text: str, *args: object, source: str | None = None, name: str = PEER, **more: Any) -> None:
        extra = None if source is None else limited(source)
        record = logging.getLogger(name).makeRecord(name, 30, "f", 1, text, args, more.get("exc_info"), extra=extra)
        self.write(self.limit.take(record))

    def write(self, records: list[logging.LogRecord]) -> None:
        self.lines += [record.getMessage() for record in records]

    def sweep(self) -> list[str]:
        self.lines.clear()
        self.write(self.limit.due())
        return self.lines


@pytest.fixture
def log() -> Log:
    return Log()


def test_a_source_gets_one_line_a_minute_and_the_rest_is_counted(log: Log) -> None:
    for port in range(1000):
        log("dropped 10.0.0.9:%d", port, source="10.0.0.9")
        log.now += 0.01
    assert log.lines == ["dropped 10.0.0.9:0"]
    log.now = 100.0 + WINDOW
    assert log.sweep() == ["999 more from 10.0.0.9 in the last minute, the latest: dropped 10.0.0.9:999"]


def test_what_was_left_out_is_said_at_the_next_line_of_anybody(log: Log) -> None:
    log("%s", "a", source="h")
    log("%s", "b", source="h")
    log.now += WINDOW
    log("leading")
    assert log.lines == ["a", "1 more from h in the last minute, the latest: b", "leading"]


def test_that_line_is_the_one_of_the_next_minute(log: Log) -> None:
    lines = 0
    for second in range(600):
        log.now = 100.0 + second
        log("again %d", second, source="h")
        lines = len(log.lines)
    assert lines == 10
    log.now += WINDOW
    log.sweep()
    log.now += WINDOW
    assert log.sweep() == []
    log("after a quiet minute", source="h")
    assert log.lines == ["after a quiet minute"]


def test_sources_are_told_apart(log: Log) -> None:
    for source in ("10.0.0.8", "10.0.0.9", "10.0.0.8"):
        log(source, source=source)
    log("10.0.0.8 by another part", source="10.0.0.8", name="raftkv.frontend.grpc.kv")
    assert log.lines == ["10.0.0.8", "10.0.0.9", "10.0.0.8 by another part"]


def test_lines_that_nobody_else_causes_are_all_written(log: Log) -> None:
    for _ in range(100):
        log("group 1: leading in term 2")
    assert len(log.lines) == 100


def test_other_packages_get_one_line_for_each_text(log: Log) -> None:
    for _ in range(50):
        for method in ("Get", "Put"):
            log("Unexpected [%s] raised by [%s]", "DecodeError", method, name="grpc._cython.cygrpc")
    assert log.lines == ["Unexpected [DecodeError] raised by [Get]", "Unexpected [DecodeError] raised by [Put]"]
    log.now += WINDOW
    assert log.sweep()[0] == (
        "49 more from grpc._cython.cygrpc in the last minute, the latest: Unexpected [DecodeError] raised by [Get]"
    )


@pytest.mark.parametrize("name", ["raftkv.peer", "asyncio"])
def test_many_sources_cost_neither_memory_nor_lines(log: Log, name: str) -> None:
    for number in range(10_000):
        source = None if name == "asyncio" else f"2001:db8::{number:x}"
        log("from %d", number, source=source, name=name)
    assert len(log.lines) == MAX_SOURCES + 1
    assert len(log.limit._windows) == MAX_SOURCES + 1
    log.now += WINDOW
    left_out = 10_000 - MAX_SOURCES - 1
    assert log.sweep() == [f"{left_out} more from other sources in the last minute, the latest: from 9999"]
    log.now += WINDOW
    log.sweep()
    assert log.limit._windows == {}


def test_a_flood_hides_no_line_of_another_kind(log: Log) -> None:
    for number in range(1000):
        log("dropped %d", number, source=f"2001:db8::{number:x}")
        log("dropped %d", number, source="10.0.0.9")
        log("task %d failed", number, name="asyncio")
    log.lines.clear()
    log("refused: another cluster", source="10.0.0.9")
    log("refused node 2: replaced data folder", source="node 2 at 10.0.0.9")
    log("Unexpected error", name="grpc._cython.cygrpc")
    log("node stopped")
    assert log.lines == [
        "refused: another cluster",
        "refused node 2: replaced data folder",
        "Unexpected error",
        "node stopped",
    ]


def test_tracebacks_of_lines_left_out_are_not_kept(log: Log) -> None:
    class Held:
        pass

    def fail(held: Held) -> None:
        raise ValueError(held)

    held = Held()
    gone = weakref.ref(held)
    log("%s", "first", source="h")
    try:
        fail(held)
    except ValueError:
        log("%s", "second", source="h", exc_info=sys.exc_info())
    del held
    gc.collect()
    assert gone() is None


def test_at_the_end_all_is_said(log: Log) -> None:
    for source in ("a", "b", "b"):
        log("%s", source, source=source)
    log.lines.clear()
    log.write(log.limit.rest())
    log.write(log.limit.rest())
    assert log.lines == ["1 more from b in the last minute, the latest: b"]
