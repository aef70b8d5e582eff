"""Operations on the replicas of this node."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from raftkv.commands.base import GroupCommand, Read, Write
from raftkv.commands.bounds import Mode
from raftkv.commands.results import Result
from raftkv.errors import Code
from raftkv.node.client_ids import ClientIds
from raftkv.node.replicas import Replica
from raftkv.node.requests import GroupPort, Request
from raftkv.raft.reads import ReadDone


class Execution:
    """``data`` is the node's live view of its replicas with records, ``groups`` of all; ``ended`` hears of outcomes.

    ``quorum_reads``: no read trusts a lease.
    """

    def __init__(
        self,
        data: Mapping[int, Replica],
        groups: GroupPort,
        ids: ClientIds,
        quorum_reads: bool,
        ended: Callable[[Request, Result], None],
    ) -> None:
        self._data = data
        self._groups = groups
        self._ids = ids
        self.quorum_reads = quorum_reads
        self._ended = ended

    def leased(self, group: int) -> Replica | None:
        """This node's replica of ``group``, if reads of it may be answered at once."""
        replica = self._data[group]
        return replica if not self.quorum_reads and replica.group.lease_holds() else None

    def read(self, replica: Replica, mode: int, done: ReadDone) -> None:
        """Call ``done`` once ``replica``, which leads, may be read linearizably, or with why not."""
        replica.group.read(self.quorum_reads or mode == Mode.QUORUM, done)

    def begin(self, request: Request, group: int) -> bool:
        """Execute ``request`` if this node can. ``ended`` is called with the outcome, possibly before this returns."""
        op = request.op
        if isinstance(op, GroupCommand):
            return self._ask(request, op)
        replica = self._data.get(group)
        if replica is None:
            return False
        if isinstance(op, Read):
            return self._read(request, op, replica)
        assert isinstance(op, Write)
        return self._write(request, op, replica)

    def _ask(self, request: Request, op: GroupCommand) -> bool:
        group = self._groups.get(op.group)
        if group is None or not group.leads():
            return False
        request.in_flight = not op.reads
        self._groups.execute(group, op, request.size, lambda result: self._ended(request, result))
        return True

    def _read(self, request: Request, op: Read, replica: Replica) -> bool:
        if op.stale:
            if not replica.group.caught_up:
                return False
            self._ended(request, op.read(replica.store))
            return True
        if not replica.group.leads():
            return False

        def allowed(code: Code) -> None:
            if not request.answered:
                self._ended(request, op.read(replica.store) if code == Code.OK else Result(code))

        self.read(replica, op.mode, allowed)
        return True

    def _write(self, request: Request, op: Write, replica: Replica) -> bool:
        if not replica.group.leads():
            return False
        refused = self._ids.refusal(op, replica.store)
        if refused is not None:
            self._ended(request, refused)
            return True
        request.in_flight = True
        request.proposal = replica.group.propose(
            [op], request.size, lambda results: self._ended(request, results[0]), request.caller.source
        )
        return True
