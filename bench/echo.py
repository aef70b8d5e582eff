"""The ceiling of the front end: a bare gRPC stream that echoes messages, without protobuf, routing or a store.

One message of a given size goes to another process and back, then the next one, as the operations of a closed loop that
travel together do. Rates of raftkv mean little without it: they are those of a machine at a moment.
"""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from typing import Any, Final

import grpc
import uvloop

from raftkv.clock import SystemClock

_METHOD: Final = "/bench.Echo/Echo"
_LIFE: Final = 120.0
"""Seconds after which an abandoned server ends by itself."""


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


async def round_trips(port: int, size: int, seconds: float) -> float:
    """Round trips per second of a message of ``size`` bytes through the echo server at ``port``."""
    clock = SystemClock()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        await channel.channel_ready()
        untyped: Any = channel
        call = untyped.stream_stream(_METHOD)()
        payload, count = b"x" * size, 0
        began = clock.now()
        while clock.now() < began + seconds:
            await call.write(payload)
            await call.read()
            count += 1
        took = clock.now() - began
        call.cancel()
    return count / took


def measure(size: int, seconds: float) -> float:
    """As :func:`round_trips`, with a server process of its own."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = subprocess.Popen([sys.executable, "-m", "bench.echo", str(port)])
    try:
        return uvloop.run(round_trips(port, size, seconds))
    finally:
        server.terminate()
        server.wait(10)


if __name__ == "__main__":
    uvloop.run(_serve(int(sys.argv[1])))
