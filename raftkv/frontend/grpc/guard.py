"""What every RPC passes before its service sees it: bad bytes, shares of calls and of bytes for answers, and who asks
for it."""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping
from contextlib import aclosing
from contextvars import ContextVar
from functools import partial
from typing import TYPE_CHECKING, Any, Final, NoReturn

import grpc
from google.protobuf.message import DecodeError
from grpc import aio

from raftkv.api.credentials import METADATA
from raftkv.api.failures import failure_of, overloaded, with_retry
from raftkv.api.grpc_status import grpc_status_of
from raftkv.commands.base import Write
from raftkv.commands.registry import CLIENT_COMMANDS
from raftkv.commands.results import Result
from raftkv.commands.rights import Right
from raftkv.errors import Code, RaftKVError
from raftkv.frontend.port import Caller, OpenDoor
from raftkv.limits import DEFAULT_TIMEOUT, LEAST_HELD_BYTES, MAX_TIMEOUT
from raftkv.log_limit import limited

if TYPE_CHECKING:
    from raftkv.clock import Clock
    from raftkv.frontend.port import Door
    from raftkv.frontend.shares import Shares

    Context = aio.ServicerContext[Any, Any]

log = logging.getLogger(__name__)

SMALL: Final = 16 * 1024
"""Bytes of an answer that are not counted."""
_WRITES: Final = frozenset(kind.rpc for kind in CLIENT_COMMANDS.values() if not kind.reads)
_SHOWING: Final = frozenset(
    kind.rpc for kind in CLIENT_COMMANDS.values() if kind.reads or (issubclass(kind, Write) and kind.shows)
)
_UNKNOWN: Final = LEAST_HELD_BYTES
"""Bytes held for an answer with records until its size is known: so few are under way that large ones can be borne."""
_REMEMBERED: Final = 1024
"""Connections whose sizes of answers are remembered."""
STOPPING: Final = Result(int(Code.UNAVAILABLE), detail="the node is stopping")
_FAILED: Final = Result(int(Code.INTERNAL), detail="the call failed: see the node's log")
COPIES: Final = 3
"""How often an answer exists while it is sent: as a result, as a message, and as what gRPC sends."""


_caller: Final[ContextVar[Caller]] = ContextVar("caller")


def caller() -> Caller:
    """Who asks for the RPC that this task serves, but for a Pipeline."""
    return _caller.get(None) or Caller.at("")


async def abort(context: Context, result: Result) -> NoReturn:
    """End the RPC with what ``result``, a failure, says."""
    status, text, metadata = grpc_status_of(with_retry(result))
    await context.abort(status, text, metadata)
    raise grpc.RpcError(text)  # never reached: abort raises


async def enter(door: Door, context: Context) -> Caller:
    """Who asks for the RPC, if the door lets it in."""
    shown = (value for key, value in context.invocation_metadata() or () if key == METADATA and isinstance(value, str))
    try:
        return await door.enter(context.peer(), next(shown, None))
    except RaftKVError as error:
        await abort(context, failure_of(error))


def request_id_of(request: Any) -> str:
    """What names the request of a call, for the log: ``client id/sequence`` of a write, the token of a change."""
    named = getattr(request, "request_id", None)
    if named is not None and named.client_id:
        return f"{named.client_id.hex()}/{named.sequence}"
    token = getattr(request, "token", b"")
    # A join token is text, and a secret.
    return token.hex() if isinstance(token, bytes) else ""


def budget_of(context: Context) -> float:
    """Seconds that the client gives the RPC."""
    remaining: float | None = context.time_remaining()
    return DEFAULT_TIMEOUT if remaining is None else min(max(remaining, 0.001), MAX_TIMEOUT)


def on_end(context: Context, call: Callable[[], None]) -> None:
    """Call ``call`` once the RPC is over: what was answered has been sent, or its client is gone."""
    context.add_done_callback(lambda _: call())  # type: ignore[arg-type]  # the stubs want more than a function


