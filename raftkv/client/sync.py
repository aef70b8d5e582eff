"""The synchronous client: the asyncio one on a background loop of its own."""

from __future__ import annotations

import threading
import warnings
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from types import TracebackType
from typing import Any, Final, Self, TypeVar
from weakref import WeakSet

from raftkv.client.aio import AsyncClient
from raftkv.client.background import Background
from raftkv.client.process import MADE_BEFORE, forks
from raftkv.client.tls import TLS
from raftkv.client.transaction import Transaction
from raftkv.client.types import AppendResult, CasResult, Consistency, EndpointStatus, Record, WriteResult
from raftkv.client.urls import parse_url
from raftkv.errors import UsageError
from raftkv.limits import DEFAULT_TIMEOUT, SCAN_PAGE_BYTES

T = TypeVar("T")

_AT_EXIT: Final = 2.0
"""Seconds that the clients which nobody closed may hold up the end of the interpreter."""

_AT_ONCE: Final = 512
"""Records of a scan that one switch between threads brings."""

_clients: WeakSet[Client] = WeakSet()
_ended_by = 0
"""The thread that ends the interpreter, from then on."""


async def _some(records: AsyncGenerator[Record, None]) -> list[Record]:
    """The next ones, as many as are worth a switch between threads; none at the end."""
    found: list[Record] = []
    size = 0
    async for record in records:
        found.append(record)
        size += len(record.key) + len(record.value)
        if len(found) == _AT_ONCE or size >= SCAN_PAGE_BYTES:
            break
    return found


