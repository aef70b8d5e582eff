"""A real cluster whose every link goes through a proxy of its own, and what can be done to it."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, TypeVar

from faults.abuse.child import Child
from faults.disks import SickDisk
from faults.driver import Effect, How, Way, names, node_at
from faults.process.toxiproxy import STREAMS, Link, Toxiproxy
from faults.process.watcher import Watcher
from faults.report.journal import Journal
from raftkv import AsyncClient
from raftkv.client.transport import GrpcTransport, TransportError, connect
from raftkv.local.node import MAIN
from raftkv.local.ports import free_ports
from raftkv.testing import LocalCluster

SPARES: Final = 4
"""Nodes that may join during a run."""

SLOTS: Final = 256
_HOST: Final = "127.0.0.1"
_CANARY: Final = 0.6
"""Seconds after which a door that lets no answer through counts as shut."""

_COMMAND: Final = 90.0
"""Seconds for a command of the operator's tool."""

DEAF: Final = 0.7
"""Seconds without a word after which a direction counts as cut: nodes ping each other twice a second."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class WorldShape:
    """``main``, ``environment``: see LocalCluster. ``clients``: names of the clients that have doors of their own.

    ``sick_disks``: the library that lets disks be slow or full, None = they are not. ``secure``: all is encrypted.
    """

    nodes: int = 5
    groups: int = 3
    replicas: int = 3
    clients: tuple[str, ...] = ()
    main: str = MAIN
    environment: Mapping[str, str] = field(default_factory=dict)
    sick_disks: Path | None = None
    raft: Mapping[str, Any] = field(default_factory=dict)
    node: Mapping[str, Any] = field(default_factory=dict)
    secure: bool = False


@dataclass(frozen=True, slots=True)
class Toxic:
    """What lies on one direction of one link; ``attributes`` are Toxiproxy's."""

    kind: str
    attributes: tuple[tuple[str, int], ...] = ()


_CUTS: Final[dict[How, Toxic]] = {
    "black hole": Toxic("timeout", (("timeout", 0),)),
    "reset": Toxic("reset_peer", (("timeout", 0),)),
    "lost answers": Toxic("timeout", (("timeout", 400),)),
}


