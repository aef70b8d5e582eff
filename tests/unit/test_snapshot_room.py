"""Snapshots on a disk without room: not begun where they cannot fit, given up where they do not, tried again later."""

from __future__ import annotations

import errno

import pytest

from raftkv.raft import RaftConfig
from raftkv.raft.messages import Type
from tests.group_lab import GroupLab, GroupReplica

LATER = 3.0
"""Seconds after which a snapshot is tried again."""


def leading(lab: GroupLab) -> GroupReplica:
    """Node 1 leads, has a snapshot of one write and another write since."""
    leader = lab.elect(1)
    lab.pump()
    put(lab, leader)
    want(lab, leader)
    assert leader.snapshots.index == leader.raft.log.last_index
    put(lab, leader)
    return leader


def put(lab: GroupLab, leader: GroupReplica) -> None:
    leader.put(b"x" * 100)
    lab.run(0.0)
    lab.pump()


def want(lab: GroupLab, replica: GroupReplica) -> None:
    replica.take_snapshot()
    lab.run(0.0)


def room(replica: GroupReplica, size: int) -> None:
    """So many bytes of its disk are free."""
    replica.disk.capacity = replica.disk.used() + size


def test_a_snapshot_without_room_is_not_begun_and_taken_when_there_is_some() -> None:
    lab = GroupLab(by_hand=True, config=RaftConfig(keep_entries=0))
    leader = leading(lab)
    snapshots, before = leader.snapshots, leader.snapshots.index
    room(leader, snapshots.size - 1)
    operations = leader.disk.operations
    want(lab, leader)
    assert (snapshots.index, leader.disk.operations, snapshots.lacks) == (before, operations, snapshots.size)
    room(leader, 1 << 40)
    want(lab, leader)
    assert snapshots.index == before, "it rests a while"
    lab.run(LATER)
    want(lab, leader)
    assert snapshots.index > before
    assert snapshots.lacks == 0


@pytest.mark.parametrize(("code", "lacks"), [(errno.ENOSPC, True), (errno.EDQUOT, True), (errno.EIO, False)])
def test_a_snapshot_that_could_not_be_written_leaves_the_old_one_and_comes_later(code: int, lacks: bool) -> None:
    lab = GroupLab(by_hand=True, config=RaftConfig(keep_entries=0))
    leader = leading(lab)
    snapshots, before = leader.snapshots, leader.snapshots.index
    leader.disk.fail_syncs("snapshots", code)
    want(lab, leader)
    lab.run(0.1)
    assert snapshots.index == before
    assert bool(snapshots.lacks) is lacks
    leader.disk.before_sync = None
    lab.run(LATER)
    want(lab, leader)
    lab.run(0.1)
    assert snapshots.index > before
    assert snapshots.lacks == 0


def test_a_follower_without_room_does_not_pull_a_snapshot_until_it_has_some() -> None:
    lab = GroupLab(by_hand=True, config=RaftConfig(keep_entries=0))
    leader = lab.elect(1)
    lab.pump()
    lab.isolate(3)
    put(lab, leader)
    want(lab, leader)
    lab.heal()
    room(lab[3], 0)
    for _ in range(3):
        lab.tick(1, after=0.2)
        lab.pump()
    assert not lab.find(3, 1, Type.SNAPSHOT_PULL)
    assert lab[3].snapshots.lacks == leader.snapshots.size
    room(lab[3], 1 << 40)
    for _ in range(20):
        lab.tick(1, after=0.2)
        lab.pump()
    assert lab[3].commands() == leader.commands()
    assert lab[3].snapshots.lacks == 0
