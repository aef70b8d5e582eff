"""The synchronous client: the asyncio one on a background loop of its own."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator, Coroutine, Iterator, Sequence
from types import TracebackType
from typing import Any, Self, TypeVar

from raftkv.client.aio import AsyncClient
from raftkv.client.forks import forks
from raftkv.client.types import CasResult, Consistency, EndpointStatus, Record, WriteResult
from raftkv.errors import UsageError
from raftkv.limits import DEFAULT_TIMEOUT

T = TypeVar("T")


async def _next(pages: AsyncGenerator[list[Record], None]) -> list[Record] | None:
    return await anext(pages, None)


class Client:
    """As :class:`raftkv.AsyncClient`, without await. Safe to use from any number of threads.

    Raises the same errors. Not usable in a process forked after it was made: make a new one there.
    """

    def __init__(self, endpoints: str | Sequence[str], *, timeout: float = DEFAULT_TIMEOUT) -> None:
        self._client = AsyncClient(endpoints, timeout=timeout)
        self._forks = forks()
        self._closed = False
        self._lock = threading.Lock()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="raftkv-client", daemon=True)
        self._thread.start()

    def __enter__(self) -> Self:
        self._check()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End outstanding calls and close all connections. May be called again; does nothing in a forked process."""
        if forks() != self._forks:
            return
        with self._lock:
            if self._closed:
                return
            self._closed = True
        asyncio.run_coroutine_threadsafe(self._end(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def get(
        self, key: bytes | str, *, consistency: Consistency = "linearizable", timeout: float | None = None
    ) -> Record | None:
        """See AsyncClient.get."""
        return self._run(self._client.get(key, consistency=consistency, timeout=timeout))

    def put(
        self,
        key: bytes | str,
        value: bytes | str,
        *,
        ttl: float | None = None,
        if_version: int | None = None,
        timeout: float | None = None,
    ) -> WriteResult:
        """See AsyncClient.put."""
        return self._run(self._client.put(key, value, ttl=ttl, if_version=if_version, timeout=timeout))

    def delete(self, key: bytes | str, *, if_version: int | None = None, timeout: float | None = None) -> bool:
        """See AsyncClient.delete."""
        return self._run(self._client.delete(key, if_version=if_version, timeout=timeout))

    def cas(
        self,
        key: bytes | str,
        expected: bytes | str | None,
        value: bytes | str,
        *,
        ttl: float | None = None,
        timeout: float | None = None,
    ) -> CasResult:
        """See AsyncClient.cas."""
        return self._run(self._client.cas(key, expected, value, ttl=ttl, timeout=timeout))

    def scan_slot(
        self,
        slot: int,
        after: bytes = b"",
        *,
        limit_bytes: int = 0,
        consistency: Consistency = "linearizable",
        timeout: float | None = None,
    ) -> tuple[list[Record], bool]:
        """See AsyncClient.scan_slot."""
        return self._run(
            self._client.scan_slot(slot, after, limit_bytes=limit_bytes, consistency=consistency, timeout=timeout)
        )

    def records(self, *, consistency: Consistency = "linearizable", timeout: float | None = None) -> Iterator[Record]:
        """See AsyncClient.records."""
        pages = self._client.record_pages(consistency=consistency, timeout=timeout)
        try:
            while (page := self._run(_next(pages))) is not None:
                yield from page
        finally:
            if not self._closed:
                self._run(pages.aclose())

    def slots(self, *, timeout: float | None = None) -> int:
        """See AsyncClient.slots."""
        return self._run(self._client.slots(timeout=timeout))

    def slot_of(self, key: bytes | str, *, timeout: float | None = None) -> int:
        """See AsyncClient.slot_of."""
        return self._run(self._client.slot_of(key, timeout=timeout))

    def status(self, *, timeout: float | None = None) -> list[EndpointStatus]:
        """See AsyncClient.status."""
        return self._run(self._client.status(timeout=timeout))

    def _check(self) -> None:
        if forks() != self._forks:
            raise UsageError("this client was made before a fork: make a new one in the new process")
        if self._closed:
            raise UsageError("the client is closed")
        if threading.current_thread() is self._thread:
            raise UsageError("the synchronous client cannot be used from its own loop")

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        try:
            self._check()
        except UsageError:
            work.close()
            raise
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()  # an interrupted caller no longer waits
            raise

    async def _end(self) -> None:
        await self._client.close()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        await self._loop.shutdown_asyncgens()
