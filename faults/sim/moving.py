"""One move, and one thing that goes wrong at one of its steps: every combination can be run.

The driver of moves (the meta group's leader), the leader of the source and the leader of the target are killed, or the
move is cancelled, just before a step is asked for or just after it was answered.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final, cast

from faults.check.history import History
from faults.check.linearizability import BUDGET, Verdict
from faults.check.numbered import check_key
from faults.check.register import Register
from faults.operator import Operator
from faults.sim.admin import SimAdmin
from faults.sim.cluster import LogCapture, SimCluster, SimNode, Trace
from faults.sim.invariants import Invariants
from faults.sim.loop import SimLoop, simulate
from faults.sim.ownership import Ownership
from faults.workloads.kinds import WORKLOADS
from faults.workloads.recorder import Recorder
from raftkv.commands.base import GroupCommand
from raftkv.commands.meta import ChangeCluster
from raftkv.commands.results import Result
from shards.map import META_GROUP

SOURCE: Final = 1
TARGET: Final = 2
_SLOTS: Final = 24
_EACH: Final = 12
_RECORDS: Final = 150
_DOWN: Final = 1.0
_PATIENCE: Final = 40.0


class MoveStage(StrEnum):
    """The ten steps, as they are asked for; a copy and its end are asked of the source, which asks the target."""

    START = "next"
    BEGIN = "import begin"
    TRACK = "track"
    COPY = "copy"
    CHUNK = "import chunk"
    FREEZE = "freeze"
    COMPLETE = "complete"
    FINAL = "import final"
    COMMIT = "commit"
    ACTIVATE = "activate"
    RELEASE = "release"
    FINISH = "finish"


class Trouble(StrEnum):
    """What goes wrong."""

    DRIVER = "the driver is killed"
    SOURCE = "the source's leader is killed"
    TARGET = "the target's leader is killed"
    CANCEL = "the job is cancelled"


@dataclass(slots=True)
class MoveRun:
    """How a run went. ``struck``: the trouble came. ``problems``: broken promises."""

    struck: bool = False
    problems: list[str] = field(default_factory=list)
    moved: int = 0
    trace: list[str] = field(default_factory=list)
    seconds: float = 0.0


def run_move(step: MoveStage, trouble: Trouble, *, after: bool, seed: int = 1, nodes: int = 5) -> MoveRun:
    """Move slots while clients work, with ``trouble`` before (or after) the first time that ``step`` is asked for."""
    course = MoveRun()

    async def main(loop: SimLoop) -> None:
        trace = Trace(loop)
        with LogCapture(trace):
            try:
                await _Scene(loop, trace, course, seed, nodes).play(step, trouble, after)
            finally:
                course.trace = trace.lines
                course.seconds = loop.time()

    simulate(main)
    return course


def _step_of(op: GroupCommand) -> str:
    return op.verb if isinstance(op, ChangeCluster) else op.name.replace("_", " ")


class _Scene:
    def __init__(self, loop: SimLoop, trace: Trace, course: MoveRun, seed: int, nodes: int) -> None:
        self._loop = loop
        self._course = course
        self._cluster = SimCluster(loop, random.Random(f"move {seed}"), nodes=nodes, groups=2, trace=trace)
        self._invariants = Invariants(self._cluster)
        self._ownership = Ownership(self._cluster, self._invariants.report)
        rng = random.Random(f"operator {seed}")
        self._admin = SimAdmin(self._cluster, rng)
        self._operator = Operator(self._admin, rng, 1.0)
        self._history = History()
        self._seed = seed
        self._over = False
        self._strike: Callable[[str, bool], None] | None = None

    async def play(self, step: MoveStage, trouble: Trouble, after: bool) -> None:
        cluster = self._cluster
        await cluster.start()
        tasks = [task for name in ("c1", "c2") for task in self._work(name)]
        await self._fill()
        self._watch_drivers()

        def strike(name: str, done: bool) -> None:
            if name == step and done is after and not self._course.struck:
                self._course.struck = True
                cluster.trace.note(f"{trouble} {'after' if after else 'before'} {step}")
                comes.set()

        comes = asyncio.Event()
        # A task of nobody's process, which would die with it.
        coming = self._loop.create_task(self._trouble(trouble, comes))
        self._strike = strike
        await self._plan()
        await self._settled()
        await coming
        self._over = True
        await asyncio.wait(tasks, timeout=20.0)
        self._judge()

    def _work(self, name: str) -> list[asyncio.Task[None]]:
        client = self._cluster.client(name)

        async def work(label: str, kind: str) -> None:
            rng = random.Random(f"{label} {self._seed}")
            workload = WORKLOADS[kind]()
            recorder = Recorder(client, label, self._history, self._loop.time, lambda: None)
            while not self._over:
                await workload.step(recorder, rng)
                await asyncio.sleep(rng.expovariate(50.0))

        kinds = ("registers", "counter")
        return [self._cluster.processes[name].spawn(work(f"{name}{'ab'[at]}", kind)) for at, kind in enumerate(kinds)]

    async def _fill(self) -> None:
        client = self._cluster.client("c3")

        async def fill() -> None:
            await asyncio.gather(*(client.put(f"bulk {number}", b"x" * 200) for number in range(_RECORDS)))

        await self._cluster.processes["c3"].spawn(fill())

    def _watch_drivers(self) -> None:
        """Hear of every step that any driver or source asks for, and of its answer."""
        for node in self._cluster.nodes.values():
            if node.node is None:
                continue
            for part in (cast(Any, node.node._mover), cast(Any, node.node._copier)):
                part._ask = self._heard(node, part._ask)

    def _heard(self, node: SimNode, ask: Callable[[GroupCommand], Any]) -> Callable[[GroupCommand], Any]:
        async def heard(op: GroupCommand) -> Result:
            assert self._strike is not None
            self._strike(_step_of(op), False)
            result = await ask(op)
            self._strike(_step_of(op), True)
            return cast(Result, result)

        return heard

    async def _plan(self) -> None:
        state = await self._admin.look()
        assert state is not None
        assert state.map is not None
        slots = state.map.slots_of(SOURCE)[:_SLOTS]
        plan = [[slots[at : at + _EACH], SOURCE, TARGET] for at in range(0, len(slots), _EACH)]
        assert await self._operator.tell("plan", state.map.epoch, plan, 2, 0)

    async def _trouble(self, trouble: Trouble, comes: asyncio.Event) -> None:
        await comes.wait()
        if trouble is Trouble.CANCEL:
            await self._operator.tell("cancel")
            return
        group = {Trouble.DRIVER: META_GROUP, Trouble.SOURCE: SOURCE, Trouble.TARGET: TARGET}[trouble]
        victim = self._cluster.leaders()[group]
        self._cluster.kill(victim, power_loss=True)
        await asyncio.sleep(_DOWN)
        self._cluster.restart(victim)

    async def _settled(self) -> None:
        until = self._loop.time() + _PATIENCE
        while self._loop.time() < until:
            await asyncio.sleep(0.2)
            state = await self._admin.look()
            ended = state is not None and state.job is not None and not state.job.open and self._course.struck
            if ended and all(node.up for node in self._cluster.nodes.values()) and not self._ownership.unsettled(()):
                return
        self._course.problems.append(f"not settled after {_PATIENCE} s: {self._ownership.unsettled(())}")

    def _judge(self) -> None:
        course, model = self._course, Register(1.0)
        course.problems += self._invariants.problems
        course.problems += [f"{one.process}: {one.message} {one.exception!r}" for one in self._loop.problems]
        course.moved = self._ownership.counts["slots moved"]
        for key, operations in self._history.by_key():
            if check_key(operations, model, BUDGET).verdict is not Verdict.LINEARIZABLE:
                course.problems.append(f"history of {key}")
