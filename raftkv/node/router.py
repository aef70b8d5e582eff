"""Operations on their way: to a replica here, or to the node that leads their group.

A write keeps its request id on every attempt, so trying again after an unknown outcome is safe: the state machine
answers a second execution with the first one's result.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Final, Protocol
from weakref import WeakValueDictionary

from raftkv import limits
from raftkv.clock import Clock
from raftkv.commands.base import Command, GroupCommand, Read, Write
from raftkv.commands.bounds import Mode
from raftkv.commands.results import Result
from raftkv.errors import OUTCOMES, SETTLED, Code
from raftkv.frontend.port import NODE, Caller, Origin
from raftkv.node.admission import Admission, no_group, no_leader, refusal_of, sender_refusal
from raftkv.node.answers import bounded_answers, put_off
from raftkv.node.client_ids import ClientIds
from raftkv.node.execution import Execution
from raftkv.node.forwarding import Forwarding
from raftkv.node.leaders import Leaders, Peers
from raftkv.node.replicas import Replica
from raftkv.node.requests import GroupPort, ReadBatch, Reply, Request, WriteBatch, group_of, without
from raftkv.node.retries import Retries
from raftkv.store.records import Store
from shards.map import ShardMap

_IDS_PERIOD: Final = 1.0
"""Seconds between two looks at the time up to which client ids are taken."""

_STALE: Final = int(Mode.STALE)

_TOO_LATE: Final = Result(Code.DEADLINE_EXCEEDED, detail="no result before the deadline")
_NOT_PROPOSED: Final = Result(Code.UNAVAILABLE, detail="the group's leader was too busy to start before the deadline")
_NOT_ASKED: Final = Result(Code.UNAVAILABLE, detail="no leader was reached before the deadline")
_GONE: Final = Result(Code.UNAVAILABLE, detail="its caller has gone")

_AGAIN: Final = frozenset(code for code, outcome in OUTCOMES.items() if outcome.retry and code != Code.OVERLOADED)
_ELSEWHERE: Final = frozenset((int(Code.NOT_LEADER), int(Code.UNAVAILABLE)))
"""What a node says that does not lead the group."""


class Users(Protocol):
    """The node's copy of the cluster's users, as the router needs it."""

    def refusals_for(self, origin: Origin, ops: Sequence[Command]) -> Mapping[int, Result]: ...


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
        users: Users,
        quorum_reads: bool,
        leaderless: float,
    ) -> None:
        self._users = users
        self._node = node
        self._data = data
        self._clock = clock
        self._ids = ids
        self._ids_due = 0.0
        self.execution = Execution(data, groups, ids, quorum_reads, self._outcome)
        self.map: ShardMap | None = None
        self.no_space: Mapping[int, str] = {}
        """Groups led here that take no new data -> why."""
        self._open: dict[Request, None] = {}
        self._batches: dict[ReadBatch | WriteBatch, None] = {}
        self._admission = Admission()
        self._peers_callers: WeakValueDictionary[tuple[int, Origin], Caller] = WeakValueDictionary()
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

    # -- in

    def submit(self, ops: Sequence[Command], timeout: float, reply: Reply, caller: Caller = NODE) -> None:
        """See :meth:`raftkv.frontend.port.NodePort.submit`."""
        self._submit(ops, timeout, reply, caller, local=False)

    def on_forwarded(self, peer: int, number: int, timeout: int, origin: Origin, ops: list[Command]) -> None:
        """``peer`` asks for operations to be executed here: only if this node can, never forwarded again."""
        caller = self._peers_callers.setdefault((peer, origin), Caller(origin))
        answers = self._forwarding
        answer: Reply = bounded_answers(ops, partial(answers.answer, peer, number), partial(answers.unsent, peer))
        refused = put_off(ops, self._store_of, answers.unsent(peer))
        refused |= self._users.refusals_for(origin, ops)
        refused |= {index: refusal for index, op in enumerate(ops) if (refusal := op.refusal()) is not None}
        if refused:
            ops, answer = without(ops, refused, answer)
        self._submit(ops, timeout / 1000, answer, caller, local=True)

    def _store_of(self, op: Write) -> Store | None:
        """What this node has of the records of ``op``."""
        known = self.map
        replica = None if known is None or op.slot >= known.slots else self._data.get(known.owners[op.slot])
        return None if replica is None else replica.store

    def _submit(self, ops: Sequence[Command], timeout: float, reply: Reply, caller: Caller, *, local: bool) -> None:
        shard_map = self.map
        if shard_map is None:
            for index in range(len(ops)):
                reply(index, Result(Code.UNAVAILABLE, detail="the cluster is not formed yet"))
            return
        deadline = self._clock.now() + min(timeout, limits.MAX_TIMEOUT)
        owners, slots, data = shard_map.owners, shard_map.slots, self._data
        readable: dict[int, Replica | None] = {}
        writes: dict[int, WriteBatch | None] = {}
        reads: dict[tuple[int, int], ReadBatch] = {}
        latest, leased, no_space = self._ids.latest, self.execution.leased, self.no_space
        for index, op in enumerate(ops):
            group = -1
            if isinstance(op, Read):
                group = owners[op.slot] if op.slot < slots else -1
                if group in data and not op.mode:
                    if group not in readable:
                        readable[group] = leased(group)
                    leader = readable[group]
                    found = None if leader is None else op.read(leader.store)
                    if found is not None and not found.code:
                        reply(index, found)
                        continue
                if group in data and op.mode != _STALE and data[group].group.leads():
                    some = reads.get((group, op.mode))
                    if some is None:
                        some = reads[group, op.mode] = ReadBatch(group, reply, deadline, local, caller)
                    some.add(index, op)
                    continue
            elif isinstance(op, Write):
                group = owners[op.slot] if op.slot < slots else -1
                if group in data and op.client and op.client <= latest and not (no_space and op.grows):
                    if group not in writes:
                        leads = data[group].group.leads()
                        writes[group] = WriteBatch(group, reply, deadline, local, caller) if leads else None
                    batch = writes[group]
                    if batch is not None:
                        batch.add(index, op)
                        continue
            self._admit(Request(op, index, reply, deadline, local, caller, group), shard_map)
        self._start(writes, reads)

    def _start(self, writes: Mapping[int, WriteBatch | None], reads: Mapping[tuple[int, int], ReadBatch]) -> None:
        """Propose the writes, by group, and ask whether the reads may be served, by group and mode."""
        for group, batch in writes.items():
            if batch is not None and self._begin(batch):
                propose, done = self._data[group].group.propose, partial(self._on_outcomes, batch)
                batch.proposal = propose(batch.ops, batch.size, done, batch.caller.source)
        for (group, mode), some in reads.items():
            if self._begin(some):
                self.execution.read(self._data[group], mode, partial(self._on_readable, some))

    def _begin(self, batch: ReadBatch | WriteBatch) -> bool:
        """Whether there is room for ``batch``, which is outstanding from now on; else it is refused."""
        refusal = self._admission.refusal(batch.group, batch.caller, len(batch.ops), batch.size, reserve=batch.local)
        if refusal is not None:
            batch.answer(refusal)
            return False
        self._batches[batch] = None
        self._admission.add(batch.group, batch.caller, len(batch.ops), batch.size)
        return True

    def _on_readable(self, batch: ReadBatch, code: Code) -> None:
        """The reads may be served now, or why not."""
        if code == Code.OK:
            store = self._data[batch.group].store
            self._on_outcomes(batch, (op.read(store) for op in batch.ops))
        else:
            self._on_outcomes(batch, [Result(code)] * len(batch.ops))

    def _on_outcomes(self, batch: ReadBatch | WriteBatch, results: Iterable[Result]) -> None:
        """What became of ``batch``, unless its deadline came first."""
        if batch not in self._batches:
            return
        self._forget(batch)
        reply = batch.reply
        for index, op, result in zip(batch.indexes, batch.ops, results, strict=True):
            if result.code in SETTLED:
                reply(index, result)
            else:
                request = Request(op, index, reply, batch.deadline, batch.local, batch.caller, batch.group)
                self._hold(request)
                self._outcome(request, result)

    def _forget(self, batch: ReadBatch | WriteBatch) -> None:
        del self._batches[batch]
        self._admission.remove(batch.group, batch.caller, len(batch.ops), batch.size)

    def _admit(self, request: Request, shard_map: ShardMap) -> None:
        op = request.op
        refusal = refusal_of(op, shard_map, self.no_space) or sender_refusal(op, request.caller)
        if refusal is None:
            request.group = group = group_of(op, shard_map)
            reserve = request.local or isinstance(op, GroupCommand)
            refusal = self._admission.refusal(group, request.caller, 1, request.size, reserve=reserve)
            if refusal is None and self._needs_leader(request) and self._retries.hopeless(group):
                refusal = no_leader(group)
        if refusal is not None:
            request.reply(request.index, refusal)
            return
        self._hold(request)
        if isinstance(op, Write) and not op.client:
            self._name(request, op)
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

    def _name(self, request: Request, op: Write) -> None:
        """Names a write whose client did not: this node's own session is used."""
        request.op = named = self._ids.name(op)
        request.seq = named.seq

    # -- to a replica here, or to another node

    def _route(self, request: Request) -> None:
        shard_map = self.map
        assert shard_map is not None
        op = request.op
        group = group_of(op, shard_map)
        if self.execution.begin(request, group):
            return
        if request.local:
            code = Code.NOT_CAUGHT_UP if op.stale else Code.NOT_LEADER
            self._finish(request, Result(code, hint=self.leader_of(group)))
        elif isinstance(op, GroupCommand) and all(known.id != group for known in shard_map.groups):
            self._finish(request, no_group(group))
        else:
            self._forward(request, group, shard_map)

    def _forward(self, request: Request, group: int, shard_map: ShardMap) -> None:
        target = 0 if request.op.stale else self._leaders.reachable(group)
        if target in (0, self._node):
            target = self._leaders.some_voter(group, shard_map, request.attempt)
        if target == 0:
            self._try_again(request, group)
            return
        request.attempt += 1
        request.in_flight = not request.op.reads
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
        self._retries.look()

    def look_for_leaders(self) -> None:
        """The replicas here have heard something."""
        self._retries.look()

    def on_link_down(self, peer: int) -> None:
        """Whatever was forwarded to ``peer`` may or may not have arrived."""
        self._forwarding.on_link_down(peer)

    # -- out

    def _outcome(self, request: Request, result: Result) -> None:
        """An attempt ended. Answer, or try again while there is time."""
        if request.answered:
            return
        code = result.code
        request.in_flight = False
        request.proposal = None
        if code == Code.UNKNOWN and not request.op.reads:
            request.maybe_applied = True
        if code == Code.SESSION_EXPIRED:
            result = self._ids.dated(result)
        op = request.op
        if code == Code.SESSION_EXPIRED and request.seq and not request.maybe_applied and isinstance(op, Write):
            # This node's own session went idle; the write surely did not happen: name it anew.
            self._ids.renew(op.client, result.new_id_ms)
            self._ids.answered(request.seq)
            self._name(request, op)
            self._retries.later(request)
        elif code in _AGAIN and not request.local:
            leader = result.hint if request.attempt or code in _ELSEWHERE else 0
            if not leader and code in _ELSEWHERE:
                leader = self._leaders.reachable(request.group)
            if request.attempt <= 1 and leader not in (0, self._node):
                self._route(request)
            else:
                assert self.map is not None
                self._try_again(request, group_of(request.op, self.map))
        else:
            self._finish(request, result)

    def _try_again(self, request: Request, group: int) -> None:
        if self._needs_leader(request) and not self._leaders.reachable(group):
            self._retries.wait_for_leader(request, group)
        else:
            self._retries.later(request)

    def _refuse(self, request: Request) -> None:
        self._finish(request, no_leader(request.group))

    def _finish(self, request: Request, result: Result) -> None:
        if request.answered:
            return
        request.answered = True
        del self._open[request]
        self._admission.remove(request.group, request.caller, 1, request.size)
        if request.seq:
            self._ids.answered(request.seq)
        if request.maybe_applied and not request.local and result.code not in SETTLED:
            # An earlier attempt may have been applied, whatever the last one says.
            result = Result(Code.DEADLINE_EXCEEDED, detail=result.detail)
        request.reply(request.index, result)

    def on_map(self, shard_map: ShardMap, confirmed: ShardMap | None) -> None:
        """There is another map: what was refused for its slot's sake is asked for again at once.

        ``confirmed``: the latest one that surely is the meta group's, by which that group can be found in any case.
        """
        self.map = shard_map
        self._leaders.on_map(shard_map, confirmed)
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
        for batch in [batch for batch in self._batches if batch.deadline <= now or batch.caller.gone]:
            withdrawn = batch.withdraw()
            if withdrawn or batch.deadline <= now:
                self._forget(batch)
                late = _NOT_PROPOSED if withdrawn and isinstance(batch, WriteBatch) else _TOO_LATE
                batch.answer(_GONE if withdrawn and batch.caller.gone else late)
        if now >= self._ids_due:
            self._ids_due = now + _IDS_PERIOD
            self._ids.look()

    def _expire(self, request: Request) -> None:
        proposed = request.proposal is not None
        if not request.withdraw() or request.maybe_applied:
            self._finish(request, _TOO_LATE)
        elif proposed:
            self._finish(request, _NOT_PROPOSED)
        else:
            # A read does not record that it was sent: it was, if there is a node to ask.
            asked = request.op.reads and self._leaders.reachable(request.group)
            self._finish(request, _TOO_LATE if asked else _NOT_ASKED)
