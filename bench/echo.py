"""The ceiling of the front end: a bare gRPC stream that echoes messages, without protobuf, routing or a store.

On each connection one message of a given size goes to another process and back, then the next one, as the operations
of a closed loop that travel together do. Rates of raftkv mean little without it: they are those of a machine at a
moment.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from typing import Any, Final

import grpc
import uvloop

from raftkv.clock import SystemClock

_METHOD: Final = "/bench.Echo/Echo"
FRAME_BYTES: Final = 16
"""Bytes of an operation in a message besides its key and value, about."""
_LIFE: Final = 120.0
"""Seconds after which an abandoned server ends by itself."""
_ALONE: Final = (("grpc.use_local_subchannel_pool", 1),)
"""Channels to one address do not share a connection."""


class _Handler(grpc.GenericRpcHandler):  # type: ignore[type-arg]
    def service(self, handler_call_details: Any) -> Any:
        async def echo(requests: AsyncIterator[bytes], _context: Any) -> AsyncIterator[bytes]:
            async for request in requests:
                yield request

        return grpc.stream_stream_rpc_method_handler(echo)


async def _serve(port: int) -> None:
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((_Handler(),))
    server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    await server.wait_for_termination(_LIFE)


async def round_trips(port: int, size: int, seconds: float, connections: int = 1) -> float:
    """Round trips per second of messages of ``size`` bytes through the echo server at ``port``.

    One message is under way on each of so many ``connections``.
    """
    clock = SystemClock()
    payload = b"x" * size
    counts = [0] * connections
    async with contextlib.AsyncExitStack() as stack:
        calls: list[Any] = []
        for _ in range(connections):
            channel = await stack.enter_async_context(grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=_ALONE))
            await channel.channel_ready()
            untyped: Any = channel
            calls.append(untyped.stream_stream(_METHOD)())

        async def trips(index: int, until: float) -> None:
            call = calls[index]
            while clock.now() < until:
                await call.write(payload)
                await call.read()
                counts[index] += 1

        began = clock.now()
        await asyncio.gather(*(trips(index, began + seconds) for index in range(connections)))
        took = clock.now() - began
        for call in calls:
            call.cancel()
    return sum(counts) / took


def measure(size: int, seconds: float, connections: int = 1) -> float:
    """As :func:`round_trips`, with a server process of its own."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = subprocess.Popen([sys.executable, "-m", "bench.echo", str(port)])
    try:
        return uvloop.run(round_trips(port, size, seconds, connections))
    finally:
        server.terminate()
        server.wait(10)


if __name__ == "__main__":
    uvloop.run(_serve(int(sys.argv[1])))
