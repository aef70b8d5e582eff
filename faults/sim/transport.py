"""gRPC's place in a simulation: calls over :mod:`faults.sim.network`.

Only gRPC itself is replaced. The client's :class:`raftkv.client.transport.GrpcTransport` and its generated stubs run on
:class:`SimChannel`, the node's services (:mod:`raftkv.frontend.grpc.kv`) and generated registration on
:class:`SimServer`; messages travel serialized. Every call has a connection of its own.

Frames: length of what follows (4 bytes), kind (1 byte), payload.
"""

from __future__ import annotations

import asyncio
import struct
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import aclosing
from enum import IntEnum
from typing import Any, Final, NoReturn, cast

import grpc
import msgpack
from google.protobuf.message import Message
from grpc import aio

from raftkv.clock import Clock
from raftkv.frontend.grpc.admin import AdminService
from raftkv.frontend.grpc.guard import Guard
from raftkv.frontend.grpc.kv import KVService
from raftkv.frontend.port import AdminPort
from raftkv.frontend.resources import Resources
from raftkv.frontend.shares import Shares
from raftkv.limits import MAX_CALLS
from raftkv.peer.network import Listener, Network
from raftkv.v1 import admin_pb2_grpc, kv_pb2_grpc

_HEAD: Final = struct.Struct(">IB")
_BY_NUMBER: Final = {code.value[0]: code for code in grpc.StatusCode}
_EOF: Final[object] = cast(Any, aio).EOF
_OVER: Final = "the call is over"

Metadata = Sequence[tuple[str, "str | bytes"]]


class _Kind(IntEnum):
    CALL = 1  # path, seconds that the caller waits or None
    METADATA = 2
    MESSAGE = 3
    STATUS = 4  # number, details, trailing metadata


class _Wire(asyncio.Protocol):
    """Frames over one connection."""

    def __init__(self) -> None:
        self.transport: asyncio.Transport | None = None
        self._buffer = bytearray()
        self._flowing = asyncio.Event()
        self._flowing.set()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        buffer = self._buffer
        buffer += data
        start = 0
        while len(buffer) - start >= _HEAD.size:
            length, kind = _HEAD.unpack_from(buffer, start)
            end = start + _HEAD.size + length
            if len(buffer) < end:
                break
            self.received(kind, bytes(buffer[start + _HEAD.size : end]))
            start = end
        del buffer[:start]

    def received(self, kind: int, payload: bytes) -> None:
        """A frame has arrived."""
        raise NotImplementedError

    def send(self, kind: _Kind, payload: bytes) -> None:
        if self.transport is not None:
            self.transport.write(_HEAD.pack(len(payload), kind) + payload)

    async def flowing(self) -> None:
        """Wait while too much is on the way."""
        await self._flowing.wait()

    def pause_writing(self) -> None:
        self._flowing.clear()

    def resume_writing(self) -> None:
        self._flowing.set()

    def connection_lost(self, exc: Exception | None) -> None:
        self._flowing.set()


def _serialize(message: Message) -> bytes:
    return message.SerializeToString(deterministic=True)


# -- the node's side


class SimServer:
    """The services of a node; see :class:`raftkv.frontend.grpc.server.GrpcServer`."""

    def __init__(self, node: AdminPort, listen: str, network: Network, clock: Clock) -> None:
        self.methods: dict[str, Any] = {}
        self._listen = listen
        self._network = network
        resources = Resources(clock)
        self._kv = KVService(node, resources)  # type: ignore[abstract]  # Its RPCs come from the registry.
        self._listener: Listener | None = None
        self._calls: dict[_ServerCall, None] = {}
        guard: Any = Guard(self, Shares(MAX_CALLS, clock), resources.held, clock)
        kv_pb2_grpc.add_KVServicer_to_server(self._kv, guard)
        admin_pb2_grpc.add_AdminServicer_to_server(AdminService(node), guard)

    def add_generic_rpc_handlers(self, handlers: object) -> None:
        """For the generated code."""

    def add_registered_method_handlers(self, service: str, handlers: dict[str, Any]) -> None:
        """For the generated code."""
        self.methods.update({f"/{service}/{name}": handler for name, handler in handlers.items()})

    async def start(self) -> None:
        """Listen and serve."""
        self._listener = await self._network.listen(self._listen, lambda: _ServerCall(self))

    async def stop(self, grace: float) -> None:
        """Take nothing new, answer what was read, end within ``grace`` seconds."""
        if self._listener is not None:
            self._listener.close()
        self._kv.drain()
        tasks = [call.task for call in self._calls if call.task is not None]
        if tasks and grace > 0:
            await asyncio.wait(tasks, timeout=grace)
        for call in list(self._calls):
            call.abort_connection()

    def opened(self, call: _ServerCall) -> None:
        self._calls[call] = None

    def closed(self, call: _ServerCall) -> None:
        self._calls.pop(call, None)


