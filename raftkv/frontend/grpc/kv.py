"""The service KV."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TYPE_CHECKING, Any

from raftkv.api.failures import failure_of, overloaded
from raftkv.api.grpc_status import CLUSTER_KEY, NODE_KEY
from raftkv.api.pipeline import PACKED_FORM, PACKED_KEY
from raftkv.clock import sleep
from raftkv.commands.base import SlotCommand
from raftkv.commands.registry import CLIENT_COMMANDS
from raftkv.commands.results import Result
from raftkv.errors import Code, InvalidArgument, RaftKVError
from raftkv.frontend.grpc.guard import STOPPING, abort, budget_of, caller, enter, on_end
from raftkv.frontend.grpc.pipeline import PipelineStream
from raftkv.frontend.grpc.watch import WatchStreams
from raftkv.frontend.port import OpenDoor, answer_to, slots_of
from raftkv.frontend.shares import Shares
from raftkv.limits import MAX_STREAMS
from raftkv.log_limit import limited
from raftkv.v1 import kv_pb2, kv_pb2_grpc

if TYPE_CHECKING:
    from google.protobuf.message import Message
    from grpc import aio

    from raftkv.frontend.port import Door, NodePort
    from raftkv.frontend.resources import Resources

    Context = aio.ServicerContext[Any, Any]

log = logging.getLogger(__name__)
_OVERLOADED = int(Code.OVERLOADED)
_AGAIN = 0.01
"""Seconds before a read is forwarded again."""


class KVService(kv_pb2_grpc.KVServicer):
    """Unary RPCs, one for each command that has one, and the Pipeline, whose requests come as bytes."""

    def __init__(self, node: NodePort, resources: Resources, door: Door | None = None) -> None:
        self._node = node
        self._door = door or OpenDoor()
        self.resources = resources
        self._clock = resources.clock
        self._counters = resources.counters
        self.watches = WatchStreams(node, resources)
        self._shares = Shares(MAX_STREAMS, resources.clock)
        self._streams: dict[PipelineStream, None] = {}
        self._draining = False

    async def Pipeline(
        self, request_iterator: AsyncIterator[kv_pb2.PipelineRequest], context: Context
    ) -> AsyncIterator[kv_pb2.PipelineResponse]:
        if self._draining:
            await abort(context, STOPPING)
        peer = context.peer()
        asking = await enter(self._door, context)
        if self._shares.room(peer) <= 0:
            await abort(context, overloaded("too many streams on this connection or on the node"))
        self._shares.take(peer, 1)
        on_end(context, lambda: self._shares.take(peer, -1))
        status = self._node.status()
        # Sent before the first message is read: a client that has not seen it knows that nothing was executed.
        about = ((CLUSTER_KEY, status.cluster_id), (NODE_KEY, str(status.node)), (PACKED_KEY, PACKED_FORM))
        await context.send_initial_metadata(about)
        stream = PipelineStream(self._node, self.resources, peer, asking)
        self._streams[stream] = None
        reader = asyncio.create_task(stream.run(_requests(context)))
        try:
            async for response in stream.responses():
                yield response
        finally:
            self._streams.pop(stream, None)
            stream.close()
            reader.cancel()
        if isinstance(stream.failure, RaftKVError):
            await abort(context, failure_of(stream.failure))
        elif stream.failure is not None:
            source = limited(peer.rpartition(":")[0])
            log.error("a pipeline of %s failed", peer, exc_info=stream.failure, extra=source)
            await abort(context, Result(int(Code.INTERNAL), detail="the stream failed: see the node's log"))

    def Watch(  # type: ignore[override]  # serialized, see Guard
        self, request: kv_pb2.WatchRequest, context: Context
    ) -> AsyncIterator[bytes]:
        return self.watches.serve(request, context)

    def blocked(self) -> dict[str, float]:
        """Peers with streams that wait until an answer is read, and since when."""
        found: dict[str, float] = {}
        for stream in self._streams:
            if stream.blocked_since is not None:
                found[stream.peer] = min(stream.blocked_since, found.get(stream.peer, stream.blocked_since))
        return found

    def drain(self) -> None:
        """Read nothing more from any Pipeline; each ends when what it has read is answered. Watches end."""
        self._draining = True
        self.watches.drain()
        for stream in tuple(self._streams):
            stream.stop_reading()

    async def execute(self, kind: type[SlotCommand], request: Message, context: Context) -> Message:
        """Serve an RPC of one command."""
        try:
            op = kind.from_request(request, slots_of(self._node))
        except InvalidArgument as error:
            failure = failure_of(error)
            self._counters.malformed(failure.code)
            await abort(context, failure)
        self._counters.take((op.number,))
        since, timeout = self._clock.now(), budget_of(context)
        until = since + timeout
        asking = caller()
        try:
            result = await answer_to(self._node.submit, op, timeout, asking)
            while result.code == _OVERLOADED and not result.retry_ms and (left := until - self._clock.now()) > _AGAIN:
                # Another node had too many large answers for this one at that moment.
                await sleep(self._clock, _AGAIN)
                result = await answer_to(self._node.submit, op, left, asking)
        except asyncio.CancelledError:
            asking.gone = True
            raise
        if result.code:
            self._counters.failed[op.number, result.code] += 1
        self._counters.latency.observe(self._clock.now() - since)
        if result.code and result.code not in op.answers:
            await abort(context, result)
        response: Message = getattr(kv_pb2, f"{op.rpc}Response")()
        op.respond(result, response)
        return response


def _handler(kind: type[SlotCommand]) -> Callable[[KVService, Message, Context], Awaitable[Message]]:
    async def handler(service: KVService, request: Message, context: Context) -> Message:
        return await service.execute(kind, request, context)

    return handler


for _kind in CLIENT_COMMANDS.values():
    if _kind.rpc:
        setattr(KVService, _kind.rpc, _handler(_kind))


async def _requests(context: Context) -> AsyncIterator[bytes]:
    """The messages of a stream. gRPC's own iterator would keep each one until the next has come."""
    while True:
        message: bytes | object = await context.read()
        if not isinstance(message, bytes):  # gRPC's EOF
            return
        yield message
        del message
