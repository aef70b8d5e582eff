"""Guarantee: the judgement of a history counts what is wrong by promise, and takes nothing unknown for a pass."""

from __future__ import annotations

import heapq
import random
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from faults.check.history import OPEN_END, History, Kind, Operation, Outcome
from faults.check.linearizability import Verdict
from faults.check.problem import Breach
from faults.cli import main
from faults.report.journal import HISTORY, Journal
from faults.verdict import FASTEST, LAST, LATE, judge, judge_run, judge_work


class Cluster:
    """Many clients on few keys of a store that keeps its promises; each write has its moment within its call.

    ``unknown``: share of the writes whose answer is lost; half of them happen, up to three seconds late.
    """

    def __init__(self, operations: int, keys: int, clients: int, seed: int, unknown: float = 0.01) -> None:
        self.history = History()
        self._rng = random.Random(seed)
        self._keys = [f"r{number}" for number in range(keys)]
        self._records: dict[str, tuple[str | None, int]] = dict.fromkeys(self._keys, (None, 0))
        self._versions = dict.fromkeys(self._keys, 0)
        self._unknown = unknown
        self._coming: list[tuple[float, int]] = []
        free = [(0.0, f"c{number}") for number in range(clients)]
        while len(self.history.operations) < operations:
            now, client = heapq.heappop(free)
            self._happen(now)
            heapq.heappush(free, (self._ask(now, client), client))
        self._happen(OPEN_END)

    def _ask(self, now: float, client: str) -> float:
        """When the client asks again."""
        rng = self._rng
        key = rng.choice(self._keys)
        kind = rng.choices([Kind.GET, Kind.PUT, Kind.CAS, Kind.DELETE], [45, 35, 15, 5])[0]
        one = self.history.begin(client, kind, key, now)
        value, version = self._records[key]
        if kind in (Kind.PUT, Kind.CAS):
            one.value = f"{client}-{one.number}"
        if kind is Kind.PUT and rng.random() < 0.3:
            one.expect = version
        if kind is Kind.CAS:
            one.expected = value
        took = rng.expovariate(200.0)
        if one.write and rng.random() < self._unknown:
            one.outcome, one.answered = Outcome.UNKNOWN, now + 2.0
            if rng.random() < 0.5:
                heapq.heappush(self._coming, (now + 3.0 * rng.random(), one.number))
        else:
            one.outcome = Outcome.REFUSED if rng.random() < 0.01 else Outcome.OK
            one.ended = one.answered = now + took
            if one.outcome is Outcome.OK:
                heapq.heappush(self._coming, (now + took * rng.random(), one.number))
        return one.answered + rng.expovariate(500.0)

    def _happen(self, until: float) -> None:
        while self._coming and self._coming[0][0] <= until:
            one = self.history.operations[heapq.heappop(self._coming)[1]]
            answer = self._apply(one)
            if one.outcome is Outcome.OK:
                one.done, one.found, one.version = answer

    def _apply(self, one: Operation) -> tuple[bool, str | None, int | None]:
        value, version = self._records[one.key]
        if one.kind is Kind.GET:
            return False, value, version
        if one.kind is Kind.PUT and one.expect not in (None, version):
            return False, None, version
        if one.kind is Kind.CAS and one.expected != value:
            return False, None, None
        if one.kind is Kind.DELETE and value is None:
            return False, None, None
        self._versions[one.key] += 1
        gone = one.kind is Kind.DELETE
        self._records[one.key] = (one.value, 0 if gone else self._versions[one.key])
        return True, None, self._versions[one.key] if one.kind is Kind.PUT else None


class Past:
    """A history in the making: one operation after the other, each of a second."""

    def __init__(self) -> None:
        self.history = History()

    def add(self, client: str, kind: Kind, key: str, outcome: Outcome = Outcome.OK, **more: Any) -> Operation:
        began = 2.0 * len(self.history.operations)
        one = self.history.begin(client, kind, key, began)
        one.outcome = outcome
        one.answered = began + 1.0
        one.ended = OPEN_END if outcome is Outcome.UNKNOWN else one.answered
        one.done = outcome is Outcome.OK and kind is not Kind.GET
        for name, value in more.items():
            setattr(one, name, value)
        return one

    def put(self, key: str, version: int, **more: Any) -> Operation:
        return self.add("c1", Kind.PUT, key, **{"value": f"v{version}", "version": version, **more})

    def get(self, key: str, version: int, client: str = "c1", **more: Any) -> Operation:
        found = f"v{version}" if version else None
        return self.add(client, Kind.GET, key, **{"found": found, "version": version, **more})


@pytest.fixture
def past() -> Past:
    return Past()


# -- keys


