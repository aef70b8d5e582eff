"""What a watch asks a group before it begins."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Self

from raftkv.commands.base import Read
from raftkv.commands.bounds import check_bound, check_mode
from raftkv.commands.results import MALFORMED, TOO_LARGE, CursorAnswer, Result
from raftkv.errors import InvalidArgument
from raftkv.limits import MAX_BOUND_BYTES
from shards.slots import is_slot_count

if TYPE_CHECKING:
    from raftkv.store.records import Store
    from raftkv.v1 import kv_pb2


class Cursor(Read, frozen=True, tag=71):
    """The numbers of ``slots`` that the group of ``slot`` serves too: see
    :class:`raftkv.commands.results.CursorAnswer`.

    ``slots``: a bit for each slot of the cluster, that of slot s being bit s % 8 of byte s // 8. ``prefix``: with which
    the keys begin that it is asked for; who may read them may know.
    """

    rpc: ClassVar[str] = "Cursor"

    slots: bytes
    prefix: bytes = b""

    @property
    def keys(self) -> tuple[bytes, ...] | None:
        return (self.prefix,)

    def size(self) -> int:
        return len(self.slots) + len(self.prefix)

    def refusal(self) -> Result | None:
        if len(self.prefix) > MAX_BOUND_BYTES:
            return TOO_LARGE
        return None if is_slot_count(8 * len(self.slots)) else MALFORMED

    def read(self, store: Store) -> Result:
        return store.cursor(self)

    @classmethod
    def from_request(cls, request: kv_pb2.CursorRequest, slots: int) -> Self:
        if request.slot >= slots:
            raise InvalidArgument(f"no slot {request.slot}: there are {slots}")
        check_bound(request.prefix)
        check_mode(request.consistency)
        wanted = request.slots or b"\xff" * (slots // 8)
        if len(wanted) != slots // 8:
            raise InvalidArgument(f"{8 * len(wanted)} slots: there are {slots}")
        return cls(request.slot, wanted, request.prefix, mode=request.consistency)

    def respond(self, result: Result, response: kv_pb2.CursorResponse) -> None:
        answer = result.answer
        assert isinstance(answer, CursorAnswer)
        response.slots = answer.slots
        response.numbers.extend(answer.numbers)
