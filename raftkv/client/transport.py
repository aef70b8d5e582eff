"""How the client reaches a node: the ports, and gRPC behind them.

The simulator supplies channels of its own; nothing else in the client knows gRPC's.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Protocol, cast

import grpc
from grpc import aio
from msgspec.structs import replace

from raftkv.api.credentials import METADATA, authorization
from raftkv.api.grpc_status import CLUSTER_KEY, result_of
from raftkv.api.messages import status_of
from raftkv.api.pipeline import PACKED_FORM, PACKED_KEY, answers_of, request_of
from raftkv.client.process import check_process, keep_after_fork
from raftkv.client.routing import View, view_of
from raftkv.commands.results import Result
from raftkv.errors import NO_USER, Code
from raftkv.limits import MAX_MESSAGE_BYTES
from raftkv.v1 import admin_pb2, admin_pb2_grpc, kv_pb2, kv_pb2_grpc
from shards.slots import SLOT_RULE, rule_refusal

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Iterable, Sequence

    from raftkv.api.pipeline import Answers, Batch
    from raftkv.api.status import NodeStatus
    from raftkv.client.tls import Credentials

    Call = aio.StreamStreamCall[kv_pb2.PipelineRequest, kv_pb2.PipelineResponse]

_OPTIONS: Final = (
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    # A half-open connection is noticed in seconds; idle ones too.
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    # The client's own penalties decide when an endpoint is tried again; gRPC must not add minutes to them.
    ("grpc.initial_reconnect_backoff_ms", 50),
    ("grpc.min_reconnect_backoff_ms", 500),
    ("grpc.max_reconnect_backoff_ms", 500),
    ("grpc.dns_min_time_between_resolutions_ms", 1_000),
    # Two clients of one process must not share a connection: one of them may be broken on purpose.
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.enable_retries", 0),
    ("grpc.enable_http_proxy", 0),
)


_STREAM: Final = "_handle_status_once_received"
"""In the name of the task that waits for a stream's end inside gRPC."""
_LAST_WORD: Final = 0.2
"""Seconds for streams that were broken to end."""


class TransportError(Exception):
    """A request to a node failed; ``result`` says how and what it promises."""

    def __init__(self, result: Result) -> None:
        super().__init__(result)
        self.result = result

    def __str__(self) -> str:
        return self.result.detail


class Stream(Protocol):
    """An open Pipeline."""

    cluster_id: str

    async def write(self, batch: Batch) -> None:
        """Ask for ``batch``. Raises TransportError if the stream is broken."""

    async def read(self) -> Answers | None:
        """The next answers, None at the end of the stream. Raises TransportError if it is broken."""

    def cancel(self) -> None:
        """Break the stream."""


class WatchStream(Protocol):
    """A watch at one node."""

    async def read(self) -> kv_pb2.WatchResponse | None:
        """The next message, None at the end. Raises TransportError if it is broken."""

    def cancel(self) -> None:
        """Break the stream."""


class Endpoint(Protocol):
    """One node by its address. All methods raise TransportError."""

    async def open(self) -> Stream:
        """A Pipeline that the node has accepted. A failure means that no operation reached it."""

    async def view(self, timeout: float) -> View:
        """The node's copy of the shard map."""

    async def status(self, timeout: float) -> NodeStatus:
        """The node's state."""

    async def scan(self, request: kv_pb2.ScanRequest, timeout: float) -> kv_pb2.ScanResponse:
        """One page of a slot."""

    async def cursor(self, request: kv_pb2.CursorRequest, timeout: float) -> kv_pb2.CursorResponse:
        """Numbers of slots."""

    def watch(self, request: kv_pb2.WatchRequest) -> WatchStream:
        """A watch; its first message says that it has begun."""

    async def close(self) -> None:
        """Break everything."""


class Transport(Protocol):
    """Makes endpoints."""

    def endpoint(self, address: str) -> Endpoint:
        """``address`` is host:port. Connects when it is first used."""


def connect(address: str, credentials: Credentials | None = None, interceptors: Sequence[Any] = ()) -> aio.Channel:
    """A channel to the node at ``address``, with this client's settings; it connects when it is first used.

    ``credentials``: of TLS. Raises UsageError if gRPC cannot be used in this process.
    """
    check_process()
    if credentials is None:
        channel = aio.insecure_channel(address, options=_OPTIONS, interceptors=interceptors)
    else:
        options = (*_OPTIONS, *credentials.options())
        channel = aio.secure_channel(address, credentials.of_channel(), options=options, interceptors=interceptors)
    keep_after_fork(channel, channel=True)
    return channel


