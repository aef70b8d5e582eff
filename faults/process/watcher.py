"""Looks at all nodes of a real cluster all the time, past the proxies: who leads, who hears whom, who is ready."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Mapping
from typing import Final

from faults.report.journal import Journal
from raftkv.api.status import NodeStatus, Role
from raftkv.client.transport import Endpoint, GrpcTransport, TransportError

_PERIOD: Final = 0.1
_TIMEOUT: Final = 0.5
"""Seconds after which a node that does not answer counts as one that does not."""


class Watcher:
    """``addresses()``: node id -> address for clients, of the nodes to look at. Notes every change of a leader.

    ``statuses``: what each node said when it was asked last, None if it did not answer. ``leaders``: group -> (node,
    term), as the newest term has it that any node claims.
    """

    def __init__(self, addresses: Callable[[], Mapping[int, str]], transport: GrpcTransport, journal: Journal) -> None:
        self.statuses: dict[int, NodeStatus | None] = {}
        self.leaders: dict[int, tuple[int, int]] = {}
        self.elected: set[tuple[int, int]] = set()
        """(group, term) of every leadership that was seen."""
        self.awaited: set[int] = set()
        """Nodes that were started; it is noted when they are ready."""
        self._addresses = addresses
        self._journal = journal
        self._endpoints: dict[str, Endpoint] = {}
        self._transport = transport
        self._task: asyncio.Task[None] | None = None
        self._looked = asyncio.Event()

    def start(self) -> None:
        """Begin to look."""
        self._task = asyncio.create_task(self._look())

    async def close(self) -> None:
        """Stop looking."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
        for endpoint in self._endpoints.values():
            await endpoint.close()

    async def fresh(self) -> None:
        """Wait until every node was asked after this call."""
        for _ in range(2):
            self._looked.clear()
            await self._looked.wait()

    def leader(self, group: int) -> int | None:
        """The node that leads ``group``, None if none is known."""
        found = self.leaders.get(group)
        return found[0] if found else None

    def silence(self, node: int, peer: int) -> float | None:
        """Seconds since ``node`` heard ``peer``, 1e9 without a connection from it; None if ``node`` tells nothing."""
        status = self.statuses.get(node)
        for one in () if status is None else status.peers:
            if one.node == peer:
                return 1e9 if one.silence is None else one.silence
        return None

    def round_trip(self, node: int, peer: int) -> float:
        """Seconds that a ping from ``node`` to ``peer`` took or waits; 0 if nothing is known."""
        status = self.statuses.get(node)
        return max((one.round_trip or 0.0 for one in (status.peers if status else ()) if one.node == peer), default=0.0)

    async def _look(self) -> None:
        while True:
            addresses = dict(self._addresses())
            found = await asyncio.gather(*(self._ask(address) for address in addresses.values()))
            self.statuses = dict(zip(addresses, found, strict=True))
            self._compare()
            self._looked.set()
            await asyncio.sleep(_PERIOD)

    async def _ask(self, address: str) -> NodeStatus | None:
        if address not in self._endpoints:
            self._endpoints[address] = self._transport.endpoint(address)
        try:
            return await self._endpoints[address].status(_TIMEOUT)
        except TransportError:
            return None

    def _compare(self) -> None:
        claims: dict[int, tuple[int, int]] = {}
        for node, status in self.statuses.items():
            if status is not None and status.ready and node in self.awaited:
                self.awaited.remove(node)
                self._journal.event("node", node=node, state="ready")
            for replica in () if status is None else status.replicas:
                if replica.role is Role.LEADER and replica.term > claims.get(replica.group, (0, -1))[1]:
                    claims[replica.group] = (node, replica.term)
        for group in sorted({*claims, *self.leaders}):
            before, now = self.leaders.get(group), claims.get(group)
            if now is not None:
                self.elected.add((group, now[1]))
            if before != now and (before is not None or now is not None):
                node, term = now or (0, before[1] if before else 0)
                self._journal.event("leader", group=group, node=node, term=term)
        self.leaders = claims
