"""Guarantee: slots move between groups of real processes while clients work and leaders are killed; nothing is lost, no
answer contradicts another."""

from __future__ import annotations

import asyncio
import random
import shutil
import subprocess
import sys

import pytest

import raftkv
from faults.check.history import History, Outcome
from faults.check.linearizability import BUDGET, Verdict, check
from faults.check.register import Register
from faults.workloads.recorder import Recorder
from raftkv.api.status import Job
from raftkv.client.admin import AdminClient
from raftkv.clock import SystemClock
from raftkv.testing import LocalCluster
from raftkv.v1 import admin_pb2
from shards.map import META_GROUP
from shards.planner import batches, plan_slots
from tests.waiting import PATIENCE, becomes

pytestmark = pytest.mark.slow

KEYS = [f"key-{number}" for number in range(1500)]
WORKERS = 6
PAUSE = 0.01
"""Seconds between two operations of one."""


class Work:
    """Clients that read and write all the time."""

    def __init__(self, client: raftkv.AsyncClient) -> None:
        self.history = History()
        self.recorder = Recorder(client, "w", self.history, SystemClock().now)
        self.over = False

    async def fill(self) -> None:
        await asyncio.gather(*(self.recorder.put(key, "0") for key in KEYS))

    async def run(self, number: int) -> None:
        rng = random.Random(number)
        written = 0
        while not self.over:
            key = rng.choice(KEYS)
            if rng.random() < 0.5:
                await self.recorder.get(key)
            else:
                written += 1
                await self.recorder.put(key, f"{number}.{written}".ljust(100))
            # Else they would take the processors that the moves need.
            await asyncio.sleep(PAUSE)

    async def last_look(self) -> None:
        await asyncio.gather(*(self.recorder.get(key) for key in KEYS))

    def judge(self) -> None:
        assert {one.outcome for one in self.history.operations} == {Outcome.OK}
        for key, operations in self.history.by_key():
            assert operations[-1].found is not None, f"{key} is lost"
            assert check(operations, Register(1.0), BUDGET).verdict is Verdict.LINEARIZABLE, key


async def start_job(admin: AdminClient, weights: dict[int, float], rate: int = 0) -> int:
    """Moves towards ``weights``, a few slots at a time, at ``rate`` bytes per second, 0: as fast as can be."""
    state = await admin.state()
    moves = batches(plan_slots(state.map, weights), 8)
    planned = [admin_pb2.PlannedMove(slots=one.slots, source=one.source, target=one.target) for one in moves]
    plan = admin_pb2.StartPlan(epoch=state.map.epoch, moves=planned, concurrency=2, rate=rate)
    await admin.change(admin_pb2.ChangeRequest(start_plan=plan))
    return len(moves)


async def finished_moves(admin: AdminClient, more_than: int) -> int:
    while True:
        state = await admin.state()
        if len(state.finished) > more_than:
            return len(state.finished)
        await asyncio.sleep(0.01)


async def job_ended(admin: AdminClient) -> Job:
    while True:
        job = (await admin.state()).job
        if job is not None and job.ended:
            return job
        await asyncio.sleep(0.05)


async def through_kills(cluster: LocalCluster) -> None:
    async with (
        raftkv.AsyncClient(cluster.endpoints, timeout=PATIENCE) as client,
        AdminClient(cluster.endpoints, timeout=PATIENCE) as admin,
    ):
        work = Work(client)
        await work.fill()
        working = [asyncio.create_task(work.run(number)) for number in range(WORKERS)]
        # The driver, the source's leader and the target's leader; group 1 gives all it has, then group 2 does.
        for turn, group in enumerate((META_GROUP, 1, 1, META_GROUP, 2)):
            emptied = 1 + turn % 2
            before = len((await admin.state()).finished)
            assert await start_job(admin, {emptied: 0}) > 8
            await finished_moves(admin, before + 1)
            victim = await asyncio.to_thread(cluster.leader, group)
            cluster.kill(victim)
            await asyncio.to_thread(cluster.restart, victim)
            job = await asyncio.wait_for(job_ended(admin), PATIENCE)
            assert (job.done, job.failed) == (job.moves, 0)
            assert (await admin.state()).map.slots_of(emptied) == ()
        before = len((await admin.state()).finished)
        # So slow that it cannot be over before it is cancelled.
        await start_job(admin, {2: 0}, rate=5_000)
        await finished_moves(admin, before + 1)
        await admin.change(admin_pb2.ChangeRequest(cancel=True))
        job = await asyncio.wait_for(job_ended(admin), PATIENCE)
        assert job.cancelled
        assert 0 < job.done < job.moves
        work.over = True
        await asyncio.gather(*working)
        await work.last_look()
    work.judge()


def test_moves_go_on_through_kills_of_every_part_and_a_cancellation() -> None:
    with LocalCluster(nodes=3, groups=2, slots=256) as cluster:
        asyncio.run(through_kills(cluster))


async def replace_under_load(cluster: LocalCluster) -> None:
    async with raftkv.AsyncClient(cluster.endpoints, timeout=PATIENCE) as client:
        work = Work(client)
        await work.fill()
        working = [asyncio.create_task(work.run(number)) for number in range(WORKERS)]
        dead = await asyncio.to_thread(cluster.leader, 1)
        cluster.kill(dead)
        shutil.rmtree(cluster.data_dir(dead))
        new = await asyncio.to_thread(cluster.add_node)
        command = ["-m", "raftkv.cli.admin", "--endpoints", cluster.endpoints, "--yes", "node", "replace"]
        done = await asyncio.to_thread(
            subprocess.run,
            [sys.executable, *command, str(dead), str(new)],
            capture_output=True,
            text=True,
            timeout=PATIENCE,
        )
        assert done.returncode == 0, done.stderr
        cluster.restart(dead, wait=False)
        await becomes(lambda: cluster.pid(dead) is None, "the node that was replaced ends")
        assert f"node {dead} has been removed from the cluster; a new node needs a new id" in cluster.log(dead)
        work.over = True
        await asyncio.gather(*working)
        await work.last_look()
    work.judge()


def test_a_node_that_lost_its_disk_is_replaced_under_load_and_not_taken_back() -> None:
    with LocalCluster(nodes=3, groups=2, slots=256) as cluster:
        asyncio.run(replace_under_load(cluster))
