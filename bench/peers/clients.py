"""What a worker calls of a peer: its fastest well-kept Python client.

etcd3aio for etcd: gRPC's own asyncio on uvloop, as raftkv's. Valkey GLIDE for Valkey: a core in Rust that sends what
many workers ask over one connection. Errors of both become those of raftkv, as a measurement counts them.
"""

from __future__ import annotations

from typing import Any, Self

import grpc

from raftkv.addresses import parse_address
from raftkv.errors import DeadlineExceeded, RaftKVError, Unavailable


class Refused(RaftKVError):
    """A peer answered with an error."""


class EtcdTarget:
    """etcd3aio with a connection of its own."""

    def __init__(self, client: Any, timeout: float) -> None:
        from etcd3aio.errors import EtcdError

        self._client, self._errors = client, (EtcdError, grpc.aio.AioRpcError, TimeoutError)
        self._get, self._put = client.kv.get, client.kv.put
        self._timeout = timeout

    @classmethod
    async def connect(cls, endpoints: str, timeout: float, number: int) -> Self:
        """Client ``number`` (from 0) asks one of the endpoints, which take turns. Raises Unavailable."""
        from etcd3aio import Etcd3Client

        addresses = endpoints.split(",")
        client = Etcd3Client([addresses[number % len(addresses)]])
        # Channels of one process share a connection unless their options differ.
        client._manager.grpc_options.append(("bench.client", number))  # noqa: SLF001 - there is no public way
        await client.connect()
        target = cls(client, timeout)
        try:
            await target.get(b"0")
        except RaftKVError as error:
            await target.close()
            raise Unavailable(f"etcd at {endpoints}: {error}") from None
        return target

    async def get(self, key: bytes) -> None:
        try:
            await self._get(key, timeout=self._timeout)
        except self._errors as error:
            raise _translated(error) from None

    async def set(self, key: bytes, value: bytes) -> None:
        try:
            await self._put(key, value, timeout=self._timeout)
        except self._errors as error:
            raise _translated(error) from None

    async def close(self) -> None:
        await self._client.close()


class ValkeyTarget:
    """A client of Valkey GLIDE. ``replicas``: a write waits until so many of them have it in memory."""

    def __init__(self, client: Any, timeout: float, replicas: int) -> None:
        import glide

        self._client, self._batch, self._error = client, glide.Batch, glide.GlideError
        self._get, self._set, self._exec = client.get, client.set, client.exec
        self._replicas, self._wait_ms = replicas, int(timeout * 1000)

    @classmethod
    async def connect(cls, endpoints: str, timeout: float, replicas: int) -> Self:
        """Raises Unavailable."""
        import glide

        host, port = parse_address(endpoints)
        glide.Logger.set_logger_config(glide.LogLevel.ERROR)
        node = glide.NodeAddress(host, port)
        try:
            client = await glide.GlideClient.create(
                glide.GlideClientConfiguration([node], request_timeout=int(timeout * 1000))
            )
        except glide.GlideError as error:
            raise Unavailable(f"Valkey at {endpoints}: {error}") from None
        return cls(client, timeout, replicas)

    async def get(self, key: bytes) -> None:
        try:
            await self._get(key)
        except self._error as error:
            raise _translated(error) from None

    async def set(self, key: bytes, value: bytes) -> None:
        try:
            if not self._replicas:
                await self._set(key, value)
                return
            # Both in one message: WAIT means all writes of its connection before it, no transaction is needed.
            both = self._batch(is_atomic=False)
            both.set(key, value)
            both.wait(self._replicas, self._wait_ms)
            _, acknowledged = await self._exec(both, raise_on_error=True)
        except self._error as error:
            raise _translated(error) from None
        if acknowledged < self._replicas:
            raise DeadlineExceeded

    async def close(self) -> None:
        await self._client.close()


async def connect(api: str, endpoints: str, timeout: float, number: int) -> EtcdTarget | ValkeyTarget:
    """Client ``number`` (from 0) for one of the peers' APIs of :mod:`bench.targets`."""
    if api.startswith("valkey"):
        return await ValkeyTarget.connect(endpoints, timeout, replicas=1 if api == "valkey-wait" else 0)
    return await EtcdTarget.connect(endpoints, timeout, number)


def _translated(error: Exception) -> RaftKVError:
    late = isinstance(error, TimeoutError) or type(error).__name__ == "TimeoutError"
    return DeadlineExceeded() if late else Refused(str(error))
