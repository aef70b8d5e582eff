"""Drops the replicas of groups that this node has left, when the meta group's leader asks for it.

A node's copy of the map is only a hint and may be old; dropping a replica that still votes would lose what it has
acknowledged. So the meta group is asked first, and until it has heard that the replica is gone, this node does not join
the group again.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable
from typing import Final

from raftkv.clock import Clock, sleep
from raftkv.commands.meta import ReadCluster
from raftkv.commands.results import ClusterReport
from raftkv.log_limit import limited
from raftkv.node.drivers.internal_client import Ask, Failed, Leading, meta_command
from raftkv.node.replicas import Replicas
from raftkv.store.codec import unpack
from raftkv.store.meta_state import MetaState
from shards.map import META_GROUP, ShardMap

log = logging.getLogger(__name__)

_PATIENCE: Final = 1.0
"""Seconds before a node is asked again."""

_LOOK: Final = 0.05


class ReplicaGC:
    """``leading``: the meta group's state while this node leads it. ``tell(node)`` asks another node to :meth:`clear`.

    ``keep_map``: takes a map that may be newer than the node's own, durably, or raises OSError.
    """

    def __init__(
        self,
        node: int,
        replicas: Replicas,
        leading: Leading,
        ask: Ask,
        tell: Callable[[int], None],
        keep_map: Callable[[ShardMap], None],
        clock: Clock,
        rng: random.Random,
    ) -> None:
        self._node = node
        self._replicas = replicas
        self._leading = leading
        self._ask = ask
        self._tell = tell
        self._keep_map = keep_map
        self._clock = clock
        self._rng = rng
        self._task: asyncio.Task[None] | None = None
        self._due = 0.0

    def run(self) -> None:
        """As the meta group's leader: remind the nodes that still have replicas to drop. Called ten times a second."""
        state = self._leading()
        if state is None or not state.garbage or self._clock.now() < self._due:
            return
        self._due = self._clock.now() + _PATIENCE
        for node in sorted({node for _, node in state.garbage}):
            if node == self._node:
                self.clear()
            else:
                self._tell(node)

    def clear(self) -> None:
        """Look for replicas of groups that this node has left, and drop them."""
        if self._task is None or self._task.done():
            self._task = asyncio.get_running_loop().create_task(self._clear())

    def close(self) -> None:
        """Stop."""
        if self._task is not None:
            self._task.cancel()

    async def _clear(self) -> None:
        try:
            report = (await self._ask(ReadCluster(META_GROUP))).answer
            assert isinstance(report, ClusterReport)
            state = MetaState.from_wire(unpack(report.state))
            assert state.map is not None
            # From now on no older map, not even after a restart, makes this node host what it is about to call gone.
            self._keep_map(state.map)
            for group, node in sorted(state.garbage):
                if node == self._node:
                    await self._drop(group)
        except (Failed, OSError) as failure:
            log.info("replica garbage collection is delayed: %s", failure, extra=limited("the meta group"))

    async def _drop(self, group: int) -> None:
        if self._replicas.get(group) is not None:
            log.info("group %d: this node is no longer a member, its replica is dropped", group)
            self._replicas.drop(group)
        while self._replicas.drops(group):
            await sleep(self._clock, _LOOK)
        await self._ask(meta_command(self._rng, "dropped", group, self._node))
