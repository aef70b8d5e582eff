"""Operations on their way: to a replica here, or to the node that leads their group.

A write keeps its request id on every attempt, so trying again after an unknown outcome is safe: the state machine
answers a second execution with the first one's result.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Final
from weakref import WeakValueDictionary

from msgspec.structs import replace

from raftkv import limits
from raftkv.clock import Clock
from raftkv.commands.base import Command, GroupCommand, Read, SlotCommand, Write
from raftkv.commands.bounds import Mode
from raftkv.commands.results import Result
from raftkv.errors import OUTCOMES, Code
from raftkv.frontend.port import NODE, Caller
from raftkv.limits import OP_OVERHEAD
from raftkv.node.admission import Admission
from raftkv.node.answers import bounded_answers
from raftkv.node.client_ids import ClientIds
from raftkv.node.forwarding import SETTLED, Forwarding
from raftkv.node.leaders import Leaders, Peers
from raftkv.node.replicas import Replica
from raftkv.node.requests import GroupPort, Reply, Request, Writes
from raftkv.node.retries import Retries
from shards.map import ShardMap

_IDS_PERIOD: Final = 1.0
"""Seconds between two looks at the time up to which client ids are taken."""

_TOO_LATE: Final = Result(Code.DEADLINE_EXCEEDED, detail="no outcome before the deadline")
_NOT_PROPOSED: Final = Result(Code.UNAVAILABLE, detail="the group's leader was too busy to begin before the deadline")
_NOT_ASKED: Final = Result(Code.UNAVAILABLE, detail="no leader could be asked before the deadline")
_GONE: Final = Result(Code.UNAVAILABLE, detail="nobody waits for it any more")

_AGAIN: Final = frozenset(code for code, outcome in OUTCOMES.items() if outcome.retry and code != Code.OVERLOADED)


class Router:
    """Executes operations for clients and for other nodes.

    ``data`` is the node's live view of its replicas with records, ``groups`` of all. ``leaderless``: seconds for which
    a group may have no leader before its operations are refused at once.
    """

    def __init__(
        self,
        node: int,
        *,
        data: dict[int, Replica],
        groups: GroupPort,
        peers: Peers,
        clock: Clock,
        ids: ClientIds,
        quorum_reads: bool,
        leaderless: float,
    ) -> None:
        self._node = node
        self._data = data
        self._groups = groups
        self._clock = clock
        self._ids = ids
        self._ids_due = 0.0
        self.quorum_reads = quorum_reads
        self.map: ShardMap | None = None
        self.no_space: Mapping[int, str] = {}
        """Groups led here that take no new data -> why."""
        self._open: dict[Request, None] = {}
        self._writes: dict[Writes, None] = {}
        self._admission = Admission()
        self._peers_callers: WeakValueDictionary[tuple[int, int], Caller] = WeakValueDictionary()
        self._numbers: dict[int, None] = {}
        self._number = 0
        self._leaders = Leaders(node, groups, peers)
        self._retries = Retries(clock, self._leaders, self._route, self._refuse, leaderless)
        self._forwarding = Forwarding(
            leaders=self._leaders,
            peers=peers,
            clock=clock,
            # Random, since answers to what was forwarded before the last start may still come.
            first_number=int.from_bytes(ids.own[-8:]) >> 2,
            ended=self._on_forwarded_outcome,
        )

    @property
    def outstanding(self) -> tuple[int, int]:
        """(operations that have no answer yet, their bytes)."""
        return self._admission.ops, self._admission.bytes

    def leader_of(self, group: int) -> int:
        """Node that leads ``group`` as far as this node knows, 0 = nobody."""
        return self._leaders.of(group)

    @staticmethod
    def _group_of(op: Command, shard_map: ShardMap) -> int:
        """Of a command that is not refused."""
        return (
            shard_map.owners[op.slot]
            if isinstance(op, SlotCommand)
            else op.group
            if isinstance(op, GroupCommand)
            else -1
        )

    # -- in

    def submit(self, ops: Sequence[Command], timeout: float, reply: Reply, caller: Caller = NODE) -> None:
        """See :meth:`raftkv.frontend.port.NodePort.submit`."""
        self._submit(ops, timeout, reply, caller, local=False)

    def on_forwarded(self, peer: int, number: int, timeout: int, source: int, ops: list[Command]) -> None:
        """``peer`` asks for operations to be executed here: only if this node can, never forwarded again."""
        caller = self._peers_callers.setdefault((peer, source), Caller(source))
        answers = self._forwarding
        answer = bounded_answers(ops, partial(answers.answer, peer, number), partial(answers.unsent, peer))
        refused = {index: refusal for index, op in enumerate(ops) if (refusal := op.refusal()) is not None}
        if refused:
            for index, refusal in refused.items():
                answer(index, refusal)
            taken = [index for index in range(len(ops)) if index not in refused]
            whole, ops = answer, [ops[index] for index in taken]

            def answer(at: int, result: Result) -> None:
                whole(taken[at], result)

        self._submit(ops, timeout / 1000, answer, caller, local=True)

    def _submit(self, ops: Sequence[Command], timeout: float, reply: Reply, caller: Caller, *, local: bool) -> None:
        shard_map = self.map
        if shard_map is None:
            for index in range(len(ops)):
                reply(index, Result(Code.UNAVAILABLE, detail="the cluster is not formed yet"))
            return
        deadline = self._clock.now() + min(timeout, limits.MAX_TIMEOUT)
        owners, slots, data = shard_map.owners, shard_map.slots, self._data
        readable: dict[int, Replica | None] = {}
        writes: dict[int, Writes | None] = {}
        latest = self._ids.latest
        for index, op in enumerate(ops):
            group = -1
            if isinstance(op, Read):
                group = owners[op.slot] if op.slot < slots else -1
                if group in data and not op.mode:
                    if group not in readable:
                        replica = data[group]
                        leased = not self.quorum_reads and replica.group.lease_holds()
                        readable[group] = replica if leased else None
                    leader = readable[group]
                    found = None if leader is None else op.read(leader.store)
                    if found is not None and not found.code:
                        reply(index, found)
                        continue
            elif isinstance(op, Write):
                group = owners[op.slot] if op.slot < slots else -1
                if group in data and op.client and op.client <= latest and not self._refusal(op, shard_map):
                    if group not in writes:
                        leads = data[group].group.leads()
                        writes[group] = Writes(group, reply, deadline, local, caller) if leads else None
                    lot = writes[group]
                    if lot is not None:
                        lot.ops.append(op)
                        lot.indexes.append(index)
                        lot.size += OP_OVERHEAD + op.size()
                        continue
            self._admit(Request(op, index, reply, deadline, local, caller, group), shard_map)
        for lot in writes.values():
            if lot is not None:
                self._propose(lot)

    def _propose(self, lot: Writes) -> None:
        refusal = self._admission.refusal(lot.group, lot.caller, len(lot.ops), lot.size, reserve=lot.local)
        if refusal is not None:
            lot.answer(refusal)
            return
        self._writes[lot] = None
        self._admission.add(lot.group, lot.caller, len(lot.ops), lot.size)
        done = partial(self._on_written, lot)
        lot.proposal = self._data[lot.group].group.propose(lot.ops, lot.size, done, lot.caller.source)

    def _on_written(self, lot: Writes, results: list[Result]) -> None:
        """The outcome of a proposal, unless its deadline came first."""
        if lot not in self._writes:
            return
        self._forget(lot)
        reply = lot.reply
        for index, op, result in zip(lot.indexes, lot.ops, results, strict=True):
            if result.code in SETTLED:
                reply(index, result)
            else:
                request = Request(op, index, reply, lot.deadline, lot.local, lot.caller, lot.group)
                self._hold(request)
                self._outcome(request, result)

    def _forget(self, lot: Writes) -> None:
        del self._writes[lot]
        self._admission.remove(lot.group, lot.caller, len(lot.ops), lot.size)

    def _admit(self, request: Request, shard_map: ShardMap) -> None:
        op = request.op
        refusal = self._refusal(op, shard_map)
        if refusal is None:
            request.group = group = self._group_of(op, shard_map)
            reserve = request.local or isinstance(op, GroupCommand)
            refusal = self._admission.refusal(group, request.caller, 1, request.size, reserve=reserve)
            if refusal is None and self._needs_leader(request) and self._retries.hopeless(group):
                refusal = _leaderless(group)
        if refusal is not None:
            request.reply(request.index, refusal)
            return
        self._hold(request)
        if isinstance(op, Write) and not op.client:
            self._stamp(request, op)
        if self._needs_leader(request) and self._retries.leaderless(request.group):
            self._retries.wait_for_leader(request, request.group)
        else:
            self._route(request)

    @staticmethod
    def _needs_leader(request: Request) -> bool:
        """Whether it is of use to wait for one."""
        return not request.local and not request.op.stale

    def _hold(self, request: Request) -> None:
        self._open[request] = None
        self._admission.add(request.group, request.caller, 1, request.size)

    def _refusal(self, op: Command, shard_map: ShardMap) -> Result | None:
        """Why ``op`` is not taken at all."""
        if isinstance(op, SlotCommand):
            if op.slot >= shard_map.slots:
                return Result(Code.INVALID_ARGUMENT, detail=f"slot {op.slot} is not one of 0 to {shard_map.slots - 1}")
        elif not isinstance(op, GroupCommand):
            return Result(Code.INVALID_ARGUMENT, detail=f"{op.name} is proposed by leaders only")
        elif all(group.id != op.group for group in shard_map.groups):
            return _no_group(op.group)
        if self.no_space and op.grows:
            why = self.no_space.get(self._group_of(op, shard_map))
            return None if why is None else Result(Code.NO_SPACE, detail=why)
        return None

    def _stamp(self, request: Request, op: Write) -> None:
        """Name a write of a client that did not: this node is its client then."""
        self._number += 1
        request.seq = self._number
        self._numbers[request.seq] = None
        first = next(iter(self._numbers))
        request.op = replace(op, client=self._ids.own, seq=request.seq, first=first)

    # -- to a replica here

    def _route(self, request: Request) -> None:
        shard_map = self.map
        assert shard_map is not None
        op = request.op
        if isinstance(op, GroupCommand):
            self._route_to_group(request, op, shard_map)
            return
        assert isinstance(op, Read | Write)
        group = shard_map.owners[op.slot]
        replica = self._data.get(group)
        if isinstance(op, Read) and op.stale:
            if replica is not None and replica.group.caught_up:
                self._outcome(request, op.read(replica.store))
                return
        elif replica is not None and replica.group.leads():
            if isinstance(op, Read):
                quorum = self.quorum_reads or op.mode == Mode.QUORUM
                replica.group.read(quorum, lambda code: self._read_allowed(request, op, replica, code))
            elif (refused := self._ids.refusal(op, replica.store)) is not None:
                self._outcome(request, refused)
            else:
                request.flying = True
                request.proposal = replica.group.propose(
                    [op], request.size, lambda results: self._outcome(request, results[0]), request.caller.source
                )
            return
        if request.local:
            leader = self.leader_of(group)
            code = Code.NOT_CAUGHT_UP if op.stale else Code.NOT_LEADER
            self._finish(request, Result(code, hint=leader))
            return
        self._forward(request, group, shard_map)

    def _route_to_group(self, request: Request, op: GroupCommand, shard_map: ShardMap) -> None:
        group = self._groups.get(op.group)
        if group is not None and group.leads():
            request.flying = not op.reads
            self._groups.execute(group, op, request.size, lambda result: self._outcome(request, result))
        elif request.local:
            self._finish(request, Result(Code.NOT_LEADER, hint=self.leader_of(op.group)))
        elif any(known.id == op.group for known in shard_map.groups):
            self._forward(request, op.group, shard_map)
        else:
            self._finish(request, _no_group(op.group))

    def _read_allowed(self, request: Request, op: Read, replica: Replica, code: Code) -> None:
        if not request.answered:
            self._outcome(request, op.read(replica.store) if code == Code.OK else Result(code))

    # -- to another node

    def _forward(self, request: Request, group: int, shard_map: ShardMap) -> None:
        target = 0 if request.op.stale else self._leaders.reachable(group)
        if target in (0, self._node):
            target = self._leaders.some_voter(group, shard_map, request.attempt)
        if target == 0:
            self._try_again(request, group)
            return
        request.attempt += 1
        request.flying = not request.op.reads
        self._forwarding.ask(request, group, target)

    def on_answers(self, peer: int, answers: Sequence[tuple[int, int, Result]]) -> None:
        """Results of operations that were forwarded to ``peer``."""
        self._forwarding.on_answers(peer, answers)

    def _on_forwarded_outcome(self, request: Request, result: Result) -> None:
        if result.code in SETTLED and self._needs_leader(request):
            # The node that answered leads the group.
            self._retries.found(request.group)
        self._outcome(request, result)

    def on_leads(self, peer: int, groups: Sequence[int]) -> None:
        """``peer`` says that it leads ``groups``."""
        self._leaders.on_leads(peer, groups)

    def on_link_down(self, peer: int) -> None:
        """Whatever was forwarded to ``peer`` may or may not have arrived."""
        self._forwarding.on_link_down(peer)

    # -- out

    def _outcome(self, request: Request, result: Result) -> None:
        """An attempt ended. Answer, or try again while there is time."""
        if request.answered:
            return
        code = result.code
        request.flying = False
        request.proposal = None
        if code == Code.UNKNOWN and not request.op.reads:
            request.unsure = True
        if code == Code.SESSION_EXPIRED:
            result = self._ids.dated(result)
        op = request.op
        if code == Code.SESSION_EXPIRED and request.seq and not request.unsure and isinstance(op, Write):
            # This node's own session went idle; the write surely did not happen: name it anew.
            self._ids.renew(op.client, result.new_id_ms)
            self._numbers.pop(request.seq, None)
            self._stamp(request, op)
            self._retries.later(request)
        elif code in _AGAIN and not request.local:
            if request.attempt == 1 and result.hint not in (0, self._node):
                self._route(request)
            else:
                assert self.map is not None
                self._try_again(request, self._group_of(request.op, self.map))
        else:
            self._finish(request, result)

    def _try_again(self, request: Request, group: int) -> None:
        if self._needs_leader(request) and not self._leaders.reachable(group):
            self._retries.wait_for_leader(request, group)
        else:
            self._retries.later(request)

    def _refuse(self, request: Request) -> None:
        self._finish(request, _leaderless(request.group))

    def _finish(self, request: Request, result: Result) -> None:
        if request.answered:
            return
        request.answered = True
        del self._open[request]
        self._admission.remove(request.group, request.caller, 1, request.size)
        if request.seq:
            self._numbers.pop(request.seq, None)
        if request.unsure and not request.local and result.code not in SETTLED:
            # An earlier attempt may have taken effect, whatever the last one says.
            result = Result(Code.DEADLINE_EXCEEDED, detail=result.detail)
        request.reply(request.index, result)

    def on_map(self, shard_map: ShardMap) -> None:
        """There is a newer map: what was refused for its slot's sake is asked for again at once."""
        self.map = shard_map
        self._leaders.on_map(shard_map)
        self._retries.at_once()

    def sweep(self) -> None:
        """Called every few milliseconds: deadlines, callers that have gone, attempts that are due again."""
        now = self._clock.now()
        self._retries.sweep(now)
        self._forwarding.sweep(now, self.map)
        for request in [request for request in self._open if request.deadline <= now or request.caller.gone]:
            if request.deadline <= now:
                self._expire(request)
            elif request.withdraw():
                self._finish(request, _GONE)
        for lot in [lot for lot in self._writes if lot.deadline <= now or lot.caller.gone]:
            withdrawn = lot.withdraw()
            if withdrawn or lot.deadline <= now:
                self._forget(lot)
                lot.answer(_TOO_LATE if not withdrawn else _GONE if lot.caller.gone else _NOT_PROPOSED)
        if now >= self._ids_due:
            self._ids_due = now + _IDS_PERIOD
            self._ids.look()

    def _expire(self, request: Request) -> None:
        proposed = request.proposal is not None
        if not request.withdraw() or request.unsure:
            self._finish(request, _TOO_LATE)
        elif proposed:
            self._finish(request, _NOT_PROPOSED)
        else:
            # A read leaves no trace of having been asked: it was if there is anybody to ask.
            asked = request.op.reads and self._leaders.reachable(request.group)
            self._finish(request, _TOO_LATE if asked else _NOT_ASKED)


def _no_group(group: int) -> Result:
    return Result(Code.INVALID_ARGUMENT, detail=f"there is no group {group}")


def _leaderless(group: int) -> Result:
    detail = f"group {group} has had no leader that can be asked for longer than an election takes"
    return Result(Code.UNAVAILABLE, detail=detail)
