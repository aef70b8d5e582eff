"""What abusers do, each until it is over: all of it bounded, and counted as it goes."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from itertools import cycle, islice
from typing import Any, Final

from faults.abuse import http2
from faults.abuse.neighbour import behave
from faults.abuse.wire import Pipe, asleep, code_name, gets, pipe, puts
from faults.keys import PREFIX
from raftkv.addresses import parse_address
from raftkv.client.tls import TLS
from raftkv.client.transport import FAILURES, connect
from raftkv.v1 import admin_pb2, admin_pb2_grpc, kv_pb2
from shards.slots import SLOT_RULE

Counts = dict[str, Any]
Act = Callable[..., Coroutine[Any, Any, None]]

_GET: Final = b"/raftkv.v1.KV/Get"
_AGAIN: Final = 0.2
"""Seconds before who was turned away comes back."""

_LOOKED_AT: Final = 64
"""Of each message's answers one in so many is looked at: a flood is to cost the flooder little."""


async def flood(
    counts: Counts,
    over: asyncio.Event,
    *,
    addresses: Sequence[str],
    streams: int,
    operations: int,
    value_size: int = 128,
    tags: Sequence[str] = (),
    messages: int = 1_000_000,
    timeout: float = 30.0,
    tls: Sequence[str] = (),
) -> None:
    """``streams`` connections with a Pipeline each, which write as fast as they are let, ``operations`` a message.

    ``tags``: of the keys; without them, keys of all slots. ``messages``: of each stream at most. ``answered``:
    operations that got an answer; ``codes``: of some of them; ``refused``: streams that a node has ended. ``tls``:
    paths of CAs, certificate and key.
    """
    credentials = TLS(*tls).read() if tls else None
    counts.update(sent=0, answered=0, codes={}, refused=0, streams=0)
    tagged = [f"{{{tag}}}" for tag in tags] or [""]
    keys = [f"{PREFIX}{tag}{number}" for number, tag in zip(range(operations), cycle(tagged), strict=False)]
    message = puts(keys, b"f" * value_size, timeout=timeout)
    codes: Counter[str] = Counter()

    async def write(one: Pipe) -> None:
        for _ in range(messages):
            if over.is_set():
                return
            await one.write(message)
            counts["sent"] += operations

    async def read(one: Pipe) -> None:
        while (response := await one.read()) is not None:
            counts["answered"] += len(response.results)
            codes.update(code_name(result.code) for result in response.results[::_LOOKED_AT])
            counts["codes"] = dict(codes)

    async def stream(address: str) -> None:
        while not over.is_set():
            counts["streams"] += 1
            async with pipe(address, credentials) as one:
                tasks = [asyncio.create_task(act) for act in (write(one), read(one), over.wait())]
                try:
                    await asyncio.wait(tasks[1:], return_when=asyncio.FIRST_COMPLETED)
                finally:
                    for task in tasks:
                        task.cancel()
                    await asyncio.gather(*tasks, return_exceptions=True)
            counts["streams"] -= 1
            counts["refused"] += not over.is_set()
            await asleep(over, _AGAIN)

    await asyncio.gather(*(stream(address) for address in islice(cycle(addresses), streams)))


async def large_answers(
    counts: Counts,
    over: asyncio.Event,
    *,
    addresses: Sequence[str],
    key: str,
    operations: int,
    tls: Sequence[str] = (),
) -> None:
    """Ask each node for ``operations`` gets of ``key`` in one message, read the first answers and no more.

    ``asked`` and ``came``: operations; ``bytes``: of values that came. ``tls`` as of :func:`flood`.
    """
    credentials = TLS(*tls).read() if tls else None
    counts.update(asked=0, came=0, bytes=0)

    async def ask(address: str) -> None:
        async with pipe(address, credentials) as one:
            try:
                await one.write(gets(key, operations))
                counts["asked"] += operations
                if (response := await one.read()) is not None:
                    counts["came"] += len(response.results)
                    counts["bytes"] += sum(len(result.value) for result in response.results)
            except FAILURES as problem:
                counts["refused"] = repr(problem)
            await over.wait()

    await asyncio.gather(*(ask(address) for address in addresses))


