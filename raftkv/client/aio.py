"""The asyncio client."""

from __future__ import annotations

import warnings
from asyncio import gather
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from functools import partial
from random import Random, SystemRandom
from types import TracebackType
from typing import Any, Final, Self, cast

from raftkv.client.arguments import (
    KeyRange,
    check_timeout,
    encode_key,
    encode_value,
    expect_of,
    key_range,
    limit_of,
    mode_of,
    slot_of,
    ttl_ms_of,
)
from raftkv.client.call import Call
from raftkv.client.engine import Engine
from raftkv.client.routing import parse_endpoints
from raftkv.client.scan import Scan
from raftkv.client.transport import GrpcTransport, Transport
from raftkv.client.types import CasResult, Consistency, EndpointStatus, Record, WriteResult
from raftkv.clock import Clock, SystemClock
from raftkv.commands.ranges import Content
from raftkv.errors import Code, InvalidArgument
from raftkv.limits import DEFAULT_TIMEOUT
from raftkv.v1 import kv_pb2

_GET: Final = kv_pb2.KIND_GET
_PUT: Final = kv_pb2.KIND_PUT
_DELETE: Final = kv_pb2.KIND_DELETE
_CAS: Final = kv_pb2.KIND_COMPARE_AND_SWAP
_CONDITION_FAILED: Final = int(Code.CONDITION_FAILED)
_REMOVED_AT_ONCE: Final = 512
# A third of the time of calling the class.
_make_record: Final = cast("Callable[[tuple[Any, ...]], Record]", partial(tuple.__new__, Record))
_make_written: Final = cast("Callable[[tuple[int]], WriteResult]", partial(tuple.__new__, WriteResult))


class AsyncClient:
    """A client of one cluster, for one event loop. Safe for any number of concurrent calls.

    ``endpoints``: host:port of some nodes, as a sequence or separated by commas. ``timeout``: seconds that a call may
    take in all, retries included, unless it names another; from 0.001 to 600. Keys and values are bytes, or str taken
    as UTF-8.

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
        transport: Transport | None = None,
        clock: Clock | None = None,
        rng: Random | None = None,
    ) -> None:
        self._clock = clock or SystemClock()
        self._timeout = check_timeout(timeout)
        self._engine = Engine(
            parse_endpoints(endpoints), transport or GrpcTransport(), self._clock, rng or SystemRandom()
        )
        self._watched = transport is None

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
    ) -> AsyncGenerator[Record, None]:
        """Records in key order: those whose keys begin with ``prefix`` and lie from ``start`` to before ``end``.

        All of the cluster by default. ``limit``: at most so many. ``reverse``: from the last key to the first.
        ``keys_only``: values are left out, each is b"". ``timeout``: seconds for each page that is read.

        A record that is there all the time comes exactly once, whatever slots move meanwhile; one that is written or
        removed meanwhile may come or not. A scan is no snapshot: each page is a read of its own moment. Records of one
        slot are of one moment if they fit into a page of 256 KiB, as those of a short queue: with ``prefix="{q}"``
        only the slot of that hash tag is read.

            async for record in kv.scan(prefix="user:", limit=100):
                print(record.key, record.value)
        """
        keys, most = key_range(prefix, start, end), limit_of(limit)
        content = Content.KEYS if keys_only else Content.RECORDS
        return _flat(self._scan(keys, consistency, timeout, content=content, limit=most, reverse=reverse))

    async def count(
        self,
        *,
        prefix: bytes | str | None = None,
        start: bytes | str | None = None,
        end: bytes | str | None = None,
        consistency: Consistency = "linearizable",
        timeout: float | None = None,
    ) -> int:
        """How many records :meth:`scan` would give; they are counted where they are."""
        scan = self._scan(key_range(prefix, start, end), consistency, timeout, content=Content.COUNT)
        async for _ in scan.batches():
            pass
        return scan.counted

    async def delete_prefix(self, prefix: bytes | str, *, timeout: float | None = None) -> int:
        """Remove all records whose keys begin with ``prefix``; how many it removed.

        They are removed one by one: if it raises, some of them are gone, and it may be called again. A record that is
        written meanwhile may stay. Raises InvalidArgument for an empty prefix. ``timeout``: seconds for each page of
        keys that is read, and for each removal.
        """
        keys = key_range(prefix, None, None)
        if not keys.start:
            raise InvalidArgument("the prefix is empty: it would remove all records")
        removed = 0
        async with aclosing(self._scan(keys, "linearizable", timeout, content=Content.KEYS).batches()) as batches:
            async for batch in batches:
                for at in range(0, len(batch), _REMOVED_AT_ONCE):
                    some = batch[at : at + _REMOVED_AT_ONCE]
                    done = await gather(
                        *(self.delete(one.key, timeout=timeout) for one in some), return_exceptions=True
                    )
                    for outcome in done:
                        if isinstance(outcome, BaseException):
                            raise outcome
                        removed += outcome
        return removed

    def _scan(
        self,
        keys: KeyRange,
        consistency: Consistency,
        timeout: float | None,
        *,
        content: Content,
        limit: int | None = None,
        reverse: bool = False,
    ) -> Scan:
        budget = self._timeout if timeout is None else check_timeout(timeout)
        mode = mode_of(consistency)
        return Scan(self._engine, self._clock, keys, mode, budget, content=content, limit=limit, reverse=reverse)

    async def slots(self, *, timeout: float | None = None) -> int:
        """How many slots the cluster has: asked of it once, never changes."""
        return await self._engine.slots(self._timeout if timeout is None else check_timeout(timeout))

    async def slot_of(self, key: bytes | str, *, timeout: float | None = None) -> int:
        """The slot of ``key`` in this cluster; needs an answer of the cluster only once. See raftkv.slot_of."""
        return slot_of(key, await self.slots(timeout=timeout))

    async def status(self, *, timeout: float | None = None) -> list[EndpointStatus]:
        """What every known endpoint says about itself: the given ones and, if one answers, all nodes of the map."""
        return await self._engine.status(self._timeout if timeout is None else check_timeout(timeout))


async def _flat(scan: Scan) -> AsyncGenerator[Record, None]:
    async with aclosing(scan.batches()) as batches:
        async for batch in batches:
            for record in batch:
                yield record
