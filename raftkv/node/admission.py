"""Admission control: bounds of the operations in flight, for the node, for each group and for each caller.

No group and no caller has a fixed share. Each may hold as much as is still free: one alone gets half of the room, two
get a third each, and so on. However many groups are stuck and however many clients flood the node, some room is left
for the others (dynamic thresholds, as switches share their buffers: Choudhury and Hahne, 1998).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from raftkv import limits
from raftkv.commands.base import Command, GroupCommand, SlotCommand
from raftkv.commands.results import Result
from raftkv.errors import Code
from raftkv.frontend.port import NODE, Caller
from raftkv.node.requests import group_of
from shards.map import ShardMap

_OPS_RESERVED: Final = limits.MAX_PENDING_OPS // limits.PENDING_RESERVE
_BYTES_RESERVED: Final = limits.MAX_PENDING_BYTES // limits.PENDING_RESERVE

_NODE_FULL: Final = Result(Code.OVERLOADED, detail="the node has too many operations outstanding")
_CALLER_FULL: Final = Result(Code.OVERLOADED, detail="this caller has too many operations outstanding at the node")


class _Held:
    """Operations and bytes of one group or caller."""

    __slots__ = ("bytes", "ops")

    def __init__(self) -> None:
        self.ops = 0
        self.bytes = 0


class Admission:
    """What is outstanding. ``ops``, ``bytes``: as a whole."""

    def __init__(self) -> None:
        self.ops = 0
        self.bytes = 0
        self._groups: dict[int, _Held] = {}
        self._callers: dict[Caller, _Held] = {}

    def refusal(self, group: int, caller: Caller, ops: int, size: int, *, reserve: bool = False) -> Result | None:
        """Why so many more operations for ``group``, of ``size`` bytes, are not taken; None if they are.

        ``reserve``: they may use what is kept free of clients' operations. The node's own are bounded by that only.
        """
        free_ops, free_bytes = limits.MAX_PENDING_OPS - self.ops, limits.MAX_PENDING_BYTES - self.bytes
        if not reserve and caller is not NODE:
            free_ops, free_bytes = free_ops - _OPS_RESERVED, free_bytes - _BYTES_RESERVED
        if ops > free_ops or size > free_bytes:
            return _NODE_FULL
        if caller is NODE:
            return None
        held = self._callers.get(caller)
        if held is not None and (held.ops + ops > free_ops or held.bytes + size > free_bytes):
            return _CALLER_FULL
        held = self._groups.get(group)
        if held is not None and (held.ops + ops > free_ops or held.bytes + size > free_bytes):
            return Result(Code.OVERLOADED, detail=f"group {group} has too many operations outstanding at the node")
        return None

    def add(self, group: int, caller: Caller, ops: int, size: int) -> None:
        """They are outstanding from now on."""
        self.ops += ops
        self.bytes += size
        held = self._groups.get(group)
        if held is None:
            held = self._groups[group] = _Held()
        held.ops += ops
        held.bytes += size
        held = self._callers.get(caller)
        if held is None:
            held = self._callers[caller] = _Held()
        held.ops += ops
        held.bytes += size

    def remove(self, group: int, caller: Caller, ops: int, size: int) -> None:
        """They are answered."""
        self.ops -= ops
        self.bytes -= size
        held = self._groups[group]
        held.ops -= ops
        held.bytes -= size
        held = self._callers[caller]
        held.ops -= ops
        held.bytes -= size
        if not held.ops:
            # Callers come and go, groups stay.
            del self._callers[caller]


def refusal_of(op: Command, shard_map: ShardMap, no_space: Mapping[int, str]) -> Result | None:
    """Why ``op`` is not taken at all; ``no_space``: groups led here that take no new data -> why."""
    if isinstance(op, SlotCommand):
        if op.slot >= shard_map.slots:
            return Result(Code.INVALID_ARGUMENT, detail=f"slot {op.slot} is not one of 0 to {shard_map.slots - 1}")
    elif not isinstance(op, GroupCommand):
        return Result(Code.INVALID_ARGUMENT, detail=f"{op.name} is proposed by leaders only")
    elif all(group.id != op.group for group in shard_map.groups):
        return no_group(op.group)
    if no_space and op.grows:
        why = no_space.get(group_of(op, shard_map))
        return None if why is None else Result(Code.NO_SPACE, detail=why)
    return None


def sender_refusal(op: Command, caller: Caller) -> Result | None:
    """Why ``op`` is not taken from ``caller``."""
    if isinstance(op, SlotCommand) or op.sender <= caller.origin.sender:
        return None
    text = f"{op.name} is taken from {op.sender.name.lower()}s only, not from {caller.origin.sender.name.lower()}s"
    return Result(Code.INVALID_ARGUMENT, detail=text)


def no_group(group: int) -> Result:
    return Result(Code.INVALID_ARGUMENT, detail=f"there is no group {group}")


def no_leader(group: int) -> Result:
    detail = f"group {group} has had no reachable leader for longer than an election takes"
    return Result(Code.UNAVAILABLE, detail=detail)
