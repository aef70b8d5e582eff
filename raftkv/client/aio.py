"""The asyncio client."""

from __future__ import annotations

import warnings
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from functools import partial
from random import Random, SystemRandom
from types import TracebackType
from typing import Any, Final, Self

from raftkv.api.credentials import check_credentials
from raftkv.client.arguments import KeyRange, check_timeout, encode_key, key_range, limit_of, mode_of, slot_of
from raftkv.client.engine import Engine
from raftkv.client.keys import KeyCalls
from raftkv.client.observed import ObservedEngine, Telemetry
from raftkv.client.retry import DEFAULT_POLICY, RetryPolicy
from raftkv.client.routing import parse_endpoints
from raftkv.client.scan import Scan
from raftkv.client.tls import TLS
from raftkv.client.transport import GrpcTransport, Transport, connect
from raftkv.client.types import Consistency, EndpointStatus, Record
from raftkv.client.urls import parse_url
from raftkv.client.values import Decode, decoder_of, encoder_of
from raftkv.client.watch import AsyncWatch
from raftkv.clock import Clock, SystemClock
from raftkv.codecs import BYTES, Codec, V, W
from raftkv.commands.ranges import Content
from raftkv.errors import BatchError, InvalidArgument
from raftkv.limits import DEFAULT_TIMEOUT

_REMOVED_AT_ONCE: Final = 512
"""Records that a prefix's removal removes within one time-out."""


