"""What front ends ask of a node, whatever protocols they speak.

The port belongs to its consumer: front ends know nothing of Raft, of links to peers or of files.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol, Self
from zlib import crc32

from raftkv.commands.base import Sender
from shards.slots import DEFAULT_SLOTS

if TYPE_CHECKING:
    from raftkv.api.status import ClusterSettings, Digests, NodeStatus, ReplicaStatus, SlotStats
    from raftkv.commands.base import Command
    from raftkv.commands.results import Result
    from raftkv.commands.rights import Right
    from raftkv.frontend.counters import Durations
    from raftkv.store.users import Permit
    from raftkv.store.watching import Part, WatchAsk
    from shards.map import ShardMap


class Origin(NamedTuple):
    """What a node tells another of a caller for whom it asks.

    ``source``: a number of 32 bits that callers on one connection share; sources take turns. 0: the node itself.
    ``sender``: what it may ask for. ``user``: its name, "" = none, as of the ``revision`` of the users.
    """

    source: int = 0
    sender: Sender = Sender.NODE
    user: str = ""
    revision: int = 0


_NODE: Final = Origin()


class Caller:
    """On whose behalf operations are executed: a client's stream or call, another node, or the node itself.

    ``gone``: nobody waits for the answers any more; set once, by whoever made it. ``peer``: where it comes from, for
    people. ``proof``: what it has shown. ``permit``: what its user may do, kept by the node, as of the ``rules`` of
    that time.
    """

    __slots__ = ("__weakref__", "gone", "origin", "peer", "permit", "proof", "rules", "source")

    def __init__(self, origin: Origin = _NODE, peer: str = "", proof: bytes = b"") -> None:
        self.gone = False
        self.origin = origin
        self.source = origin.source
        self.peer = peer
        self.proof = proof
        self.permit: Permit | None = None
        self.rules: object = None

    @classmethod
    def at(cls, peer: str, sender: Sender = Sender.CLIENT, *, proof: bytes = b"") -> Self:
        """A client, or an operator, on the connection from ``peer``."""
        return cls(Origin(crc32(peer.encode()) | 1, sender), peer, proof)

    def operator(self) -> Self:
        """As an operator from now on."""
        self.origin = self.origin._replace(sender=Sender.OPERATOR)
        return self


NODE: Final = Caller()
"""The node itself."""


class Submit(Protocol):
    """:meth:`NodePort.submit`."""

    def __call__(
        self, ops: Sequence[Command], timeout: float, reply: Callable[[int, Result], None], caller: Caller = NODE, /
    ) -> None: ...


@dataclass(frozen=True, slots=True)
class ReplicaStats:
    """One replica as a monitor sees it. Counters run since the replica was started.

    ``member``: whether the map still gives it to this node. ``sessions``, ``slots``, ``record_bytes``: what it holds.
    ``data_loss``: on the leader, voters that have lost what they had acknowledged.
    """

    status: ReplicaStatus
    member: bool
    record_bytes: int
    sessions: int
    slots: int
    data_loss: tuple[int, ...]
    elections_won: int
    snapshots_installed: int


@dataclass(frozen=True, slots=True)
class NodeStats:
    """One node as a monitor sees it. Times in seconds, sizes in bytes; counters run since the process started.

    ``connections``: other node -> how often the link to it has come up. ``skews``: other node in contact -> by how much
    its wall clock is ahead of this node's. ``disk_free``: as of the last look, -1 before the first. ``memory``: of the
    process, 0 = unknown. ``memory_limit``: from which on no new data is taken, 0 =
    none. ``wal_waiting``: records that are not on stable storage yet. ``writing``: how long the present write to
    the WAL goes on, 0 if there is none. ``outstanding``: operations that have no answer yet. ``moves_committed``,
    ``moves_cancelled``, ``freezes``: of slot moves that this node saw to their end.
    """

    status: NodeStatus
    replicas: tuple[ReplicaStats, ...]
    connections: Mapping[int, int]
    skews: Mapping[int, float]
    disk_full: bool
    disk_free: int
    memory: int
    memory_limit: int
    memory_full: bool
    wal_bytes: int
    wal_segments: int
    wal_waiting: int
    writes: Durations
    writing: float
    outstanding: int
    outstanding_bytes: int
    moves_committed: int
    moves_cancelled: int
    freezes: Durations


class MonitoredNode(Protocol):
    """A node as its monitoring sees it."""

    def alive(self) -> bool:
        """False once the node has failed and is about to stop, say because its disk has. Depends on no other node."""

    def stats(self) -> NodeStats:
        """What the node and its replicas are at, as of now."""


class NodePort(Protocol):
    """A node as its clients see it."""

    def submit(
        self, ops: Sequence[Command], timeout: float, reply: Callable[[int, Result], None], caller: Caller = NODE
    ) -> None:
        """Execute ``ops`` in any order, on behalf of ``caller``.

        ``reply(i, result)`` is called exactly once per operation, perhaps before this call returns, and within
        ``timeout`` seconds and a little. A command's ``slot`` is that of its key. The node stamps writes that carry no
        client id with its own. Never raises: failures are results.
        """

    def watch(self, ask: WatchAsk, timeout: float, caller: Caller) -> AsyncGenerator[Part | Result, None]:
        """What happens to records, from the replica here of the group that has the lowest slot that is named.

        First what is followed, as of a linearizable read within ``timeout`` seconds. A Result is why it ends. Slots
        that the group does not serve, or serves no more, are told as released; it ends when all are.
        """

    def cluster_map(self) -> ShardMap | None:
        """The node's copy of the shard map; None until it knows one."""

    def leaders(self) -> dict[int, int]:
        """Group -> node that leads it, as far as known."""

    def status(self) -> NodeStatus:
        """State of this node and its replicas."""


