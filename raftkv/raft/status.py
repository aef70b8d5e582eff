"""What a replica tells an operator."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from raftkv.raft.group import RaftGroup
    from raftkv.raft.replication import Progress


@dataclass(frozen=True, slots=True)
class GroupStatus:
    """A replica as an operator sees it.

    ``match``: on the leader, the last entry that each voter and learner is known to hold. ``voters``: those in effect.
    ``amnesia``: on the leader, voters that have lost what they had acknowledged; ``lost``: whether this replica has.
    """

    group: int
    role: int
    leader: int
    term: int
    last_index: int
    commit_index: int
    applied_index: int
    snapshot_index: int
    match: dict[int, int]
    voters: tuple[int, ...]
    learners: tuple[int, ...]
    amnesia: tuple[int, ...]
    lost: bool


def status_of(group: RaftGroup, followers: Mapping[int, Progress]) -> GroupStatus:
    """The status of a replica, which replicates to ``followers``."""
    core = group.core
    match = {peer: core.match_index(peer) for peer in followers}
    if group.leads():
        match[group.node] = group.log.durable_index
    return GroupStatus(
        group=group.group,
        role=core.role(),
        leader=core.leader(),
        term=core.term(),
        last_index=group.log.last_index,
        commit_index=core.commit_index(),
        applied_index=core.applied_index(),
        snapshot_index=group.snapshots.index,
        match=match,
        voters=group.voters,
        learners=group.membership.learners,
        amnesia=tuple(peer for peer, progress in followers.items() if progress.amnesia),
        lost=group.lost.here,
    )
