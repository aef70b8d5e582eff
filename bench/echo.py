"""The ceiling of the front end: raftkv's own messages over bare gRPC, answered by handlers that do nothing.

Requests are encoded, sent, decoded, answered by as many results of the same size, encoded, sent back and decoded, by a
server and a client in a process each: without a client's futures and retries, routing, Raft or a store. On a stream the
operations that share a connection travel in two messages, one of which is on its way while the other one is worked on;
a unary call is one operation. Rates of raftkv mean little without it: they are those of a machine at a moment.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import functools
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final

import grpc
import uvloop

from bench.load import LoadPlan
from raftkv.api.pipeline import Answers, Batch, answers_of, read_request, request_of, response_of
from raftkv.clock import Clock, SystemClock
from raftkv.commands.records import Get, Put
from raftkv.commands.registry import Piped
from raftkv.commands.results import Result
from raftkv.v1 import kv_pb2, kv_pb2_grpc

_LIFE: Final = 120.0
"""Seconds after which an abandoned server ends by itself."""
_END: Final = 10.0
_HALVES: Final = 2
_CLIENT: Final = bytes(16)
_TIMEOUT_MS: Final = 5000


def _nothing(value: bytes) -> grpc.GenericRpcHandler:  # type: ignore[type-arg]
    """A service KV that has one record under every key."""

    async def get(request: kv_pb2.GetRequest, _context: Any) -> kv_pb2.GetResponse:
        return kv_pb2.GetResponse(record=kv_pb2.Record(key=request.key, value=value, version=1))

    async def put(_request: kv_pb2.PutRequest, _context: Any) -> kv_pb2.PutResponse:
        return kv_pb2.PutResponse(version=1)

    async def pipeline(requests: AsyncIterator[bytes], _context: Any) -> AsyncIterator[kv_pb2.PipelineResponse]:
        async for request in requests:
            _, ids, commands = read_request(request)
            results = [Result(0, 1, value) if isinstance(one, Get) else Result(0, 1) for one in commands]
            yield response_of(Answers(ids, results, map_epoch=1), packed=True)

    def handler(make: Any, function: Any, request: Any, response: Any) -> Any:
        return make(function, request_deserializer=request, response_serializer=response.SerializeToString)

    unary, stream = grpc.unary_unary_rpc_method_handler, grpc.stream_stream_rpc_method_handler
    return grpc.method_handlers_generic_handler(
        kv_pb2.DESCRIPTOR.services_by_name["KV"].full_name,
        {
            "Get": handler(unary, get, kv_pb2.GetRequest.FromString, kv_pb2.GetResponse),
            "Put": handler(unary, put, kv_pb2.PutRequest.FromString, kv_pb2.PutResponse),
            "Pipeline": handler(stream, pipeline, None, kv_pb2.PipelineResponse),
        },
    )


async def _serve(port: int, value_size: int) -> None:
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((_nothing(b"v" * value_size),))
    server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    await server.wait_for_termination(_LIFE)


async def _stream(channel: grpc.aio.Channel, plan: LoadPlan, workers: int, over: Callable[[], bool]) -> int:
    """Operations of ``workers`` that share a connection, until it is ``over``."""
    key, value = b"k" * plan.key_size, b"v" * plan.value_size
    parts = [part for part in (workers // _HALVES, workers - workers // _HALVES) if part]
    call = kv_pb2_grpc.KVStub(channel).Pipeline(None)

    async def ask(operations: int) -> None:
        ids = list(range(1, operations + 1))
        commands: list[Piped] = [
            Get(0, key) if plan.op == "get" else Put(0, key, value, client=_CLIENT, seq=number, first=1)
            for number in ids
        ]
        await call.write(request_of(Batch(ids, commands, _TIMEOUT_MS), packed=True))

    done = 0
    for part in parts:
        await ask(part)
    while True:
        answers = answers_of(await call.read())  # type: ignore[arg-type]  # the echo ends no stream
        done += sum(1 for result in answers.results if result.version and not result.code)
        if over():
            call.cancel()
            return done
        await ask(len(answers.ids))


async def _unary(channel: grpc.aio.Channel, plan: LoadPlan, workers: int, over: Callable[[], bool]) -> int:
    key, value = b"k" * plan.key_size, b"v" * plan.value_size
    stub = kv_pb2_grpc.KVStub(channel)
    name = kv_pb2.RequestId(client_id=_CLIENT, sequence=1, first_incomplete=1)

    async def work() -> int:
        done = 0
        while not over():
            if plan.op == "get":
                done += (await stub.Get(kv_pb2.GetRequest(key=key), timeout=plan.timeout)).record.version
            else:
                request = kv_pb2.PutRequest(key=key, value=value, request_id=name)
                done += bool((await stub.Put(request, timeout=plan.timeout)).version)
        return done

    return sum(await asyncio.gather(*(work() for _ in range(workers))))


async def rate(plan: LoadPlan) -> float:
    """Operations per second of ``plan`` through a server at its ``endpoints``; see :func:`measure`."""
    clock = SystemClock()
    async with contextlib.AsyncExitStack() as stack:
        channels = []
        for number in range(plan.clients):
            # Channels of one process share a connection unless their options differ.
            options = [("bench.client", number), ("grpc.enable_http_proxy", 0)]
            channel = grpc.aio.insecure_channel(plan.endpoints, options=options)
            channels.append(await stack.enter_async_context(channel))
        await asyncio.gather(*(channel.channel_ready() for channel in channels))
        work = _unary if plan.api == "unary" else _stream
        workers = [len(range(number, plan.workers, plan.clients)) for number in range(plan.clients)]
        for seconds in (plan.warmup, plan.seconds):
            began = clock.now()
            over = functools.partial(_over, clock, began + seconds)
            found = [work(*one, over) for one in zip(channels, [plan] * plan.clients, workers, strict=True)]
            done = sum(await asyncio.gather(*found))
            took = clock.now() - began
    return done / took


def _over(clock: Clock, until: float) -> bool:
    return clock.now() >= until


@dataclass(frozen=True, slots=True)
class EchoServer:
    """A server process and its address."""

    endpoints: str


@contextlib.contextmanager
def serving(value_size: int) -> Iterator[EchoServer]:
    """A server in a process of its own, whose records have values of so many bytes."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = subprocess.Popen([sys.executable, "-m", "bench.echo", str(port), str(value_size)])
    try:
        yield EchoServer(f"127.0.0.1:{port}")
    finally:
        server.terminate()
        server.wait(_END)


def measure(plan: LoadPlan) -> float:
    """Operations per second of ``plan`` through a server of its own.

    Of the plan count ``op`` ("get" or "set"), ``api``, ``workers``, who share ``clients`` connections, sizes and times.
    """
    with serving(plan.value_size) as server:
        return uvloop.run(rate(dataclasses.replace(plan, endpoints=server.endpoints)))


if __name__ == "__main__":
    uvloop.run(_serve(*map(int, sys.argv[1:])))
