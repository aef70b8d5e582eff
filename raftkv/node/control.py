"""What is asked of a group as a whole, executed by its leader: steps of moves, members, the meta group's commands."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from raftkv.clock import Clock
from raftkv.errors import Code
from raftkv.node.replicas import Replicas
from raftkv.raft import RaftGroup
from raftkv.store.codec import pack, unpack
from raftkv.store.operations import GROUP_READS, Kind, Op, Result
from shards.map import META_GROUP

Done = Callable[[Result], None]

_SLICE: Final = 0.005
"""Seconds of a turn of the loop for the summary of a move."""

_CHECK_INTERVAL: Final = 1.0
"""Seconds from one check of a group to the next."""

_MALFORMED: Final = Result(Code.INVALID_ARGUMENT, detail="malformed question")


class GroupOperations:
    """Executes operations of ``GROUP_KINDS`` on the replicas of this node."""

    def __init__(self, replicas: Replicas, clock: Clock) -> None:
        self._replicas = replicas
        self._clock = clock
        self._next_check: dict[int, float] = {}

    def get(self, group: int) -> RaftGroup | None:
        """This node's replica of ``group``, if it has one."""
        return self._replicas.get(group)

    def execute(self, group: RaftGroup, op: Op, size: int, done: Done) -> None:
        """Call ``done`` once with the result; NOT_LEADER if this node does not lead ``group``."""
        kind = op.kind
        if kind == Kind.MEMBERS:
            group.read(True, lambda code: done(self._members(group) if code == Code.OK else Result(code)))
        elif kind == Kind.SUMMARY:
            group.read(
                False, lambda code: self._summarise(group.group, op, done) if code == Code.OK else done(Result(code))
            )
        elif kind in GROUP_READS:
            group.read(False, lambda code: done(self._read(group.group, op) if code == Code.OK else Result(code)))
        elif kind == Kind.CHANGE_MEMBERS:
            voters = _numbers(op.value)
            if voters:
                group.change_members(voters, done)
            else:
                done(_MALFORMED)
        elif kind == Kind.TRANSFER:
            self._transfer(group, op, done)
        elif kind == Kind.CHECK and (answer := self._may_check(group.group, op)) is not None:
            done(answer)
        elif kind == Kind.META and (refusal := self._replicas.meta.check(op.value)) is not None:
            done(refusal)
        else:
            group.propose([op], size, lambda results: done(results[0]))

    def _read(self, group: int, op: Op) -> Result:
        if group == META_GROUP:
            return self._replicas.meta.describe() if op.kind == Kind.META_STATE else _MALFORMED
        store = self._replicas.data[group].store
        arguments = _list(op.value)
        if not arguments or type(arguments[0]) is not int:
            return _MALFORMED
        if op.kind == Kind.MOVE_STATE:
            return store.move_state(arguments[0])
        if op.kind == Kind.EXPORT and [type(one) for one in arguments] == [int, bytes, int]:
            return store.export(*arguments)
        return _MALFORMED

    def _summarise(self, group: int, op: Op, done: Done) -> None:
        """Slots wait frozen for it, so it goes on in every turn of the loop; and the loop has others to serve."""
        replica = self._replicas.data.get(group)
        arguments = _list(op.value)
        if replica is None or len(arguments) != 1 or type(arguments[0]) is not int:
            done(_MALFORMED)
            return
        until = self._clock.now() + _SLICE
        while (result := replica.store.summary(arguments[0])) is None:
            if self._clock.now() >= until:
                self._clock.call_later(0.0, lambda: self._summarise(group, op, done))
                return
        done(result)

    def _may_check(self, group: int, op: Op) -> Result | None:
        """One check of a group at a time: every one makes images of all its slots, which are copied when written to."""
        replica = self._replicas.data.get(group)
        if replica is None:
            return _MALFORMED
        checks, now = replica.store.checks, self._clock.now()
        if any(number in checks for number in _numbers(op.value)):
            return Result(Code.OK)
        if now < self._next_check.get(group, 0.0) or not all(check.ended() for check in checks.values()):
            return Result(Code.OVERLOADED, detail=f"another check of group {group} is under way or has just ended")
        self._next_check[group] = now + _CHECK_INTERVAL
        return None

    @staticmethod
    def _members(group: RaftGroup) -> Result:
        """``value``: msgpack of [commit index, voters as of it, nodes in contact with the leader]; ``hint``: it."""
        members = group.members()
        contact = [node for node, state in members.peers.items() if state.contact]
        return Result(Code.OK, 1, pack([group.core.commit_index(), members.committed_voters, contact]), hint=group.node)

    @staticmethod
    def _transfer(group: RaftGroup, op: Op, done: Done) -> None:
        target = _numbers(op.value)
        if len(target) != 1:
            done(_MALFORMED)
        elif target[0] == group.node:
            done(Result(Code.OK))
        elif target[0] not in group.voters:
            done(Result(Code.CONDITION_FAILED, detail=f"node {target[0]} is no voter of group {group.group}"))
        elif group.transfer(target[0]):
            done(Result(Code.OK))
        else:
            done(Result(Code.CONDITION_FAILED, detail=f"group {group.group} cannot hand over at this moment"))


def _list(value: bytes | None) -> list[Any]:
    try:
        found = unpack(value or b"")
    except ValueError:
        return []
    return found if isinstance(found, list) else []


def _numbers(value: bytes | None) -> list[int]:
    found = _list(value)
    return found if all(type(one) is int and one > 0 for one in found) else []
