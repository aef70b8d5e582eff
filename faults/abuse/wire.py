"""Pipeline by hand: messages that are packed once and sent again and again, answers that are read or are not."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Iterator
from typing import Any, Final

import grpc

from raftkv.client.tls import Credentials
from raftkv.client.transport import FAILURES, connect
from raftkv.errors import Code
from raftkv.v1 import kv_pb2

_PATH: Final = "/raftkv.v1.KV/Pipeline"


def puts(keys: Iterable[str], value: bytes, *, timeout: float = 30.0) -> bytes:
    """One message that writes ``value`` to ``keys``, without request ids. ``timeout`` in seconds."""
    operations = [
        kv_pb2.Operation(id=at, kind=kv_pb2.KIND_PUT, key=key.encode(), value=value) for at, key in enumerate(keys, 1)
    ]
    return kv_pb2.PipelineRequest(operations=operations, timeout_ms=round(1000 * timeout)).SerializeToString()


def gets(key: str, count: int, *, timeout: float = 60.0) -> bytes:
    """One message that reads ``key`` ``count`` times. ``timeout`` in seconds."""
    operations = [kv_pb2.Operation(id=at, kind=kv_pb2.KIND_GET, key=key.encode()) for at in range(1, count + 1)]
    return kv_pb2.PipelineRequest(operations=operations, timeout_ms=round(1000 * timeout)).SerializeToString()


class Pipe:
    """A stream of its own connection to the node at ``address``. Methods raise ``FAILURES`` of the transport."""

    def __init__(self, address: str, credentials: Credentials | None = None) -> None:
        self._channel = connect(address, credentials)
        self._call: Any = self._channel.stream_stream(_PATH, None, None)(None)

    async def write(self, message: bytes) -> None:
        """Send a packed message."""
        await self._call.write(message)

    async def read(self) -> kv_pb2.PipelineResponse | None:
        """The next answers, None at the end."""
        message = await self._call.read()
        return kv_pb2.PipelineResponse.FromString(message) if isinstance(message, bytes) else None

    async def status(self) -> grpc.StatusCode:
        """How the stream has ended."""
        code: grpc.StatusCode = await self._call.code()
        return code

    async def done_writing(self) -> None:
        """Nothing more will be written."""
        await self._call.done_writing()

    async def close(self) -> None:
        """Leave."""
        self._call.cancel()
        await self._channel.close(None)


@contextlib.asynccontextmanager
async def pipe(address: str, credentials: Credentials | None = None) -> AsyncIterator[Pipe]:
    """A :class:`Pipe` that is left in the end."""
    one = Pipe(address, credentials)
    try:
        yield one
    finally:
        await one.close()


async def answers(one: Pipe, count: int) -> Counter[str]:
    """Read ``count`` answers: how many had which code; what the end of the stream kept is ``lost``."""
    found: Counter[str] = Counter()
    try:
        while found.total() < count and (response := await one.read()) is not None:
            found.update(code_name(result.code) for result in response.results)
    except FAILURES:
        pass
    found["lost"] += count - found.total()
    return +found


def code_name(code: int) -> str:
    """As in the table of errors."""
    return Code(code).name if code in set(Code) else str(code)


async def fill(address: str, keys: Iterator[str], value: bytes, *, batch: int = 1000) -> Counter[str]:
    """Write all ``keys``, ``batch`` in a message, one message after the other; how many had which code."""
    found: Counter[str] = Counter()
    async with pipe(address) as one:
        while some := [key for _, key in zip(range(batch), keys, strict=False)]:
            await one.write(puts(some, value))
            found += await answers(one, len(some))
    return found


async def asleep(over: asyncio.Event, seconds: float) -> None:
    """Sleep, unless it is over."""
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(over.wait(), seconds)
