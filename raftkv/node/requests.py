"""Operations that this node has taken and not answered yet."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

from raftkv.commands.base import Command, GroupCommand, Read, SlotCommand, Write
from raftkv.commands.results import Result
from raftkv.frontend.port import Caller
from raftkv.limits import OP_OVERHEAD
from raftkv.raft.proposals import Proposal

if TYPE_CHECKING:
    from raftkv.raft import RaftGroup
    from shards.map import ShardMap

Reply = Callable[[int, Result], None]
Op = TypeVar("Op", bound=Command)


def without(ops: Sequence[Op], refused: Mapping[int, Result], reply: Reply) -> tuple[list[Op], Reply]:
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


class Batch(Generic[Op]):
    """The operations of one kind, of one message, for one group that this node leads: one attempt, one outcome.

    ``size``: with what each operation counts for, in bytes.
    """

    __slots__ = ("caller", "deadline", "group", "indexes", "local", "ops", "reply", "size")

    def __init__(self, group: int, reply: Reply, deadline: float, local: bool, caller: Caller) -> None:
        self.group = group
        self.reply = reply
        self.deadline = deadline
        self.local = local
        self.caller = caller
        self.ops: list[Op] = []
        self.indexes: list[int] = []
        self.size = 0

    def add(self, index: int, op: Op) -> None:
        self.ops.append(op)
        self.indexes.append(index)
        self.size += OP_OVERHEAD + op.size()

    def answer(self, result: Result) -> None:
        for index in self.indexes:
            self.reply(index, result)

    def withdraw(self) -> bool:
        """Whether they have had no effect, and never will."""
        raise NotImplementedError


class WriteBatch(Batch[Write]):
    """Writes: one proposal."""

    __slots__ = ("proposal",)

    def __init__(self, group: int, reply: Reply, deadline: float, local: bool, caller: Caller) -> None:
        super().__init__(group, reply, deadline, local, caller)
        self.proposal: Proposal | None = None

    def withdraw(self) -> bool:
        return self.proposal is not None and self.proposal.withdraw()


class ReadBatch(Batch[Read]):
    """Linearizable reads, allowed together."""

    __slots__ = ()

    def withdraw(self) -> bool:
        return True


def group_of(op: Command, shard_map: ShardMap) -> int:
    """The group that executes ``op``, which is not refused."""
    if isinstance(op, SlotCommand):
        return shard_map.owners[op.slot]
    return op.group if isinstance(op, GroupCommand) else -1