async def stalled_calls(
    counts: Counts, over: asyncio.Event, *, addresses: Sequence[str], key: str, calls: int, each: int = 100
) -> None:
    """``calls`` unary gets of ``key``, ``each`` on a connection, by a client that reads the first bytes and no more."""
    counts.update(asked=0, bytes=0)
    message = kv_pb2.GetRequest(key=key.encode()).SerializeToString()

    async def ask(address: str, count: int) -> None:
        async with open_socket(address) as (reader, writer):
            asked = (http2.call(2 * at + 1, _GET, message) for at in range(count))
            writer.write(http2.opening() + b"".join(asked))
            counts["asked"] += count
            counts["bytes"] += len(await reader.read(1024))
            writer.transport.pause_reading()  # type: ignore[attr-defined]  # the stream would fill its buffer first
            await over.wait()

    nodes = cycle(addresses)
    await asyncio.gather(*(ask(next(nodes), min(each, calls - at)) for at in range(0, calls, each)))


async def idle_sockets(
    counts: Counts, over: asyncio.Event, *, addresses: Sequence[str], connections: int, greet: bool = False
) -> None:
    """``connections`` to each of the addresses that say nothing, or only that they speak HTTP/2.

    ``open``: those that were made and not closed by the node yet; ``closed``: by the node.
    """
    counts.update(open=0, closed=0, refused=0)

    async def stay(address: str) -> None:
        try:
            async with open_socket(address) as (reader, writer):
                counts["open"] += 1
                if greet:
                    writer.write(http2.opening())
                with contextlib.suppress(OSError):
                    while await reader.read(1024):
                        pass
                counts["open"] -= 1
                counts["closed"] += 1
        except OSError:
            counts["refused"] += 1
        await over.wait()

    tasks = [asyncio.create_task(stay(address)) for address in addresses for _ in range(connections)]
    await over.wait()
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def rapid_resets(
    counts: Counts, over: asyncio.Event, *, addresses: Sequence[str], connections: int, calls: int
) -> None:
    """Calls that are taken back as soon as they were made, ``calls`` in all, from ``connections`` at a time."""
    counts.update(resets=0, connections=0)
    message = kv_pb2.GetRequest(key=b"reset").SerializeToString()
    burst = 100

    async def reset(address: str) -> None:
        while not over.is_set() and counts["resets"] < calls:
            with contextlib.suppress(OSError):
                async with open_socket(address) as (reader, writer):
                    counts["connections"] += 1
                    writer.write(http2.opening())
                    draining = asyncio.create_task(reader.read())
                    stream = 1
                    while not (over.is_set() or draining.done() or counts["resets"] >= calls):
                        for _ in range(burst):
                            writer.write(http2.call(stream, _GET, message) + http2.reset(stream))
                            stream += 2
                        counts["resets"] += burst
                        await writer.drain()
                        await asyncio.sleep(0)
                    draining.cancel()
                    await asyncio.gather(draining, return_exceptions=True)

    await asyncio.gather(*(reset(address) for address in islice(cycle(addresses), connections)))
    await over.wait()


async def questions(
    counts: Counts, over: asyncio.Event, *, address: str, asked: str, group: int, workers: int, period: float = 0.0
) -> None:
    """Ask the service Admin of one node for ``asked``, ``workers`` at a time, each ``period`` seconds at least."""
    counts.update(answered=0, failed=0)
    channel = connect(address)
    stub: Any = admin_pb2_grpc.AdminStub(channel)
    requests: dict[str, Any] = {
        "GetMap": admin_pb2.GetMapRequest(slot_rule=SLOT_RULE),
        "GetSlots": admin_pb2.GetSlotsRequest(),
        "GetState": admin_pb2.GetStateRequest(slot_rule=SLOT_RULE),
        "StartCheck": admin_pb2.StartCheckRequest(group=group),
        "ReadSnapshot": admin_pb2.ReadSnapshotRequest(group=group),
    }

    async def ask() -> None:
        while not over.is_set():
            pausing = asyncio.create_task(asleep(over, period))
            try:
                call = getattr(stub, asked)(requests[asked], timeout=30.0)
                if asked == "ReadSnapshot":
                    async for _ in call:
                        if over.is_set():
                            break
                else:
                    await call
                counts["answered"] += 1
            except FAILURES:
                counts["failed"] += 1
                await asleep(over, _AGAIN)
            await pausing

    await asyncio.gather(*(ask() for _ in range(workers)))
    await channel.close(None)


@contextlib.asynccontextmanager
async def open_socket(address: str) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """A plain connection, which is broken in the end. Raises OSError."""
    at = parse_address(address)
    reader, writer = await asyncio.open_connection(at.host, at.port)
    try:
        yield reader, writer
    finally:
        writer.transport.abort()


ACTS: Final[dict[str, Act]] = {
    "behave": behave,
    "flood": flood,
    "large answers": large_answers,
    "stalled calls": stalled_calls,
    "idle sockets": idle_sockets,
    "rapid resets": rapid_resets,
    "questions": questions,
}
