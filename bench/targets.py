"""What a worker calls: one get or one set, by the client's Pipeline stream or by unary RPCs; or more of a client.

Other stores are called through :mod:`bench.peers.clients`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Final, Literal, Protocol, Self, TypeAlias, runtime_checkable

import grpc

import raftkv
from bench.peers import clients
from raftkv.errors import RaftKVError
from raftkv.v1 import kv_pb2, kv_pb2_grpc

Api: TypeAlias = Literal["pipeline", "unary", "etcd", "valkey", "valkey-wait"]


_ASKED_FIRST: Final = 8
"""Keys that a client reads when it connects: some of most groups, so that it knows their leaders."""


class Target(Protocol):
    """One connection's worth of client. Errors are those of raftkv or of gRPC."""

    def get(self, key: bytes, /) -> Awaitable[object]: ...

    def set(self, key: bytes, value: bytes, /) -> Awaitable[object]: ...

    async def close(self) -> None: ...


@runtime_checkable
class Caller(Protocol):
    """A target that also has a client's calls on several records."""

    async def scan(self, key: bytes, records: int, /) -> int:
        """Read so many records from ``key`` on; how many there were."""

    async def put_many(self, records: Mapping[bytes, bytes], /) -> object:
        """Write them, each by itself."""

    async def transact(self, absent: bytes, records: Mapping[bytes, bytes], /) -> bool:
        """Write them if ``absent``, a key of the same slot, has no record; whether that was done."""

    async def watch(self, live: Callable[[], None], told: Callable[[bytes], None], /) -> None:
        """Call ``live`` once, then ``told`` with each value that is written, whatever its key."""


class PipelineTarget:
    """raftkv.AsyncClient."""

    def __init__(self, client: raftkv.AsyncClient) -> None:
        self._client = client
        self.get: Callable[[bytes], Awaitable[object]] = client.get
        self.set: Callable[[bytes, bytes], Awaitable[object]] = client.put
        self.put_many: Callable[[Mapping[bytes, bytes]], Awaitable[object]] = client.put_many

    @classmethod
    async def connect(cls, endpoints: str, timeout: float) -> Self:
        """With streams that are open, as other stores' clients have connections. Raises RaftKVError."""
        if "://" in endpoints:
            client = raftkv.AsyncClient.from_url(endpoints, timeout=timeout)
        else:
            client = raftkv.AsyncClient(endpoints, timeout=timeout)
        await client.__aenter__()
        try:
            await asyncio.gather(*(client.get(b"%d" % number) for number in range(_ASKED_FIRST)))
        except RaftKVError:
            await client.close()
            raise
        return cls(client)

    async def scan(self, key: bytes, records: int) -> int:
        """Over all slots, in the order of the keys."""
        return len([record async for record in self._client.scan(start=key, limit=records)])

    async def transact(self, absent: bytes, records: Mapping[bytes, bytes]) -> bool:
        txn = self._client.txn().check(absent, absent=True)
        for key, value in records.items():
            txn.put(key, value)
        return (await txn.commit()).succeeded

    async def watch(self, live: Callable[[], None], told: Callable[[bytes], None]) -> None:
        async with self._client.watch(prefix=b"") as watch:
            async for event in watch:
                if event.type == "live":
                    live()
                elif event.value is not None:
                    told(event.value)

    async def close(self) -> None:
        await self._client.close()


class UnaryTarget:
    """The generated stubs, without routing: the node that is asked forwards to the leader."""

    def __init__(self, address: str, timeout: float, number: int) -> None:
        # Channels of one process share a connection unless their options differ.
        options = [("bench.client", number), ("grpc.enable_http_proxy", 0)]
        self._channel = grpc.aio.insecure_channel(address, options=options)
        self._stub = kv_pb2_grpc.KVStub(self._channel)
        self._timeout = timeout

    async def get(self, key: bytes) -> None:
        await self._stub.Get(kv_pb2.GetRequest(key=key), timeout=self._timeout)

    async def set(self, key: bytes, value: bytes) -> None:
        await self._stub.Put(kv_pb2.PutRequest(key=key, value=value), timeout=self._timeout)

    async def close(self) -> None:
        await self._channel.close(None)


async def connect(api: Api, endpoints: str, timeout: float, number: int) -> Target:
    """Client ``number`` (from 0): unary ones take the endpoints in turn."""
    if api == "pipeline":
        return await PipelineTarget.connect(endpoints, timeout)
    if api != "unary":
        return await clients.connect(api, endpoints, timeout, number)
    addresses = endpoints.split(",")
    return UnaryTarget(addresses[number % len(addresses)].strip(), timeout, number)