class _Aborted(aio.AbortError):
    """The handler has ended the call with a status."""


class _ServerCall(_Wire):
    """One call; its handler sees it as the ServicerContext."""

    def __init__(self, server: SimServer) -> None:
        super().__init__()
        self.task: asyncio.Task[None] | None = None
        self._server = server
        self._inbox: asyncio.Queue[bytes] = asyncio.Queue()
        self._deadline: float | None = None
        self._status: tuple[int, str, Metadata] = (0, "", ())
        self._done: list[Callable[[_ServerCall], None]] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._server.opened(self)

    def received(self, kind: int, payload: bytes) -> None:
        if kind == _Kind.CALL:
            path, timeout = msgpack.unpackb(payload)
            loop = asyncio.get_running_loop()
            if timeout is not None:
                self._deadline = loop.time() + timeout
            self.task = loop.create_task(self._serve(path))
        else:
            self._inbox.put_nowait(payload)

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._server.closed(self)
        if self.task is not None:
            self.task.cancel()

    def abort_connection(self) -> None:
        if self.transport is not None:
            self.transport.abort()

    async def _serve(self, path: str) -> None:
        handler = self._server.methods[path]
        try:
            if handler.stream_stream is not None:
                async with aclosing(handler.stream_stream(None, self)) as found:
                    async for response in found:
                        await self._answer(response)
            elif handler.unary_stream is not None:
                request = handler.request_deserializer(await self._inbox.get())
                async with aclosing(handler.unary_stream(request, self)) as found:
                    async for response in found:
                        await self._answer(response)
            else:
                request = handler.request_deserializer(await self._inbox.get())
                await self._answer(await handler.unary_unary(request, self))
        except _Aborted:
            pass
        except Exception as error:
            self._status = (grpc.StatusCode.UNKNOWN.value[0], f"unexpected {type(error).__name__}", ())
            raise
        finally:
            self.send(_Kind.STATUS, msgpack.packb(self._status))
            if self.transport is not None:
                self.transport.close()
            for callback in self._done:
                callback(self)

    async def read(self) -> bytes:
        """The next message of a stream as it came."""
        return await self._inbox.get()

    async def _answer(self, response: Message | bytes) -> None:
        self.send(_Kind.MESSAGE, response if isinstance(response, bytes) else _serialize(response))
        await self.flowing()

    # What a handler uses of the ServicerContext.

    async def send_initial_metadata(self, metadata: Metadata) -> None:
        self.send(_Kind.METADATA, msgpack.packb(metadata))

    async def abort(self, code: grpc.StatusCode, details: str = "", trailing_metadata: Metadata = ()) -> NoReturn:
        self._status = (code.value[0], details, trailing_metadata)
        raise _Aborted

    def invocation_metadata(self) -> Metadata:
        return ()

    def time_remaining(self) -> float | None:
        return None if self._deadline is None else self._deadline - asyncio.get_running_loop().time()

    def add_done_callback(self, callback: Callable[[_ServerCall], None]) -> None:
        self._done.append(callback)

    def peer(self) -> str:
        return "" if self.transport is None else str(self.transport.get_extra_info("peername"))


# -- the client's side


class SimChannel:
    """A :class:`grpc.aio.Channel` to one address, as far as the client uses it."""

    def __init__(self, network: Network, address: str) -> None:
        self._network = network
        self._address = address
        self._calls: dict[_ClientCall, None] = {}

    def unary_unary(
        self, path: str, request_serializer: object, response_deserializer: Callable[[bytes], Message], **_: object
    ) -> Callable[..., Any]:
        """For the generated stubs."""

        async def call(request: Message, timeout: float | None = None) -> Message:
            one = self._call(path, response_deserializer, timeout)
            try:
                async with asyncio.timeout(timeout):
                    await one.write(request)
                    answer = await one.read()
            except TimeoutError:
                one.end(grpc.StatusCode.DEADLINE_EXCEEDED, "Deadline Exceeded")
                raise one.error() from None
            finally:
                one.cancel()
            if not isinstance(answer, Message):
                raise one.error()
            return answer

        return call

    def stream_stream(
        self, path: str, request_serializer: object, response_deserializer: Callable[[bytes], Message], **_: object
    ) -> Callable[..., Any]:
        """For the generated stubs."""
        return lambda _requests=None: self._call(path, response_deserializer, None)

    def unary_stream(
        self, path: str, request_serializer: object, response_deserializer: Callable[[bytes], Message], **_: object
    ) -> Callable[..., Any]:
        """For the generated stubs."""

        def call(request: Message) -> _ClientCall:
            one = self._call(path, response_deserializer, None)
            one.ask(request)
            return one

        return call

    async def close(self, grace: float | None = None) -> None:
        """Break all calls."""
        for call in list(self._calls):
            call.cancel()

    def _call(self, path: str, deserialize: Callable[[bytes], Message], timeout: float | None) -> _ClientCall:
        call = _ClientCall(self._network, self._address, path, deserialize, timeout, self._forget)
        self._calls[call] = None
        return call

    def _forget(self, call: _ClientCall) -> None:
        self._calls.pop(call, None)


