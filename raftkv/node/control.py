"""What is asked of a group as a whole, executed by its leader: steps of moves, members, the meta group's commands."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from raftkv.clock import Clock
from raftkv.commands.base import GroupCommand
from raftkv.commands.group import Check
from raftkv.commands.members import ChangeMembers, Members, Transfer
from raftkv.commands.meta import ChangeCluster, ConfirmMap, ReadCluster
from raftkv.commands.moving import Copying, MoveState
from raftkv.commands.results import DONE, MALFORMED, MembersReport, Result
from raftkv.commands.users import ReadUsers
from raftkv.errors import Code
from raftkv.node.replicas import Replicas
from raftkv.raft import RaftGroup
from shards.map import META_GROUP

Done = Callable[[Result], None]

_CHECK_INTERVAL: Final = 1.0
"""Seconds from one check of a group to the next."""


class GroupOperations:
    """Executes commands for groups on the replicas of this node. ``copy`` copies slots that move to another group."""

    def __init__(self, replicas: Replicas, clock: Clock, copy: Callable[[Copying, Done], None]) -> None:
        self._replicas = replicas
        self._copy = copy
        self._clock = clock
        self._next_check: dict[int, float] = {}

    def get(self, group: int) -> RaftGroup | None:
        """This node's replica of ``group``, if it has one."""
        return self._replicas.get(group)

    def execute(self, group: RaftGroup, op: GroupCommand, size: int, done: Done) -> None:
        """Call ``done`` once with the result; NOT_LEADER if this node does not lead ``group``."""
        if isinstance(op, Copying):
            self._copy(op, done)
        elif op.reads:
            quorum = isinstance(op, Members)
            group.read(quorum, lambda code: self._read(group, op, done) if code == Code.OK else done(Result(code)))
        elif isinstance(op, ChangeMembers):
            group.change_members(list(op.voters), done)
        elif isinstance(op, Transfer):
            self._transfer(group, op.node, done)
        elif isinstance(op, Check) and (answer := self._may_check(op)) is not None:
            done(answer)
        elif isinstance(op, ChangeCluster) and (refusal := self._check_change(group, op)) is not None:
            done(refusal)
        else:
            group.propose([op], size, lambda results: done(results[0]))

    def _read(self, group: RaftGroup, op: GroupCommand, done: Done) -> None:
        replica = self._replicas.data.get(group.group)
        if isinstance(op, Members):
            done(self._members(group))
        elif isinstance(op, ReadCluster | ConfirmMap | ReadUsers):
            done(self._read_meta(op) if group.group == META_GROUP else MALFORMED)
        elif replica is None:
            done(MALFORMED)
        elif isinstance(op, MoveState):
            done(replica.store.move_state(op.move))
        else:
            done(MALFORMED)

    def _check_change(self, group: RaftGroup, op: ChangeCluster) -> Result | None:
        return self._replicas.meta.check(op, group.time() if group.ready() else None)

    def _read_meta(self, op: ReadCluster | ConfirmMap | ReadUsers) -> Result:
        meta = self._replicas.meta
        if isinstance(op, ConfirmMap):
            return meta.confirm(op.digest)
        return meta.read_users(op.revision) if isinstance(op, ReadUsers) else meta.describe()

    def _may_check(self, op: Check) -> Result | None:
        """One check of a group at a time: every one makes images of all its slots, which are copied when written to."""
        group, replica = op.group, self._replicas.data.get(op.group)
        if replica is None:
            return MALFORMED
        checks, now = replica.store.checks, self._clock.now()
        if op.check in checks:
            return DONE
        if now < self._next_check.get(group, 0.0) or not all(check.ended() for check in checks.values()):
            return Result(Code.OVERLOADED, detail=f"another check of group {group} is under way or has just ended")
        self._next_check[group] = now + _CHECK_INTERVAL
        return None

    @staticmethod
    def _members(group: RaftGroup) -> Result:
        members = group.members()
        contact = tuple(node for node, state in members.peers.items() if state.contact)
        report = MembersReport(group.core.commit_index(), tuple(members.committed_voters), contact, group.node)
        return Result(Code.OK, answer=report)

    @staticmethod
    def _transfer(group: RaftGroup, node: int, done: Done) -> None:
        if node == group.node:
            done(DONE)
        elif node not in group.voters:
            done(Result(Code.CONDITION_FAILED, detail=f"node {node} is not a voter of group {group.group}"))
        elif group.transfer(node):
            done(DONE)
        else:
            done(Result(Code.CONDITION_FAILED, detail=f"group {group.group} cannot hand over at this moment"))