class _Showing:
    def __init__(self, channel: aio.Channel, token: str) -> None:
        self._channel = channel
        self._metadata = ((METADATA, authorization(token)),)

    def unary_unary(self, *args: Any, **named: Any) -> Any:
        return partial(self._channel.unary_unary(*args, **named), metadata=self._metadata)

    def unary_stream(self, *args: Any, **named: Any) -> Any:
        return partial(self._channel.unary_stream(*args, **named), metadata=self._metadata)

    def stream_stream(self, *args: Any, **named: Any) -> Any:
        return partial(self._channel.stream_stream(*args, **named), metadata=self._metadata)


def showing(channel: aio.Channel, token: str | None) -> aio.Channel:
    """``channel`` for stubs whose every call shows ``token``, as of :class:`raftkv.AsyncClient`."""
    return channel if token is None else cast("aio.Channel", _Showing(channel, token))


class GrpcTransport:
    """gRPC. ``connect`` makes the channel to an address; it connects when it is first used. ``token``: shown with every
    call, as of :class:`raftkv.AsyncClient`.

    Raises UsageError if gRPC cannot be used in this process.
    """

    def __init__(self, connect: Callable[[str], aio.Channel] = connect, token: str | None = None) -> None:
        check_process()
        self._connect = connect
        self._token = token

    def endpoint(self, address: str) -> Endpoint:
        return _GrpcEndpoint(address, self._connect(address), self._token)


class _GrpcStream:
    def __init__(self, call: Call, cluster_id: str, *, packed: bool) -> None:
        self._call = call
        self.cluster_id = cluster_id
        self._packed = packed

    async def write(self, batch: Batch) -> None:
        try:
            await self._call.write(request_of(batch, packed=self._packed))
        except FAILURES as error:
            raise TransportError(failure(error)) from error

    async def read(self) -> Answers | None:
        try:
            message = await self._call.read()
        except FAILURES as error:
            raise TransportError(failure(error)) from error
        if not isinstance(message, kv_pb2.PipelineResponse):
            return None
        try:
            return answers_of(message)
        except ValueError as error:
            raise TransportError(Result(int(Code.UNKNOWN), detail=f"malformed answers: {error}")) from error

    def cancel(self) -> None:
        self._call.cancel()


class _GrpcWatch:
    def __init__(self, call: aio.UnaryStreamCall[kv_pb2.WatchRequest, kv_pb2.WatchResponse]) -> None:
        self._call = call

    async def read(self) -> kv_pb2.WatchResponse | None:
        try:
            message = await self._call.read()
        except FAILURES as error:
            raise TransportError(failure(error)) from error
        return message if isinstance(message, kv_pb2.WatchResponse) else None

    def cancel(self) -> None:
        self._call.cancel()


