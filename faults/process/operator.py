"""Somebody who moves slots, cancels moves and hands leaderships over while faults come, through the admin API."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable

from faults.journal import Journal
from faults.process.world import World
from raftkv.client.admin import AdminClient, ClusterState
from raftkv.errors import ConditionFailed, NotApplied, RaftKVError
from raftkv.v1 import admin_pb2

_TIMEOUT = 4.0
_MOST_SLOTS = 24


class Operator:
    """``pause``: usual seconds between two deeds. Notes each with its outcome."""

    def __init__(self, world: World, journal: Journal, rng: random.Random, pause: float) -> None:
        self._world = world
        self._journal = journal
        self._rng = rng
        self._pause = pause

    async def work(self, over: Callable[[], bool]) -> None:
        """Until ``over``."""
        async with AdminClient(self._world.cluster.endpoints, timeout=_TIMEOUT) as admin:
            while not over():
                await asyncio.sleep(min(self._rng.expovariate(1.0 / self._pause), 2.0 * self._pause))
                what = self._rng.choices(("move slots", "cancel moves", "transfer leader"), (6, 1, 3))[0]
                try:
                    detail = await self._do(admin, what)
                except (ConditionFailed, NotApplied) as refusal:
                    self._journal.event("deed", what=what, outcome="refused", detail=str(refusal))
                except RaftKVError as problem:
                    self._journal.event("deed", what=what, outcome="unknown", detail=str(problem))
                else:
                    if detail:
                        self._journal.event("deed", what=what, outcome="done", detail=detail)

    async def finish(self, patience: float) -> admin_pb2.GetStateResponse:
        """Wait until no moves are under way; what the meta group says then. Raises TimeoutError."""
        async with AdminClient(self._world.cluster.endpoints, timeout=_TIMEOUT) as admin, asyncio.timeout(patience):
            while True:
                try:
                    state = await admin.state()
                except RaftKVError:
                    continue
                if (state.job is None or state.job.ended_ms) and not state.message.moves:
                    return state.message
                await asyncio.sleep(0.1)

    async def _do(self, admin: AdminClient, what: str) -> str:
        state = await admin.state()
        if what == "move slots":
            return await self._move(admin, state)
        if what == "cancel moves":
            if state.job is None or state.job.ended_ms:
                return ""
            await admin.change(admin_pb2.ChangeRequest(cancel=True))
            return f"job {state.job.id}"
        group = self._rng.choice(state.map.groups)
        node = self._rng.choice(group.voters)
        await admin.transfer(group.id, node)
        return f"group {group.id} to n{node}"

    async def _move(self, admin: AdminClient, state: ClusterState) -> str:
        groups = [group.id for group in state.map.data_groups()]
        owning = [group for group in groups if state.map.slots_of(group)]
        source = self._rng.choice(owning)
        targets = [group for group in groups if group != source]
        if not targets:
            return ""
        target = self._rng.choice(targets)
        slots = list(state.map.slots_of(source))
        self._rng.shuffle(slots)
        chosen = slots[: self._rng.randint(1, min(_MOST_SLOTS, max(1, len(slots) - 1)))]
        move = admin_pb2.PlannedMove(slots=chosen, source=source, target=target)
        plan = admin_pb2.StartPlan(epoch=state.map.epoch, moves=[move], concurrency=self._rng.choice((1, 2, 4)))
        await admin.change(admin_pb2.ChangeRequest(start_plan=plan))
        return f"{len(chosen)} slots from group {source} to {target}"