class _Malformed:
    def __init__(self, problem: str) -> None:
        self.problem = problem

    def result(self) -> Result:
        return Result(int(Code.INVALID_ARGUMENT), detail=f"malformed message: {self.problem}")


class _Held:
    """What one call holds for its answer."""

    __slots__ = ("_peer", "_shares", "size")

    def __init__(self, shares: Shares, peer: str) -> None:
        self._shares = shares
        self._peer = peer
        self.size = 0

    async def reserve(self, size: int, timeout: float) -> bool:
        """Hold ``size`` bytes, when there is room. False if there was none in time."""
        self.release()
        if not await self._shares.acquire(self._peer, size, timeout):
            return False
        self.size = size
        return True

    def grow(self, size: int) -> bool:
        """Hold ``size`` bytes, at once. False if there is no room for it."""
        if self._shares.room(self._peer) < size - self.size:
            return False
        self.shrink(size)
        return True

    def shrink(self, size: int) -> None:
        """Hold ``size`` bytes."""
        self._shares.take(self._peer, size - self.size)
        self.size = size

    def release(self) -> None:
        """Hold nothing."""
        if self.size:
            self.shrink(0)


class Guard:
    """Stands where services register for the server, and passes their methods on.

    ``calls`` and ``answers`` are shared by the connections; answers are counted until their RPC is over. A method that
    reads is called again when its answer was too large for what was free. A client's write is not: its answer is taken
    as it is. No other RPC that changes something may have a large one.
    The Pipeline gets its requests as bytes, and looks at its shares and at who asks by itself. Watches have shares of
    their own. Messages of a stream of answers may come serialized.
    ``door`` knows who may call methods, by default everybody. ``needs``: the rights for those that need any; None:
    nobody has to be a user.
    """

    def __init__(
        self,
        server: Any,
        calls: Shares,
        answers: Shares,
        clock: Clock,
        door: Door | None = None,
        needs: Callable[[str, str], Right | None] = lambda *_: Right.NONE,
    ) -> None:
        self._server = server
        self._door = door or OpenDoor()
        self._needs = needs
        self._calls = calls
        self.answers = answers
        self._clock = clock
        self._expected: dict[str, int] = {}
        self.sending: dict[object, tuple[str, float]] = {}
        """Of each large answer: who has to read it, and when it was ready."""

    def add_generic_rpc_handlers(self, handlers: object) -> None:
        """Nothing: the methods come by :meth:`add_registered_method_handlers` too."""

    def add_registered_method_handlers(self, service: str, handlers: Mapping[str, Any]) -> None:
        """As of a server."""
        self._server.add_registered_method_handlers(
            service, {name: self._guarded(service, name, handler) for name, handler in handlers.items()}
        )

    def _guarded(self, service: str, name: str, handler: Any) -> Any:
        need = self._needs(service, name)
        if name == "Pipeline":
            return handler._replace(request_deserializer=None)
        read = handler.request_deserializer

        def deserialize(data: bytes) -> Any:
            try:
                return read(data)
            except DecodeError as error:
                return _Malformed(str(error))

        changed: dict[str, Any] = {"request_deserializer": deserialize}
        if handler.unary_unary is not None:
            changed["unary_unary"] = self._unary(handler.unary_unary, name, need)
        elif handler.unary_stream is not None:
            write = handler.response_serializer
            changed["unary_stream"] = self._streaming(handler.unary_stream, name, need)
            changed["response_serializer"] = lambda answer: answer if type(answer) is bytes else write(answer)
        elif handler.stream_stream is not None:
            changed["stream_stream"] = self._both_streaming(handler.stream_stream, name, need)
        return handler._replace(**changed)

    async def _admit(self, context: Context, name: str, need: Right | None) -> None:
        """Let the call in, if its caller may make it."""
        if need is None or not self._door.closed:
            _caller.set(Caller.at(context.peer()))
            return
        _caller.set(await enter(self._door, context))
        if need:
            await self._check(context, name, need)

    async def _check(self, context: Context, name: str, need: Right | None) -> None:
        """Go on if its caller may make the call now: streams ask again for each of their messages."""
        if need is not None and self._door.closed:
            try:
                self._door.check(caller(), need, name)
            except RaftKVError as error:
                await abort(context, failure_of(error))

    async def _enter(self, context: Context, size: int = 0) -> str:
        """Take a call, and ``size`` bytes of a request, as shares of the connection until the RPC is over."""
        peer = context.peer()
        if size > SMALL and self.answers.room(peer) < size:
            await abort(context, overloaded("too many bytes in flight on this connection"))
        if not await self._calls.acquire(peer, 1, budget_of(context)):
            await abort(context, overloaded("too many calls in flight on this connection"))
        on_end(context, lambda: self._calls.take(peer, -1))
        if size > SMALL:
            self.answers.take(peer, size)
            on_end(context, lambda: self.answers.take(peer, -size))
        return peer

    def _unary(
        self, method: Callable[[Any, Context], Awaitable[Any]], name: str, need: Right | None
    ) -> Callable[[Any, Context], Awaitable[Any]]:
        least, once = _UNKNOWN if name in _SHOWING else 0, name in _WRITES

        async def call(request: Any, context: Context) -> Any:
            if type(request) is _Malformed:
                await abort(context, request.result())
            peer = await self._enter(context, request.ByteSize())
            await self._admit(context, name, need)
            held = _Held(self.answers, peer)
            on_end(context, held.release)
            expected = max(least, self._expected.get(peer, 0))
            while True:
                if expected > SMALL and not await held.reserve(expected, budget_of(context)):
                    await abort(context, overloaded("too many unread responses on this connection"))
                try:
                    answer = await method(request, context)
                except aio.BaseError:
                    raise
                except Exception:
                    source = limited(peer.rpartition(":")[0], request_id_of(request))
                    log.exception("%s failed", name, extra=source)
                    await abort(context, _FAILED)
                size: int = answer.ByteSize() * COPIES
                if once or size <= max(SMALL, held.size) or held.grow(size):
                    break
                # It is read again when there is room, so that none waits in memory that is not counted.
                del answer
                expected = size
            self._expect(peer, size)
            if size > SMALL:
                held.shrink(size)
                self.sending[held] = (peer, self._clock.now())
                on_end(context, partial(self.sending.__delitem__, held))
            else:
                held.release()
            return answer

        return call

    def _expect(self, peer: str, size: int) -> None:
        """The next answer to ``peer`` may be as large: with many under way, it is too late to look when they come."""
        size = max(size, self._expected.pop(peer, 0) * 7 // 8)
        if size > SMALL:
            self._expected[peer] = size
            if len(self._expected) > _REMEMBERED:
                del self._expected[next(iter(self._expected))]

    def _streaming(
        self, method: Callable[[Any, Context], AsyncGenerator[Any, None]], name: str, need: Right | None
    ) -> Callable[[Any, Context], AsyncIterator[Any]]:
        async def call(request: Any, context: Context) -> AsyncIterator[Any]:
            if type(request) is _Malformed:
                await abort(context, request.result())
            if name != "Watch":
                await self._enter(context)
            await self._admit(context, name, need)
            async with aclosing(method(request, context)) as answers:
                async for answer in answers:
                    await self._check(context, name, need)
                    yield answer

        return call

    def _both_streaming(
        self,
        method: Callable[[AsyncIterator[Any], Context], AsyncIterator[Any]],
        name: str,
        need: Right | None,
    ) -> Callable[[AsyncIterator[Any], Context], AsyncIterator[Any]]:
        async def call(requests: AsyncIterator[Any], context: Context) -> AsyncIterator[Any]:
            await self._enter(context)
            await self._admit(context, name, need)

            async def checked() -> AsyncIterator[Any]:
                async for request in requests:
                    if type(request) is _Malformed:
                        await abort(context, request.result())
                    await self._check(context, name, need)
                    yield request

            async for answer in method(checked(), context):
                yield answer

        return call