class World:
    """Nodes, proxies and clients in ``folder``: see :class:`faults.driver.Driver`. ``server``: Toxiproxy's binary.

    ``down`` and ``paused``: nodes that were ended or stopped on purpose. ``gone``: nodes that never come back.
    """

    def __init__(self, folder: Path, shape: WorldShape, journal: Journal, server: str) -> None:
        self.shape = shape
        self.clients = shape.clients
        self.down: set[int] = set()
        self.paused: set[int] = set()
        self.gone: set[int] = set()
        self.disks: dict[int, SickDisk] = {}
        self._folder = folder
        self._journal = journal
        self._server = server
        self._stack = AsyncExitStack()
        self._links: dict[tuple[int, int], Link] = {}
        self._doors: dict[tuple[str, str], Link] = {}
        """(client, address of the node) -> the proxy between them."""
        self._laid: Counter[tuple[str, str, str]] = Counter()

    async def start(self) -> None:
        """Start Toxiproxy and the nodes, and wait until all serve. Raises ToxiproxyError, LocalError."""
        shape = self.shape
        most = shape.nodes + SPARES
        at = [f"{_HOST}:{port}" for port in await asyncio.to_thread(free_ports, 2 * most)]
        self._addresses = {node: (at[2 * node - 2], at[2 * node - 1]) for node in range(1, most + 1)}
        self._toxiproxy = await asyncio.to_thread(Toxiproxy, self._server, self._folder / "toxiproxy.log")
        self._stack.callback(self._toxiproxy.close)
        await asyncio.to_thread(self._open_ways)
        environment = dict(shape.environment)
        if shape.sick_disks is not None:
            environment["LD_PRELOAD"] = str(shape.sick_disks)
        self.cluster = LocalCluster(
            shape.nodes,
            shape.groups,
            shape.replicas,
            slots=SLOTS,
            folder=self._folder / "cluster",
            node=shape.node,
            raft=shape.raft,
            addresses=[self._addresses[node] for node in range(1, shape.nodes + 1)],
            dial={pair: link.listen for pair, link in self._links.items() if pair[0] <= shape.nodes},
            main=shape.main,
            environment=environment,
            secure=shape.secure,
        )
        self._stack.callback(self.cluster.close)
        tls = self.cluster.tls
        self._credentials = None if tls is None else tls.read()
        if shape.sick_disks is not None:
            for node in self.cluster.nodes:
                self.disks[node] = SickDisk(self.cluster.data_dir(node).parent)
                self._stack.callback(self.disks[node].close)
        for node in self.nodes:
            self._journal.event("node", node=node, state="starts")
        await asyncio.to_thread(self.cluster.start)
        for node in self.nodes:
            self._journal.event("node", node=node, state="ready")
        addresses = lambda: {node: self.cluster.address(node) for node in self.alive}  # noqa: E731
        self.watcher = Watcher(addresses, GrpcTransport(self._connect), self._journal)
        self._stack.push_async_callback(self.watcher.close)
        self.watcher.start()
        await self.watcher.fresh()

    async def close(self) -> None:
        """End everything that was started; the nodes' logs and data stay in the folder."""
        await self._stack.aclose()

    # -- who is there

    @property
    def nodes(self) -> list[int]:
        """Members, whether they run or not."""
        return [node for node in self.cluster.nodes if node not in self.gone]

    @property
    def alive(self) -> list[int]:
        """Nodes that run, paused or not."""
        return [node for node in self.nodes if node not in self.down]

    def voters(self, group: int) -> tuple[int, ...]:
        """As the nodes that answer know them."""
        for status in self.watcher.statuses.values():
            for replica in () if status is None else status.replicas:
                if replica.group == group:
                    return replica.voters
        return ()

    def leaders(self) -> dict[int, int]:
        return {group: node for group, (node, _) in self.watcher.leaders.items()}

    def groups(self) -> list[int]:
        """Groups that some node has a replica of, the meta group (0) included."""
        statuses = [status for status in self.watcher.statuses.values() if status is not None]
        return sorted({replica.group for status in statuses for replica in status.replicas})

    def apart(self) -> str:
        """Why the cluster is not healthy, or nothing: all nodes ready, every group led, every link heard."""
        if self.down or self.paused:
            return f"nodes {sorted(self.down | self.paused)} do not run"
        for node in self.nodes:
            status = self.watcher.statuses.get(node)
            if status is None or not status.ready:
                return f"node {node} {'does not answer' if status is None else 'is not ready'}"
            for peer in self.nodes:
                silence = None if peer == node else self.watcher.silence(node, peer)
                if silence is not None and silence > 1.0:
                    return f"node {node} does not hear node {peer}"
        leaderless = [group for group in self.groups() if self.watcher.leader(group) is None]
        return f"nobody leads groups {leaderless}" if leaderless else ""

    def _behind(self) -> str:
        logs: dict[int, set[tuple[int, int]]] = {}
        for status in self.watcher.statuses.values():
            for replica in () if status is None else status.replicas:
                logs.setdefault(replica.group, set()).add((replica.applied_index, replica.last_index))
        uneven = [f"group {group} at (applied, last) {sorted(ends)}" for group, ends in logs.items() if len(ends) > 1]
        return "; ".join(uneven)

    async def unsettled(self) -> str:
        await self.watcher.fresh()
        return self.apart() or self._behind()

    # -- processes

    async def kill(self, nodes: Sequence[int]) -> Effect:
        led = {node: [group for group, leader in self.leaders().items() if leader == node] for node in nodes}
        await self._end(nodes)

        def proof() -> str:
            if any(self.cluster.pid(node) is not None for node in nodes):
                return ""
            return "; ".join(
                f"n{node} is gone" + (f", which led groups {groups}" if groups else "") for node, groups in led.items()
            )

        return Effect(proof, lambda: self.restart(nodes))

    async def _end(self, nodes: Sequence[int]) -> None:
        self.down.update(nodes)
        self.watcher.awaited.difference_update(nodes)
        await asyncio.gather(*(asyncio.to_thread(self.cluster.kill, node) for node in nodes))
        self.paused.difference_update(nodes)
        self._note(nodes, "killed")

    async def stop(self, node: int) -> Effect:
        self.down.add(node)
        self._note([node], "stopping")
        ended = await asyncio.to_thread(self.cluster.stop_node, node)
        self._note([node], "stopped")
        return Effect(lambda: f"n{node} handed over and ended by itself" if ended else "", lambda: self.restart([node]))

    async def restart(self, nodes: Sequence[int]) -> None:
        """Start those of the nodes that do not run; does not wait until they serve."""
        nodes = [node for node in nodes if node in self.down]
        self._note(nodes, "starts")
        for node in nodes:
            await asyncio.to_thread(self.cluster.restart, node, wait=False)
        self.down.difference_update(nodes)
        self.watcher.awaited.update(nodes)

    async def pause(self, nodes: Sequence[int]) -> Effect:
        for node in nodes:
            self.cluster.pause(node)
        self.paused.update(nodes)
        self._note(nodes, "paused")

        def proof() -> str:
            silent = all(self.watcher.statuses.get(node, 0) is None for node in nodes)
            running = all(self.cluster.pid(node) is not None for node in nodes)
            return f"{names(nodes)} runs as a process and answers nothing" if silent and running else ""

        return Effect(proof, lambda: self._resume(nodes))

    def _resume(self, nodes: Sequence[int]) -> None:
        for node in nodes:
            self.cluster.resume(node)
        self.paused.difference_update(nodes)
        self._note(nodes, "goes on")

    async def wipe(self, node: int) -> None:
        """It never comes back."""
        await self._end([node])
        self.gone.add(node)
        self.down.discard(node)
        await asyncio.to_thread(shutil.rmtree, self.cluster.data_dir(node))

    def descriptors(self, node: int) -> int:
        """How many files and connections the process of ``node`` has open, 0 if it does not run."""
        try:
            return len(os.listdir(f"/proc/{self.cluster.pid(node)}/fd"))
        except OSError:
            return 0

    async def add_node(self) -> int:
        """One more node, reached through proxies as the others are. Raises LocalError, JoinError, Unavailable."""
        new = max(self.cluster.nodes) + 1
        dial = {b: link.listen for (a, b), link in self._links.items() if a == new}
        self._note([new], "starts")
        node = await asyncio.to_thread(self.cluster.add_node, dial=dial, addresses=self._addresses[new])
        assert node == new, f"the cluster gave the id {node} instead of {new}"
        self._note([new], "ready")
        return node

    def dead(self) -> list[int]:
        """Nodes that have ended although nobody wanted it; they count as down from now on."""
        found = [node for node in self.alive if self.cluster.pid(node) is None]
        self.down.update(found)
        self._note(found, "ended by itself")
        return found

    def _note(self, nodes: Iterable[int], state: str) -> None:
        for node in nodes:
            self._journal.event("node", node=node, state=state)

    # -- disks

    async def slow_disk(self, node: int, seconds: float) -> Effect:
        disk = self.disks[node]
        disk.tell(delay=seconds)
        return Effect(
            lambda: f"{disk.delayed} syncs took {seconds} s longer" if disk.delayed else "",
            lambda: self._cure(disk),
        )

    async def fill_disk(self, node: int) -> Effect:
        disk = self.disks[node]
        disk.tell(full=True)
        return Effect(
            lambda: f"n{node} was told {disk.refused} times that there is no room" if disk.refused else "",
            lambda: self._cure(disk),
        )

    async def _cure(self, disk: SickDisk) -> None:
        disk.tell()
        await self.restart(self.dead())

    def admin(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run ``raftkv-admin`` against the members; blocks."""
        endpoints = ",".join(self.cluster.address(node) for node in self.nodes)
        return subprocess.run(
            [sys.executable, "-m", "raftkv.cli.admin", "--endpoints", endpoints, *self._options(), "--yes", *arguments],
            capture_output=True,
            text=True,
            timeout=_COMMAND,
            check=False,
        )

    def tls_files(self) -> list[str]:
        """Paths of the CAs, and of a client's certificate and key; empty if nothing is encrypted."""
        tls = self.cluster.tls
        return [] if tls is None else [str(path) for path in (tls.ca, tls.cert, tls.key)]

    def _options(self) -> Iterator[str]:
        for name, path in zip(("ca", "cert", "key"), self.tls_files(), strict=False):
            yield from (f"--tls-{name}", path)

    def _connect(self, address: str) -> Any:
        return connect(address, self._credentials)

    # -- links

    def _open_ways(self) -> None:
        """Proxies to all nodes, also to those that may join: the configuration of the first nodes names theirs."""
        for node, (address, peer_address) in self._addresses.items():
            for other in self._addresses:
                if other != node:
                    self._links[other, node] = self._toxiproxy.link(f"node-{other}-to-{node}", peer_address)
            for client in self.shape.clients:
                self._doors[client, address] = self._toxiproxy.link(f"{client}-to-{node}", address)

    async def cut(self, ways: Sequence[Way], how: How) -> Effect:
        return await self.lay(ways, _CUTS[how], lambda: self._cut_off(ways))

    async def lay(self, ways: Sequence[Way], toxic: Toxic, proof: Callable[[], str | Awaitable[str]]) -> Effect:
        """Lay ``toxic`` on what goes these ways."""
        streams = [stream for way in ways for stream in self._streams(*way)]

        def each(act: Callable[[Link, Toxic, str], None]) -> None:
            for link, stream in streams:
                act(link, toxic, stream)

        await asyncio.to_thread(each, self._lay)
        return Effect(proof, lambda: asyncio.to_thread(each, self._lift))

    def _streams(self, source: str, target: str) -> Iterator[tuple[Link, str]]:
        """What goes one way: between nodes on the connections of either of them."""
        up, down = STREAMS
        a, b = node_at(source), node_at(target)
        if a and b:
            yield self._links[a, b], up
            yield self._links[b, a], down
        elif b:
            yield self._doors[source, self.cluster.address(b)], up
        else:
            yield self._doors[target, self.cluster.address(a)], down

    async def _cut_off(self, ways: Sequence[Way]) -> str:
        """Says so if whoever should not hear hears nothing, and no call of a client comes through where none should."""
        said = []
        heard = [self.watcher.silence(b, a) for one, other in ways if (a := node_at(one)) and (b := node_at(other))]
        silences = [silence for silence in heard if silence is not None]
        if heard:
            if not silences or min(silences) < DEAF:
                return ""
            said.append(f"none of the {len(silences)} directions that are cut was heard for {DEAF} s")
        for client in sorted({one for way in ways for one in way if not node_at(one)}):
            shut = {node_at(one) for way in ways if client in way for one in way if one != client}
            alive = sorted(self.alive)
            doors = await asyncio.gather(*(self.door_open(client, node) for node in alive))
            open_ = {node for node, is_open in zip(alive, doors, strict=True) if is_open}
            if open_ & shut or (not open_ and shut < {*self.alive}):
                return ""
            said.append(f"no call of {client} is answered by {names(sorted(shut))}")
        return "; ".join(said)

    def _lay(self, link: Link, toxic: Toxic, stream: str) -> None:
        key = (link.name, toxic.kind, stream)
        self._laid[key] += 1
        if self._laid[key] == 1:
            link.add(toxic.kind, stream, **dict(toxic.attributes))

    def _lift(self, link: Link, toxic: Toxic, stream: str) -> None:
        key = (link.name, toxic.kind, stream)
        self._laid[key] -= 1
        if self._laid[key] <= 0:
            del self._laid[key]
            link.remove(f"{toxic.kind}_{stream}")

    async def heal(self) -> None:
        """Everybody runs, every link is clean."""
        self._laid.clear()
        await asyncio.to_thread(self._toxiproxy.heal)
        self._resume(sorted(self.paused))
        await self.restart([node for node in self.nodes if node in self.down])

    async def door_open(self, client: str, node: int) -> bool:
        """Whether an answer comes through between a client and a node."""
        endpoint = GrpcTransport(lambda address: self._connect(self._doors[client, address].listen)).endpoint(
            self.cluster.address(node)
        )
        try:
            await endpoint.status(_CANARY)
        except TransportError:
            return False
        else:
            return True
        finally:
            await endpoint.close()

    # -- clients

    async def abuse(self, act: str, **arguments: Any) -> Child:
        """Another process does ``act`` of :mod:`faults.abuse.acts` until it is ended, or this world is closed."""
        child = await Child.start(act, **arguments)
        self._stack.push_async_callback(child.end)
        return child

    def client(self, name: str, timeout: float) -> AsyncClient:
        """A client through the doors of ``name``, or straight if it has none. ``timeout`` in seconds."""

        def reach(address: str) -> Any:
            door = self._doors.get((name, address))
            return self._connect(address if door is None else door.listen)

        return AsyncClient(self.cluster.endpoints, timeout=timeout, transport=GrpcTransport(reach))

    def spawn(self, name: str, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        return asyncio.create_task(work, name=name)
