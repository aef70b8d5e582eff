"""The judgement of a history: for simulated clusters, for real ones, and for a file that somebody kept.

Keys are checked one after the other in one process: a hundred thousand operations on thirty keys take some seconds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final

from faults.check.history import OPEN_END, History, Kind, Outcome
from faults.check.linearizability import BUDGET, Finding, Verdict, check_stale
from faults.check.numbered import check_key
from faults.check.problem import Breach, CheckProblem
from faults.check.register import Register
from faults.workloads.kinds import WORKLOADS, Workload
from raftkv.client.types import Record

LATE: Final = 1.0
"""Seconds by which a call may outlast its time-out."""

LAST: Final = "last"
"""The client that reads every key when all is over."""

FASTEST: Final = 1.01
"""The highest rate of a node's clock, seen from the clock of the history, if both run on one machine: they are one
clock, but group time counts whole milliseconds, and two of them are a hundredth of the shortest time to live that
clients ask for (0.2 s)."""


@dataclass(slots=True)
class Judgement:
    """``checked``: keys. ``steps``: of the model. ``findings``: keys whose history cannot be explained, or was too hard
    to explain."""

    checked: int = 0
    steps: int = 0
    findings: dict[str, Finding] = field(default_factory=dict)
    problems: list[CheckProblem] = field(default_factory=list)

    @property
    def passed(self) -> bool:
        return not self.problems

    def count(self, *breaches: Breach) -> int:
        """How often these promises were broken."""
        return sum(problem.count for problem in self.problems if problem.breach in breaches)

    def counters(self) -> dict[str, int]:
        """What a run's event ``figures`` says of its history."""
        return {
            "checked keys": self.checked,
            "undecided keys": self.count(Breach.UNDECIDED),
            "violations": self.count(Breach.VIOLATION, Breach.STALE),
            "lost": self.count(Breach.LOST),
            "duplicates": self.count(Breach.DUPLICATE),
        }


def judge(
    history: History,
    *,
    fastest_clock: float = FASTEST,
    timeout: Callable[[str], float | None] = lambda _: None,
    late: float = LATE,
    budget: int = BUDGET,
) -> Judgement:
    """What the operations themselves tell: linearizability of each key, reads of what never was, calls that hung.

    ``timeout``: that of a client's calls in seconds, None if it is not known; ``late``: by how much they may outlast
    it. ``budget``: steps of the model for each key.
    """
    found = Judgement()
    model = Register(fastest_clock)
    for key, operations in history.by_key():
        finding = check_key(operations, model, budget)
        found.checked += 1
        found.steps += finding.steps
        if finding.verdict is not Verdict.LINEARIZABLE:
            breach = Breach.VIOLATION if finding.verdict is Verdict.VIOLATION else Breach.UNDECIDED
            found.findings[key] = finding
            found.problems.append(CheckProblem(breach, f"history of {key}: {finding.verdict}", key))
        found.problems += [
            CheckProblem(Breach.STALE, f"stale read of what never was: {read.describe()}", key)
            for read in check_stale(operations)
        ]
    limits = {client: timeout(client) for client in {one.client for one in history.operations}}
    for one in history.operations:
        limit = limits[one.client]
        if limit is not None and one.answered != OPEN_END and one.answered - one.began > limit + late:
            text = f"a call outlasted its time-out of {limit} s: {one.describe()}"
            found.problems.append(CheckProblem(Breach.LATE, text, one.key))
    return found


def judge_run(
    history: History,
    *,
    fastest_clock: float = FASTEST,
    timeout: Callable[[str], float | None] = lambda _: None,
    late: float = LATE,
    budget: int = BUDGET,
) -> Judgement:
    """:func:`judge`, and what the workloads know whose keys are in it. The client LAST must have read their keys."""
    found = judge(history, fastest_clock=fastest_clock, timeout=timeout, late=late, budget=budget)
    found.problems += judge_work(history)
    return found


def judge_work(history: History) -> list[CheckProblem]:
    """What each workload whose keys are in ``history`` finds wrong with it.

    What is there at the end is what the client LAST was told. If it was not told of some key, the workloads that need
    to know cannot be judged, which is a problem too.
    """
    written = {one.key for one in history.operations if one.write}
    found: list[CheckProblem] = []
    last, asked = _last_look(history)
    for workload in (kind() for kind in WORKLOADS.values()):
        keys = {key for key in written if key.startswith(workload.prefix)}
        unseen = sorted(keys - asked) if workload.looks_at_end else []
        if unseen:
            found.append(CheckProblem(Breach.OTHER, _unseen(workload, unseen), unseen[0]))
        elif keys:
            found += workload.problems(history, last)
    return found


def _last_look(history: History) -> tuple[Mapping[str, Record], set[str]]:
    """The records that LAST was told of, and the keys that it was answered for."""
    there: dict[str, Record] = {}
    asked: set[str] = set()
    for one in history.operations:
        if one.client == LAST and one.kind is Kind.GET and one.outcome is Outcome.OK and not one.stale:
            asked.add(one.key)
            there.pop(one.key, None)
            if one.found is not None:
                there[one.key] = Record(one.key.encode(), one.found.encode(), one.version or 0)
    return there, asked


def _unseen(workload: Workload, keys: Iterable[str]) -> str:
    first, *more = keys
    others = f" and of {len(more)} others" if more else ""
    return f"{workload.name} cannot be judged: nobody was told at the end what became of {first}{others}"
