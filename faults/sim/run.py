"""One seed: a storm over a simulated cluster, then calm, convergence and the verdict."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections import Counter
from dataclasses import dataclass, field
from typing import Final

from faults.check.history import History, Outcome
from faults.check.linearizability import Finding
from faults.course import ClientWork, Course
from faults.keys import one_key_per_group
from faults.operator import USUAL_MEMBERS, Operator
from faults.sim.admin import SimAdmin
from faults.sim.cluster import LogCapture, SimCluster, Trace
from faults.sim.disk import of_system
from faults.sim.driver import SimDriver
from faults.sim.invariants import Invariants
from faults.sim.loop import SimLoop, Stuck, simulate
from faults.sim.nemesis import Nemesis
from faults.sim.ownership import Ownership
from faults.sim.storm import DRIFT, Storm
from raftkv.errors import RaftKVError

CONVERGENCE: Final = 30.0
"""Seconds within which a healed cluster must be one again."""


_CALM: Final = 2.0
"""Seconds of work after the faults are over."""

PATIENCE: Final = 4.5
"""Longest time without an acknowledged write while a minority is at fault, in seconds; 0.1 to 1.4 are usual. The client
may ask two cut-off nodes of five first, 1.25 s and, being more patient then, 2.25 s, and votes may be split."""

_PERIOD: Final = 0.1
"""Of the probes."""


@dataclass(slots=True)
class Report:
    """What one run came to. Times in virtual seconds."""

    storm: Storm
    problems: list[str] = field(default_factory=list)
    """Broken promises; empty for a run that passed."""
    history: History = field(default_factory=History)
    violations: dict[str, Finding] = field(default_factory=dict)
    """Keys whose history cannot be explained, or was too hard to explain."""
    trace: list[str] = field(default_factory=list)
    digest: str = ""
    seconds: float = 0.0
    converged: float = 0.0
    """From the end of the faults until all replicas were equal."""
    worst_gap: float = 0.0
    """Gentle storms: the longest time without an acknowledged write of a group."""
    counts: Counter[str] = field(default_factory=Counter)
    """Operations, faults and what happened inside, by name."""

    @property
    def passed(self) -> bool:
        return not self.problems


def run(storm: Storm, *, whole: bool = True) -> Report:
    """Run a storm. The same storm always gives the same report.

    Unless ``whole``, a run ends with the first problem inside the nodes, and its history is not judged then: enough to
    know that something is wrong, and what first.
    """
    report = Report(storm)
    runs: list[_Run] = []

    async def main(loop: SimLoop) -> None:
        trace = Trace(loop)
        with LogCapture(trace):
            one = _Run(loop, storm, report, trace)
            runs.append(one)
            if not whole:
                one.end_at_first_problem()
            try:
                await one.run()
            finally:
                report.trace = trace.lines
                report.digest = trace.digest()
                report.seconds = loop.time()
                report.counts["callbacks"] = loop.callbacks

    try:
        with storm.bounds.tight() if storm.bounds is not None else contextlib.nullcontext():
            simulate(main)
    except (Stuck, TimeoutError, RaftKVError, AssertionError) as problem:
        report.problems.append(f"the run broke off: {type(problem).__name__}: {problem}")
    except asyncio.CancelledError:
        assert report.problems, "only a problem ends a run early"
        return report
    for one in runs:
        one.judge()
    return report


class _Run:
    """The course of one run."""

    def __init__(self, loop: SimLoop, storm: Storm, report: Report, trace: Trace) -> None:
        self._loop = loop
        self._storm = storm
        self._report = report
        rng = random.Random(f"cluster {storm.seed}")
        self._cluster = SimCluster(
            loop,
            rng,
            nodes=storm.nodes,
            groups=storm.groups,
            replicas=storm.replicas,
            slots=storm.slots,
            settings=storm.settings,
            trace=trace,
        )
        self._invariants = Invariants(self._cluster, leases=not storm.wild)
        clients = [f"c{number}" for number in range(1, storm.clients + 1)]
        self._driver = SimDriver(self._cluster, self._invariants, clients, storm.seed)
        self._driver.drift = DRIFT if storm.stalls else 0.0
        if storm.moves:
            self._driver.ownership = Ownership(self._cluster, self._invariants.report)
        self._nemesis = Nemesis(self._driver, storm)
        work = ClientWork(storm.seed, storm.workloads, storm.tasks, storm.timeout, storm.pause, storm.cancels)
        self._course = Course(self._driver, work, report.history, loop.time, self._invariants.report)
        rng = random.Random(f"operator {storm.seed}")
        members = {"members": USUAL_MEMBERS} if storm.members else {}
        actions = {**members, **storm.actions}
        admin = SimAdmin(self._cluster, rng)
        self._operator = Operator(admin, rng, storm.moves, replicas=storm.replicas, actions=actions)

    def end_at_first_problem(self) -> None:
        """Call it in the task that runs."""
        task = asyncio.current_task()
        assert task is not None
        self._invariants.on_problem = task.cancel

    async def run(self) -> None:
        cluster = self._cluster
        for line in self._storm.describe():
            cluster.trace.note(line)
        try:
            await cluster.start()
            self._course.begin()
            if self._storm.gentle:
                self._course.probe(self._one_key_per_group("p"), _PERIOD)
            self._nemesis.start()
            moving = self._loop.create_task(self._operator.work()) if self._storm.moves else None
            await asyncio.sleep(self._storm.seconds)
            await self._nemesis.calm()
            if moving is not None:
                await self._end_moving(moving)
            healed = self._loop.time()
            await asyncio.sleep(_CALM)
            await self._course.end()
            self._judge_probes()
            await self._course.converge(CONVERGENCE)
            self._report.converged = self._loop.time() - healed
            dark = await self._driver.black_out()
            await dark.end()
            await self._course.converge(CONVERGENCE)
            for name, problem in await self._course.last_look(self._one_key_per_group("f")):
                self._invariants.report(name, problem.text)
            self._driver.stops.end(cluster.nodes.values())
        finally:
            self._close()

    async def _end_moving(self, moving: asyncio.Task[None]) -> None:
        moving.cancel()
        for outcome in await asyncio.gather(moving, return_exceptions=True):
            if isinstance(outcome, Exception):
                raise outcome
        await asyncio.wait_for(self._operator.settle(), CONVERGENCE)

    def _judge_probes(self) -> None:
        if self._course.probes:
            slowest = max(self._course.probes, key=lambda probe: probe.worst)
            self._report.worst_gap = slowest.worst
            if slowest.worst > PATIENCE:
                self._invariants.report("availability", f"no write for {slowest.worst:.3f} s: {slowest.when}")

    def _one_key_per_group(self, prefix: str) -> list[str]:
        """Nothing if no node runs that has the map."""
        shard_map = self._cluster.map()
        return [] if shard_map is None else list(one_key_per_group(shard_map, prefix).values())

    def judge(self) -> None:
        """The verdict on the history; the run itself has judged what happened inside."""
        report = self._report
        found = self._course.judge(fastest_clock=self._storm.fastest_clock)
        report.violations = found.findings
        report.problems += [problem.text for problem in found.problems]
        report.counts["checked keys"] += found.checked
        report.counts["model steps"] += found.steps
        for outcome in Outcome:
            report.counts[f"operations {outcome}"] = report.history.count(outcome)

    def _close(self) -> None:
        """Gather what was found, also if the run breaks off."""
        report, invariants, counts = self._report, self._invariants, self._report.counts
        report.problems += invariants.problems
        for problem in self._loop.problems:
            if not of_system(problem.exception):
                report.problems.append(
                    f"{problem.process} at {problem.time:.6f}: {problem.message} {problem.exception!r}"
                )
        for kind, number in self._nemesis.injected.items():
            counts[f"injected {kind}"] += number
            counts[f"effective {kind}"] += self._nemesis.effective[kind]
        for effect, number in self._cluster.network.effects.items():
            counts[f"network {effect}"] += number
        for action, number in self._operator.counts.items():
            counts[f"operator {action}"] += number
        if self._driver.ownership is not None:
            counts.update(self._driver.ownership.counts)
        counts["leaderships"] += invariants.leaderships
        counts["states compared"] += invariants.digests
        counts["WALs read after a crash"] += invariants.promises.crashes
        counts["snapshots installed"] += sum("installed the snapshot" in line for line in self._cluster.trace.lines)
