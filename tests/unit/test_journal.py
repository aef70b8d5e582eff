"""A run's folder: what is written is read back, and what is no history is refused by line."""

from __future__ import annotations

from pathlib import Path

import pytest

from faults.check.history import OPEN_END, History, Kind, Operation, Outcome
from faults.report.journal import EVENTS, HISTORY, Journal, JournalError, load, load_history


def _operations(history: History) -> list[Operation]:
    put = history.begin("c1", Kind.PUT, "k", 1.0)
    put.value, put.ttl, put.expect = "v", 2.5, 0
    put.outcome, put.done, put.version, put.ended, put.answered = Outcome.OK, True, 1, 1.5, 1.5
    get = history.begin("c2", Kind.GET, "ключ", 1.2)
    get.stale, get.outcome, get.found, get.version, get.ended, get.answered = True, Outcome.OK, "v", 1, 1.4, 1.4
    cas = history.begin("c1", Kind.CAS, "k", 2.0)
    cas.expected, cas.value, cas.outcome, cas.error, cas.answered = "v", "w", Outcome.UNKNOWN, "late", 3.0
    delete = history.begin("c1", Kind.DELETE, "k", 4.0)
    delete.outcome, delete.error, delete.ended, delete.answered = Outcome.REFUSED, "no leader", 5.0, 5.0
    history.begin("c2", Kind.GET, "k", 6.0)
    return history.operations


def test_what_was_written_is_read_back(tmp_path: Path) -> None:
    operations = _operations(History())
    with Journal(tmp_path, lambda: 7.0) as journal:
        journal.event("run", seed=3)
        for one in operations:
            journal.invoked(one)
            if one.outcome is not Outcome.OPEN:
                journal.completed(one)
    found = load(tmp_path)
    assert found.history.operations == operations
    assert found.history.operations[2].ended == OPEN_END
    assert found.of("run") == [{"t": 7.0, "event": "run", "seed": 3}]


def test_a_run_that_broke_off_is_read_as_far_as_it_came(tmp_path: Path) -> None:
    path = tmp_path / HISTORY
    path.write_text('{"t":1,"type":"invoke","op":9,"client":"c","f":"get","key":"k"}\n{"t":2,"type":"o')
    (one,) = load(tmp_path).history.operations
    assert (one.number, one.outcome) == (0, Outcome.OPEN)


@pytest.mark.parametrize(
    ("lines", "reason"),
    [
        (['{"t":1}'], "1: not a line"),
        (["no", "{}"], "1: not JSON"),
        (["[]"], "1: not an object"),
        (['{"t":1,"type":"ok","op":1,"client":"c"}'], "1: not a line"),
        (['{"t":1,"type":"invoke","op":1,"client":"c","f":"get","key":"k"}'] * 2, "2: operation 1 is invoked twice"),
        (['{"t":1,"type":"invoke","op":1,"client":"c","f":"steal","key":"k"}'], "steal"),
        (['{"t":1,"type":"invoke","op":1,"client":"c","f":"put","key":"k","value":5}'], "value cannot be 5"),
        (['{"t":1,"type":"invoke","op":1,"client":"c","f":"put","key":"k","expect":"1"}'], "expect cannot be '1'"),
    ],
)
def test_what_is_no_history_is_refused_by_line(tmp_path: Path, lines: list[str], reason: str) -> None:
    (tmp_path / HISTORY).write_text("\n".join(lines) + "\n")
    with pytest.raises(JournalError, match=reason):
        load_history(tmp_path / HISTORY)


def test_a_missing_history_and_a_malformed_event_are_named(tmp_path: Path) -> None:
    with pytest.raises(JournalError, match="cannot be read"):
        load(tmp_path)
    (tmp_path / HISTORY).write_text("")
    (tmp_path / EVENTS).write_text('{"t":1}\n')
    with pytest.raises(JournalError, match="1: not an event"):
        load(tmp_path)
