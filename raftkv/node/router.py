"""Operations on their way: to a replica here, or to the node that leads their group.

A write keeps its request id on every attempt, so trying again after an unknown outcome is safe: the state machine
answers a second execution with the first one's result.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Final, Protocol

from raftkv import limits
from raftkv.clock import Clock
from raftkv.errors import OUTCOMES, Code
from raftkv.node.client_ids import ClientIds
from raftkv.node.replicas import Replica
from raftkv.raft import RaftGroup
from raftkv.rpc.frontend import NODE, Caller
from raftkv.store.operations import GROUP_KINDS, GROUP_READS, READS, WRITES, Kind, Mode, Op, Result
from shards.map import ShardMap

_ATTEMPT: Final = 1.0
"""Seconds that a forwarded attempt may take before it is tried elsewhere."""

_BACKOFF: Final = 0.025
"""Seconds before the next attempt when nobody is known to lead."""

Reply = Callable[[int, Result], None]

_OVERHEAD: Final = 64
"""Bytes that an operation counts for besides its payload."""

_IDS_PERIOD: Final = 1.0
"""Seconds between two looks at the time up to which client ids are taken."""

_SETTLED: Final = (Code.OK, Code.CONDITION_FAILED)
_OVERLOADED: Final = Result(Code.OVERLOADED, detail="the node has too many operations outstanding")
_TOO_LATE: Final = Result(Code.DEADLINE_EXCEEDED, detail="no outcome before the deadline")

_CHANGES: Final = WRITES | (GROUP_KINDS - GROUP_READS)
_RECORD_KINDS: Final = READS | WRITES


class Peers(Protocol):
    """Links to other nodes, as forwarding needs them."""

    def send(self, node: int, message: list[Any]) -> None: ...

    def up(self, node: int) -> bool: ...


class GroupPort(Protocol):
    """What is asked of a group as a whole, where this node has a replica of it."""

    def get(self, group: int) -> RaftGroup | None: ...

    def execute(self, group: RaftGroup, op: Op, size: int, done: Callable[[Result], None]) -> None: ...


class _Request:
    """One operation that could not be answered at once."""

    __slots__ = ("answered", "attempt", "deadline", "flying", "index", "local", "op", "reply", "seq", "size", "unsure")

    def __init__(self, op: Op, index: int, reply: Reply, deadline: float, local: bool) -> None:
        """``local``: for another node, never to be forwarded. ``flying``: an attempt is under way that may take effect.
        ``unsure``: an earlier one may have. ``seq``: our own number for a write whose client did not name it."""
        self.op = op
        self.index = index
        self.reply = reply
        self.deadline = deadline
        self.local = local
        self.size = _OVERHEAD + len(op.key) + len(op.value or b"") + len(op.expected or b"")
        self.answered = False
        self.attempt = 0
        self.flying = False
        self.unsure = False
        self.seq = 0


class _Writes:
    """The writes of one message for one group that this node leads: one proposal, one outcome."""

    __slots__ = ("deadline", "indexes", "local", "ops", "reply", "router", "size")

    def __init__(self, router: Router, reply: Reply, deadline: float, local: bool) -> None:
        self.router = router
        self.reply = reply
        self.deadline = deadline
        self.local = local
        self.ops: list[Op] = []
        self.indexes: list[int] = []
        self.size = 0

    def done(self, results: list[Result]) -> None:
        self.router.on_written(self, results)


class _Forward:
    """A batch of operations that another node was asked to execute."""

    __slots__ = ("deadline", "missing", "requests", "target")

    def __init__(self, target: int, deadline: float, requests: list[tuple[_Request, int]]) -> None:
        self.target = target
        self.deadline = deadline
        self.requests = requests
        self.missing = len(requests)


class Router:
    """Executes operations for clients and for other nodes.

    ``data`` is the node's live view of its replicas with records, ``groups`` of all.
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
    ) -> None:
        self._node = node
        self._data = data
        self._groups = groups
        self._peers = peers
        self._clock = clock
        self._ids = ids
        self._ids_due = 0.0
        self.quorum_reads = quorum_reads
        self.map: ShardMap | None = None
        self.disk_full = False
        self._open: dict[_Request, None] = {}
        self._writes: dict[_Writes, None] = {}
        self._open_ops = 0
        self._open_bytes = 0
        self._numbers: dict[int, None] = {}
        self._number = 0
        self._hints: dict[int, int] = {}
        self._member_of: frozenset[int] = frozenset()
        self._led: dict[int, int] = {}
        self._forwarded: dict[int, _Forward] = {}
        # Random, since answers to what was forwarded before the last start may still come.
        self._forward_number = int.from_bytes(ids.own[-8:]) >> 2
        self._to_forward: dict[int, list[tuple[_Request, int]]] = {}
        self._forward_due = False
        self._answers: dict[int, list[Any]] = {}
        self._answers_due = False
        self._retries: deque[tuple[float, _Request]] = deque()

    @property
    def outstanding(self) -> tuple[int, int]:
        """(operations that have no answer yet, their bytes)."""
        return self._open_ops, self._open_bytes

    def leader_of(self, group: int) -> int:
        """Node that leads ``group`` as far as this node knows, 0 = nobody."""
        # A replica that is left over hears nothing of its group any more.
        replica = self._groups.get(group) if self.map is None or group in self._member_of else None
        return self._hints.get(group, 0) if replica is None else replica.leader()

    @staticmethod
    def _group_of(op: Op, shard_map: ShardMap) -> int:
        return op.slot if op.kind in GROUP_KINDS else shard_map.owners[op.slot]

    # -- in

    def submit(self, ops: Sequence[Op], timeout: float, reply: Reply, caller: Caller = NODE) -> None:
        """See :meth:`raftkv.rpc.frontend.Frontend.submit`."""
        self._submit(ops, timeout, reply, local=False)

    def submit_here(self, ops: Sequence[Op], timeout: float, reply: Reply) -> None:
        """Execute operations that another node forwarded: only if this node can, never forwarded again."""
        self._submit(ops, timeout, reply, local=True)

    def _submit(self, ops: Sequence[Op], timeout: float, reply: Reply, local: bool) -> None:
        shard_map = self.map
        if shard_map is None:
            for index in range(len(ops)):
                reply(index, Result(Code.UNAVAILABLE, detail="the cluster is not formed yet"))
            return
        deadline = self._clock.now() + min(timeout, limits.MAX_TIMEOUT)
        owners, data = shard_map.owners, self._data
        readable: dict[int, Replica | None] = {}
        writes: dict[int, _Writes | None] = {}
        latest = self._ids.latest
        for index, op in enumerate(ops):
            kind, slot, key, value, _, expected, _, client, _, _, mode = op
            group = owners[slot] if 0 <= slot < shard_map.slots else -1
            if kind == Kind.GET and not mode and group in data:
                if group not in readable:
                    replica = data[group]
                    leased = not self.quorum_reads and replica.group.lease_holds()
                    readable[group] = replica if leased else None
                leader = readable[group]
                found = None if leader is None else leader.store.read(slot, key)
                if found is not None and not found[0]:
                    reply(index, found)
                    continue
            elif client and client <= latest and kind in WRITES and group in data and not self._refusal(op, shard_map):
                if group not in writes:
                    leads = data[group].group.leads()
                    writes[group] = _Writes(self, reply, deadline, local) if leads else None
                lot = writes[group]
                if lot is not None:
                    lot.ops.append(op)
                    lot.indexes.append(index)
                    lot.size += _OVERHEAD + len(key) + len(value or b"") + len(expected or b"")
                    continue
            self._admit(_Request(op, index, reply, deadline, local), shard_map)
        for group, lot in writes.items():
            if lot is not None:
                self._propose(group, lot)

    def _propose(self, group: int, lot: _Writes) -> None:
        if self._overloaded(len(lot.ops), lot.size):
            for index in lot.indexes:
                lot.reply(index, _OVERLOADED)
            return
        self._writes[lot] = None
        self._open_ops += len(lot.ops)
        self._open_bytes += lot.size
        self._data[group].group.propose(lot.ops, lot.size, lot.done)

    def on_written(self, lot: _Writes, results: list[Result]) -> None:
        """The outcome of a proposal, unless its deadline came first."""
        if lot not in self._writes:
            return
        self._forget(lot)
        reply = lot.reply
        for index, op, result in zip(lot.indexes, lot.ops, results, strict=True):
            if result[0] in _SETTLED:
                reply(index, result)
            else:
                request = _Request(op, index, reply, lot.deadline, lot.local)
                self._hold(request)
                self._outcome(request, result)

    def _forget(self, lot: _Writes) -> None:
        del self._writes[lot]
        self._open_ops -= len(lot.ops)
        self._open_bytes -= lot.size

    def _overloaded(self, ops: int, size: int) -> bool:
        return self._open_ops + ops > limits.MAX_PENDING_OPS or self._open_bytes + size > limits.MAX_PENDING_BYTES

    def _admit(self, request: _Request, shard_map: ShardMap) -> None:
        op = request.op
        refusal = self._refusal(op, shard_map)
        if refusal is None and self._overloaded(1, request.size):
            refusal = _OVERLOADED
        if refusal is not None:
            request.reply(request.index, refusal)
            return
        self._hold(request)
        if op.kind in WRITES and not op.client:
            self._stamp(request)
        self._route(request)

    def _hold(self, request: _Request) -> None:
        self._open[request] = None
        self._open_ops += 1
        self._open_bytes += request.size

    def _refusal(self, op: Op, shard_map: ShardMap) -> Result | None:
        """Why ``op`` is not taken at all."""
        if op.kind in GROUP_KINDS:
            known = any(group.id == op.slot for group in shard_map.groups)
            return None if known else Result(Code.INVALID_ARGUMENT, detail=f"there is no group {op.slot}")
        if op.kind not in _RECORD_KINDS:
            return Result(Code.INVALID_ARGUMENT, detail=f"no operation of kind {op.kind}")
        if not 0 <= op.slot < shard_map.slots:
            return Result(Code.INVALID_ARGUMENT, detail=f"slot {op.slot} is not one of 0 to {shard_map.slots - 1}")
        if self.disk_full and op.kind in (Kind.PUT, Kind.CAS):
            return Result(Code.NO_SPACE, detail="the node's disk is nearly full; reads and deletes go on")
        return None

    def _stamp(self, request: _Request) -> None:
        """Name a write of a client that did not: this node is its client then."""
        self._number += 1
        request.seq = self._number
        self._numbers[request.seq] = None
        first = next(iter(self._numbers))
        request.op = request.op._replace(client=self._ids.own, seq=request.seq, first=first)

    # -- to a replica here

    def _route(self, request: _Request) -> None:
        shard_map = self.map
        assert shard_map is not None
        op = request.op
        if op.kind in GROUP_KINDS:
            self._route_to_group(request, shard_map)
            return
        group = shard_map.owners[op.slot]
        replica = self._data.get(group)
        if op.mode == Mode.STALE and op.kind in READS:
            if replica is not None and replica.group.caught_up:
                self._outcome(request, self._read(replica, op))
                return
        elif replica is not None and replica.group.leads():
            if op.kind in READS:
                quorum = self.quorum_reads or op.mode == Mode.QUORUM
                replica.group.read(quorum, lambda code: self._read_allowed(request, replica, code))
            elif (refused := self._ids.refusal(op, replica.store)) is not None:
                self._outcome(request, refused)
            else:
                request.flying = True
                replica.group.propose([op], request.size, lambda results: self._outcome(request, results[0]))
            return
        if request.local:
            leader = self.leader_of(group)
            code = Code.NOT_CAUGHT_UP if op.mode == Mode.STALE else Code.NOT_LEADER
            self._finish(request, Result(code, hint=leader))
            return
        self._forward(request, group, shard_map)

    def _route_to_group(self, request: _Request, shard_map: ShardMap) -> None:
        op = request.op
        group = self._groups.get(op.slot)
        if group is not None and group.leads():
            request.flying = op.kind in _CHANGES
            self._groups.execute(group, op, request.size, lambda result: self._outcome(request, result))
        elif request.local:
            self._finish(request, Result(Code.NOT_LEADER, hint=self.leader_of(op.slot)))
        elif any(known.id == op.slot for known in shard_map.groups):
            self._forward(request, op.slot, shard_map)
        else:
            self._finish(request, Result(Code.INVALID_ARGUMENT, detail=f"there is no group {op.slot}"))

    @staticmethod
    def _read(replica: Replica, op: Op) -> Result:
        if op.kind == Kind.SCAN:
            return replica.store.scan(op.slot, op.key, op.ttl)
        return replica.store.read(op.slot, op.key)

    def _read_allowed(self, request: _Request, replica: Replica, code: Code) -> None:
        if request.answered:
            return
        self._outcome(request, self._read(replica, request.op) if code == Code.OK else Result(code))

    # -- to another node

    def _forward(self, request: _Request, group: int, shard_map: ShardMap) -> None:
        target = self.leader_of(group)
        if request.op.mode == Mode.STALE or target in (0, self._node) or not self._peers.up(target):
            target = self._some_voter(group, shard_map, request.attempt)
        if target == 0:
            self._retry_later(request)
            return
        request.attempt += 1
        request.flying = request.op.kind in _CHANGES
        self._to_forward.setdefault(target, []).append((request, request.attempt))
        if not self._forward_due:
            self._forward_due = True
            self._clock.call_later(0.0, self._send_forwards)

    def _some_voter(self, group: int, shard_map: ShardMap, attempt: int) -> int:
        voters = [node for node in shard_map.group(group).voters if node != self._node and self._peers.up(node)]
        return voters[(attempt + self._node) % len(voters)] if voters else 0

    def _send_forwards(self) -> None:
        self._forward_due = False
        batches, self._to_forward = self._to_forward, {}
        now = self._clock.now()
        for target, requests in batches.items():
            live = [(request, attempt) for request, attempt in requests if not request.answered]
            for start, stop in _bounded(live):
                part = live[start:stop]
                self._forward_number += 1
                self._forwarded[self._forward_number] = _Forward(target, now + _ATTEMPT, part)
                timeout = max(1, int((min(request.deadline for request, _ in part) - now) * 1000))
                ops = [request.op for request, _ in part]
                self._peers.send(target, ["op", self._forward_number, timeout, ops])

    def on_forwarded(self, peer: int, number: int, timeout: int, ops: list[Op]) -> None:
        """``peer`` asks for operations to be executed here."""

        def answer(index: int, result: Result) -> None:
            self._answers.setdefault(peer, []).append((number, index, result))
            if not self._answers_due:
                self._answers_due = True
                self._clock.call_later(0.0, self._send_answers)

        self.submit_here(ops, timeout / 1000, answer)

    def _send_answers(self) -> None:
        self._answers_due = False
        answers, self._answers = self._answers, {}
        for peer, results in answers.items():
            start = size = 0
            for at, (_, _, result) in enumerate(results):
                if size > limits.MAX_BATCH_BYTES:
                    self._peers.send(peer, ["re", results[start:at]])
                    start, size = at, 0
                size += len(result.value or b"") + len(result.detail)
            self._peers.send(peer, ["re", results[start:]])

    def on_answers(self, peer: int, answers: Sequence[tuple[int, int, Result]]) -> None:
        """Results of operations that were forwarded to ``peer``."""
        for number, index, result in answers:
            forwarded = self._forwarded.get(number)
            if forwarded is None or forwarded.target != peer or not 0 <= index < len(forwarded.requests):
                continue
            forwarded.missing -= 1
            if not forwarded.missing:
                del self._forwarded[number]
            request, attempt = forwarded.requests[index]
            if request.answered or request.attempt != attempt:
                continue
            if result.code in _SETTLED:
                result = result._replace(hint=peer)
            self._learn(request, result.hint)
            self._outcome(request, result)

    def _learn(self, request: _Request, leader: int) -> None:
        if leader and self.map is not None:
            self._hints[self._group_of(request.op, self.map)] = leader

    def on_leads(self, peer: int, groups: Sequence[int]) -> None:
        """``peer`` says that it leads ``groups``."""
        for group in groups:
            self._hints[group] = peer

    def on_link_down(self, peer: int) -> None:
        """Whatever was forwarded to ``peer`` may or may not have arrived."""
        for number in [number for number, entry in self._forwarded.items() if entry.target == peer]:
            self._give_up_forward(number)

    def _give_up_forward(self, number: int) -> None:
        for request, attempt in self._forwarded.pop(number).requests:
            if not request.answered and request.attempt == attempt:
                self._outcome(request, Result(Code.UNKNOWN, detail="no answer from the group's leader"))

    def _look_at_leaders(self, shard_map: ShardMap) -> None:
        """What was forwarded to a node that leads no more may wait there in vain: ask the new leader at once."""
        changed: dict[int, int] = {}
        for group in shard_map.groups:
            leader = self.leader_of(group.id)
            if leader and leader != self._led.get(group.id):
                self._led[group.id] = changed[group.id] = leader
        if not changed:
            return
        for entry in list(self._forwarded.values()):
            for request, attempt in entry.requests:
                leader = changed.get(self._group_of(request.op, shard_map), entry.target)
                if leader != entry.target and request.attempt == attempt and request.op.mode != Mode.STALE:
                    self._outcome(request, Result(Code.UNKNOWN, hint=leader, detail="the group has another leader"))

    # -- out

    def _outcome(self, request: _Request, result: Result) -> None:
        """An attempt ended. Answer, or try again while there is time."""
        if request.answered:
            return
        code = result.code
        request.flying = False
        if code == Code.UNKNOWN and request.op.kind in _CHANGES:
            request.unsure = True
        if code == Code.SESSION_EXPIRED:
            result = self._ids.dated(result)
        if code == Code.SESSION_EXPIRED and request.seq and not request.unsure:
            # This node's own session went idle; the write surely did not happen: name it anew.
            self._ids.renew(request.op.client, result.version)
            self._numbers.pop(request.seq, None)
            self._stamp(request)
            self._retry_later(request)
        elif code in _AGAIN and not request.local:
            if request.attempt == 1 and result.hint not in (0, self._node):
                self._route(request)
            else:
                self._retry_later(request)
        else:
            self._finish(request, result)

    def _retry_later(self, request: _Request) -> None:
        request.attempt += 1
        self._retries.append((self._clock.now() + _BACKOFF, request))

    def _finish(self, request: _Request, result: Result) -> None:
        if request.answered:
            return
        request.answered = True
        del self._open[request]
        self._open_ops -= 1
        self._open_bytes -= request.size
        if request.seq:
            self._numbers.pop(request.seq, None)
        if request.unsure and not request.local and result.code not in _SETTLED:
            # An earlier attempt may have taken effect, whatever the last one says.
            result = Result(Code.DEADLINE_EXCEEDED, detail=result.detail)
        request.reply(request.index, result)

    def on_map(self, shard_map: ShardMap) -> None:
        """There is a newer map: what was refused for its slot's sake is asked for again at once."""
        self.map = shard_map
        self._member_of = frozenset(group.id for group in shard_map.groups_on(self._node))
        retries, self._retries = self._retries, deque()
        for _, request in retries:
            if not request.answered:
                self._route(request)

    def sweep(self) -> None:
        """Called every few milliseconds: deadlines, attempts without answer, attempts that are due again."""
        now = self._clock.now()
        while self._retries and self._retries[0][0] <= now:
            request = self._retries.popleft()[1]
            if not request.answered:
                self._route(request)
        for number in [number for number, entry in self._forwarded.items() if entry.deadline <= now]:
            self._give_up_forward(number)
        if self._forwarded and self.map is not None:
            self._look_at_leaders(self.map)
        for request in [request for request in self._open if request.deadline <= now]:
            self._expire(request)
        for lot in [lot for lot in self._writes if lot.deadline <= now]:
            self._forget(lot)
            for index in lot.indexes:
                lot.reply(index, _TOO_LATE)
        if now >= self._ids_due:
            self._ids_due = now + _IDS_PERIOD
            self._ids.look()

    def _expire(self, request: _Request) -> None:
        if request.flying or request.unsure:
            result = _TOO_LATE
        else:
            result = Result(Code.UNAVAILABLE, detail="no leader could be asked before the deadline")
        self._finish(request, result)


_AGAIN: Final = frozenset(code for code, outcome in OUTCOMES.items() if outcome.retry and code != Code.OVERLOADED)


def _bounded(requests: Sequence[tuple[_Request, int]]) -> list[tuple[int, int]]:
    """Cut ``requests`` into runs of at most MAX_BATCH_BYTES."""
    cuts: list[tuple[int, int]] = []
    start = size = 0
    for at, (request, _) in enumerate(requests):
        if size and size + request.size > limits.MAX_BATCH_BYTES:
            cuts.append((start, at))
            start, size = at, 0
        size += request.size
    if start < len(requests):
        cuts.append((start, len(requests)))
    return cuts
