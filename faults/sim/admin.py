"""What an operator asks of a simulated cluster: of any node that runs, as the operator's tool does."""

from __future__ import annotations

import asyncio
import random
from typing import Any, Final

from faults.operator import AdminAnswer
from faults.sim.cluster import SimCluster
from raftkv.commands.base import Command
from raftkv.commands.members import Transfer
from raftkv.commands.meta import ReadCluster
from raftkv.commands.results import ClusterReport, Result
from raftkv.errors import OUTCOMES, Code
from raftkv.node.drivers.internal_client import meta_command
from raftkv.store.codec import unpack
from raftkv.store.meta_state import MetaState
from shards.map import META_GROUP

_UNSEEN: Final = Result(Code.UNKNOWN, detail="the node that was asked is gone")


class SimAdmin:
    """See :class:`faults.operator.Admin`."""

    timeout = 4.0

    def __init__(self, cluster: SimCluster, rng: random.Random) -> None:
        self._cluster = cluster
        self._rng = rng

    async def look(self) -> MetaState | None:
        report = (await self._ask(ReadCluster(META_GROUP))).answer
        return MetaState.from_wire(unpack(report.state)) if isinstance(report, ClusterReport) else None

    async def tell(self, verb: str, *arguments: Any) -> AdminAnswer:
        return self._answer(f"{verb} {arguments!r:.200}", await self._ask(meta_command(self._rng, verb, *arguments)))

    async def transfer(self, group: int, node: int) -> AdminAnswer:
        result = await self._ask(Transfer(group, node))
        return self._answer(f"transfer of group {group} to n{node}", result)

    def _answer(self, what: str, result: Result) -> AdminAnswer:
        self._cluster.trace.note(f"operator {what}: {Code(result.code).name} {result.detail}")
        if result.code == Code.OK:
            return AdminAnswer("done")
        return AdminAnswer("refused" if OUTCOMES[Code(result.code)].definite else "unknown", result.detail)

    async def _ask(self, op: Command) -> Result:
        running = [one for one in self._cluster.nodes.values() if one.node is not None and one.state == "running"]
        if not running:
            return _UNSEEN
        node = self._rng.choice(running)
        answer: asyncio.Future[Result] = asyncio.get_running_loop().create_future()

        def reply(_: int, result: Result) -> None:
            if not answer.done():
                answer.set_result(result)

        assert node.node is not None
        node.process.run(node.node.submit, [op], self.timeout, reply)
        done, _ = await asyncio.wait([answer], timeout=2 * self.timeout)
        return answer.result() if done else _UNSEEN
