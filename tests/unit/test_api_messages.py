"""Guarantee: what a node says of itself and of its cluster survives the wire."""

from __future__ import annotations

from raftkv.api.messages import map_message, state_message, state_of, status_message, status_of
from raftkv.api.status import (
    ClusterState,
    FinishedMove,
    Job,
    Move,
    NodeStatus,
    PeerStatus,
    PlannedMove,
    Problem,
    ReplicaStatus,
    Role,
)
from raftkv.v1 import admin_pb2
from shards.map import Group, Node, ShardMap
from shards.moves import Phase


def test_a_node_s_status() -> None:
    replica = ReplicaStatus(1, Role.LEADER, 1, 2, 3, 4, 5, 6, 7, (1, 2), {2: 3}, (3,))
    peers = (PeerStatus(2, True, None, 0.5), PeerStatus(3, False, 0.25, None))
    status = NodeStatus(1, "c", "v", 3, True, 1.5, (replica,), peers, (Problem("kind", "text", None, 3),))
    message = admin_pb2.GetStatusResponse.FromString(status_message(status).SerializeToString())
    assert status_of(message) == status
    message.replicas[0].role = 9  # type: ignore[assignment]
    assert status_of(message).replicas[0].role is Role.FOLLOWER


def test_a_cluster_s_state() -> None:
    known = ShardMap("c", 1, 256, (Node(1, "a:1", "a:2", "x"),), (Group(0, (1,)), Group(1, (1,))), (1,) * 256)
    state = ClusterState(
        known,
        {1: 1},
        True,
        now=9,
        job=Job(1, (PlannedMove((1, 2), 1, 2),), 1, 2, 3, 4, 5, paused=True, ended=6),
        moves=(Move(1, (2,), 1, 2, Phase.COMMITTED, 7), Move(2, (3,), 1, 2, Phase.STARTED, 7)),
        finished=(FinishedMove(1, 2, 3, 4, True, 5, 6, 7, 8),),
        wanted={1: (1, 2), 2: (3,)},
        waiting={1: "why"},
        draining=frozenset({3}),
    )
    message = state_message(state, map_message(known, {1: 1}, to_member=True))
    assert state_of(admin_pb2.GetStateResponse.FromString(message.SerializeToString()), vouched=True) == state
    bare = admin_pb2.GetStateResponse(map=message.map)
    assert state_of(bare, vouched=False) == ClusterState(known, {1: 1}, False)
