"""One Pipeline stream on the node: the hot path.

A task reads messages. Each one is executed as a whole if nobody waits and its answers have room, else in parts, as its
turns come (:mod:`raftkv.frontend.turns`) and as there is room (:mod:`raftkv.frontend.shares`). Replies gather in a
list; the stream's generator takes the list once per turn of the loop, or once per write if the client reads slowly, and
sends it. No operation has a task, a future or a timer here.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from typing import TYPE_CHECKING, Final

from raftkv.api.batcher import Batcher
from raftkv.api.failures import failure_of, overloaded, with_retry
from raftkv.api.pipeline import Answers, read_request, response_of
from raftkv.commands.base import Command
from raftkv.commands.registry import CLIENT_READS, PIPED, TELLING_WRITES, Piped
from raftkv.commands.results import Result
from raftkv.errors import Code, InvalidArgument
from raftkv.frontend.counters import MALFORMED
from raftkv.frontend.port import Caller, slots_of
from raftkv.frontend.turns import BYTES_PER_UNIT
from raftkv.limits import (
    DEFAULT_TIMEOUT,
    MAX_ANSWER_BYTES,
    MAX_HELD_BYTES,
    MAX_STARTED_OPS,
    MAX_STREAM_BYTES,
    MAX_STREAM_OPS,
    MAX_TIMEOUT,
)

if TYPE_CHECKING:
    from raftkv.frontend.port import NodePort
    from raftkv.frontend.resources import Resources
    from raftkv.v1 import kv_pb2

_SPACING: Final = 0.5
"""Of the time that answers take, between two messages with less than half of them."""
_OVERHEAD: Final = MAX_HELD_BYTES // MAX_STARTED_OPS
"""Bytes that an operation counts for besides its payload: so it bounds those under way, too."""
_RESULT: Final = 256
"""Bytes that a result takes besides its value."""
_LEAST: Final = 64
"""Bytes of a message for each operation in it, about; to guess their number before the message is parsed."""
_UNNOTICED: Final = 64 * 1024
"""Bytes by which a stream may differ from what is counted for it."""
_DECODE: Final = {number: kind.decode for number, kind in PIPED.items()}
_TELLING: Final = CLIENT_READS | TELLING_WRITES
_OVERLOADED: Final = int(Code.OVERLOADED)
_TOO_MUCH: Final = overloaded("too many messages queued on this connection")
_MISPLACED: Final = Result(int(Code.INVALID_ARGUMENT), detail="the slot is not that of the keys")
_TOO_LATE: Final = overloaded("the node was too busy to start the operation before its deadline")


class PipelineStream:
    """State of one stream. ``run`` reads until the client ends, ``responses`` yields what is to be sent.

    ``peer`` names the connection, which gets its shares of the node's ``resources``. ``caller`` is its client.
    """

    def __init__(self, node: NodePort, resources: Resources, peer: str, caller: Caller) -> None:
        self._node = node
        self._clock = clock = resources.clock
        self._counters = resources.counters
        self._turns = resources.turns
        self._held = resources.held
        self._waiting = resources.waiting
        self._kept = 0
        self._batcher = Batcher(clock, _SPACING, self._notify)
        self._loop = asyncio.get_running_loop()
        self._message: _Message | None = None
        self._again: list[tuple[int, Command, float]] = []
        """Reads whose answers were too large for the room that there was: (id, operation, deadline)."""
        self._queued = False
        self._ready: list[tuple[int, Result]] = []
        self._ready_bytes = 0
        self._most = MAX_STREAM_BYTES
        """Bytes of answers that may be ready; beyond it reads are asked again later."""
        self._sending = 0
        self._mean = 0
        self._unanswered = 0
        self._unanswered_bytes = 0
        self._counted = 0
        self._wake: asyncio.Future[None] | None = None
        self._room: asyncio.Future[None] | None = None
        self._reading = True
        self._packed = False
        """Whether the client asks in packed messages, and so is answered in such."""
        self._caller = caller
        self.peer = peer
        self.blocked_since: float | None = None
        """When the answer that waits for its client to read was ready."""
        self.failure: Exception | None = None
        """Why reading ended, if not by the client's own end of stream."""

    async def run(self, requests: AsyncIterator[bytes]) -> None:
        """Read ``requests``, serialized messages, to their end. Never raises; a failure is kept for the generator."""
        try:
            async for request in requests:
                self._message = _Message(request, self._clock.now())
                del request
                if not self._queued:
                    self._queued = True
                    self._turns.enter(self)
                if self._message is not None:
                    self._keep(self._message)
                while self._message is not None or self._full():
                    self._room = self._loop.create_future()
                    await self._room
        except Exception as error:  # noqa: BLE001 - the generator ends the stream with it
            self.failure = error
        finally:
            self.stop_reading()

    def stop_reading(self) -> None:
        """What was read is still answered, then the stream ends."""
        self._reading = False
        self._batcher.close()
        self._notify()

    def close(self) -> None:
        """The stream is over: nobody reads its answers."""
        self._caller.gone = True
        self._message = None
        self._again.clear()
        self._held.take(self.peer, -self._counted)
        self._counted = 0
        self._let_go()

    async def responses(self) -> AsyncIterator[kv_pb2.PipelineResponse]:
        """Messages to send, until everything that was read has been answered."""
        while True:
            if self._ready:
                if self._reading and self._batcher.waits(len(self._ready), (self._unanswered + 1) // 2):
                    await self._sleep()
                    continue
                batch, self._ready = self._ready, []
                size, self._ready_bytes = self._ready_bytes, 0
                self._mean = max(size // len(batch), self._mean // 2)
                start = 0
                while start < len(batch):
                    response, start, part = self._response(batch, start, size)
                    if part > BYTES_PER_UNIT:
                        self._turns.spend(self.peer, part // BYTES_PER_UNIT)
                    # What is written exists three times: as results, as a message and as what gRPC sends.
                    self._sending = size + 2 * part + _RESULT * len(batch)
                    self._count()
                    self.blocked_since = self._clock.now()
                    yield response
                    self.blocked_since = None
                self._batcher.sent()
                self._sending = 0
                self._unanswered -= len(batch)
                self._count()
                if self._again or self._message is not None:
                    self._resume()
                self._let_read()
            elif not self._reading and (self.failure is not None or not (self._unanswered or self._message)):
                return
            else:
                await self._sleep()

    async def _sleep(self) -> None:
        self._wake = self._loop.create_future()
        await self._wake

    def _full(self) -> bool:
        return self._unanswered >= MAX_STREAM_OPS or self._ready_bytes >= MAX_STREAM_BYTES

    def _keep(self, message: _Message) -> None:
        """``message`` has to wait for its turns. Refuse it if too much of this connection waits."""
        if self._waiting.room(self.peer) >= message.size:
            self._waiting.take(self.peer, message.size)
            self._kept = message.size
            return
        try:
            message.parse()
        except InvalidArgument as error:
            self._fail(error)
            return
        self._message = None
        failed = self._counters.failed
        for number, kind in message.kinds():
            failed[kind if kind in PIPED else MALFORMED, _OVERLOADED] += 1
            self._ready.append((number, _TOO_MUCH))
        self._unanswered += message.left
        self._notify()

    def _let_go(self) -> None:
        if self._kept:
            self._waiting.take(self.peer, -self._kept)
            self._kept = 0

    def _fail(self, error: InvalidArgument) -> None:
        self.failure = error
        self._message = None
        self.stop_reading()

    def _let_read(self) -> None:
        if self._room is not None and self._message is None and not self._full():
            room, self._room = self._room, None
            if not room.done():
                room.set_result(None)

    def _notify(self) -> None:
        wake = self._wake
        if wake is not None:
            self._wake = None
            if not wake.done():
                wake.set_result(None)

    def _count(self) -> None:
        """Have the bytes of this stream counted, unless they hardly changed."""
        total = self._unanswered_bytes + self._ready_bytes + _RESULT * len(self._ready) + self._sending
        change = total - self._counted
        if (change > _UNNOTICED or change < -_UNNOTICED or (change and not total)) and not self._caller.gone:
            self._counted = total
            self._held.take(self.peer, change)

    # -- parts

    def _resume(self) -> None:
        if not self._queued and not self._caller.gone:
            self._queued = True
            self._turns.queue(self)

    def _requeue(self) -> None:
        self._turns.queue(self)

    @property
    def wants(self) -> int:
        """See :class:`raftkv.frontend.turns.Work`."""
        waiting = len(self._again)
        if self._message is not None:
            waiting += self._message.left or 1 + self._message.size // _LEAST
        return waiting

    def step(self, most: int) -> tuple[int, bool]:
        """See :class:`raftkv.frontend.turns.Work`."""
        self._queued = False
        # What is taken counts for the connection and is missing elsewhere: half of the room leaves as much for others.
        room = self._held.room(self.peer)
        if room <= 0:
            if self._message is not None or self._again:
                self._queued = True
                self._held.wait(self.peer, 1, self._requeue)
            return 1, False
        self._most = min(MAX_STREAM_BYTES, self._ready_bytes + room // 2)
        if self._ready_bytes >= self._most:
            return 1, False
        expected = room // _OVERHEAD if self._mean <= _OVERHEAD else (self._most - self._ready_bytes) // self._mean
        count = min(most, expected + 1)
        units = 0
        if self._again:
            units = self._step_again(count)
        elif self._message is not None:
            try:
                units = self._step_message(self._message, count, most)
            except InvalidArgument as error:
                self._fail(error)
        self._count()
        if self._message is None:
            self._let_go()
            self._let_read()
        if self._queued or not (self._message or self._again) or (self._again and self._ready):
            # It is in the queue already, or done, or goes on when what is ready has left.
            return units, False
        self._queued = True
        return units, True

    def _step_again(self, count: int) -> int:
        part, self._again = self._again[:count], self._again[count:]
        now = self._clock.now()
        ids = [number for number, _, _ in part]
        ops = [op for _, op, _ in part]
        deadline = min(deadline for _, _, deadline in part)
        self._submit(ids, ops, deadline, now, _OVERHEAD * len(ops))
        return len(ops)

    def _step_message(self, message: _Message, count: int, most: int) -> int:
        units = message.parse()
        self._packed = message.packed
        count = min(count, message.left)
        if message.packed:
            ids, ops, refused = self._look_at(*message.take(count))
        else:
            ids, ops, refused = self._decode(message, count)
        if not message.left:
            self._message = None
        if refused:
            for _, failure in refused:
                self._counters.malformed(failure.code)
            self._unanswered += len(refused)
            self._ready += refused
            self._notify()
        payload = sum([op.size() for op in ops])
        if ops:
            self._unanswered += len(ops)
            self._batcher.follow(ids[0])
            self._submit(ids, ops, message.deadline, self._clock.now(), payload + _OVERHEAD * len(ops))
        return units + count + payload // BYTES_PER_UNIT

    def _look_at(
        self, ids: Sequence[int], ops: Sequence[Piped]
    ) -> tuple[Sequence[int], Sequence[Piped], list[tuple[int, Result]]]:
        """Those of the packed operations ``ops`` that are taken, and why the others are not."""
        known = self._node.cluster_map()
        slots = 0 if known is None else known.slots
        refused: dict[int, Result] = {}
        for index, op in enumerate(ops):
            # A node without a map takes nothing, and says so.
            refusal = op.refusal() if not slots or op.placed(slots) else _MISPLACED
            if refusal is not None:
                refused[index] = refusal
        if not refused:
            return ids, ops, []
        taken = [index for index in range(len(ops)) if index not in refused]
        failures = [(ids[index], refusal) for index, refusal in refused.items()]
        return [ids[index] for index in taken], [ops[index] for index in taken], failures

    def _decode(self, message: _Message, count: int) -> tuple[list[int], list[Piped], list[tuple[int, Result]]]:
        """The next ``count`` operations of a message that is not packed: what is taken, and why the others are not."""
        request = message.request
        client_id, first, slots = request.client_id, request.first_incomplete, slots_of(self._node)
        ids: list[int] = []
        ops: list[Piped] = []
        refused: list[tuple[int, Result]] = []
        for operation in message.take_plain(count):
            try:
                decode = _DECODE.get(operation.kind)
                if decode is None:
                    raise InvalidArgument(f"unknown kind of operation {operation.kind}")
                ops.append(decode(operation, client_id, first, slots))
            except InvalidArgument as error:
                refused.append((operation.id, failure_of(error)))
                continue
            ids.append(operation.id)
        return ids, ops, refused

    def _submit(self, ids: Sequence[int], ops: Sequence[Command], deadline: float, now: float, size: int) -> None:
        kinds = [op.number for op in ops]
        if self._mean > _OVERHEAD:
            size += sum(kind in _TELLING for kind in kinds) * (self._mean - _OVERHEAD)
        share = size // len(ops)
        self._unanswered_bytes += share * len(ops)
        self._counters.take(kinds)
        reply = self._replier(ids, ops, kinds, share, deadline)
        if now < deadline:
            self._node.submit(ops, deadline - now, reply, self._caller)
        else:
            for index in range(len(ops)):
                reply(index, _TOO_LATE)

    def _replier(
        self, ids: Sequence[int], ops: Sequence[Command], kinds: list[int], share: int, deadline: float
    ) -> Callable[[int, Result], None]:
        failed = self._counters.failed

        def reply(index: int, result: Result) -> None:
            self._unanswered_bytes -= share
            value = result.value
            if value is not None:
                self._ready_bytes += len(value)
                # What a write tells is told once: nothing must make it be asked again.
                if self._ready_bytes > self._most and self._ready and kinds[index] in CLIENT_READS:
                    self._ready_bytes -= len(value)
                    self._again.append((ids[index], ops[index], deadline))
                    return
            elif result.answer is not None:
                self._ready_bytes += result.answer.size()
            elif result.code:
                if result.code == _OVERLOADED and not result.retry_ms and kinds[index] in CLIENT_READS:
                    self._again.append((ids[index], ops[index], deadline))
                    self._resume()
                    return
                failed[kinds[index], result.code] += 1
                result = with_retry(result)
            self._ready.append((ids[index], result))
            wake = self._wake
            if wake is not None and len(self._ready) >= self._batcher.enough:
                self._wake = None
                if not wake.done():
                    wake.set_result(None)

        return reply

    def _response(
        self, batch: list[tuple[int, Result]], start: int, size: int
    ) -> tuple[kv_pb2.PipelineResponse, int, int]:
        """One message from ``batch[start:]``, where the next one starts, and the bytes of values in it.

        ``size``: bytes of all values in ``batch``.
        """
        stop = len(batch)
        if size > MAX_ANSWER_BYTES:
            size = 0
            for index in range(start, stop):
                part = batch[index][1].size()
                if size + part > MAX_ANSWER_BYTES and index > start:
                    stop = index
                    break
                size += part
            batch = batch[start:stop]
        ids, results = zip(*batch, strict=True)
        if self._batcher.followed in ids:
            self._counters.latency.observe(self._batcher.answered())
        known = self._node.cluster_map()
        answers = Answers(ids, results, 0 if known is None else known.epoch)
        return response_of(answers, packed=self._packed), stop, size


class _Message:
    """A message that was read, and how many operations are ``left`` of it."""

    __slots__ = ("_arrived", "_commands", "_data", "_ids", "_taken", "deadline", "left", "packed", "request", "size")

    def __init__(self, data: bytes, arrived: float) -> None:
        self._data: bytes | None = data
        self.size = len(data)
        self._arrived = arrived
        self._ids: Sequence[int] = ()
        self._commands: Sequence[Piped] = ()
        self._taken = 0
        self.request: kv_pb2.PipelineRequest
        self.packed = False
        self.left = 0
        self.deadline = 0.0

    def parse(self) -> int:
        """Read the message, once. Returns the units that it took. Raises InvalidArgument if it is none, or TooLarge."""
        if self._data is None:
            return 0
        data, self._data = self._data, None
        request, self._ids, self._commands = read_request(data)
        self.request = request
        self.packed = bool(request.packed)
        self.left = len(self._ids) if self.packed else len(request.operations)
        self.deadline = self._arrived + min(request.timeout_ms / 1000 or DEFAULT_TIMEOUT, MAX_TIMEOUT)
        return len(data) // (4 * BYTES_PER_UNIT)

    def take(self, count: int) -> tuple[Sequence[int], Sequence[Piped]]:
        """The next ``count`` operations of a packed message."""
        start, stop = self._next(count)
        return self._ids[start:stop], self._commands[start:stop]

    def take_plain(self, count: int) -> Sequence[kv_pb2.Operation]:
        """The next ``count`` operations of one that is not."""
        start, stop = self._next(count)
        return self.request.operations[start:stop]

    def kinds(self) -> list[tuple[int, int]]:
        """Ids and kinds of all operations."""
        if self.packed:
            return [(number, op.number) for number, op in zip(self._ids, self._commands, strict=True)]
        return [(operation.id, operation.kind) for operation in self.request.operations]

    def _next(self, count: int) -> tuple[int, int]:
        start = self._taken
        self._taken += count
        self.left -= count
        return start, self._taken
