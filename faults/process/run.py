"""One run: a scenario on a real cluster, then calm, convergence, the last look and the verdict."""

from __future__ import annotations

import asyncio
import os
import platform
import random
import subprocess
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import raftkv
from faults.history import History, Outcome
from faults.journal import Journal
from faults.look import LAST_TIMEOUT, look_at_everything, one_key_per_group
from faults.operator import USUAL, Answer, Operator
from faults.probe import Probe
from faults.problem import Problem
from faults.process import planted
from faults.process.admin import ProcessAdmin
from faults.process.disks import NoSickDisks, library
from faults.process.fault import Fault
from faults.process.nemesis import FAULTS, SICK_DISKS, together
from faults.process.scenarios import Scenario
from faults.process.toxiproxy import ToxiproxyError, find_server
from faults.process.world import SLOTS, Shape, World
from faults.recorder import Recorder
from faults.verdict import LAST, judge
from faults.workloads import WORKLOADS, Workload
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

_TASKS: Final = "ab"
_AT_ONCE: Final = 32


@dataclass(frozen=True, slots=True)
class Plan:
    """``seconds``: for which faults are injected. ``operations``: after so many the clients' work is done.

    ``patience``: seconds within which the cluster is whole after each fault, and all replicas are equal in the end.

    ``proof``: seconds beyond its time that a fault is kept up if nothing shows it yet. ``late``: seconds by which a
    call may outlast its time-out, where five nodes, clients and Toxiproxy share few cores.

    ``planted``: the fault that all nodes have in them (:data:`faults.process.planted.OF_NODES`), nothing usually.
    """

    scenario: Scenario
    folder: Path
    seed: int = 1
    seconds: float = 45.0
    nodes: int = 5
    groups: int = 3
    clients: int = 5
    operations: int = 200_000
    planted: str = ""
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


