"""What a replica tells an operator."""

from __future__ import annotations

from dataclasses import dataclass

from raftkv.raft.consensus import Consensus


@dataclass(frozen=True, slots=True)
class GroupStatus:
    """A replica as an operator sees it.

    ``match``: on the leader, the last entry that each voter and learner is known to hold. ``voters``: those in effect.
    ``data_loss``: on the leader, voters that have lost what they had acknowledged; ``lost``: whether this replica has.
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
    data_loss: tuple[int, ...]
    lost: bool


def status_of(replica: Consensus, snapshot_index: int) -> GroupStatus:
    core, log = replica.core, replica.log
    followers = {} if replica.lead is None else replica.lead.followers
    match = {peer: core.match_index(peer) for peer in followers}
    if replica.lead is not None:
        match[replica.node] = log.durable_index
    return GroupStatus(
        group=replica.group,
        role=core.role(),
        leader=core.leader(),
        term=core.term(),
        last_index=log.last_index,
        commit_index=core.commit_index(),
        applied_index=core.applied_index(),
        snapshot_index=snapshot_index,
        match=match,
        voters=core.voters(),
        learners=replica.membership.learners,
        data_loss=tuple(peer for peer, progress in followers.items() if progress.data_loss),
        lost=replica.lost.here,
    )
