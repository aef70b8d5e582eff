"""The asyncio client."""

from __future__ import annotations

import warnings
from collections.abc import AsyncGenerator, Callable, Sequence
from functools import partial
from random import Random, SystemRandom
from types import TracebackType
from typing import Any, Final, Self, cast

from raftkv.client.arguments import check_timeout, encode_key, encode_value, expect_of, mode_of, slot_of, ttl_ms_of
from raftkv.client.call import Call
from raftkv.client.engine import Engine
from raftkv.client.routing import parse_endpoints
from raftkv.client.scan import record_pages
from raftkv.client.tls import TLS
from raftkv.client.transport import GrpcTransport, Transport, connect
from raftkv.client.types import CasResult, Consistency, EndpointStatus, Record, WriteResult
from raftkv.client.urls import parse_url
from raftkv.clock import Clock, SystemClock
from raftkv.errors import Code
from raftkv.limits import DEFAULT_TIMEOUT
from raftkv.v1 import kv_pb2

_GET: Final = kv_pb2.KIND_GET
_PUT: Final = kv_pb2.KIND_PUT
_DELETE: Final = kv_pb2.KIND_DELETE
_CAS: Final = kv_pb2.KIND_COMPARE_AND_SWAP
_CONDITION_FAILED: Final = int(Code.CONDITION_FAILED)
# A third of the time of calling the class.
_make_record: Final = cast("Callable[[tuple[Any, ...]], Record]", partial(tuple.__new__, Record))
_make_written: Final = cast("Callable[[tuple[int]], WriteResult]", partial(tuple.__new__, WriteResult))


