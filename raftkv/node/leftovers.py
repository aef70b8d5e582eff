"""Drops the replicas of groups that this node has left, once the meta group says so.

A node's copy of the map is only a hint and may be old; dropping a replica that still votes would lose what it has
acknowledged. So the meta group is asked, and until it has heard that the replica is gone, this node does not join the
group again.
"""

from __future__ import annotations

import asyncio
import logging
import random
from typing import Final

from raftkv.clock import Clock, sleep
from raftkv.node.asking import Ask, Failed, meta_command
from raftkv.node.replicas import Replicas
from raftkv.store.codec import pack, unpack
from raftkv.store.meta_state import MetaState
from raftkv.store.operations import Kind, Op
from shards.map import META_GROUP, ShardMap

log = logging.getLogger(__name__)

_PATIENCE: Final = 1.0
"""Seconds between two questions."""

_LOOK: Final = 0.05


class Leftovers:
    """``ask`` executes an operation."""

    def __init__(self, node: int, replicas: Replicas, ask: Ask, clock: Clock, rng: random.Random) -> None:
        self._node = node
        self._replicas = replicas
        self._ask = ask
        self._clock = clock
        self._rng = rng
        self._task: asyncio.Task[None] | None = None
        self._due = 0.0

    def run(self, shard_map: ShardMap) -> None:
        """Look for replicas that the map does not give to this node. Called about ten times a second."""
        busy = self._task is not None and not self._task.done()
        if busy or self._clock.now() < self._due or not self._strays(shard_map):
            return
        self._due = self._clock.now() + _PATIENCE
        self._task = asyncio.get_running_loop().create_task(self._clear())

    def close(self) -> None:
        """Let go."""
        if self._task is not None:
            self._task.cancel()

    def _strays(self, shard_map: ShardMap) -> list[int]:
        mine = {group.id for group in shard_map.groups_on(self._node)}
        return [replica.group for replica in self._replicas.all() if replica.group not in mine]

    async def _clear(self) -> None:
        try:
            answer = await self._ask(Op(Kind.META_STATE, META_GROUP, b"", pack([])))
            _, wire = unpack(answer.value or b"")
            state = MetaState.from_wire(wire)
            assert state.map is not None
            for group in self._strays(state.map):
                if (group, self._node) in state.leftover:
                    log.info("group %d: this node has left it, its replica is dropped", group)
                    self._replicas.drop(group)
                    while self._replicas.drops(group):
                        await sleep(self._clock, _LOOK)
                    await self._ask(meta_command(self._rng, "dropped", group, self._node))
        except Failed as failure:
            log.info("replicas that are left over cannot be dropped yet: %s", failure)
