"""A cluster grows to twice its nodes and groups and shrinks again while clients work, and every answer is checked."""

from __future__ import annotations

import asyncio
import gc
import random
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import raftkv
from faults.check.history import History, Outcome
from faults.check.linearizability import BUDGET, Verdict, check
from faults.check.register import Register
from faults.workloads.recorder import Recorder
from raftkv.client.admin import AdminClient
from raftkv.clock import SystemClock
from raftkv.errors import RaftKVError
from raftkv.testing import LocalCluster

_LOAD_IN_FLIGHT = 256
_PATIENCE = 60
"""Seconds for a call or a command: what comes late on a busy machine is measured, not given up."""
_VALUE_BYTES = 120


@dataclass(slots=True)
class RebalancePhase:
    """A stretch of the run. Seconds on the run's clock."""

    name: str
    began: float
    ended: float = 0.0


@dataclass(slots=True)
class Run:
    """What was measured. Times in seconds, ``freezes`` in milliseconds, ``moved`` in bytes."""

    records: int
    phases: list[RebalancePhase] = field(default_factory=list)
    latencies: list[tuple[float, float]] = field(default_factory=list)
    """(when it ended, how long it took) of each operation."""
    outcomes: Counter[str] = field(default_factory=Counter)
    freezes: list[int] = field(default_factory=list)
    moved: int = 0
    moving: float = 0.0
    slots_moved: list[tuple[int, int]] = field(default_factory=list)
    """(slots that changed owner, fewest that had to) of growing and of shrinking."""
    keys: int = 0
    violations: list[str] = field(default_factory=list)
    lost: int = 0

    def rows(self) -> list[tuple[str, str]]:
        """For people."""
        rows = [(one.name, f"{one.ended - one.began:.1f} s, {self._speed(one)}") for one in self.phases]
        rows.append(("operations", ", ".join(f"{number:,} {name}" for name, number in sorted(self.outcomes.items()))))
        rows.append(("keys checked", f"{self.keys:,}, not linearizable: {len(self.violations)}, lost: {self.lost}"))
        share = ", ".join(f"{moved} of {fewest} needed" for moved, fewest in self.slots_moved)
        rate = self.moved / self.moving / 1e6 if self.moving else 0.0
        rows.append(("slots moved", share))
        rows.append(("bytes moved", f"{self.moved / 1e6:.1f} MB in {self.moving:.1f} s, {rate:.1f} MB/s"))
        if self.freezes:
            p50, p99, worst = (_at(self.freezes, share) for share in (0.5, 0.99, 1.0))
            rows.append(("freeze", f"p50 {p50} ms, p99 {p99} ms, max {worst} ms, {len(self.freezes)} moves"))
        return rows

    def _speed(self, phase: RebalancePhase) -> str:
        took = sorted(took for when, took in self.latencies if phase.began <= when < phase.ended)
        if not took:
            return "no operations"
        rate = len(took) / (phase.ended - phase.began)
        return (
            f"{rate:,.0f}/s, p50 {_at(took, 0.5) * 1000:.1f} ms, p99 {_at(took, 0.99) * 1000:.1f} ms, "
            f"worst {took[-1] * 1000:.0f} ms"
        )


def _at(values: Sequence[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))]


class AdminFailed(RaftKVError):
    """A command of raftkv-admin did not exit with 0."""