class AdminPort(NodePort, Protocol):
    """A node as its operators see it. Operations on groups as a whole go through ``submit`` too."""

    def settings(self) -> ClusterSettings:
        """What a node that joins must know."""

    def waiting(self) -> Mapping[int, str]:
        """Group -> why it has not got its wanted voters yet, as far as this node drives that."""

    def slot_stats(self) -> list[SlotStats]:
        """Of all slots of the groups that this node leads."""

    def digests(self, group: int, check: int) -> Digests | None:
        """The digests of this node's replica, None if they are not computed (yet)."""

    def read_snapshot(self, group: int) -> AsyncIterator[bytes]:
        """The chunks of a group's state as of now. Raises NotApplied if this node cannot vouch for it."""


class Door(Protocol):
    """Who comes in, what they may ask for beside operations, and what is noted of it.

    ``closed``: the cluster has users, and serves nobody else.
    """

    @property
    def closed(self) -> bool: ...

    async def enter(self, peer: str, authorization: str | None) -> Caller:
        """The client at ``peer`` with what it has shown, in the words of HTTP's header.

        While the door is open, whatever it shows is taken, and looked at once that is closed. Raises Unauthenticated,
        Overloaded, or Unavailable if the node does not know who the users are now.
        """

    def check(self, caller: Caller, right: Right, action: str) -> None:
        """Raises PermissionDenied unless the caller has ``right`` for everything, as ``action`` needs it, or
        :meth:`enter`'s errors."""

    def note(self, caller: Caller, action: str, arguments: Mapping[str, Any], outcome: str) -> None:
        """Leave a line in the node's audit trail. ``arguments`` hold no secrets."""

    async def notes(self, lines: int) -> list[str]:
        """The latest ``lines`` of the audit trail, the oldest first."""


class OpenDoor:
    """That of a node that knows no users."""

    closed = False

    async def enter(self, peer: str, authorization: str | None) -> Caller:
        return Caller.at(peer)

    def check(self, caller: Caller, right: Right, action: str) -> None:
        return

    def note(self, caller: Caller, action: str, arguments: Mapping[str, Any], outcome: str) -> None:
        return

    async def notes(self, lines: int) -> list[str]:
        return []


async def answer_to(submit: Submit, op: Command, timeout: float, caller: Caller = NODE) -> Result:
    """Submit one operation and wait for its result, within ``timeout`` seconds and a little."""
    answer: asyncio.Future[Result] = asyncio.get_running_loop().create_future()

    def reply(_: int, result: Result) -> None:
        if not answer.done():
            answer.set_result(result)

    submit((op,), timeout, reply, caller)
    return await answer


def slots_of(node: NodePort) -> int:
    """Number of slots by which keys are hashed; any number will do while the node knows no map, as it refuses all."""
    shard_map = node.cluster_map()
    return DEFAULT_SLOTS if shard_map is None else shard_map.slots