class _GrpcEndpoint:
    def __init__(self, address: str, channel: aio.Channel, token: str | None) -> None:
        self._address = address
        self._channel = channel
        self._kv = kv_pb2_grpc.KVStub(showing(channel, token))
        self._admin = admin_pb2_grpc.AdminStub(showing(channel, token))
        # A loop that ends does so to its asynchronous generators first: so an endpoint that nobody closed is closed.
        self._life = self._live()
        with suppress(StopIteration):
            self._life.asend(None).send(None)

    async def open(self) -> Stream:
        try:
            call = self._kv.Pipeline(None)
            try:
                about = dict(cast("Iterable[tuple[str, str]]", await call.initial_metadata() or ()))
                if CLUSTER_KEY in about:
                    return _GrpcStream(call, about[CLUSTER_KEY], packed=about.get(PACKED_KEY) == PACKED_FORM)
                # It ended before it began, and the status says why; or this is no node of raftkv.
                refusal = await _refusal(call) if call.done() else None
                text = "not a raftkv node" if refusal is None else refusal.detail
            except asyncio.CancelledError:
                call.cancel()
                raise
        except FAILURES as error:
            raise TransportError(self._not_reached(error)) from error
        call.cancel()
        code = refusal.code if refusal is not None and refusal.code in NO_USER else Code.UNAVAILABLE
        raise TransportError(Result(int(code), detail=f"{self._address}: {text}"))

    async def view(self, timeout: float) -> View:
        try:
            answer = await self._admin.GetMap(admin_pb2.GetMapRequest(slot_rule=SLOT_RULE), timeout=timeout)
        except FAILURES as error:
            raise TransportError(self._not_reached(error)) from error
        if refusal := rule_refusal(answer.slot_rule):
            raise TransportError(Result(int(Code.WRONG_VERSION), detail=f"{self._address}: {refusal}"))
        try:
            return view_of(
                answer.cluster_id,
                answer.epoch,
                answer.slots,
                [(node.id, node.address) for node in answer.nodes],
                [(group.id, tuple(group.voters), group.leader) for group in answer.groups],
                [(part.first, part.last, part.group) for part in answer.ranges],
            )
        except ValueError as error:
            raise TransportError(Result(int(Code.UNAVAILABLE), detail=f"{self._address}: {error}")) from error

    async def status(self, timeout: float) -> NodeStatus:
        try:
            return status_of(await self._admin.GetStatus(admin_pb2.GetStatusRequest(), timeout=timeout))
        except FAILURES as error:
            raise TransportError(self._not_reached(error)) from error

    async def scan(self, request: kv_pb2.ScanRequest, timeout: float) -> kv_pb2.ScanResponse:
        try:
            page = await self._kv.Scan(request, timeout=timeout)
        except FAILURES as error:
            raise TransportError(failure(error)) from error
        at, bit = divmod(request.slot, 8)
        if not page.slots[at : at + 1] or not page.slots[at] >> bit & 1:
            # Earlier versions scan a single slot, and know nothing of the rest of the request.
            detail = f"{self._address}: the page is not of the slot asked for: the node is of another version"
            raise TransportError(Result(int(Code.WRONG_VERSION), detail=detail))
        return page

    async def cursor(self, request: kv_pb2.CursorRequest, timeout: float) -> kv_pb2.CursorResponse:
        try:
            return await self._kv.Cursor(request, timeout=timeout)
        except FAILURES as error:
            raise TransportError(failure(error)) from error

    def watch(self, request: kv_pb2.WatchRequest) -> WatchStream:
        return _GrpcWatch(self._kv.Watch(request))

    async def close(self) -> None:
        if not self._life.ag_running:  # type: ignore[attr-defined]  # else it is being closed
            await self._life.aclose()

    async def _live(self) -> AsyncGenerator[None, None]:
        try:
            yield
        finally:
            await self._end_calls()
            channel = self._channel
            # gRPC ends when the last channel is gone, and may be forked from then on: nothing here must hold it.
            del self._channel, self._kv, self._admin
            await channel.close(None)

    async def _end_calls(self) -> None:
        """Wait until the calls that were broken have ended: what they say to a closed loop goes to another one's log.

        gRPC tells of no call that its caller has given up. A further one that has no time for anything ends after most
        of them; a stream that was broken keeps a task of gRPC's, which those of other clients in this loop have too.
        """
        with suppress(*FAILURES):
            await self._admin.GetMap(admin_pb2.GetMapRequest(), timeout=0)
        streams = [task for task in asyncio.all_tasks() if _STREAM in getattr(task.get_coro(), "__qualname__", "")]
        if streams:
            await asyncio.wait(streams, timeout=_LAST_WORD)

    def _not_reached(self, error: BaseException) -> Result:
        """For a request that executes nothing: a failure without a promise means that the node was not reached."""
        try:
            result = failure(error)
        finally:
            del error  # as there
        if result.code in (Code.UNKNOWN, Code.INTERNAL):
            return replace(result, code=int(Code.UNAVAILABLE), detail=f"{self._address}: {result.detail}")
        return result


async def _refusal(call: Call) -> Result:
    """Why the stream has ended."""
    code, text, trailing = await call.code(), await call.details(), await call.trailing_metadata()
    return result_of(aio.AioRpcError(code, aio.Metadata(), trailing, text, ""))


FAILURES: Final = (aio.AioRpcError, aio.UsageError, asyncio.InvalidStateError, asyncio.CancelledError)


def failure(error: BaseException) -> Result:
    """The result for what gRPC raised. Raises CancelledError if the task was cancelled, not only gRPC's own call."""
    try:
        if isinstance(error, asyncio.CancelledError) and _cancelled():
            raise error
        if isinstance(error, aio.AioRpcError) and error.code() is not grpc.StatusCode.CANCELLED:
            return result_of(error)
    finally:
        # An error that is raised holds this frame: the frame must not hold the error, nor the task, which holds it too.
        # Such a cycle keeps gRPC's call and channel, and so gRPC itself.
        del error
    return Result(int(Code.UNKNOWN), detail="the connection was lost")


def _cancelled() -> bool:
    task = asyncio.current_task()
    return task is None or task.cancelling() > 0
