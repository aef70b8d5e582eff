"""One seed: a storm over a simulated cluster, then calm, convergence and the verdict."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections import Counter
from dataclasses import dataclass, field
from typing import Final

from faults.history import History, Outcome
from faults.linearizability import Finding
from faults.look import LAST_TIMEOUT, look_at_everything, one_key_per_group
from faults.operator import USUAL_MEMBERS, Operator
from faults.recorder import Recorder
from faults.sim.admin import SimAdmin
from faults.sim.cluster import LogCapture, SimCluster, Trace
from faults.sim.disk import of_system
from faults.sim.invariants import Invariants
from faults.sim.loop import SimLoop, Stuck, simulate
from faults.sim.nemesis import Nemesis
from faults.sim.ownership import Ownership
from faults.sim.probe import PATIENCE, Probes
from faults.sim.storm import Storm
from faults.verdict import LAST, LATE, judge
from faults.workloads import WORKLOADS, Workload
from raftkv.errors import RaftKVError

CONVERGENCE: Final = 30.0
"""Seconds within which a healed cluster must be one again."""


_CALM: Final = 2.0
"""Seconds of work after the faults are over."""

_FORMING: Final = 60.0
_LETTERS: Final = "abcdef"


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

    async def main(loop: SimLoop) -> None:
        trace = Trace(loop)
        with LogCapture(trace):
            one = _Run(loop, storm, report, trace)
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
    _judge(report)
    return report


def _judge(report: Report) -> None:
    """The verdict on the history; the run itself has judged what happened inside."""
    history, storm = report.history, report.storm

    def timeout(client: str) -> float:
        return storm.timeout if client[0] == "c" else LAST_TIMEOUT

    found = judge(history, fastest_clock=storm.fastest_clock, timeout=timeout)
    report.violations = found.findings
    report.problems += [problem.text for problem in found.problems]
    report.counts["checked keys"] += found.checked
    report.counts["model steps"] += found.steps
    for outcome in Outcome:
        report.counts[f"operations {outcome}"] = history.count(outcome)


class _Run:
    """The course of one run."""

    def __init__(self, loop: SimLoop, storm: Storm, report: Report, trace: Trace) -> None:
        self._loop = loop
        self._storm = storm
        self._report = report
        self._over = False
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
        self._workloads: list[Workload] = [WORKLOADS[name]() for name in storm.workloads]
        self._names = [f"c{number}" for number in range(1, storm.clients + 1)]
        self._nemesis = Nemesis(self._cluster, storm, self._invariants, self._names)
        self._ownership = Ownership(self._cluster, self._invariants.report) if storm.moves else None
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
            working = [task for number, name in enumerate(self._names) for task in self._work(number, name)]
            probes = self._begin_probes() if self._storm.gentle else None
            self._nemesis.start()
            moving = self._loop.create_task(self._operator.work()) if self._storm.moves else None
            await asyncio.sleep(self._storm.seconds)
            await self._nemesis.calm()
            if moving is not None:
                await self._end_moving(moving)
            if probes is not None:
                await self._judge_probes(probes)
            healed = self._loop.time()
            await asyncio.sleep(_CALM)
            self._over = True
            await self._ended(working)
            await self._converge(healed)
            self._report.converged = self._loop.time() - healed
            await self._nemesis.black_out()
            await self._converge(self._loop.time())
            await self._last_look()
            self._nemesis.settle()
        finally:
            self._close()

    async def _end_moving(self, moving: asyncio.Task[None]) -> None:
        moving.cancel()
        for outcome in await asyncio.gather(moving, return_exceptions=True):
            if isinstance(outcome, Exception):
                raise outcome
        await asyncio.wait_for(self._operator.settle(), CONVERGENCE)

    # -- clients

    def _work(self, number: int, name: str) -> list[asyncio.Task[None]]:
        storm, cluster = self._storm, self._cluster
        client = cluster.client(name, timeout=storm.timeout)
        workload = self._workloads[number % len(self._workloads)]

        async def work(label: str) -> None:
            rng = random.Random(f"{label} {storm.seed}")

            def patience() -> float | None:
                return rng.uniform(0.0, 0.5) if rng.random() < storm.cancels else None

            recorder = Recorder(client, label, self._report.history, self._loop.time, patience, storm.slots)
            while not self._over:
                await workload.step(recorder, rng)
                await asyncio.sleep(rng.expovariate(1.0 / storm.pause))

        return [cluster.processes[name].spawn(work(f"{name}{letter}")) for letter in _LETTERS[: storm.tasks]]

    async def _ended(self, working: list[asyncio.Task[None]]) -> None:
        _, hanging = await asyncio.wait(working, timeout=6 * (self._storm.timeout + LATE))
        if hanging:
            self._invariants.report("client", f"{len(hanging)} tasks hang")
        for task in working:
            if task not in hanging and (problem := task.exception()) is not None:
                self._invariants.report("client", f"a task raised {problem!r}")
        closing = [self._cluster.processes[name].spawn(self._cluster.clients[name].close()) for name in self._names]
        _, hanging = await asyncio.wait(closing, timeout=LATE)
        if hanging:
            self._invariants.report("client", f"{len(hanging)} clients do not close")

    def _begin_probes(self) -> Probes:
        return Probes(self._cluster, self._report.history, self._one_key_per_group("p"))

    async def _judge_probes(self, probes: Probes) -> None:
        await probes.end()
        slowest = probes.slowest
        self._report.worst_gap = slowest.worst
        if slowest.worst > PATIENCE:
            self._invariants.report("availability", f"no write for {slowest.worst:.3f} s: {slowest.when}")

    # -- after the storm

    async def _converge(self, healed: float) -> None:
        """All replicas equal, within a bounded time."""
        apart = "nobody has looked"
        while self._loop.time() < healed + CONVERGENCE:
            apart = self._apart()
            if not apart:
                self._cluster.trace.note("all replicas are equal")
                return
            await asyncio.sleep(0.1)
        self._invariants.report("convergence", f"not after {CONVERGENCE} s: {apart}")

    def _apart(self) -> str:
        """Why the replicas are not equal yet, or nothing."""
        groups: dict[int, list[tuple[str, int, int, bool]]] = {}
        for node in self._cluster.nodes.values():
            if node.id in self._nemesis.ruined:
                continue
            if node.node is None:
                return f"{node.name} is {node.state}"
            if not node.node.ready():
                return f"{node.name} is not ready"
            for group in node.node._replicas.all():
                state = (node.name, group.core.applied_index(), group.log.last_index, group.leads())
                groups.setdefault(group.group, []).append(state)
        for number, states in sorted(groups.items()):
            if len({index for _, applied, last, _ in states for index in (applied, last)}) != 1:
                return f"group {number} at (applied, last) {[state[:3] for state in states]}"
            if sum(leads for *_, leads in states) != 1:
                return f"group {number} is led by {[name for name, *_, leads in states if leads]}"
        for node in self._cluster.nodes.values():
            if node.node is not None and node.id not in self._nemesis.ruined:
                for group in node.node._replicas.all():
                    self._invariants.compare(node, group, group.core.applied_index())
        return "" if self._ownership is None else self._ownership.unsettled(self._nemesis.ruined)

    async def _last_look(self) -> None:
        """A new client writes to every group, reads every key, and scans all there is."""
        client = self._cluster.client(LAST, timeout=LAST_TIMEOUT)
        last = Recorder(client, LAST, self._report.history, self._loop.time)
        looking = self._cluster.processes[LAST].spawn(self._look_at_everything(last))
        done, _ = await asyncio.wait([looking], timeout=_FORMING + 10 * LAST_TIMEOUT)
        if not done:
            self._invariants.report("client", "the last look hangs")
        elif (problem := looking.exception()) is not None:
            self._invariants.report("client", f"the last look failed: {problem!r}")

    async def _look_at_everything(self, last: Recorder) -> None:
        fresh, report = self._one_key_per_group("f"), self._invariants.report
        for name, problem in await look_at_everything(last, self._report.history, fresh, self._workloads, report):
            report(name, problem.text)

    def _one_key_per_group(self, prefix: str) -> list[str]:
        shard_map = next(
            one
            for node in self._cluster.nodes.values()
            if node.node is not None and (one := node.node.cluster_map()) is not None
        )
        return list(one_key_per_group(shard_map, prefix).values())

    def _close(self) -> None:
        """Gather what was found, also if the run breaks off."""
        report, invariants, counts = self._report, self._invariants, self._report.counts
        report.problems += invariants.problems
        for problem in self._loop.problems:
            if not of_system(problem.exception):
                report.problems.append(
                    f"{problem.process} at {problem.time:.6f}: {problem.message} {problem.exception!r}"
                )
        for kind, count in self._nemesis.counts.items():
            counts[f"injected {kind}"] += count.injected
            counts[f"effective {kind}"] += count.effective
        for effect, number in self._cluster.network.effects.items():
            counts[f"network {effect}"] += number
        for action, number in self._operator.counts.items():
            counts[f"operator {action}"] += number
        if self._ownership is not None:
            counts.update(self._ownership.counts)
        counts["leaderships"] += invariants.leaderships
        counts["states compared"] += invariants.digests
        counts["WALs read after a crash"] += invariants.promises.crashes
        counts["snapshots installed"] += sum("installed the snapshot" in line for line in self._cluster.trace.lines)
