"""Operations that this node has taken and not answered yet."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Protocol, TypeVar

from raftkv.commands.base import Command, GroupCommand, SlotCommand, Write
from raftkv.commands.results import Result
from raftkv.frontend.port import Caller
from raftkv.limits import OP_OVERHEAD
from raftkv.raft.proposals import Proposal

if TYPE_CHECKING:
    from raftkv.raft import RaftGroup
    from shards.map import ShardMap

T = TypeVar("T", bound=Command)
Reply = Callable[[int, Result], None]


def without(ops: Sequence[T], refused: Mapping[int, Result], reply: Reply) -> tuple[list[T], Reply]:
    """Answer the operations that are ``refused``, by their index; the others, and how they are answered."""
    for index, refusal in refused.items():
        reply(index, refusal)
    taken = [index for index in range(len(ops)) if index not in refused]
    return [ops[index] for index in taken], lambda at, result: reply(taken[at], result)


class GroupPort(Protocol):
    """What is asked of a group as a whole, where this node has a replica of it."""

    def get(self, group: int) -> RaftGroup | None: ...

    def execute(self, group: RaftGroup, op: GroupCommand, size: int, done: Callable[[Result], None]) -> None: ...


class Request:
    """One operation that could not be answered at once."""

    __slots__ = (
        "answered",
        "attempt",
        "caller",
        "deadline",
        "group",
        "in_flight",
        "index",
        "local",
        "maybe_applied",
        "op",
        "proposal",
        "reply",
        "seq",
        "size",
    )

    def __init__(
        self, op: Command, index: int, reply: Reply, deadline: float, local: bool, caller: Caller, group: int
    ) -> None:
        """``local``: for another node, never to be forwarded. ``group``: for which it was taken. ``proposal``: what may
        still be withdrawn. ``in_flight``: an attempt is under way that may take effect. ``maybe_applied``: an earlier
        one may have. ``seq``: our own number for a write whose client did not name it."""
        self.op = op
        self.index = index
        self.reply = reply
        self.deadline = deadline
        self.local = local
        self.caller = caller
        self.group = group
        self.size = OP_OVERHEAD + op.size()
        self.proposal: Proposal | None = None
        self.answered = False
        self.attempt = 0
        self.in_flight = False
        self.maybe_applied = False
        self.seq = 0

    def withdraw(self) -> bool:
        """Whether the attempt in flight, if there is one, surely has no effect."""
        if self.in_flight and self.proposal is not None and self.proposal.withdraw():
            self.in_flight = False
        return not self.in_flight


class WriteBatch:
    """The writes of one message for one group that this node leads: one proposal, one outcome."""

    __slots__ = ("caller", "deadline", "group", "indexes", "local", "ops", "proposal", "reply", "size")

    def __init__(self, group: int, reply: Reply, deadline: float, local: bool, caller: Caller) -> None:
        self.group = group
        self.reply = reply
        self.deadline = deadline
        self.local = local
        self.caller = caller
        self.ops: list[Write] = []
        self.indexes: list[int] = []
        self.size = 0
        self.proposal: Proposal | None = None

    def withdraw(self) -> bool:
        """Whether they have not reached the log, and never will."""
        return self.proposal is not None and self.proposal.withdraw()

    def answer(self, result: Result) -> None:
        for index in self.indexes:
            self.reply(index, result)


def group_of(op: Command, shard_map: ShardMap) -> int:
    """The group that executes ``op``, which is not refused."""
    if isinstance(op, SlotCommand):
        return shard_map.owners[op.slot]
    return op.group if isinstance(op, GroupCommand) else -1
