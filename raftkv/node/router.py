"""Operations on their way: to a replica here, or to the node that leads their group.

A write keeps its request id on every attempt, so trying again after an unknown outcome is safe: the state machine
answers a second execution with the first one's result.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Final, Protocol

from raftkv import limits
from raftkv.clock import Clock
from raftkv.errors import OUTCOMES, Code
from raftkv.node.replicas import Replica
from raftkv.store.operations import Kind, Mode, Op, Result
from shards.map import ShardMap
from shards.slots import slot_of

_ATTEMPT: Final = 1.0
"""Seconds that a forwarded attempt may take before it is tried elsewhere."""

_BACKOFF: Final = 0.025
"""Seconds before the next attempt when nobody is known to lead."""

_SWEEP: Final = 0.02
"""Seconds between looks at deadlines."""

Reply = Callable[[int, Result], None]

_READS: Final = (Kind.GET, Kind.SCAN)
_WRITES: Final = (Kind.PUT, Kind.DELETE, Kind.CAS)


class Peers(Protocol):
    """Links to other nodes, as forwarding needs them."""

    def send(self, node: int, message: list[Any]) -> None: ...

    def up(self, node: int) -> bool: ...


class _Request:
    """One operation that could not be answered at once."""

    __slots__ = ("attempt", "deadline", "flying", "index", "local", "op", "reply", "seq", "size", "unsure")

    def __init__(self, op: Op, index: int, reply: Reply, deadline: float, local: bool) -> None:
        """``local``: for another node, never to be forwarded. ``flying``: an attempt is under way that may take effect.
        ``unsure``: an earlier one may have. ``seq``: our own number for a write whose client did not name it."""
        self.op = op
        self.index = index
        self.reply: Reply | None = reply
        self.deadline = deadline
        self.local = local
        self.size = len(op.key) + len(op.value or b"") + len(op.expected or b"")
        self.attempt = 0
        self.flying = False
        self.unsure = False
        self.seq = 0


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

    ``data`` is the node's live view of its replicas.
    """

    def __init__(
        self,
        node: int,
        *,
        data: dict[int, Replica],
        peers: Peers,
        clock: Clock,
        rng: random.Random,
        quorum_reads: bool,
    ) -> None:
        self._node = node
        self._data = data
        self._peers = peers
        self._clock = clock
        self._rng = rng
        self._quorum_reads = quorum_reads
        self.map: ShardMap | None = None
        self.disk_full = False
        self._open: dict[_Request, None] = {}
        self._open_bytes = 0
        self._client = self._draw_client(0)
        self._numbers: dict[int, None] = {}
        self._number = 0
        self._hints: dict[int, int] = {}
        self._forwarded: dict[int, _Forward] = {}
        self._forward_number = 0
        self._to_forward: dict[int, list[tuple[_Request, int]]] = {}
        self._forward_due = False
        self._answers: dict[int, list[Any]] = {}
        self._answers_due = False
        self._retries: deque[tuple[float, _Request]] = deque()

    def _draw_client(self, after: int) -> bytes:
        milliseconds = max(int(self._clock.wall() * 1000), after)
        return milliseconds.to_bytes(6, "big") + self._rng.randbytes(10)

    def leader_of(self, group: int) -> int:
        """Node that leads ``group`` as far as this node knows, 0 = nobody."""
        replica = self._data.get(group)
        return self._hints.get(group, 0) if replica is None else replica.group.leader()

    # -- in

    def submit(self, ops: Sequence[Op], timeout: float, reply: Reply) -> None:
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
        owners, slots, data = shard_map.owners, shard_map.slots, self._data
        leased: dict[int, Replica | None] = {}
        for index, op in enumerate(ops):
            kind = op[0]
            if kind == Kind.GET and not op[10]:
                slot = slot_of(op[2], slots)
                group = owners[slot]
                if group in leased:
                    replica = leased[group]
                else:
                    replica = data.get(group)
                    if replica is not None and (self._quorum_reads or not replica.group.lease_holds()):
                        replica = None
                    leased[group] = replica
                if replica is not None:
                    reply(index, replica.store.read(slot, op[2]))
                    continue
            self._admit(_Request(op, index, reply, deadline, local), slots)

    def _admit(self, request: _Request, slots: int) -> None:
        op = request.op
        refusal = self._refusal(op, slots)
        if refusal is None and (
            len(self._open) >= limits.MAX_PENDING_OPS or self._open_bytes + request.size > limits.MAX_PENDING_BYTES
        ):
            refusal = Result(Code.OVERLOADED, detail="the node has too many operations outstanding")
        if refusal is not None:
            assert request.reply is not None
            request.reply(request.index, refusal)
            return
        self._open[request] = None
        self._open_bytes += request.size
        slot = op.slot if op.kind == Kind.SCAN else slot_of(op.key, slots)
        if op.kind in _READS or op.client:
            request.op = op._replace(slot=slot)
        else:
            self._stamp(request, slot)
        self._route(request)

    def _refusal(self, op: Op, slots: int) -> Result | None:
        if op.kind not in _READS and op.kind not in _WRITES:
            return Result(Code.INVALID_ARGUMENT, detail=f"no operation of kind {op.kind}")
        if op.kind == Kind.SCAN and not 0 <= op.slot < slots:
            return Result(Code.INVALID_ARGUMENT, detail=f"slot {op.slot} is not one of 0 to {slots - 1}")
        if self.disk_full and op.kind in (Kind.PUT, Kind.CAS):
            return Result(Code.NO_SPACE, detail="the node's disk is nearly full; reads and deletes go on")
        return None

    def _stamp(self, request: _Request, slot: int) -> None:
        """Name a write of a client that did not: this node is its client then."""
        self._number += 1
        request.seq = self._number
        self._numbers[request.seq] = None
        first = next(iter(self._numbers))
        request.op = request.op._replace(slot=slot, client=self._client, seq=request.seq, first=first)

    # -- to a replica here

    def _route(self, request: _Request) -> None:
        shard_map = self.map
        assert shard_map is not None
        op = request.op
        group = shard_map.owners[op.slot]
        replica = self._data.get(group)
        if op.mode == Mode.STALE and op.kind in _READS:
            if replica is not None and replica.group.caught_up:
                self._finish(request, self._read(replica, op))
                return
        elif replica is not None and replica.group.leads():
            if op.kind in _READS:
                quorum = self._quorum_reads or op.mode == Mode.QUORUM
                replica.group.read(quorum, lambda code: self._read_allowed(request, replica, code))
            else:
                request.flying = True
                replica.group.propose(op, lambda _, result: self._outcome(request, result), 0)
            return
        if request.local:
            leader = self.leader_of(group)
            code = Code.NOT_CAUGHT_UP if op.mode == Mode.STALE else Code.NOT_LEADER
            self._finish(request, Result(code, hint=leader))
            return
        self._forward(request, group, shard_map)

    @staticmethod
    def _read(replica: Replica, op: Op) -> Result:
        if op.kind == Kind.SCAN:
            return replica.store.scan(op.slot, op.key, op.ttl)
        return replica.store.read(op.slot, op.key)

    def _read_allowed(self, request: _Request, replica: Replica, code: Code) -> None:
        if request.reply is None:
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
        request.flying = request.op.kind in _WRITES
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
            live = [(request, attempt) for request, attempt in requests if request.reply is not None]
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
            if request.reply is None or request.attempt != attempt:
                continue
            if result.code in (Code.OK, Code.CONDITION_FAILED):
                result = result._replace(hint=peer)
            self._learn(request, result.hint)
            self._outcome(request, result)

    def _learn(self, request: _Request, leader: int) -> None:
        if leader and self.map is not None:
            self._hints[self.map.owners[request.op.slot]] = leader

    def on_link_down(self, peer: int) -> None:
        """Whatever was forwarded to ``peer`` may or may not have arrived."""
        for number in [number for number, entry in self._forwarded.items() if entry.target == peer]:
            self._give_up_forward(number)

    def _give_up_forward(self, number: int) -> None:
        for request, attempt in self._forwarded.pop(number).requests:
            if request.reply is not None and request.attempt == attempt:
                self._outcome(request, Result(Code.UNKNOWN, detail="no answer from the group's leader"))

    # -- out

    def _outcome(self, request: _Request, result: Result) -> None:
        """An attempt ended. Answer, or try again while there is time."""
        if request.reply is None:
            return
        code = result.code
        request.flying = False
        if code == Code.UNKNOWN and request.op.kind in _WRITES:
            request.unsure = True
        if code == Code.SESSION_EXPIRED and request.seq and not request.unsure:
            # This node's own session went idle; the write surely did not happen: name it anew.
            self._client = self._draw_client(int.from_bytes(self._client[:6], "big") + 1)
            self._numbers.pop(request.seq, None)
            self._stamp(request, request.op.slot)
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
        reply, request.reply = request.reply, None
        if reply is None:
            return
        del self._open[request]
        self._open_bytes -= request.size
        if request.seq:
            self._numbers.pop(request.seq, None)
        if request.unsure and not request.local and result.code not in (Code.OK, Code.CONDITION_FAILED):
            # An earlier attempt may have taken effect, whatever the last one says.
            result = Result(Code.DEADLINE_EXCEEDED, detail=result.detail)
        reply(request.index, result)

    def sweep(self) -> None:
        """Called every few milliseconds: deadlines, attempts without answer, attempts that are due again."""
        now = self._clock.now()
        while self._retries and self._retries[0][0] <= now:
            request = self._retries.popleft()[1]
            if request.reply is not None:
                self._route(request)
        for number in [number for number, entry in self._forwarded.items() if entry.deadline <= now]:
            self._give_up_forward(number)
        for request in [request for request in self._open if request.deadline <= now]:
            self._expire(request)

    def _expire(self, request: _Request) -> None:
        if request.flying or request.unsure:
            result = Result(Code.DEADLINE_EXCEEDED, detail="no outcome before the deadline")
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
