"""One run: a scenario on a real cluster, then calm, convergence, the last look and the verdict."""

from __future__ import annotations

import asyncio
import os
import platform
import random
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import raftkv
from faults.check.history import History, Outcome
from faults.check.problem import CheckProblem
from faults.course import ClientWork, Course
from faults.disks import NoSickDisks, library
from faults.keys import one_key_per_group
from faults.nemesis.fault import Fault, perform, together
from faults.operator import USUAL, AdminAnswer, Operator
from faults.process import planted
from faults.process.admin import ProcessAdmin
from faults.process.nemesis import FAULTS, SICK_DISKS
from faults.process.scenarios import ChaosScenario
from faults.process.toxiproxy import ToxiproxyError, find_server
from faults.process.world import World, WorldShape
from faults.report.journal import Journal
from raftkv.api.status import ClusterState
from raftkv.cli.parameters import duration_text
from raftkv.client.admin import AdminClient
from raftkv.clock import SystemClock
from raftkv.errors import RaftKVError
from raftkv.local.node import MAIN

_CALM: Final = 2.0
_BREATH: Final = (0.5, 1.5)
"""Seconds between two faults."""

_LOOK: Final = 0.05
_PERIOD: Final = 0.05
_TIMEOUT: Final = 3.0
"""Of the clients' calls, in seconds."""

_PAUSE: Final = 0.03
"""Usual seconds between two operations of one task."""

_CANCELS: Final = 0.03
"""Part of the writes that are given up by cancelling them."""

_ERA: Final = 8.0
"""Seconds after which workloads go on with fresh keys, so that no key's history becomes too long to check."""

_LONGEST_COMPARISON: Final = 60.0
"""Seconds that replicas may take to compute the digests that are compared, unless the plan has less patience."""

_ACTIONS: Final = {**dict.fromkeys(USUAL, 0), "plan": 6, "cancel": 1, "transfer": 3}
_MOST_SLOTS: Final = 24
"""What an operator does, and how many slots he moves at once."""

_TASKS: Final = 2
"""Of each client."""

COMBINED: Final = "two at once"
"""What two faults at a time are called."""

_AT_ONCE: Final = 32


@dataclass(frozen=True, slots=True)
class ChaosPlan:
    """``seconds``: for which faults are injected. ``operations``: after so many the clients' work is done.

    ``patience``: seconds within which the cluster is whole after each fault, and all replicas are equal in the end.

    ``proof``: seconds beyond its time that a fault is kept up if nothing shows it yet. ``late``: seconds by which a
    call may outlast its time-out, where five nodes, clients and Toxiproxy share few cores.

    ``planted``: the fault that all nodes have in them (:data:`faults.process.planted.OF_NODES`), nothing usually.

    ``secure``: everything is encrypted, nodes and clients have certificates.
    """

    scenario: ChaosScenario
    folder: Path
    seed: int = 1
    seconds: float = 45.0
    nodes: int = 5
    groups: int = 3
    clients: int = 5
    operations: int = 200_000
    planted: str = ""
    secure: bool = False
    patience: float = 30.0
    proof: float = 4.0
    late: float = 2.0


@dataclass(slots=True)
class Outcomes:
    """What a run came to; the rest is in its folder."""

    problems: list[str] = field(default_factory=list)

    @property
    def passed(self) -> bool:
        return not self.problems


def run(plan: ChaosPlan, say: Callable[[str], None] = lambda _: None) -> Outcomes:
    """Run ``plan``; ``say`` is told how it goes. Raises ToxiproxyError if there is no Toxiproxy."""
    server = find_server()
    if server is None:
        raise ToxiproxyError("there is no toxiproxy-server: make toxiproxy builds it, or install it")
    clock = SystemClock()
    began = clock.now()
    plan.folder.mkdir(parents=True, exist_ok=True)
    outcomes = Outcomes()
    with Journal(plan.folder, lambda: clock.now() - began) as journal:
        one = _Run(plan, journal, server, lambda: clock.now() - began, outcomes, say)
        try:
            asyncio.run(one.run())
        except (RaftKVError, TimeoutError, OSError) as problem:
            outcomes.problems.append(f"the run broke off: {type(problem).__name__}: {problem}")
        one.judge()
        journal.event("verdict", passed=outcomes.passed, problems=outcomes.problems)
    return outcomes


def _commit() -> str:
    """Of this checkout, with a mark if it was changed; nothing outside of one."""
    found = subprocess.run(
        ["git", "describe", "--always", "--dirty"],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        check=False,
    )
    return found.stdout.strip()