class AsyncClient:
    """A client of one cluster, for one event loop. Safe for any number of concurrent calls.

    ``endpoints``: host:port of some nodes, as a sequence or separated by commas. ``timeout``: seconds that a call may
    take in all, retries included, unless it names another; from 0.001 to 600. Keys and values are bytes, or str taken
    as UTF-8. ``tls``: how nodes prove who they are; without it nothing is encrypted.

    Calls raise NotApplied errors if the operation surely did not take effect (InvalidArgument, TooLarge,
    ConditionFailed, Unavailable, Overloaded, NoSpace, WrongCluster, UsageError) and OutcomeUnknown errors
    (DeadlineExceeded, SessionExpired) if a write may have; reads never raise the latter. A write takes effect at most
    once, however often it is retried. Cancelling a call is safe; a cancelled write may take effect.

    A call whose time is up raises a TimeoutError: DeadlineExceeded if it is a write that may have taken effect, else
    Unavailable, which is a ConnectionError too, or Overloaded.

    A client that nobody closed is closed as its event loop ends or as it is collected, with a ResourceWarning. A
    process that is to be forked closes its clients first. ``docs/client.md`` tells the rest about loops and processes.

    ``transport``, ``clock`` and ``rng`` replace network, clock and randomness in tests and simulations.
    """

    def __init__(
        self,
        endpoints: str | Sequence[str],
        *,
        timeout: float = DEFAULT_TIMEOUT,
        tls: TLS | None = None,
        transport: Transport | None = None,
        clock: Clock | None = None,
        rng: Random | None = None,
    ) -> None:
        self._clock = clock or SystemClock()
        self._timeout = check_timeout(timeout)
        network = transport or GrpcTransport(partial(connect, credentials=None if tls is None else tls.read()))
        self._engine = Engine(parse_endpoints(endpoints), network, self._clock, rng or SystemRandom())
        self._watched = transport is None

    @classmethod
    def from_url(cls, url: str, *, timeout: float = DEFAULT_TIMEOUT) -> Self:
        """A client of the cluster at ``url``: ``raftkv://host:port,host:port``, or with TLS
        ``raftkvs://host:port,host:port?ca=FILE``, where ``cert``, ``key`` and ``server_name`` may follow, as
        :class:`raftkv.TLS` has them. Raises InvalidArgument or ConfigError.
        """
        endpoints, tls = parse_url(url)
        return cls(endpoints, timeout=timeout, tls=tls)

    async def __aenter__(self) -> Self:
        self._engine.check_usable()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """End outstanding calls and close all connections. May be called again."""
        await self._engine.close()

    aclose = close

    def disown(self) -> None:
        """Somebody else closes this client: no warning if nobody does."""
        self._watched = False

    def __del__(self, _warn: Callable[..., None] = warnings.warn) -> None:
        # What is not there was refused by the constructor.
        if self.__dict__.get("_watched") and self._engine.abandon():
            _warn(f"unclosed {self!r}", ResourceWarning, source=self, stacklevel=1)

    async def get(
        self, key: bytes | str, *, consistency: Consistency = "linearizable", timeout: float | None = None
    ) -> Record | None:
        """The record of ``key``, or None."""
        name = encode_key(key)
        call = Call(_GET, name, 0 if consistency == "linearizable" else mode_of(consistency))
        result = await self._engine.run(call, self._timeout if timeout is None else check_timeout(timeout))
        if not result.version:
            return None
        expires_at = None if result.ttl < 0 else self._clock.wall() + result.ttl / 1000
        return _make_record((name, result.value or b"", result.version, expires_at))

    async def put(
        self,
        key: bytes | str,
        value: bytes | str,
        *,
        ttl: float | None = None,
        if_version: int | None = None,
        timeout: float | None = None,
    ) -> WriteResult:
        """Write a record.

        ``ttl``: seconds until it expires, never earlier. ``if_version``: only if the record has this version, ABSENT:
        only if there is none; raises ConditionFailed otherwise.
        """
        call = Call(_PUT, encode_key(key))
        call.value = encode_value(value)
        if ttl is not None:
            call.ttl_ms = ttl_ms_of(ttl)
        if if_version is not None:
            call.expect = expect_of(if_version)
        result = await self._engine.run(call, self._timeout if timeout is None else check_timeout(timeout))
        return _make_written((result.version,))

    async def delete(self, key: bytes | str, *, if_version: int | None = None, timeout: float | None = None) -> bool:
        """Remove the record of ``key``; whether there was one. ``if_version`` as in :meth:`put`."""
        call = Call(_DELETE, encode_key(key))
        if if_version is not None:
            call.expect = expect_of(if_version)
        result = await self._engine.run(call, self._timeout if timeout is None else check_timeout(timeout))
        return result.version > 0

    async def cas(
        self,
        key: bytes | str,
        expected: bytes | str | None,
        value: bytes | str,
        *,
        ttl: float | None = None,
        timeout: float | None = None,
    ) -> CasResult:
        """Write ``value`` if the record's value is ``expected`` (None: if there is no record).

        The result is true if it was written, and tells the record's version in both cases.
        """
        call = Call(_CAS, encode_key(key))
        call.value = encode_value(value)
        call.expected = None if expected is None else encode_value(expected, "expected value")
        call.ttl_ms = ttl_ms_of(ttl)
        result = await self._engine.run(
            call, self._timeout if timeout is None else check_timeout(timeout), accept=_CONDITION_FAILED
        )
        return CasResult(not result.code, result.version)

    async def scan_slot(
        self,
        slot: int,
        after: bytes = b"",
        *,
        limit_bytes: int = 0,
        consistency: Consistency = "linearizable",
        timeout: float | None = None,
    ) -> tuple[list[Record], bool]:
        """One page of a slot's records in key order, those with keys over ``after``; and whether more follow.

        ``limit_bytes``: soft size of the page, 0 = the server's choice. Each page is one linearizable read.
        """
        budget = self._timeout if timeout is None else check_timeout(timeout)
        return await self._engine.scan(slot, after, limit_bytes, mode_of(consistency), budget)

    async def records(
        self, *, consistency: Consistency = "linearizable", timeout: float | None = None
    ) -> AsyncGenerator[Record, None]:
        """All records, slot by slot, in key order within a slot.

        No snapshot of the whole: each page is a read of its own moment. ``timeout``: seconds for each page.
        """
        pages = self.record_pages(consistency=consistency, timeout=timeout)
        try:
            async for page in pages:
                for record in page:
                    yield record
        finally:
            await pages.aclose()

    def record_pages(
        self, *, consistency: Consistency = "linearizable", timeout: float | None = None
    ) -> AsyncGenerator[list[Record], None]:
        """:meth:`records` in lists, as they were read."""
        budget = self._timeout if timeout is None else check_timeout(timeout)
        return record_pages(self._engine, mode_of(consistency), budget)

    async def slots(self, *, timeout: float | None = None) -> int:
        """How many slots the cluster has: asked of it once, never changes."""
        return await self._engine.slots(self._timeout if timeout is None else check_timeout(timeout))

    async def slot_of(self, key: bytes | str, *, timeout: float | None = None) -> int:
        """The slot of ``key`` in this cluster; needs an answer of the cluster only once. See raftkv.slot_of."""
        return slot_of(key, await self.slots(timeout=timeout))

    async def status(self, *, timeout: float | None = None) -> list[EndpointStatus]:
        """What every known endpoint says about itself: the given ones and, if one answers, all nodes of the map."""
        return await self._engine.status(self._timeout if timeout is None else check_timeout(timeout))