async def measure(
    cluster: LocalCluster, records: int, workers: int, calm: float, say: Callable[[str], None], pause: float = 0.0
) -> Run:
    """Grow the running ``cluster`` to twice its nodes and groups and shrink it again.

    ``calm``: seconds of work before anything changes, between growing and shrinking, and after it. ``pause``: seconds
    between two operations of a worker. Raises AdminFailed.
    """
    run, clock, history = Run(records), SystemClock(), History()
    # The history only grows: looking through it for garbage would stall the clients, not the cluster.
    gc.disable()
    seeds = cluster.endpoints
    async with raftkv.AsyncClient(seeds, timeout=_PATIENCE) as client, AdminClient(seeds, timeout=_PATIENCE) as admin:
        over = asyncio.Event()
        recorder = Recorder(client, "w", history, clock.now)
        await _load(recorder, records)
        working = [asyncio.create_task(_work(number, recorder, over, run, records, pause)) for number in range(workers)]

        def begin(name: str) -> None:
            say(name)
            now = clock.now()
            if run.phases:
                run.phases[-1].ended = now
            run.phases.append(RebalancePhase(name, now))

        try:
            begin("before")
            await asyncio.sleep(calm)
            old_nodes = cluster.nodes
            old_groups = [group.id for group in (await admin.state()).map.data_groups()]
            begin("nodes join")
            for _ in old_nodes:
                await asyncio.to_thread(cluster.add_node)
            begin("replicas spread")
            new_nodes = [node for node in cluster.nodes if node not in old_nodes]
            await _admin(seeds, "node", "add", *map(str, new_nodes), "--wait")
            await _admin(seeds, "group", "add", "--count", str(len(old_groups)))
            begin("slots move to new groups")
            await _rebalance(admin, run, seeds, [])
            begin("twice as large")
            await asyncio.sleep(calm)
            new_groups = [group.id for group in (await admin.state()).map.data_groups() if group.id not in old_groups]
            begin("slots move back")
            await _rebalance(admin, run, seeds, new_groups)
            begin("groups and nodes leave")
            for group in new_groups:
                await _admin(seeds, "group", "remove", str(group))
            for node in new_nodes:
                await _admin(seeds, "node", "drain", str(node), "--wait")
                await _admin(seeds, "node", "remove", str(node))
            begin("after")
            await asyncio.sleep(calm)
            run.phases[-1].ended = clock.now()
        finally:
            # Else they would go on for ever where a command has failed.
            over.set()
            await asyncio.gather(*working)
        await _last_look(Recorder(client, "last", history, clock.now), records)
    _judge(run, history)
    return run


async def _load(recorder: Recorder, records: int) -> None:
    numbers = iter(range(records))

    async def load() -> None:
        for number in numbers:
            await recorder.put(_key(number), "0".ljust(_VALUE_BYTES))

    await asyncio.gather(*(load() for _ in range(_LOAD_IN_FLIGHT)))


def _key(number: int) -> str:
    return f"record-{number:07}"


async def _work(number: int, recorder: Recorder, over: asyncio.Event, run: Run, records: int, pause: float) -> None:
    rng = random.Random(number)
    written = 0
    while not over.is_set():
        key = _key(int(rng.random() * records))
        if rng.random() < 0.5:
            done = await recorder.get(key)
        else:
            written += 1
            done = await recorder.put(key, f"{number}.{written}".ljust(_VALUE_BYTES))
        run.latencies.append((done.answered, done.answered - done.began))
        run.outcomes[str(done.outcome)] += 1
        if pause:
            await asyncio.sleep(pause)


async def _rebalance(admin: AdminClient, run: Run, seeds: str, emptied: Sequence[int]) -> None:
    before = (await admin.state()).map
    weights = [part for group in emptied for part in ("--weight", f"{group}=0")]
    clock = SystemClock()
    began = clock.now()
    await _admin(seeds, "rebalance", "apply", *weights, "--wait")
    run.moving += clock.now() - began
    state = await admin.state()
    job = state.job
    assert job is not None
    changed = sum(old != new for old, new in zip(before.owners, state.map.owners, strict=True))
    stay = [group.id for group in before.data_groups() if group.id not in emptied]
    share = before.slots / len(stay)
    fewest = sum(max(0, round(share) - len(before.slots_of(group))) for group in stay)
    run.slots_moved.append((changed, fewest))
    mine = state.finished[-job.moves :]
    run.freezes += [one.freeze for one in mine]
    run.moved += sum(one.bytes for one in mine)


async def _admin(seeds: str, *command: str) -> None:
    arguments = ["-m", "raftkv.cli.admin", "--endpoints", seeds, "--timeout", f"{_PATIENCE}s", "--yes", *command]
    # Not by the loop's own means: forking them with gRPC's threads about may hang.
    done = await asyncio.to_thread(
        subprocess.run, [sys.executable, *arguments], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False
    )
    if done.returncode != 0:
        said = done.stdout.decode()[-2000:]
        raise AdminFailed(f"raftkv-admin {' '.join(command)} exits with {done.returncode}: {said}")


async def _last_look(recorder: Recorder, records: int) -> None:
    numbers = iter(range(records))

    async def look() -> None:
        for number in numbers:
            await recorder.get(_key(number))

    await asyncio.gather(*(look() for _ in range(_LOAD_IN_FLIGHT)))


def _judge(run: Run, history: History) -> None:
    model = Register(1.0)
    for key, operations in history.by_key():
        run.keys += 1
        last = operations[-1]
        if last.outcome is Outcome.OK and last.found is None:
            run.lost += 1
        if check(operations, model, BUDGET).verdict is not Verdict.LINEARIZABLE:
            run.violations.append(key)