def test_a_large_history_of_a_good_store_is_clean() -> None:
    found = judge_run(Cluster(20_000, keys=10, clients=20, seed=1).history)
    assert found.problems == []
    assert found.counters() == {"checked keys": 10, "undecided keys": 0, "violations": 0, "lost": 0, "duplicates": 0}
    assert found.steps < 200_000


def test_one_read_from_the_past_in_a_large_history_is_found() -> None:
    history = Cluster(10_000, keys=5, clients=20, seed=2).history
    reads = [one for one in history.of("r0") if one.kind is Kind.GET and one.outcome is Outcome.OK and one.found]
    old, wrong = reads[len(reads) // 4], reads[len(reads) // 2]
    wrong.found, wrong.version = old.found, old.version
    found = judge_run(history)
    assert [(one.breach, one.key) for one in found.problems] == [(Breach.VIOLATION, "r0")]
    assert found.findings["r0"].stuck is wrong
    assert found.counters()["violations"] == 1
    assert not found.passed


def test_a_key_that_is_too_hard_is_no_pass() -> None:
    found = judge(Cluster(300, keys=1, clients=20, seed=3).history, budget=10)
    assert [one.breach for one in found.problems] == [Breach.UNDECIDED]
    assert found.findings["r0"].verdict is Verdict.OUT_OF_BUDGET
    assert found.counters()["undecided keys"] == 1
    assert not found.passed


def test_an_acknowledged_write_that_cannot_be_seen_any_more_is_a_violation(past: Past) -> None:
    past.put("k", 1)
    past.get("k", 0)
    assert judge(past.history).count(Breach.VIOLATION) == 1


def test_a_stale_read_of_what_never_was_is_a_violation_too(past: Past) -> None:
    past.put("k", 1)
    past.get("k", 1, stale=True)
    wrong = past.get("k", 7, stale=True)
    found = judge(past.history)
    assert [(one.breach, one.text) for one in found.problems] == [
        (Breach.STALE, f"stale read of what never was: {wrong.describe()}")
    ]
    assert found.counters()["violations"] == 1


@pytest.mark.parametrize(("early", "good"), [(0.15, False), (0.05, True)])
def test_a_record_may_not_expire_early_beyond_the_resolution_of_clocks(past: Past, early: float, good: bool) -> None:
    put = past.put("k", 1, ttl=10.0)
    past.get("k", 0, began=put.began + 9.0, ended=put.began + 10.0 - early, answered=put.began + 10.0)
    assert judge(past.history, fastest_clock=FASTEST).passed is good


def test_a_call_that_outlasts_its_time_out_is_told(past: Past) -> None:
    late = past.put("k", 1, answered=0.5 + LATE + 0.1)
    past.add("p1", Kind.PUT, "p", Outcome.UNKNOWN, value="v", answered=1000.0)
    past.add("c1", Kind.PUT, "k", Outcome.OPEN, value="w", ended=OPEN_END, answered=OPEN_END)
    found = judge(past.history, timeout={"c1": 0.5, "p1": None}.__getitem__)
    assert [one.text for one in found.problems] == [f"a call outlasted its time-out of 0.5 s: {late.describe()}"]
    assert judge(past.history, timeout={"c1": 0.5, "p1": None}.__getitem__, late=LATE + 1).passed
    assert judge(past.history).passed


# -- what workloads know


def test_lost_and_doubled_writes_are_counted(past: Past) -> None:
    """A counter with seven acknowledged increments that stands at four, and one that counted two of none."""
    for number in range(7):
        past.add("c1", Kind.CAS, "n0", expected=str(number) if number else None, value=str(number + 1))
    past.add("c1", Kind.CAS, "n1", Outcome.REFUSED, value="1")
    past.put("s-a", 1)
    past.put("s-b", 0, done=False)
    past.get("n0", 4, LAST, found="4")
    past.get("n1", 2, LAST, found="2")
    past.get("s-a", 0, LAST)
    past.get("s-b", 1, LAST)
    found = judge_run(past.history)
    assert found.count(Breach.LOST) == 3 + 1
    assert found.count(Breach.DUPLICATE) == 2 + 1
    assert found.counters()["lost"] == 4
    assert found.counters()["duplicates"] == 3


def test_a_condition_in_whose_way_is_the_clients_own_write_means_that_it_was_executed_twice(past: Past) -> None:
    past.put("o-c1-0", 1, expect=0)
    past.put("o-c1-0", 2, expect=1, done=False)
    past.put("o-c1-0", 1, expect=2, done=False)
    past.add("c1", Kind.CAS, "o-c1-0", value="x", done=False)
    assert [one.breach for one in judge_work(past.history)] == [Breach.DUPLICATE, Breach.LOST, Breach.OTHER]


def test_what_became_of_a_key_is_what_the_last_client_was_told_last(past: Past) -> None:
    past.put("s-a", 1)
    past.get("s-a", 0, LAST)
    past.get("s-a", 1, LAST)
    past.get("s-a", 0)
    past.get("s-a", 0, LAST, stale=True)
    assert judge_work(past.history) == []


@pytest.mark.parametrize("answer", [None, Outcome.REFUSED])
def test_keys_that_nobody_looked_at_in_the_end_leave_no_pass(past: Past, answer: Outcome | None) -> None:
    past.put("s-a", 1)
    past.put("s-b", 2)
    past.put("r0", 1)
    past.put("o-c1-0", 1)
    if answer is not None:
        past.get("s-a", 1, LAST)
        past.add(LAST, Kind.GET, "s-b", answer)
    (problem,) = judge_work(past.history)
    missing = "s-b" if answer else "s-a and of 1 others"
    assert problem.text == f"unique-set cannot be judged: nobody was told at the end what became of {missing}"
    assert problem.breach is Breach.OTHER


def test_keys_of_no_workload_are_judged_as_keys_only(past: Past) -> None:
    past.put("p0", 1)
    past.put("f1", 1)
    found = judge_run(past.history)
    assert found.passed
    assert found.checked == 2


# -- the command


def write(folder: Path, history: History) -> Path:
    with Journal(folder, lambda: 0.0) as journal:
        for one in history.operations:
            journal.invoked(one)
            if one.outcome is not Outcome.OPEN:
                journal.completed(one)
    return folder


def check(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["check", *arguments])


def rows(text: str) -> dict[str, str]:
    cells = [line.strip("│").split("│") for line in text.splitlines() if line.startswith("│")]
    return {name.strip(): count.strip() for name, count in cells}


def test_a_clean_history_exits_with_0_by_file_and_by_folder(tmp_path: Path) -> None:
    history = Cluster(1_000, keys=3, clients=5, seed=4, unknown=0.05).history
    folder = write(tmp_path, history)
    result = check(str(folder))
    assert result.exit_code == 0, result.output
    assert result.output.endswith("passed\n")
    assert check(str(folder / HISTORY)).output == result.output
    table = rows(result.output)
    assert table["operations"] == "1,000"
    assert table["ok"] == str(history.count(Outcome.OK))
    assert table["unknown"] == str(history.count(Outcome.UNKNOWN)) != "0"
    assert (table["checked keys"], table["violations"], table["undecided keys"]) == ("3", "0", "0")


def test_a_broken_promise_exits_with_1_and_tells_the_keys_story(tmp_path: Path, past: Past) -> None:
    past.put("k", 1)
    guilty = past.get("k", 0)
    past.put("s-a", 1)
    past.get("s-a", 0, LAST)
    result = check(str(write(tmp_path, past.history)))
    assert result.exit_code == 1
    lines = result.output.splitlines()
    assert "PROBLEM history of k: violation" in lines
    (told,) = [line for line in lines if line.startswith("! |") and " k " in line]
    assert told.endswith(guilty.describe())
    assert any(line.startswith("PROBLEM acknowledged element lost: ") for line in lines)
    table = rows(result.output)
    assert (table["violations"], table["lost"], table["duplicates"]) == ("2", "1", "0")
    assert lines[-1] == "FAILED"


def test_many_problems_are_told_only_if_asked_for(tmp_path: Path, past: Past) -> None:
    for number in range(30):
        past.put(f"s-{number}", 1)
        past.get(f"s-{number}", 1)
        past.get(f"s-{number}", 0, LAST)
    folder = str(write(tmp_path, past.history))
    short, full = check(folder), check(folder, "--full")
    assert short.output.count("PROBLEM") == 20
    assert "40 more problems; --full shows them" in short.output
    assert full.output.count("PROBLEM") == 60


def test_clocks_may_be_faster_if_it_is_said_so(tmp_path: Path, past: Past) -> None:
    put = past.put("k", 1, ttl=10.0)
    past.get("k", 0, began=put.began + 8.0, ended=put.began + 9.0, answered=put.began + 9.0)
    folder = str(write(tmp_path, past.history))
    assert check(folder).exit_code == 1
    assert check(folder, "--fastest-clock", "1.2").exit_code == 0


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (None, "cannot be read"),
        (b"\xff\xfe", "cannot be read"),
        (b"", "no operation is in it"),
        (b"# not this\n\n", "1: not JSON"),
        (b'{"t":1,"type":"ok","op":1,"client":"c"}\n', "1: not a line of a history"),
        (b'{"t":0,"type":"invoke","op":1,"client":"c","f":"put","key":"k","value":[]}\n', "value cannot be"),
    ],
)
def test_what_is_no_history_exits_with_2_and_is_named(tmp_path: Path, text: bytes | None, told: str) -> None:
    path = tmp_path / HISTORY
    if text is not None:
        path.write_bytes(text)
    for name in (path, tmp_path):
        result = check(str(name))
        assert result.exit_code == 2, result.output
        assert told in result.output
        assert isinstance(result.exception, SystemExit)
