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

from google.protobuf.message import DecodeError

from raftkv.api.batcher import Batcher
from raftkv.api.failures import failure_of, overloaded, with_retry
from raftkv.api.results import fill_result
from raftkv.commands.base import Command
from raftkv.commands.registry import CLIENT_COMMANDS, CLIENT_READS
from raftkv.commands.results import Result
from raftkv.errors import Code, InvalidArgument, TooLarge
from raftkv.frontend.counters import MALFORMED
from raftkv.frontend.port import Caller, slots_of
from raftkv.frontend.turns import BYTES_PER_UNIT
from raftkv.limits import (
    DEFAULT_TIMEOUT,
    MAX_ANSWER_BYTES,
    MAX_BATCH_OPS,
    MAX_HELD_BYTES,
    MAX_STARTED_OPS,
    MAX_STREAM_BYTES,
    MAX_STREAM_OPS,
    MAX_TIMEOUT,
)
from raftkv.v1 import kv_pb2

if TYPE_CHECKING:
    from raftkv.frontend.port import NodePort
    from raftkv.frontend.resources import Resources

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
_DECODE: Final = {number: kind.decode for number, kind in CLIENT_COMMANDS.items()}
_OVERLOADED: Final = int(Code.OVERLOADED)
_TOO_MUCH: Final = overloaded("too many messages queued on this connection")
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
                    response, start, part = self._response(batch, start)
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
        for operation in message.operations:
            failed[operation.kind if operation.kind in CLIENT_COMMANDS else MALFORMED, _OVERLOADED] += 1
            self._ready.append((operation.id, _TOO_MUCH))
        self._unanswered += len(message.operations)
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
            waiting += len(self._message.operations) or 1 + self._message.size // _LEAST
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
        units = 0
        if message.request is None:
            units = message.parse()
        request = message.request
        assert request is not None
        client_id = request.client_id
        first = request.first_incomplete
        left = message.operations
        if count < len(left):
            left, message.operations = left[:count], left[count:]
        else:
            self._message = None
        ids: list[int] = []
        ops: list[Command] = []
        payload = 0
        slots = slots_of(self._node)
        for operation in left:
            try:
                decode = _DECODE.get(operation.kind)
                if decode is None or (op := decode(operation, client_id, first, slots)) is None:
                    raise InvalidArgument(f"unknown kind of operation {operation.kind}")
            except InvalidArgument as error:
                failure = failure_of(error)
                self._counters.malformed(failure.code)
                self._unanswered += 1
                self._ready.append((operation.id, failure))
                self._notify()
                continue
            ids.append(operation.id)
            ops.append(op)
            payload += op.size()
        if ops:
            self._unanswered += len(ops)
            self._batcher.follow(ids[0])
            self._submit(ids, ops, message.deadline, self._clock.now(), payload + _OVERHEAD * len(ops))
        return units + len(left) + payload // BYTES_PER_UNIT

    def _submit(self, ids: list[int], ops: list[Command], deadline: float, now: float, size: int) -> None:
        kinds = [op.number for op in ops]
        if self._mean > _OVERHEAD:
            size += sum(kind in CLIENT_READS for kind in kinds) * (self._mean - _OVERHEAD)
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
        self, ids: list[int], ops: Sequence[Command], kinds: list[int], share: int, deadline: float
    ) -> Callable[[int, Result], None]:
        failed = self._counters.failed

        def reply(index: int, result: Result) -> None:
            self._unanswered_bytes -= share
            value = result.value
            if value is not None:
                self._ready_bytes += len(value)
                if self._ready_bytes > self._most and self._ready:
                    self._ready_bytes -= len(value)
                    self._again.append((ids[index], ops[index], deadline))
                    return
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

    def _response(self, batch: list[tuple[int, Result]], start: int) -> tuple[kv_pb2.PipelineResponse, int, int]:
        """One message from ``batch[start:]``, where the next one starts, and the bytes of values in it."""
        known = self._node.cluster_map()
        response = kv_pb2.PipelineResponse(map_epoch=0 if known is None else known.epoch)
        add = response.results.add
        fill = fill_result
        size = 0
        followed = self._batcher.followed
        for index in range(start, len(batch)):
            number, result = batch[index]
            value = result.value
            if value is not None:
                size += len(value)
                if size > MAX_ANSWER_BYTES and index > start:
                    return response, index, size - len(value)
            if number == followed:
                self._counters.latency.observe(self._batcher.answered())
            message = add()
            message.id = number
            fill(message, result)
        return response, len(batch), size


class _Message:
    """A message that was read, and what is left of it."""

    __slots__ = ("_arrived", "_data", "deadline", "operations", "request", "size")

    def __init__(self, data: bytes, arrived: float) -> None:
        self._data = data
        self.size = len(data)
        self._arrived = arrived
        self.request: kv_pb2.PipelineRequest | None = None
        self.operations: Sequence[kv_pb2.Operation] = ()
        self.deadline = 0.0

    def parse(self) -> int:
        """Read the message, once. Returns the units that it took. Raises InvalidArgument if it is none, or TooLarge."""
        if self.request is not None:
            return 0
        data, self._data = self._data, b""
        try:
            request = self.request = kv_pb2.PipelineRequest.FromString(data)
        except DecodeError as error:
            raise InvalidArgument(f"malformed message: {error}") from None
        self.operations = request.operations
        if len(self.operations) > MAX_BATCH_OPS:
            raise TooLarge(f"a message of {len(self.operations)} operations; the maximum is {MAX_BATCH_OPS}")
        self.deadline = self._arrived + min(request.timeout_ms / 1000 or DEFAULT_TIMEOUT, MAX_TIMEOUT)
        return len(data) // (4 * BYTES_PER_UNIT)
