"""What a node says of itself and of its cluster: one model for the node, the wire, clients and commands."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum


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
