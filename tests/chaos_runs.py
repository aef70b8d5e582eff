"""Made-up folders of chaos runs, for tests of what reads them: small, but as a run would have written them."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from faults.check.history import History, Kind, Outcome
from faults.report.journal import Journal

WHAT: Final = "three nodes, each fault once, with registers and counters"

FAULTS: Final[list[dict[str, Any]]] = [
    {"id": "f1", "kind": "kill", "how": "SIGKILL to node 1", "targets": [1], "group": 1},
    {"id": "f2", "kind": "pause", "how": "SIGSTOP to node 2 for 3 s", "targets": [2], "group": None},
    {"id": "f3", "kind": "partition", "how": "nodes 1, 2 apart from 3", "targets": [3], "group": 3},
    {"id": "f4", "kind": "slow disk", "how": "each sync takes 30 ms longer", "targets": [], "group": None},
]
PROOFS: Final = {
    "f1": "the process is gone, and group 1 had no leader for 0.8 s",
    "f2": "the process is in state T",
    "f3": "node 3 has not heard of node 1 for 2 s",
    "f4": "syncs take 2.1 ms, before 1.9 ms",
}


@dataclass(slots=True)
class Made:
    """Lines of both files with their times, written in the order of those."""

    lines: list[tuple[float, str, Any]] = field(default_factory=list)

    def event(self, at: float, event: str, **fields: Any) -> None:
        self.lines.append((at, event, fields))

    def operations(self, history: History) -> None:
        for one in history.operations:
            self.lines.append((one.began, "", ("invoked", one)))
            if one.outcome is not Outcome.OPEN:
                self.lines.append((one.answered, "", ("completed", one)))

    def write(self, folder: Path) -> Path:
        now = 0.0
        with Journal(folder, lambda: now) as journal:
            for at, event, what in sorted(self.lines, key=lambda line: line[0]):
                now = at
                if event:
                    journal.event(event, **what)
                else:
                    getattr(journal, what[0])(what[1])
        return folder


def believable(
    folder: Path,
    *,
    violated: bool = False,
    ended: bool = True,
    faults: bool = True,
    seed: int = 7,
    scenario: str = "all faults",
    pause: float = 0.25,
    key: str = "r2",
) -> Path:
    """Write a run of 30 s. ``violated``: a get of ``key`` returns what had been overwritten long before. ``ended``:
    with figures and verdict. ``pause``: seconds between operations of a client of the workloads."""
    made, length = Made(), 30.0
    made.event(
        0.0,
        "run",
        format=1,
        scenario=scenario,
        what=WHAT,
        seed=seed,
        nodes=3,
        groups=3,
        replicas=3,
        seconds=24,
        clients=6,
        workloads=["registers", "counter"],
        started="2026-01-02T03:04:05Z",
        commit="0123abcd",
        version="0.1.0",
        python="3.11.7",
        cores=2,
        probes={"probe-1": 1, "probe-2": 2, "probe-3": 3},
    )
    for at, name in ((0.0, "start"), (1.0, "work"), (24.0, "calm"), (26.0, "convergence"), (28.0, "last look")):
        made.event(at, "phase", name=name)
    for node in (1, 2, 3):
        made.event(0.1, "node", node=node, state="starts")
        made.event(0.6 + node / 10, "node", node=node, state="ready")
    for group, node in ((0, 2), (1, 1), (2, 2), (3, 3)):
        made.event(0.8 + group / 20, "leader", group=group, node=node, term=1)
    out: list[tuple[int, float, float]] = []  # group, from, until: no leader
    if faults:
        out = [(1, 4.0, 4.8), (2, 10.1, 11.6), (0, 10.1, 11.6), (3, 16.0, 17.2)]
        _tell_faults(made)
        for (group, began, until), node in zip(out, (2, 1, 1, 2), strict=True):
            made.event(began, "leader", group=group, node=0, term=1)
            made.event(until, "leader", group=group, node=node, term=2)
    history = _history(random.Random(seed), out, pause, ["r0", "r1", key, "r3", "r4", "r5"])
    if violated:
        _violate(history, key)
    made.operations(history)
    if ended:
        problems = [f"history of {key}: violation"] if violated else []
        made.event(28.5, "phase", name="checks")
        made.event(
            length - 0.01,
            "figures",
            **{
                "elections": 8 if faults else 4,
                "snapshots installed": 2,
                "moves committed": 5,
                "moves cancelled": 1,
                "slots moved": 40,
                "freeze ms": [3.1, 4.4, 5.0, 6.2, 19.5],
                "checked keys": len(history.all_keys()),
                "undecided keys": 0,
                "violations": len(problems),
                "lost": 0,
                "duplicates": 0,
                "convergence s": 1.2,
            },
        )
        made.event(length, "phase", name="end")
        made.event(length, "verdict", passed=not problems, problems=problems)
    return made.write(folder)


def _tell_faults(made: Made) -> None:
    times = {"f1": (4.0, 7.0, 8.1), "f2": (10.0, 13.0, 13.4), "f3": (16.0, 19.0, 20.2), "f4": (21.0, 23.0, 23.1)}
    for fault in FAULTS:
        name = fault["id"]
        began, healed, recovered = times[name]
        made.event(began, "fault", **fault)
        made.event(began + 0.3, "effect", id=name, confirmed=name != "f4", proof=PROOFS[name])
        made.event(healed, "healed", id=name)
        made.event(recovered, "recovered", id=name, healthy=True)
    made.event(3.0, "skipped", kind="clock jump", reason="this machine does not let us set the clock")
    for at, node, state in (
        (4.0, 1, "killed"),
        (7.0, 1, "starts"),
        (7.6, 1, "ready"),
        (10.0, 2, "paused"),
        (13.0, 2, "goes on"),
    ):
        made.event(at, "node", node=node, state=state)
    made.event(5.0, "action", what="plan", outcome="done", detail="8 slots from group 2 to 3")
    made.event(11.0, "action", what="transfer", outcome="refused", detail="no leader")
    made.event(17.0, "action", what="cancel", outcome="unknown", detail="deadline")


def _history(rng: random.Random, out: list[tuple[int, float, float]], pause: float, keys: list[str]) -> History:
    """A history in which each operation takes effect in its middle, unless its group has no leader then."""
    planned: list[tuple[float, float, str, str, int, bool]] = []
    for number in range(6):
        at = 1.0 + rng.random() * pause
        while at < 24.0:
            register = rng.randrange(6)
            took = 0.002 + rng.expovariate(250)
            planned.append((at, took, f"c{number + 1}a", keys[register], register % 3 + 1, rng.random() < 0.5))
            at += took + rng.expovariate(1 / pause)
    for group in (1, 2, 3):
        at = 1.0
        while at < 27.0:
            took = 0.003 + rng.expovariate(400)
            planned.append((at, took, f"p{group - 1}", f"probe-{group}", group, True))
            at += max(took, 0.05)
    for number in range(6):
        planned.append((28.0 + number / 20, 0.004, "last", keys[number], number % 3 + 1, False))
    history, records, busy = History(), dict[str, tuple[str, int]](), dict[str, float]()
    for at, took, client, key, group, write in sorted(planned):
        if at < busy.get(client, 0.0):
            continue  # it still waits for the answer before
        one = history.begin(client, Kind.PUT if write else Kind.GET, key, at)
        one.value = f"{client}-{one.number}" if write else None
        until = next((until for of, began, until in out if of == group and began <= at < until), None)
        if until is not None and until - at > 0.5:
            one.answered = at + 0.4
            one.outcome = rng.choice((Outcome.REFUSED, Outcome.UNKNOWN)) if write else Outcome.REFUSED
            one.error = "NoLeader: group has no leader" if one.outcome is Outcome.REFUSED else "cancelled after 0.400 s"
            one.ended = one.answered if one.outcome is Outcome.REFUSED else one.ended
        else:
            one.answered = one.ended = at + took if until is None else until + took
            one.outcome, one.done = Outcome.OK, write
        busy[client] = one.answered
    for one in sorted(history.operations, key=lambda one: (one.began + one.answered) / 2):
        if one.outcome is Outcome.OK:
            value, version = records.get(one.key, (None, 0))
            if one.kind is Kind.PUT:
                version += 1
                records[one.key] = (str(one.value), version)
            else:
                one.found = value
            one.version = version
    return history


def _violate(history: History, key: str) -> None:
    """The last get of the key returns what it held long before."""
    gets = [one for one in history.of(key) if one.kind is Kind.GET and one.outcome is Outcome.OK and one.found]
    gets[-1].found, gets[-1].version = gets[0].found, gets[0].version
