"""The synchronous client: the asyncio one on a background loop of its own."""

from __future__ import annotations

import threading
import warnings
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from random import Random
from types import TracebackType
from typing import Any, Final, Generic, Self, TypeVar
from weakref import WeakSet

from raftkv.client.aio import AsyncClient
from raftkv.client.background import Background
from raftkv.client.observed import Telemetry
from raftkv.client.process import MADE_BEFORE, forks
from raftkv.client.retry import DEFAULT_POLICY, RetryPolicy
from raftkv.client.tls import TLS
from raftkv.client.transaction import Transaction, TransactionBuilder
from raftkv.client.transport import Transport
from raftkv.client.types import (
    AppendResult,
    CasResult,
    Consistency,
    EndpointStatus,
    Record,
    TransactionResult,
    WriteResult,
)
from raftkv.client.urls import parse_url
from raftkv.client.watch import Watch
from raftkv.clock import Clock
from raftkv.codecs import Codec, V, W
from raftkv.errors import RaftKVError, UsageError
from raftkv.limits import DEFAULT_TIMEOUT, SCAN_PAGE_BYTES

T = TypeVar("T")

_AT_EXIT: Final = 2.0
"""Seconds that the clients which nobody closed may hold up the end of the interpreter."""

_AT_ONCE: Final = 512
"""Records of a scan that one switch between threads brings."""

_DECODED_BYTES: Final = 4096
"""What counts for a value whose size nobody knows any more, since a codec made it."""

_clients: WeakSet[Client[Any, Any]] = WeakSet()
_ended_by = 0
"""The thread that ends the interpreter, from then on."""


async def _some(records: AsyncGenerator[Record[V], None]) -> tuple[list[Record[V]], RaftKVError | None]:
    """The next ones, as many as are worth a switch between threads, none at the end; and why no more can come."""
    found: list[Record[V]] = []
    size = 0
    try:
        async for record in records:
            found.append(record)
            size += len(record.key) + (len(record.value) if isinstance(record.value, bytes | str) else _DECODED_BYTES)
            if len(found) == _AT_ONCE or size >= SCAN_PAGE_BYTES:
                break
    except RaftKVError as error:
        return found, error
    return found, None


