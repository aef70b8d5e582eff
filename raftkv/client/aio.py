"""The asyncio client."""

from __future__ import annotations

import warnings
from collections.abc import AsyncGenerator, Callable, Sequence
from random import Random, SystemRandom
from types import TracebackType
from typing import Self

from raftkv.client.arguments import check_timeout, mode_of, slot_of
from raftkv.client.engine import Engine
from raftkv.client.keys import KeyCalls
from raftkv.client.routing import parse_endpoints
from raftkv.client.scan import record_pages
from raftkv.client.transport import GrpcTransport, Transport
from raftkv.client.types import Consistency, EndpointStatus, Record
from raftkv.clock import Clock, SystemClock
from raftkv.limits import DEFAULT_TIMEOUT


class AsyncClient(KeyCalls):
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
        """End outstanding calls and close all connections. May be called again.

        >>> await kv.close()
        """
        await self._engine.close()

    aclose = close

    def disown(self) -> None:
        """Somebody else closes this client: no warning if nobody does."""
        self._watched = False

    def __del__(self, _warn: Callable[..., None] = warnings.warn) -> None:
        # What is not there was refused by the constructor.
        if self.__dict__.get("_watched") and self._engine.abandon():
            _warn(f"unclosed {self!r}", ResourceWarning, source=self, stacklevel=1)

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

        >>> await kv.put("user:1", "Ada")
        WriteResult(version=1)
        >>> await kv.scan_slot(await kv.slot_of("user:1"))
        ([Record(key=b'user:1', value=b'Ada', version=1, expires_at=None)], False)
        """
        budget = self._timeout if timeout is None else check_timeout(timeout)
        return await self._engine.scan(slot, after, limit_bytes, mode_of(consistency), budget)

    async def records(
        self, *, consistency: Consistency = "linearizable", timeout: float | None = None
    ) -> AsyncGenerator[Record, None]:
        """All records, slot by slot, in key order within a slot.

        No snapshot of the whole: each page is a read of its own moment. ``timeout``: seconds for each page.

        >>> await kv.put_many({"a": "1", "b": "2"})
        [WriteResult(version=1), WriteResult(version=1)]
        >>> sorted([record.key async for record in kv.records()])
        [b'a', b'b']
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
        """:meth:`records` in lists, as they were read.

        >>> await kv.put("a", "1")
        WriteResult(version=1)
        >>> [len(page) async for page in kv.record_pages()]
        [1]
        """
        budget = self._timeout if timeout is None else check_timeout(timeout)
        return record_pages(self._engine, mode_of(consistency), budget)

    async def slots(self, *, timeout: float | None = None) -> int:
        """How many slots the cluster has: asked of it once, never changes.

        >>> await kv.slots() in (256, 512, 1024, 2048, 4096, 8192, 16384)
        True
        """
        return await self._engine.slots(self._timeout if timeout is None else check_timeout(timeout))

    async def slot_of(self, key: bytes | str, *, timeout: float | None = None) -> int:
        """The slot of ``key`` in this cluster; needs an answer of the cluster only once. See raftkv.slot_of.

        >>> await kv.slot_of("{user:7}name") == await kv.slot_of("{user:7}mail")
        True
        """
        return slot_of(key, await self.slots(timeout=timeout))

    async def status(self, *, timeout: float | None = None) -> list[EndpointStatus]:
        """What every known endpoint says about itself: the given ones and, if one answers, all nodes of the map.

        >>> len(await kv.status())
        1
        """
        return await self._engine.status(self._timeout if timeout is None else check_timeout(timeout))
