"""What a node says of itself and of its cluster: one model for the node, the wire, clients and commands."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum

from shards.map import ShardMap
from shards.moves import Phase


class Role(IntEnum):
    """Part that a replica plays in its group."""

    FOLLOWER = 0
    CANDIDATE = 1
    LEADER = 2


@dataclass(frozen=True, slots=True)
class ReplicaStatus:
    """One replica of this node.

    ``leader``: node, 0 = unknown. ``match``: on the leader, per voter the highest index that it is known to hold.
    """

    group: int
    role: Role
    leader: int
    term: int
    last_index: int
    commit_index: int
    applied_index: int
    snapshot_index: int
    records: int
    voters: tuple[int, ...]
    match: Mapping[int, int] = field(default_factory=dict)
    learners: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class PeerStatus:
    """How this node reaches ``node``, and hears it. Times in seconds.

    ``up``: whether messages to it are sent. ``round_trip``: what the last ping took, or has been waiting for; None
    while ``up`` is false. ``silence``: since something came from it; None without a connection from it.
    """

    node: int
    up: bool
    round_trip: float | None
    silence: float | None


@dataclass(frozen=True, slots=True)
class Problem:
    """Something that a node finds wrong with itself, or with what it hears of others.

    ``kind``: a word that programs and alerts go by, in docs/admin.md. ``text``: for people, without the name of the
    node that tells it. ``group``, ``node``: which one it is about, None = the node that tells it, as a whole.
    """

    kind: str
    text: str
    group: int | None = None
    node: int | None = None


@dataclass(frozen=True, slots=True)
class NodeStatus:
    """One node.

    ``ready``: the map is known and every group that the node belongs to has a leader. ``uptime``: seconds.
    """

    node: int
    cluster_id: str
    version: str
    map_epoch: int
    ready: bool
    uptime: float
    replicas: tuple[ReplicaStatus, ...] = ()
    peers: tuple[PeerStatus, ...] = ()
    problems: tuple[Problem, ...] = ()


@dataclass(frozen=True, slots=True)
class ClusterSettings:
    """What a node that joins must know. Times in seconds, sizes in bytes."""

    groups: int
    replicas: int
    election_min: float
    election_max: float
    heartbeat: float
    snapshot_bytes: int


@dataclass(frozen=True, slots=True)
class SlotStats:
    """A slot as the leader of its group sees it. ``operations``: reads and writes since that replica started."""

    slot: int
    group: int
    keys: int
    bytes: int
    operations: int


@dataclass(frozen=True, slots=True)
class Digests:
    """What a replica's state was at a check: a digest for each slot, and one of the rest."""

    slots: Mapping[int, bytes]
    rest: bytes


@dataclass(frozen=True, slots=True)
class PlannedMove:
    """Slots that are to go from one group to another in one move."""

    slots: tuple[int, ...]
    source: int
    target: int


@dataclass(frozen=True, slots=True)
class Move:
    """A move under way. ``started``: group time in ms."""

    id: int
    slots: tuple[int, ...]
    source: int
    target: int
    phase: Phase
    started: int


@dataclass(frozen=True, slots=True)
class FinishedMove:
    """A move that has ended. Times in ms, ``freeze``: while its slots were not served; ``took``: from start to end."""

    id: int
    slots: int
    source: int
    target: int
    committed: bool
    records: int
    bytes: int
    freeze: int
    took: int


@dataclass(frozen=True, slots=True)
class Job:
    """A plan that is carried out: by hand of one ``slot move``, or of a rebalancing.

    ``pending``: what has not been started. ``rate``: bytes per second, 0 = unlimited. ``concurrency``: moves at a time.
    ``moves`` and ``slots``: of the whole plan. ``done`` and ``done_slots``: committed; ``failed``: moves that were
    cancelled or were not possible any more. ``started`` and ``ended``: group time in ms, ``ended`` 0 = it goes on.
    """

    id: int
    pending: tuple[PlannedMove, ...]
    moves: int
    slots: int
    rate: int
    concurrency: int
    started: int
    paused: bool = False
    cancelled: bool = False
    done: int = 0
    done_slots: int = 0
    failed: int = 0
    ended: int = 0

    @property
    def open(self) -> bool:
        """Whether it goes on."""
        return not self.ended


@dataclass(frozen=True, slots=True)
class ClusterState:
    """What the cluster says of itself: its map, who leads each group, and what is under way to change it.

    ``vouched``: the meta group said so, as of ``now``, its time in ms; else it is one node's copy of the map, and
    nothing is known of the rest. ``finished``: the latest moves. ``wanted``: group -> voters that it is to have, for
    groups that have others; ``waiting``: why not yet, if known. ``draining``: nodes that get no further replicas.
    """

    map: ShardMap
    leaders: Mapping[int, int]
    vouched: bool
    now: int = 0
    job: Job | None = None
    moves: tuple[Move, ...] = ()
    finished: tuple[FinishedMove, ...] = ()
    wanted: Mapping[int, tuple[int, ...]] = field(default_factory=dict)
    waiting: Mapping[int, str] = field(default_factory=dict)
    draining: frozenset[int] = frozenset()


@dataclass(frozen=True, slots=True)
class Joined:
    """What a node that joins is told: its id, the map with it, the cluster's settings, and whether it has users."""

    node: int
    map: ShardMap
    settings: ClusterSettings
    users: bool