class Client:
    """As :class:`raftkv.AsyncClient`, without await. Safe to use from any number of threads.

    Raises the same errors. Not usable in a process forked after it was made. A client that nobody closed is closed as
    it is collected or as the interpreter ends, with a ResourceWarning; ``atexit`` functions can still use it, if they
    were registered after ``import raftkv``.
    """

    def __init__(
        self, endpoints: str | Sequence[str], *, timeout: float = DEFAULT_TIMEOUT, tls: TLS | None = None
    ) -> None:
        if _ended_by:
            raise UsageError("the interpreter is ending")
        self._client = AsyncClient(endpoints, timeout=timeout, tls=tls)
        self._client.disown()
        self._forks = forks()
        self._closed = False
        self._background = Background("raftkv-client", self._client.close)
        _clients.add(self)

    @classmethod
    def from_url(cls, url: str, *, timeout: float = DEFAULT_TIMEOUT) -> Self:
        """As :meth:`raftkv.AsyncClient.from_url`."""
        endpoints, tls = parse_url(url)
        return cls(endpoints, timeout=timeout, tls=tls)

    def __enter__(self) -> Self:
        self._check()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self, _warn: Callable[..., None] = warnings.warn) -> None:
        # What is not there was refused by the constructor.
        if not self.__dict__.get("_closed", True) and self.abandon():
            self.warn_unclosed(_warn)

    def close(self) -> None:
        """End outstanding calls and close all connections. May be called again; does nothing in a forked process."""
        if forks() == self._forks:
            self._closed = True
            self._background.end()
            self.wait_closed()

    def abandon(self) -> bool:
        """Close, without waiting, if nobody did. Whether that was so."""
        if self._closed or forks() != self._forks:
            return False
        self._closed = True
        self._background.end()
        return True

    def wait_closed(self, timeout: float | None = None) -> None:
        """Wait until all has ended after :meth:`close` or :meth:`abandon`, at most ``timeout`` seconds."""
        self._background.join(timeout)

    def warn_unclosed(self, warn: Callable[..., None] = warnings.warn) -> None:
        """Say that nobody closed this client."""
        warn(f"unclosed {self!r}", ResourceWarning, source=self)

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

    def create(
        self, key: bytes | str, value: bytes | str, *, ttl: float | None = None, timeout: float | None = None
    ) -> WriteResult:
        """See AsyncClient.create."""
        return self._run(self._client.create(key, value, ttl=ttl, timeout=timeout))

    def update(
        self,
        key: bytes | str,
        value: bytes | str,
        *,
        version: int,
        ttl: float | None = None,
        timeout: float | None = None,
    ) -> WriteResult:
        """See AsyncClient.update."""
        return self._run(self._client.update(key, value, version=version, ttl=ttl, timeout=timeout))

    def delete(
        self,
        key: bytes | str,
        *,
        if_version: int | None = None,
        if_value: bytes | str | None = None,
        timeout: float | None = None,
    ) -> bool:
        """See AsyncClient.delete."""
        return self._run(self._client.delete(key, if_version=if_version, if_value=if_value, timeout=timeout))

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

    def incr(self, key: bytes | str, delta: int = 1, *, ttl: float | None = None, timeout: float | None = None) -> int:
        """See AsyncClient.incr."""
        return self._run(self._client.incr(key, delta, ttl=ttl, timeout=timeout))

    def append(
        self, key: bytes | str, value: bytes | str, *, ttl: float | None = None, timeout: float | None = None
    ) -> AppendResult:
        """See AsyncClient.append."""
        return self._run(self._client.append(key, value, ttl=ttl, timeout=timeout))

    def touch(
        self, key: bytes | str, ttl: float, *, if_version: int | None = None, timeout: float | None = None
    ) -> bool:
        """See AsyncClient.touch."""
        return self._run(self._client.touch(key, ttl, if_version=if_version, timeout=timeout))

    def persist(self, key: bytes | str, *, if_version: int | None = None, timeout: float | None = None) -> bool:
        """See AsyncClient.persist."""
        return self._run(self._client.persist(key, if_version=if_version, timeout=timeout))

    def get_and_delete(self, key: bytes | str, *, timeout: float | None = None) -> Record | None:
        """See AsyncClient.get_and_delete."""
        return self._run(self._client.get_and_delete(key, timeout=timeout))

    def get_many(
        self,
        keys: Iterable[bytes | str],
        *,
        consistency: Consistency = "linearizable",
        timeout: float | None = None,
    ) -> list[Record | None]:
        """See AsyncClient.get_many."""
        return self._run(self._client.get_many(keys, consistency=consistency, timeout=timeout))

    def put_many(
        self,
        items: Mapping[Any, bytes | str] | Iterable[tuple[bytes | str, bytes | str]],
        *,
        ttl: float | None = None,
        timeout: float | None = None,
    ) -> list[WriteResult]:
        """See AsyncClient.put_many."""
        return self._run(self._client.put_many(items, ttl=ttl, timeout=timeout))

    def delete_many(self, keys: Iterable[bytes | str], *, timeout: float | None = None) -> list[bool]:
        """See AsyncClient.delete_many."""
        return self._run(self._client.delete_many(keys, timeout=timeout))

    def txn(self) -> Transaction:
        """See AsyncClient.txn."""
        send = self._client.txn().send
        return Transaction(lambda txn, timeout: self._run(send(txn, timeout)))

    def scan(
        self,
        *,
        prefix: bytes | str | None = None,
        start: bytes | str | None = None,
        end: bytes | str | None = None,
        limit: int | None = None,
        reverse: bool = False,
        keys_only: bool = False,
        consistency: Consistency = "linearizable",
        timeout: float | None = None,
    ) -> Iterator[Record]:
        """See AsyncClient.scan."""
        return self._iterate(
            self._client.scan(
                prefix=prefix,
                start=start,
                end=end,
                limit=limit,
                reverse=reverse,
                keys_only=keys_only,
                consistency=consistency,
                timeout=timeout,
            )
        )

    def count(
        self,
        *,
        prefix: bytes | str | None = None,
        start: bytes | str | None = None,
        end: bytes | str | None = None,
        consistency: Consistency = "linearizable",
        timeout: float | None = None,
    ) -> int:
        """See AsyncClient.count."""
        return self._run(
            self._client.count(prefix=prefix, start=start, end=end, consistency=consistency, timeout=timeout)
        )

    def delete_prefix(self, prefix: bytes | str, *, timeout: float | None = None) -> int:
        """See AsyncClient.delete_prefix."""
        return self._run(self._client.delete_prefix(prefix, timeout=timeout))

    def _iterate(self, records: AsyncGenerator[Record, None]) -> Iterator[Record]:
        try:
            while some := self._run(_some(records)):
                yield from some
        finally:
            # Not waited for: an iterator that is given up is collected anywhere, even as the interpreter ends.
            if not self._closed and forks() == self._forks:
                self._background.start(records.aclose)

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
            raise UsageError(MADE_BEFORE)
        if self._closed:
            raise UsageError("the client is closed")
        if self._background.inside:
            raise UsageError("the synchronous client cannot be used from its own loop")

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        try:
            try:
                self._check()
            except UsageError:
                work.close()
                raise
            return self._background.run(work)
        except BaseException:
            if _ended_by and threading.get_ident() != _ended_by:
                # A daemon thread: the interpreter stops it where it is, in a moment. An error would only be printed.
                threading.Event().wait()
            raise


def close_at_exit() -> None:
    """Close what nobody closed, while its threads can still run: later, whoever waited for them would wait for ever."""
    global _ended_by  # noqa: PLW0603
    _ended_by = threading.get_ident()
    unclosed = [client for client in _clients if client.abandon()]
    with ExitStack() as last:
        for client in unclosed:
            last.callback(client.warn_unclosed)
        for client in unclosed:
            client.wait_closed(_AT_EXIT)