class AsyncClient(KeyCalls[W, V]):
    """A client of one cluster, for one event loop. Safe for any number of concurrent calls.

    ``endpoints``: host:port of some nodes, as a sequence or separated by commas. ``timeout``: seconds that a call may
    take in all, retries included, unless it names another; from 0.001 to 600. Keys are bytes, or str taken as UTF-8;
    so are values, unless ``codec`` says what they are: see :mod:`raftkv.codecs`. ``tls``: how nodes prove who they are;
    without it nothing is encrypted. ``token``: of a user, or ``NAME:PASSWORD``, for a cluster that has users.

    Calls raise NotApplied errors if the operation surely did not take effect (InvalidArgument, TooLarge,
    ConditionFailed, Unavailable, Overloaded, NoSpace, WrongCluster, Unauthenticated, PermissionDenied, UsageError) and
    OutcomeUnknown errors (DeadlineExceeded, SessionExpired) if a write may have; reads never raise the latter. A write
    takes effect at most once, however often it is retried. Cancelling a call is safe; such a write may take effect.

    A call whose time is up raises a TimeoutError: DeadlineExceeded if it is a write that may have taken effect, else
    Unavailable, which is a ConnectionError too, or Overloaded.

    A client that nobody closed is closed as its event loop ends or as it is collected, with a ResourceWarning. A
    process that is to be forked closes its clients first. ``docs/client.md`` tells the rest about loops and processes.

    ``retry``: when failed calls are tried again. ``interceptors``: of ``grpc.aio``, for all RPCs of this client; calls
    on keys travel in the stream-stream RPC Pipeline, many in a message. ``telemetry``: a
    :class:`raftkv.otel.Telemetry`, for spans and metrics.

    ``transport``, ``clock`` and ``rng`` replace network, clock and randomness in tests and simulations.

    >>> async with raftkv.AsyncClient(endpoints, timeout=60.0, codec=raftkv.codecs.JSON) as kv:
    ...     await kv.put("user:1", {"name": "Ada"})
    ...     await kv.get("user:1")
    WriteResult(version=1)
    Record(key=b'user:1', value={'name': 'Ada'}, version=1, expires_at=None)
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
        self._clock = clock or SystemClock()
        self._timeout = check_timeout(timeout)
        values: Codec[Any, Any] = BYTES if codec is None else codec
        self._encode, self._decode = encoder_of(values), decoder_of(values)
        shown = None if token is None else check_credentials(token)
        channels = partial(connect, credentials=None if tls is None else tls.read(), interceptors=interceptors)
        network = transport or GrpcTransport(channels, shown)
        parts = (parse_endpoints(endpoints), network, self._clock, rng or SystemRandom(), retry)
        self._engine = Engine(*parts) if telemetry is None else ObservedEngine(*parts, telemetry=telemetry)
        self._watched = transport is None

    @classmethod
    def from_url(cls, url: str, **options: Any) -> Self:
        """A client of the cluster at ``url``: ``raftkv://host:port,host:port``, or with TLS
        ``raftkvs://host:port,host:port?ca=FILE``, where ``cert``, ``key`` and ``server_name`` may follow, as
        :class:`raftkv.TLS` has them. A user stands before the hosts: ``TOKEN@`` or ``NAME:PASSWORD@``. ``options``: the
        others of the constructor. Raises InvalidArgument or ConfigError.

        >>> async with raftkv.AsyncClient.from_url(f"raftkv://{endpoints}", timeout=60.0) as kv:
        ...     await kv.get("nothing")
        """
        endpoints, tls, token = parse_url(url)
        return cls(endpoints, tls=tls, token=token, **options)

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
    ) -> AsyncGenerator[Record[V], None]:
        """Records in key order: those whose keys begin with ``prefix`` and lie from ``start`` to before ``end``.

        All of the cluster by default. ``limit``: at most so many. ``reverse``: from the last key to the first.
        ``keys_only``: values are left out, each is b"". ``timeout``: seconds for each page that is read.

        A record that is there all the time comes exactly once, whatever slots move meanwhile; one that is written or
        removed meanwhile may come or not. A scan is no snapshot: each page is a read of its own moment. Records of one
        slot are of one moment if they fit into a page of 256 KiB, as those of a short queue: with ``prefix="{q}"``
        only the slot of that hash tag is read.

        >>> await kv.put_many({"user:1": "Ada", "user:2": "Bob", "visits": "7"})
        [WriteResult(version=1), WriteResult(version=1), WriteResult(version=1)]
        >>> [record.value async for record in kv.scan(prefix="user:", limit=100)]
        [b'Ada', b'Bob']
        >>> [record.key async for record in kv.scan(start="user:2", reverse=True, keys_only=True)]
        [b'visits', b'user:2']
        """
        keys, most = key_range(prefix, start, end), limit_of(limit)
        content = Content.KEYS if keys_only else Content.RECORDS
        scan = self._scan(keys, consistency, timeout, content=content, limit=most, reverse=reverse)
        return _flat(scan, None if keys_only else self._decode)

    def watch(
        self,
        *,
        key: bytes | str | None = None,
        prefix: bytes | str | None = None,
        start: str | None = None,
        initial: bool = False,
        timeout: float | None = None,
    ) -> AsyncWatch[V]:
        """What happens to the record of ``key``, or to those whose keys begin with ``prefix`` ("" = all), from now on.

        An asynchronous iterator of :class:`raftkv.WatchEvent`. For each slot, events come in order, once, and none is
        left out, whatever fails or moves meanwhile; slots are not ordered among each other. An event of type ``live``
        says that all that was acknowledged before the watch was opened has come. ``start``: the token of an event or of
        an error: go on behind it. ``initial``: first the records that are there (``initial``, then ``whole`` for each
        slot); also where events have gone, in place of the errors. ``timeout``: seconds that the watch may be without a
        group before it raises Unavailable.

        Raises Compacted if events after ``start`` are kept no more, SlowConsumer if events went that were not read in
        time: both have a ``token`` to go on from with ``initial=True``. A token holds a number for each slot that is
        watched: a few bytes for a key or a prefix with a hash tag, kilobytes for others. From one that came before
        ``live`` go on with ``initial`` as it was.

        >>> await kv.put("user:1", "Ada")
        WriteResult(version=1)
        >>> async with kv.watch(prefix="user:", initial=True) as watch:
        ...     async for event in watch:
        ...         if event.type == "live":
        ...             break
        ...         if event.type == "initial":
        ...             print(event.key, event.value)
        ...     await kv.put("user:1", "Bob")
        ...     event = await anext(watch)
        ...     print(event.type, event.key, event.value, event.version)
        b'user:1' b'Ada'
        WriteResult(version=2)
        put b'user:1' b'Bob' 2
        >>> async with kv.watch(prefix="user:", start=event.token) as watch:
        ...     print((await anext(watch)).type)
        live
        """
        if (key is None) == (prefix is None):
            raise InvalidArgument("a watch is of a key or of a prefix: name one of them")
        budget = self._timeout if timeout is None else check_timeout(timeout)
        name = None if key is None else encode_key(key)
        span = key_range(prefix, None, None)
        return AsyncWatch(self._engine, self._clock, span, name, start, initial, budget, self._decode)

    async def count(
        self,
        *,
        prefix: bytes | str | None = None,
        start: bytes | str | None = None,
        end: bytes | str | None = None,
        consistency: Consistency = "linearizable",
        timeout: float | None = None,
    ) -> int:
        """How many records :meth:`scan` would give; they are counted where they are.

        >>> await kv.put_many({"user:1": "Ada", "user:2": "Bob", "visits": "7"})
        [WriteResult(version=1), WriteResult(version=1), WriteResult(version=1)]
        >>> await kv.count(prefix="user:")
        2
        """
        scan = self._scan(key_range(prefix, start, end), consistency, timeout, content=Content.COUNT)
        async for _ in scan.batches():
            pass
        return scan.counted

    async def delete_prefix(self, prefix: bytes | str, *, timeout: float | None = None) -> int:
        """Remove all records whose keys begin with ``prefix``; how many it removed.

        Not atomic: each is removed by itself. If it raises, some of them are gone, and it may be called again. A record
        that is written meanwhile may stay. Raises InvalidArgument for an empty prefix. ``timeout``: seconds for each
        page of keys that is read, and for the removal of up to 512 records.

        >>> await kv.put_many({"user:1": "Ada", "user:2": "Bob", "visits": "7"})
        [WriteResult(version=1), WriteResult(version=1), WriteResult(version=1)]
        >>> await kv.delete_prefix("user:")
        2
        >>> [record.key async for record in kv.scan()]
        [b'visits']
        """
        span = key_range(prefix, None, None)
        if not span.start:
            raise InvalidArgument("the prefix is empty: it would remove all records")
        removed = 0
        async with aclosing(self._scan(span, "linearizable", timeout, content=Content.KEYS).batches()) as batches:
            async for batch in batches:
                for at in range(0, len(batch), _REMOVED_AT_ONCE):
                    keys = [record.key for record in batch[at : at + _REMOVED_AT_ONCE]]
                    try:
                        removed += sum(await self.delete_many(keys, timeout=timeout))
                    except BatchError as error:
                        raise next(iter(error.errors.values())) from error
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


async def _flat(scan: Scan, decode: Decode | None) -> AsyncGenerator[Record[Any], None]:
    async with aclosing(scan.batches()) as batches:
        async for batch in batches:
            for record in batch:
                yield record if decode is None else record._replace(value=decode(record.key, record.value))