class _Run:
    """The course of one run. ``now``: seconds since it began."""

    def __init__(
        self,
        plan: ChaosPlan,
        journal: Journal,
        server: str,
        now: Callable[[], float],
        outcomes: Outcomes,
        say: Callable[[str], None],
    ) -> None:
        self._plan = plan
        self._journal = journal
        self._now = now
        self._outcomes = outcomes
        self._say = say
        self._rng = random.Random(f"faults {plan.seed} {plan.scenario.name}")
        self._history = History()
        self._kinds = list(plan.scenario.faults)
        disks: Path | None = None
        if set(self._kinds) & set(SICK_DISKS):
            try:
                disks = library()
            except NoSickDisks as problem:
                for kind in SICK_DISKS:
                    journal.event("skipped", kind=kind, reason=str(problem))
                self._kinds = [kind for kind in self._kinds if kind not in SICK_DISKS]
        shape = WorldShape(
            nodes=plan.nodes,
            groups=plan.groups,
            replicas=min(3, plan.nodes),
            clients=tuple(f"c{number}" for number in range(1, plan.clients + 1)),
            main=planted.MAIN if plan.planted else MAIN,
            environment=planted.environment(plan.planted) if plan.planted else {},
            sick_disks=disks,
            secure=plan.secure,
        )
        self._world = World(plan.folder, shape, journal, server)
        work = ClientWork(
            plan.seed,
            plan.scenario.workloads,
            _TASKS,
            _TIMEOUT,
            _PAUSE,
            _CANCELS,
            plan.late,
            plan.operations,
        )
        self._course = Course(self._world, work, self._history, now, self._report, journal)
        self._numbers = 0
        self._stats: dict[str, Any] = {}
        self._found: list[CheckProblem] = []

    def _report(self, kind: str, text: str) -> None:
        self._outcomes.problems.append(f"{kind}: {text}")

    def _phase(self, name: str) -> None:
        self._journal.event("phase", name=name)
        self._say(name)

    async def run(self) -> None:
        world, plan = self._world, self._plan
        try:
            self._phase("start")
            await world.start()
            keys = await self._keys("p")
            self._begin(keys)
            self._phase("work")
            self._course.begin()
            self._course.probe(keys.values(), _PERIOD)
            async with asyncio.TaskGroup() as group:
                group.create_task(self._count_eras())
                if plan.scenario.operator:
                    group.create_task(self._operate())
                await asyncio.sleep(_CALM)
                await self._storm()
                self._phase("calm")
                await world.heal()
                await self._healthy()
                await asyncio.sleep(_CALM)
                await self._course.end()
            async with ProcessAdmin(world.cluster.endpoints, world.cluster.tls) as admin:
                state = await admin.finish(plan.patience)
            self._phase("convergence")
            self._stats["convergence s"] = round(await self._course.converge(plan.patience), 3)
            self._phase("last look")
            fresh = list((await self._keys("f")).values())
            self._found = [problem for _, problem in await self._course.last_look(fresh, _AT_ONCE)]
            await self._compare_replicas()
            self._note_moves(state)
            self._stats["elections"] = len(world.watcher.elected)
            self._stats["snapshots installed"] = self._logged("installed the snapshot of entry")
        finally:
            self._course.over = True
            await world.close()

    def _begin(self, keys: dict[int, str]) -> None:
        plan = self._plan
        self._journal.event(
            "run",
            format=1,
            scenario=plan.scenario.name,
            what=plan.scenario.what,
            seed=plan.seed,
            planted=plan.planted,
            secure=plan.secure,
            nodes=plan.nodes,
            groups=plan.groups,
            replicas=self._world.shape.replicas,
            seconds=plan.seconds,
            clients=plan.clients,
            workloads=list(plan.scenario.workloads),
            started=datetime.now(UTC).isoformat(timespec="seconds"),
            commit=_commit(),
            version=raftkv.__version__,
            python=platform.python_version(),
            cores=os.cpu_count(),
            probes={key: group for group, key in keys.items()},
        )

    async def _keys(self, prefix: str) -> dict[int, str]:
        async with AdminClient(self._world.cluster.endpoints, tls=self._world.cluster.tls) as admin:
            return one_key_per_group((await admin.state()).map, prefix)

    async def _operate(self) -> None:
        plan, rng = self._plan, random.Random(f"operator {self._plan.seed}")

        def note(what: str, answer: AdminAnswer) -> None:
            self._journal.event("action", what=what, outcome=answer.outcome, detail=answer.detail)

        async with ProcessAdmin(self._world.cluster.endpoints, self._world.cluster.tls) as admin:
            operator = Operator(admin, rng, plan.scenario.operator, actions=_ACTIONS, most_slots=_MOST_SLOTS, note=note)
            await operator.work(lambda: self._course.over)

    async def _count_eras(self) -> None:
        while not self._course.over:
            for workload in self._course.workloads:
                workload.era = int(self._now() / _ERA)
            await asyncio.sleep(_LOOK)

    # -- faults

    async def _storm(self) -> None:
        until = self._now() + self._plan.seconds
        kinds: list[str] = []
        while self._kinds and self._now() < until:
            if not kinds:
                kinds = list(self._kinds)
                self._rng.shuffle(kinds)
            found = self._next(kinds)
            if found is not None:
                await self._inject(*found)
            await asyncio.sleep(self._rng.uniform(*_BREATH))

    def _next(self, kinds: list[str]) -> tuple[str, Fault] | None:
        kind = kinds.pop()
        fault = FAULTS[kind](self._world, self._rng)
        if fault is None:
            return None
        others = [one for one in self._kinds if one != kind] if self._plan.scenario.combined else []
        self._rng.shuffle(others)
        for other in others:
            second = FAULTS[other](self._world, self._rng)
            # Of a node that is dead nobody learns what it hears.
            if second is not None and not set(second.targets) & set(fault.targets):
                return COMBINED, together(fault, second)
        return kind, fault

    async def _inject(self, kind: str, fault: Fault) -> None:
        number = self._numbers = self._numbers + 1
        event = self._journal.event
        self._say(f"{kind}: {fault.how}")
        event("fault", id=number, kind=kind, how=fault.how, targets=list(fault.targets), group=fault.group)

        def seen(proof: str) -> None:
            event("effect", id=number, confirmed=True, proof=proof)

        if not await perform(fault, self._now, _LOOK, longer=self._plan.proof, seen=seen):
            event("effect", id=number, confirmed=False, proof="")
            self._report("effect", f"nothing shows that fault {number} took effect: {kind}: {fault.how}")
        event("healed", id=number)
        apart = await self._healthy()
        event("recovered", id=number, healthy=not apart)
        if apart:
            self._report("recovery", f"not whole {self._plan.patience:g} s after fault {number}, {fault.how}: {apart}")

    async def _healthy(self) -> str:
        """Wait until the cluster is whole; what is wrong if it is not within the time."""
        began = self._now()
        while True:
            # Statuses of before the healing say nothing.
            await self._world.watcher.fresh()
            apart = self._world.apart() or self._unwritten(began)
            if not apart or self._now() - began > self._plan.patience:
                return apart

    def _unwritten(self, since: float) -> str:
        keys = [probe.key for probe in self._course.probes if probe.acknowledged is None or probe.acknowledged < since]
        return f"no write of {keys} was acknowledged" if keys else ""

    # -- after the storm

    async def _compare_replicas(self) -> None:
        """As an operator would: digests of every replica's slots as of one log entry."""
        wait = f"--wait-timeout={duration_text(min(self._plan.patience, _LONGEST_COMPARISON))}"
        done = await asyncio.to_thread(self._world.admin, "--output", "json", "check", "consistency", wait)
        if done.returncode:
            self._report("replicas", f"they differ, or cannot be compared: {done.stdout.strip()} {done.stderr.strip()}")

    def _note_moves(self, state: ClusterState) -> None:
        committed = [move for move in state.finished if move.committed]
        self._stats["moves committed"] = len(committed)
        self._stats["moves cancelled"] = len(state.finished) - len(committed)
        self._stats["slots moved"] = sum(move.slots for move in committed)
        self._stats["freeze ms"] = [move.freeze for move in committed]

    def _logged(self, text: str) -> int:
        return sum(path.read_text(errors="replace").count(text) for path in self._plan.folder.rglob("node.log"))

    def judge(self) -> None:
        """The verdict on the history; the run itself has judged what it saw."""
        self._phase("checks")
        judgement = self._course.judge()
        judgement.problems += self._found
        self._outcomes.problems += [problem.text for problem in judgement.problems]
        self._stats.update(judgement.counters())
        for outcome in Outcome:
            self._stats[f"operations {outcome}"] = self._history.count(outcome)
        self._journal.event("figures", **self._stats)
        self._phase("end")
