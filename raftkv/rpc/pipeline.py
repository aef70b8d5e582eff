"""One Pipeline stream on the node: the hot path.

A task reads messages and hands each one to the front end as a whole. Replies gather in a list; the stream's generator
takes the list once per turn of the loop, or once per write if the client reads slowly, and sends it as one message.
No operation has a task, a future or a timer here.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import TYPE_CHECKING

from raftkv.errors import InvalidArgument, TooLarge
from raftkv.limits import DEFAULT_TIMEOUT, MAX_BATCH_BYTES, MAX_BATCH_OPS, MAX_STREAM_BYTES, MAX_STREAM_OPS, MAX_TIMEOUT
from raftkv.rpc import convert
from raftkv.rpc.errors import failure_of
from raftkv.rpc.frontend import slots_of
from raftkv.rpc.pace import Pace
from raftkv.rpc.tally import Tally
from raftkv.store.operations import Op, Result
from raftkv.v1 import kv_pb2

if TYPE_CHECKING:
    from raftkv.clock import Clock
    from raftkv.rpc.frontend import Frontend

_SPACING = 0.5
"""Of the time that answers take, between two messages with less than half of them."""
_OVERHEAD = 48  # an operation without payload still takes room


class PipelineStream:
    """State of one stream. ``run`` reads until the client ends, ``responses`` yields what is to be sent."""

    def __init__(self, frontend: Frontend, clock: Clock, tally: Tally) -> None:
        self._frontend = frontend
        self._clock = clock
        self._tally = tally
        self._pace = Pace(clock, _SPACING, self._notify)
        self._loop = asyncio.get_running_loop()
        self._ready: list[tuple[int, Result]] = []
        self._ready_bytes = 0
        self._unanswered = 0
        self._unanswered_bytes = 0
        self._wake: asyncio.Future[None] | None = None
        self._room: asyncio.Future[None] | None = None
        self._reading = True
        self.failure: Exception | None = None
        """Why reading ended, if not by the client's own end of stream."""

    async def run(self, requests: AsyncIterator[kv_pb2.PipelineRequest]) -> None:
        """Read ``requests`` to their end. Never raises; a failure is kept for the generator."""
        try:
            async for request in requests:
                self._take(request)
                while self._full():
                    self._room = self._loop.create_future()
                    await self._room
        except Exception as error:  # noqa: BLE001 - the generator ends the stream with it
            self.failure = error
        finally:
            self.stop_reading()

    def stop_reading(self) -> None:
        """What was read is still answered, then the stream ends."""
        self._reading = False
        self._pace.close()
        self._notify()

    async def responses(self) -> AsyncIterator[kv_pb2.PipelineResponse]:
        """Messages to send, until everything that was read has been answered."""
        while True:
            if self._ready:
                if self._reading and self._pace.waits(len(self._ready), (self._unanswered + 1) // 2):
                    await self._sleep()
                    continue
                batch, self._ready, self._ready_bytes = self._ready, [], 0
                start = 0
                while start < len(batch):
                    response, start = self._response(batch, start)
                    yield response
                self._pace.sent()
                self._unanswered -= len(batch)
                if self._room is not None and not self._full():
                    room, self._room = self._room, None
                    if not room.done():
                        room.set_result(None)
            elif not self._reading and (self.failure is not None or not self._unanswered):
                return
            else:
                await self._sleep()

    async def _sleep(self) -> None:
        self._wake = self._loop.create_future()
        await self._wake

    def _full(self) -> bool:
        return (
            self._unanswered >= MAX_STREAM_OPS
            or self._unanswered_bytes >= MAX_STREAM_BYTES
            or self._ready_bytes >= MAX_STREAM_BYTES
        )

    def _notify(self) -> None:
        wake = self._wake
        if wake is not None:
            self._wake = None
            if not wake.done():
                wake.set_result(None)

    def _take(self, request: kv_pb2.PipelineRequest) -> None:
        messages = request.operations
        if len(messages) > MAX_BATCH_OPS:
            raise TooLarge(f"a message of {len(messages)} operations; at most {MAX_BATCH_OPS} are taken")
        client_id = request.client_id
        first = request.first_incomplete
        ids: list[int] = []
        ops: list[Op] = []
        size = 0
        decode = convert.operation
        slots = slots_of(self._frontend)
        for message in messages:
            try:
                op = decode(message, client_id, first, slots)
            except InvalidArgument as error:
                failure = failure_of(error)
                self._tally.malformed(failure.code)
                self._unanswered += 1
                self._ready.append((message.id, failure))
                self._notify()
                continue
            ids.append(message.id)
            ops.append(op)
            size += _OVERHEAD + len(op.key) + (0 if op.value is None else len(op.value))
        if ops:
            self._unanswered += len(ops)
            share = size // len(ops)
            self._unanswered_bytes += share * len(ops)
            timeout = min(request.timeout_ms / 1000 or DEFAULT_TIMEOUT, MAX_TIMEOUT)
            kinds = [op[0] for op in ops]
            self._tally.take(kinds)
            self._pace.follow(ids[0])
            self._frontend.submit(ops, timeout, self._replier(ids, kinds, share))

    def _replier(self, ids: list[int], kinds: list[int], share: int) -> Callable[[int, Result], None]:
        failed = self._tally.failed

        def reply(index: int, result: Result) -> None:
            if result[0]:
                failed[kinds[index], result[0]] += 1
            self._ready.append((ids[index], result))
            self._unanswered_bytes -= share
            value = result.value
            if value is not None:
                self._ready_bytes += len(value)
            wake = self._wake
            if wake is not None and len(self._ready) >= self._pace.enough:
                self._wake = None
                if not wake.done():
                    wake.set_result(None)

        return reply

    def _response(self, batch: list[tuple[int, Result]], start: int) -> tuple[kv_pb2.PipelineResponse, int]:
        """One message from ``batch[start:]`` and where the next one starts."""
        known = self._frontend.cluster_map()
        response = kv_pb2.PipelineResponse(map_epoch=0 if known is None else known.epoch)
        add = response.results.add
        fill = convert.fill_result
        size = 0
        followed = self._pace.followed
        for index in range(start, len(batch)):
            number, result = batch[index]
            value = result.value
            if value is not None:
                size += len(value)
                if size > MAX_BATCH_BYTES and index > start:
                    return response, index
            if number == followed:
                self._tally.latency.observe(self._pace.answered())
            message = add()
            message.id = number
            fill(message, result)
        return response, len(batch)