class Client(Generic[W, V]):
    """As :class:`raftkv.AsyncClient`, without await. Safe to use from any number of threads.

    Raises the same errors. Not usable in a process forked after it was made. A client that nobody closed is closed as
    it is collected or as the interpreter ends, with a ResourceWarning; ``atexit`` functions can still use it, if they
    were registered after ``import raftkv``.
    """

    def __init__(
        self,
        endpoints: str | Sequence[str],
        *,
        codec: Codec[W, V] | None = None,
        timeout: float = DEFAULT_TIMEOUT,
        tls: TLS | None = None,
        token: str | None = None,
        retry: RetryPolicy = DEFAULT_POLICY,
        interceptors: Sequence[Any] = (),
        telemetry: Telemetry | None = None,
        transport: Transport | None = None,
        clock: Clock | None = None,
        rng: Random | None = None,
    ) -> None:
        if _ended_by:
            raise UsageError("the interpreter is ending")
        self._client = AsyncClient(
            endpoints,
            codec=codec,
            timeout=timeout,
            tls=tls,
            token=token,
            retry=retry,
            interceptors=interceptors,
            telemetry=telemetry,
            transport=transport,
            clock=clock,
            rng=rng,
        )
        self._client.disown()
        self._forks = forks()
        self._closed = False
        self._background = Background("raftkv-client", self._client.close)
        _clients.add(self)

    @classmethod
    def from_url(cls, url: str, **options: Any) -> Self:
        """As :meth:`raftkv.AsyncClient.from_url`."""
        endpoints, tls, token = parse_url(url)
        return cls(endpoints, tls=tls, token=token, **options)

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
    ) -> Record[V] | None:
        """See AsyncClient.get."""
        return self._run(self._client.get(key, consistency=consistency, timeout=timeout))

    def put(
        self,
        key: bytes | str,
        value: W,
        *,
        ttl: float | None = None,
        if_version: int | None = None,
        timeout: float | None = None,
        resolve: bool = False,
    ) -> WriteResult:
        """See AsyncClient.put."""
        return self._run(self._client.put(key, value, ttl=ttl, if_version=if_version, timeout=timeout, resolve=resolve))

    def create(
        self,
        key: bytes | str,
        value: W,
        *,
        ttl: float | None = None,
        timeout: float | None = None,
        resolve: bool = False,
    ) -> WriteResult:
        """See AsyncClient.create."""
        return self._run(self._client.create(key, value, ttl=ttl, timeout=timeout, resolve=resolve))

    def update(
        self,
        key: bytes | str,
        value: W,
        *,
        version: int,
        ttl: float | None = None,
        timeout: float | None = None,
        resolve: bool = False,
    ) -> WriteResult:
        """See AsyncClient.update."""
        return self._run(self._client.update(key, value, version=version, ttl=ttl, timeout=timeout, resolve=resolve))

    def delete(
        self,
        key: bytes | str,
        *,
        if_version: int | None = None,
        if_value: W | None = None,
        timeout: float | None = None,
        resolve: bool = False,
    ) -> bool:
        """See AsyncClient.delete."""
        return self._run(
            self._client.delete(key, if_version=if_version, if_value=if_value, timeout=timeout, resolve=resolve)
        )

    def cas(
        self,
        key: bytes | str,
        expected: W | None,
        value: W,
        *,
        ttl: float | None = None,
        timeout: float | None = None,
        resolve: bool = False,
    ) -> CasResult:
        """See AsyncClient.cas."""
        return self._run(self._client.cas(key, expected, value, ttl=ttl, timeout=timeout, resolve=resolve))

    def incr(
        self,
        key: bytes | str,
        delta: int = 1,
        *,
        ttl: float | None = None,
        timeout: float | None = None,
        resolve: bool = False,
    ) -> int:
        """See AsyncClient.incr."""
        return self._run(self._client.incr(key, delta, ttl=ttl, timeout=timeout, resolve=resolve))

    def append(
        self,
        key: bytes | str,
        value: bytes | str,
        *,
        ttl: float | None = None,
        timeout: float | None = None,
        resolve: bool = False,
    ) -> AppendResult:
        """See AsyncClient.append."""
        return self._run(self._client.append(key, value, ttl=ttl, timeout=timeout, resolve=resolve))

    def touch(
        self,
        key: bytes | str,
        ttl: float,
        *,
        if_version: int | None = None,
        timeout: float | None = None,
        resolve: bool = False,
    ) -> bool:
        """See AsyncClient.touch."""
        return self._run(self._client.touch(key, ttl, if_version=if_version, timeout=timeout, resolve=resolve))

    def persist(
        self, key: bytes | str, *, if_version: int | None = None, timeout: float | None = None, resolve: bool = False
    ) -> bool:
        """See AsyncClient.persist."""
        return self._run(self._client.persist(key, if_version=if_version, timeout=timeout, resolve=resolve))

    def get_and_delete(
        self, key: bytes | str, *, timeout: float | None = None, resolve: bool = False
    ) -> Record[V] | None:
        """See AsyncClient.get_and_delete."""
        return self._run(self._client.get_and_delete(key, timeout=timeout, resolve=resolve))

    def get_many(
        self,
        keys: Iterable[bytes | str],
        *,
        consistency: Consistency = "linearizable",
        timeout: float | None = None,
    ) -> list[Record[V] | None]:
        """See AsyncClient.get_many."""
        return self._run(self._client.get_many(keys, consistency=consistency, timeout=timeout))

    def put_many(
        self,
        items: Mapping[Any, W] | Iterable[tuple[bytes | str, W]],
        *,
        ttl: float | None = None,
        timeout: float | None = None,
        resolve: bool = False,
    ) -> list[WriteResult]:
        """See AsyncClient.put_many."""
        return self._run(self._client.put_many(items, ttl=ttl, timeout=timeout, resolve=resolve))

    def delete_many(
        self, keys: Iterable[bytes | str], *, timeout: float | None = None, resolve: bool = False
    ) -> list[bool]:
        """See AsyncClient.delete_many."""
        return self._run(self._client.delete_many(keys, timeout=timeout, resolve=resolve))

    def txn(self) -> Transaction[W]:
        """See AsyncClient.txn."""
        txn = self._client.txn()
        send = txn.send

        def run(txn: TransactionBuilder[W], timeout: float | None, resolve: bool) -> TransactionResult:
            return self._run(send(txn, timeout, resolve))

        return Transaction(run, txn.encode)

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
    ) -> Iterator[Record[V]]:
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

    def watch(
        self,
        *,
        key: bytes | str | None = None,
        prefix: bytes | str | None = None,
        start: str | None = None,
        initial: bool = False,
        timeout: float | None = None,
    ) -> Watch[V]:
        """See AsyncClient.watch."""
        watch = self._client.watch(key=key, prefix=prefix, start=start, initial=initial, timeout=timeout)
        return Watch(watch, self._run, self._begin)

    def _begin(self, make: Callable[[], Coroutine[Any, Any, object]]) -> None:
        """Have something done that nobody waits for, as it may be asked for anywhere, even as the interpreter ends."""
        if not self._closed and forks() == self._forks:
            self._background.start(make)

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

    def _iterate(self, records: AsyncGenerator[Record[V], None]) -> Iterator[Record[V]]:
        try:
            while True:
                some, error = self._run(_some(records))
                yield from some
                if error is not None:
                    _stop_if_ending()
                    raise error
                if not some:
                    return
        finally:
            self._begin(records.aclose)

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
            _stop_if_ending()
            raise


def _stop_if_ending() -> None:
    """In a daemon thread, as the interpreter ends: wait to be stopped, in a moment. An error would only be printed."""
    if _ended_by and threading.get_ident() != _ended_by:
        threading.Event().wait()


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