def run(plan: Plan, say: Callable[[str], None] = lambda _: None) -> Outcomes:
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
        plan: Plan,
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
        self._workloads: list[Workload] = [WORKLOADS[name]() for name in plan.scenario.workloads]
        self._names = tuple(f"c{number}" for number in range(1, plan.clients + 1))
        self._kinds = list(plan.scenario.faults)
        disks: Path | None = None
        if set(self._kinds) & set(SICK_DISKS):
            try:
                disks = library()
            except NoSickDisks as problem:
                for kind in SICK_DISKS:
                    journal.event("skipped", kind=kind, reason=str(problem))
                self._kinds = [kind for kind in self._kinds if kind not in SICK_DISKS]
        shape = Shape(
            nodes=plan.nodes,
            groups=plan.groups,
            replicas=min(3, plan.nodes),
            clients=self._names,
            main=planted.MAIN if plan.planted else MAIN,
            environment=planted.environment(plan.planted) if plan.planted else {},
            sick_disks=disks,
        )
        self._world = World(plan.folder, shape, journal, server)
        self._probes: list[Probe] = []
        self._over = False
        self._numbers = 0
        self._figures: dict[str, Any] = {}
        self._work_problems: list[Problem] = []

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
            async with asyncio.TaskGroup() as group:
                for one in self._work(keys):
                    group.create_task(one)
                group.create_task(self._count_eras())
                if plan.scenario.operator:
                    group.create_task(self._operate())
                await asyncio.sleep(_CALM)
                await self._storm()
                self._phase("calm")
                await world.heal()
                await self._healthy()
                await asyncio.sleep(_CALM)
                self._over = True
            async with ProcessAdmin(world.cluster.endpoints) as admin:
                state = await admin.finish(plan.patience)
            self._phase("convergence")
            healed = self._now()
            await self._converge(healed)
            self._figures["convergence s"] = round(self._now() - healed, 3)
            self._phase("last look")
            await self._last_look()
            await self._compare_replicas()
            self._note_moves(state)
            self._figures["elections"] = len(world.watcher.elected)
            self._figures["snapshots installed"] = self._logged("installed the snapshot of entry")
        finally:
            self._over = True
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
        async with AdminClient(self._world.cluster.endpoints) as admin:
            return one_key_per_group((await admin.state()).map, prefix)

    async def _operate(self) -> None:
        plan, rng = self._plan, random.Random(f"operator {self._plan.seed}")

        def note(what: str, answer: Answer) -> None:
            self._journal.event("action", what=what, outcome=answer.outcome, detail=answer.detail)

        async with ProcessAdmin(self._world.cluster.endpoints) as admin:
            operator = Operator(admin, rng, plan.scenario.operator, actions=_ACTIONS, most_slots=_MOST_SLOTS, note=note)
            await operator.work(lambda: self._over)

    # -- clients

    def _recorder(self, client: raftkv.AsyncClient, name: str, patience: Callable[[], float | None]) -> Recorder:
        return Recorder(client, name, self._history, self._now, patience, SLOTS, self._journal)

    def _work(self, keys: dict[int, str]) -> list[Coroutine[Any, Any, None]]:
        working: list[Coroutine[Any, Any, None]] = []
        for number, name in enumerate(self._names):
            client = self._world.client(name, _TIMEOUT)
            workload = self._workloads[number % len(self._workloads)]
            working.append(self._client(client, name, workload))
        for number, key in enumerate(keys.values()):
            client = self._world.client("", LAST_TIMEOUT)
            recorder = self._recorder(client, f"p{number}", lambda: None)
            probe = Probe(recorder, key, self._now, _PERIOD)
            self._probes.append(probe)
            working.append(probe.write(lambda: self._over))
        return working

    async def _client(self, client: raftkv.AsyncClient, name: str, workload: Workload) -> None:
        async with client, asyncio.TaskGroup() as group:
            for letter in _TASKS:
                group.create_task(self._task(client, name + letter, workload))

    async def _task(self, client: raftkv.AsyncClient, label: str, workload: Workload) -> None:
        rng = random.Random(f"{label} {self._plan.seed}")

        def patience() -> float | None:
            return rng.uniform(0.0, 0.5) if rng.random() < _CANCELS else None

        recorder = self._recorder(client, label, patience)
        while not self._over and len(self._history.operations) < self._plan.operations:
            await workload.step(recorder, rng)
            await asyncio.sleep(rng.expovariate(1.0 / _PAUSE))

    async def _count_eras(self) -> None:
        while not self._over:
            for workload in self._workloads:
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
            fault = self._next(kinds)
            if fault is not None:
                await self._inject(fault)
            await asyncio.sleep(self._rng.uniform(*_BREATH))

    def _next(self, kinds: list[str]) -> Fault | None:
        fault = FAULTS[kinds.pop()](self._world, self._rng)
        if fault is None or not self._plan.scenario.combined:
            return fault
        others = [kind for kind in self._kinds if kind != fault.kind]
        self._rng.shuffle(others)
        for kind in others:
            second = FAULTS[kind](self._world, self._rng)
            # Of a node that is dead nobody learns what it hears.
            if second is not None and not set(second.targets) & set(fault.targets):
                return together(fault, second)
        return fault

    async def _inject(self, fault: Fault) -> None:
        number = self._numbers = self._numbers + 1
        self._say(f"{fault.kind}: {fault.how}")
        self._journal.event(
            "fault", id=number, kind=fault.kind, how=fault.how, targets=list(fault.targets), group=fault.group
        )
        await fault.inject()
        began, proof = self._now(), ""
        while (lasted := self._now() - began) < fault.hold or (not proof and lasted < fault.hold + self._plan.proof):
            if not proof and (proof := await fault.proof()):
                self._journal.event("effect", id=number, confirmed=True, proof=proof)
            await asyncio.sleep(_LOOK)
        if not proof:
            self._journal.event("effect", id=number, confirmed=False, proof="")
            self._report("effect", f"nothing shows that fault {number} took effect: {fault.kind}: {fault.how}")
        await fault.heal()
        self._journal.event("healed", id=number)
        apart = await self._healthy()
        self._journal.event("recovered", id=number, healthy=not apart)
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
        keys = [probe.key for probe in self._probes if probe.acknowledged is None or probe.acknowledged < since]
        return f"no write of {keys} was acknowledged" if keys else ""

    # -- after the storm

    async def _converge(self, healed: float) -> None:
        """All replicas have applied all of their logs, and are as long as each other."""
        apart = "nobody has looked"
        while self._now() < healed + self._plan.patience:
            await self._world.watcher.fresh()
            apart = self._world.apart() or self._behind()
            if not apart:
                return
        self._report("convergence", f"not after {self._plan.patience:g} s: {apart}")

    def _behind(self) -> str:
        logs: dict[int, set[tuple[int, int]]] = {}
        for status in self._world.watcher.statuses.values():
            for replica in () if status is None else status.replicas:
                logs.setdefault(replica.group, set()).add((replica.applied_index, replica.last_index))
        uneven = [f"group {group} at (applied, last) {sorted(ends)}" for group, ends in logs.items() if len(ends) > 1]
        return "; ".join(uneven)

    async def _last_look(self) -> None:
        recorder = self._recorder(self._world.client("", LAST_TIMEOUT), LAST, lambda: None)
        fresh = list((await self._keys("f")).values())
        found = await look_at_everything(recorder, self._history, fresh, self._workloads, self._report, _AT_ONCE)
        self._work_problems = [problem for _, problem in found]

    async def _compare_replicas(self) -> None:
        """As an operator would: digests of every replica's slots as of one log entry."""
        wait = f"--wait-timeout={duration_text(min(self._plan.patience, _LONGEST_COMPARISON))}"
        done = await asyncio.to_thread(self._world.admin, "--output", "json", "check", "consistency", wait)
        if done.returncode:
            self._report("replicas", f"they differ, or cannot be compared: {done.stdout.strip()} {done.stderr.strip()}")

    def _note_moves(self, state: ClusterState) -> None:
        committed = [move for move in state.finished if move.committed]
        self._figures["moves committed"] = len(committed)
        self._figures["moves cancelled"] = len(state.finished) - len(committed)
        self._figures["slots moved"] = sum(move.slots for move in committed)
        self._figures["freeze ms"] = [move.freeze for move in committed]

    def _logged(self, text: str) -> int:
        return sum(path.read_text(errors="replace").count(text) for path in self._plan.folder.rglob("node.log"))

    def _timeout(self, client: str) -> float:
        return _TIMEOUT if client.startswith("c") else LAST_TIMEOUT

    def judge(self) -> None:
        """The verdict on the history; the run itself has judged what it saw."""
        self._phase("checks")
        judgement = judge(self._history, timeout=self._timeout, late=self._plan.late)
        judgement.problems += self._work_problems
        self._outcomes.problems += [problem.text for problem in judgement.problems]
        self._figures.update(judgement.figures())
        for outcome in Outcome:
            self._figures[f"operations {outcome}"] = self._history.count(outcome)
        self._journal.event("figures", **self._figures)
        self._phase("end")