class _ClientCall(_Wire):
    """A :class:`grpc.aio.StreamStreamCall` as far as the client uses it."""

    def __init__(
        self,
        network: Network,
        address: str,
        path: str,
        deserialize: Callable[[bytes], Message],
        timeout: float | None,
        ended: Callable[[_ClientCall], None],
    ) -> None:
        super().__init__()
        self._address = address
        self._path = path
        self._deserialize = deserialize
        self._timeout = timeout
        self._ended = ended
        self._metadata: Metadata = ()
        self._request: Message | None = None
        self._inbox: deque[bytes] = deque()
        self._status: tuple[grpc.StatusCode, str, Metadata] | None = None
        self._opened = asyncio.Event()
        self._started = asyncio.Event()
        self._heard = asyncio.Event()
        self._task = asyncio.get_running_loop().create_task(self._connect(network))

    async def _connect(self, network: Network) -> None:
        try:
            await network.dial(self._address, lambda: self)
        except OSError as error:
            self.end(grpc.StatusCode.UNAVAILABLE, f"failed to connect to {self._address}: {error}")

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        if self._status is not None:
            transport.close()
            return
        self.send(_Kind.CALL, msgpack.packb([self._path, self._timeout]))
        if self._request is not None:
            self.send(_Kind.MESSAGE, _serialize(self._request))
        self._opened.set()

    def received(self, kind: int, payload: bytes) -> None:
        if self._status is not None:
            return
        if kind == _Kind.METADATA:
            self._metadata = [(key, value) for key, value in msgpack.unpackb(payload)]
            self._started.set()
        elif kind == _Kind.MESSAGE:
            self._inbox.append(payload)
            self._heard.set()
        else:
            number, details, trailing = msgpack.unpackb(payload)
            self.end(_BY_NUMBER[number], details, [(key, value) for key, value in trailing])

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self.end(grpc.StatusCode.UNAVAILABLE, "the connection was lost")

    def end(self, code: grpc.StatusCode, details: str, trailing: Metadata = ()) -> None:
        """The call is over, with the first status that it is given."""
        if self._status is None:
            self._status = (code, details, trailing)
            for event in (self._opened, self._started, self._heard, self._flowing):
                event.set()
            self._task.cancel()
            if self.transport is not None:
                self.transport.abort()
            self._ended(self)

    def error(self) -> aio.AioRpcError:
        """The exception for the call's status."""
        assert self._status is not None
        code, details, trailing = self._status
        return aio.AioRpcError(code, aio.Metadata(*self._metadata), aio.Metadata(*trailing), details, None)

    # What the client uses of the call.

    def ask(self, request: Message) -> None:
        """Of a call with one request: it leaves once the call is open."""
        self._request = request

    async def initial_metadata(self) -> Metadata:
        await self._started.wait()
        return self._metadata

    async def code(self) -> grpc.StatusCode:
        assert self._status is not None
        return self._status[0]

    async def details(self) -> str:
        assert self._status is not None
        return self._status[1]

    async def trailing_metadata(self) -> aio.Metadata:
        assert self._status is not None
        return aio.Metadata(*self._status[2])

    def done(self) -> bool:
        return self._status is not None

    async def write(self, request: Message) -> None:
        await self._opened.wait()
        if self._status is None:
            self.send(_Kind.MESSAGE, _serialize(request))
            await self.flowing()
        if self._status is not None:
            if self._status[0] is grpc.StatusCode.OK:
                raise asyncio.InvalidStateError(_OVER)
            raise self.error()

    async def read(self) -> Message | object:
        while not self._inbox:
            if self._status is None:
                self._heard.clear()
                await self._heard.wait()
            elif self._status[0] is grpc.StatusCode.OK:
                return _EOF
            elif self._status[0] is grpc.StatusCode.CANCELLED:
                raise asyncio.CancelledError
            else:
                raise self.error()
        return self._deserialize(self._inbox.popleft())

    def cancel(self) -> None:
        self.end(grpc.StatusCode.CANCELLED, "Locally cancelled by application!")
