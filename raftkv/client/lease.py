"""Leases: records that live as long as somebody keeps them alive, and the knowledge that they do."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Coroutine
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Generic, Self

from raftkv.client.arguments import encode_key, expect_of, ttl_ms_of
from raftkv.client.call import Call
from raftkv.client.process import forks
from raftkv.client.types import WriteResult
from raftkv.clock import sleep
from raftkv.codecs import W
from raftkv.commands.records import Delete
from raftkv.commands.results import Result
from raftkv.commands.updates import Touch
from raftkv.errors import Code, ConditionFailed, InvalidArgument, LeaseLost, NotApplied, RaftKVError, UsageError
from raftkv.limits import MIN_TIMEOUT
from raftkv.text import shown
from raftkv.v1 import kv_pb2

if TYPE_CHECKING:
    from raftkv.client.parts import Parts
    from raftkv.clock import Clock, Timer

DEFAULT_TTL: Final = 10.0

_LEAST_TTL: Final = 0.1
_VOUCHED: Final = 0.9
"""Of the time to live: what is left is for clocks that differ by up to a tenth."""
_PERIOD: Final = 0.25
"""Of the time to live: between two renewals, and the time-out of each. A call that is acknowledged late vouches for
little, so a new one is worth more than its next attempt."""
_LONGEST_LOOK: Final = 1.0
"""Seconds: timers stand still with a suspended machine, the clock does not."""
_CONDITION_FAILED: Final = int(Code.CONDITION_FAILED)


class Hold:
    """A record that is kept alive. ``version``: the one that it must have."""

    __slots__ = ("clock", "key", "until", "version", "why")

    def __init__(self, clock: Clock, key: bytes, version: int) -> None:
        self.clock = clock
        self.key = key
        self.version = version
        self.until = -math.inf
        self.why = "was not confirmed in time"
        """What became of it, once it is lost."""

    def confirm(self, sent: float, ttl: float) -> None:
        """Somebody has seen to it that it lives ``ttl`` seconds, by a call that began at the time ``sent``.

        The call may have taken effect right then, however late its last attempt was, and its answer.
        """
        self.until = sent + _VOUCHED * ttl

    @property
    def left(self) -> float:
        """Seconds for which it surely lives."""
        return self.until - self.clock.now()


class Guard:
    """Cancels the task that made it, as ``asyncio.timeout`` does, and knows whether that is what ended its block."""

    def __init__(self) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._task: asyncio.Task[Any] | None = task
        self._cancelling = task.cancelling()
        self._fired = False

    def fire(self) -> None:
        """Cancel it, once."""
        if self._task is not None and not self._fired:
            self._fired = True
            self._task.cancel()

    def leave(self, kind: type[BaseException] | None) -> bool:
        """The block has ended, with such an exception: whether by this guard."""
        task, self._task = self._task, None
        if not self._fired or task is None:
            return False
        return task.uncancel() <= self._cancelling and kind is asyncio.CancelledError


class AsyncLease(Generic[W]):
    """Keeps records alive: made by :meth:`raftkv.AsyncClient.lease`.

    What it writes expires ``ttl`` seconds after it was confirmed last, unless it is confirmed again: all of its records
    are, in batches, four times in that span, as long as they have the version that it wrote. So they go if this
    process ends, and nobody else's records are prolonged. Expiry may be late, never early.

    In ``async with`` the block is cancelled once the lease cannot vouch for one of its records, and LeaseLost is
    raised; at the end they are removed.

    >>> async with kv.lease(10) as lease:
    ...     await lease.put("service:web:1", "10.0.0.1:80")
    ...     lease.lost
    WriteResult(version=1)
    False
    >>> await kv.get("service:web:1") is None
    True
    """

    def __init__(self, parts: Parts, ttl: float) -> None:
        self._parts = parts
        self._clock = parts.clock
        self._ttl_ms = ttl_ms_of(ttl)
        if self._ttl_ms < 1000 * _LEAST_TTL:
            raise InvalidArgument(f"a TTL of {shown(ttl)} s is too short to be kept: the least is {_LEAST_TTL:g}")
        self._ttl = float(ttl)
        self._holds: dict[bytes, Hold] = {}
        self._gone: dict[bytes, Hold] = {}
        self._keeping: asyncio.Task[None] | None = None
        self._timer: Timer | None = None
        self._forks = forks()
        self._closed = False
        self.guard: Guard | None = None
        """Of a block that is not to go on without the lease."""

    async def __aenter__(self) -> Self:
        self._check_open()
        self.watch_over(Guard())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        guard, self.guard = self.guard, None
        assert guard is not None
        ended, lost = guard.leave(kind), self._loss()
        await self.close()
        if lost is not None and (ended or kind is None):
            raise lost from error

    def watch_over(self, guard: Guard) -> None:
        """A block begins that is not to go on without this lease. Raises UsageError within another one."""
        if self.guard is not None:
            raise UsageError("the lease guards another block")
        self.guard = guard
        if self.lost:
            guard.fire()

    async def put(
        self,
        key: bytes | str,
        value: W,
        *,
        if_version: int | None = None,
        timeout: float | None = None,
        resolve: bool = False,
    ) -> WriteResult:
        """Write a record that lives with this lease. Arguments and errors as of :meth:`raftkv.AsyncClient.put`.

        After an OutcomeUnknown, and if it is cancelled, the record may be there, and expires.

        >>> async with kv.lease(10) as lease:
        ...     await lease.put("service:web:1", "10.0.0.1:80", if_version=raftkv.ABSENT)
        WriteResult(version=1)
        """
        name = encode_key(key)
        return await self.put_bytes(name, self._parts.encode(value), if_version, timeout, resolve=resolve)

    async def put_bytes(
        self, name: bytes, data: bytes, if_version: int | None, timeout: float | None = None, *, resolve: bool = True
    ) -> WriteResult:
        """As :meth:`put`, of a value that no codec is asked for."""
        self._check_open()
        call = Call(kv_pb2.KIND_PUT, name)
        call.value, call.payload = data, len(data)
        call.ttl_ms, call.expect, call.resolve = self._ttl_ms, expect_of(if_version), resolve
        budget = self._parts.budget(timeout)
        before = self._holds.pop(name, None)
        sent = self._clock.now()
        try:
            result = await self._parts.engine.run(call, budget)
        except NotApplied:
            if before is not None:
                self._holds.setdefault(name, before)
            raise
        if not self._closed:
            hold = self._holds[name] = Hold(self._clock, name, result.version)
            hold.confirm(sent, self._ttl)
            self._gone.pop(name, None)
            self._begin()
        return WriteResult(result.version)

    async def delete(self, key: bytes | str, *, timeout: float | None = None) -> bool:
        """Remove a record of this lease; whether it was there until then, as the lease has written it.

        >>> async with kv.lease(10) as lease:
        ...     await lease.put("service:web:1", "10.0.0.1:80")
        ...     await lease.delete("service:web:1")
        WriteResult(version=1)
        True
        """
        name, budget = encode_key(key), self._parts.budget(timeout)
        hold = self._holds.pop(name, None) or self._gone.pop(name, None)
        if hold is None:
            return False
        call = Call.of(Delete(0, name, hold.version))
        call.resolve = True
        # Whoever waits may be cancelled: that it is removed is not.
        result = await asyncio.shield(self._parts.finish(self._parts.engine.run(call, budget, _CONDITION_FAILED)))
        return not result.code and result.version > 0

    async def close(self, *, timeout: float | None = None) -> None:
        """End it and remove its records. What cannot be removed now expires. May be called again.

        >>> lease = kv.lease(10)
        >>> await lease.put("service:web:1", "10.0.0.1:80")
        WriteResult(version=1)
        >>> await lease.close()
        >>> await kv.get("service:web:1") is None
        True
        """
        budget = self._parts.budget(timeout)
        if self._closed:
            return
        self._closed = True
        if self._keeping is not None:
            self._keeping.cancel()
        if self._timer is not None:
            self._timer.cancel()
        holds = [*self._holds.values(), *self._gone.values()]
        self._holds.clear()
        if holds:
            removed = [Call.of(Delete(0, hold.key, hold.version)) for hold in holds]
            try:
                await asyncio.shield(self._parts.finish(self._parts.engine.run_many(removed, min(budget, self._ttl))))
            except RaftKVError:
                return

    @property
    def keys(self) -> list[bytes]:
        """Those of the records that it keeps alive."""
        return list(self._holds)

    @property
    def remaining(self) -> float:
        """Seconds for which all of its records surely live, if nothing is confirmed any more; 0 if one is lost."""
        if self._closed or self._gone or forks() != self._forks:
            return 0.0
        return max(min((hold.left for hold in list(self._holds.values())), default=math.inf), 0.0)

    @property
    def lost(self) -> bool:
        """Whether it cannot vouch for one of its records any more. A further ``put`` of that key begins anew."""
        return not self._closed and self.remaining <= 0

    def check(self) -> None:
        """Raises LeaseLost if it is lost.

        >>> async with kv.lease(10) as lease:
        ...     lease.check()
        """
        lost = self._loss()
        if lost is not None:
            raise lost

    def _loss(self) -> LeaseLost | None:
        if not self.lost:
            return None
        gone = next((one for one in [*self._gone.values(), *self._holds.values()] if one.left <= 0), None)
        return LeaseLost("the lease is lost" if gone is None else f"key {shown(gone.key)} of the lease {gone.why}")

    def _check_open(self) -> None:
        if self._closed:
            raise UsageError("the lease is closed")

    # Keeping

    def _begin(self) -> None:
        if self._keeping is None:
            self._keeping = self._parts.start(self._keep())
        self._look()

    async def _keep(self) -> None:
        try:
            while True:
                began = self._clock.now()
                await self._renew()
                await sleep(self._clock, _PERIOD * self._ttl - (self._clock.now() - began))
        finally:
            if not self._closed:
                for hold in list(self._holds.values()):
                    self._lose(hold, "is kept no more, as the client was closed")

    async def _renew(self) -> None:
        self._look()
        sent, old = self._clock.now(), (1 - _PERIOD) * self._ttl
        holds = [hold for hold in self._holds.values() if hold.left < old]
        if not holds:
            return
        asked = [Call.of(Touch(0, hold.key, self._ttl_ms, hold.version)) for hold in holds]
        try:
            results = await self._parts.engine.run_many(asked, max(_PERIOD * self._ttl, MIN_TIMEOUT))
        except UsageError:
            raise
        except RaftKVError as error:
            results = [error] * len(holds)
        self._look()
        for hold, result in zip(holds, results, strict=True):
            if self._holds.get(hold.key) is not hold:
                continue  # another one has taken its place
            if isinstance(result, Result) and result.version:
                hold.confirm(sent, self._ttl)
            elif isinstance(result, Result | ConditionFailed):
                self._lose(hold, "was removed, replaced or has expired")
            else:
                hold.why = f"was not confirmed in time: {result}"

    def _look(self) -> None:
        """Give up what was not confirmed in time, and look again when the next one is due."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        for hold in [hold for hold in self._holds.values() if hold.left <= 0]:
            self._lose(hold, hold.why)
        if self._holds and not self._closed:
            left = min(hold.left for hold in self._holds.values())
            self._timer = self._clock.call_later(min(left, _LONGEST_LOOK), self._look)

    def _lose(self, hold: Hold, why: str) -> None:
        del self._holds[hold.key]
        hold.why, hold.until = why, -math.inf
        self._gone[hold.key] = hold
        if self.guard is not None:
            self.guard.fire()


class Lease(Generic[W]):
    """As :class:`AsyncLease`, without await; made by :meth:`raftkv.Client.lease`.

    Nobody ends a ``with`` block from outside: ask ``lost``, or let ``check()`` raise LeaseLost. Its end does too.
    """

    def __init__(self, lease: AsyncLease[W], run: Callable[[Coroutine[Any, Any, Any]], Any]) -> None:
        self._lease = lease
        self._run = run

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self._lease.check()
        finally:
            self.close()

    def put(
        self,
        key: bytes | str,
        value: W,
        *,
        if_version: int | None = None,
        timeout: float | None = None,
        resolve: bool = False,
    ) -> WriteResult:
        """See AsyncLease.put."""
        written: WriteResult = self._run(
            self._lease.put(key, value, if_version=if_version, timeout=timeout, resolve=resolve)
        )
        return written

    def delete(self, key: bytes | str, *, timeout: float | None = None) -> bool:
        """See AsyncLease.delete."""
        there: bool = self._run(self._lease.delete(key, timeout=timeout))
        return there

    def close(self, *, timeout: float | None = None) -> None:
        """See AsyncLease.close."""
        self._run(self._lease.close(timeout=timeout))

    @property
    def keys(self) -> list[bytes]:
        """See AsyncLease.keys."""
        return self._lease.keys

    @property
    def remaining(self) -> float:
        """See AsyncLease.remaining."""
        return self._lease.remaining

    @property
    def lost(self) -> bool:
        """See AsyncLease.lost."""
        return self._lease.lost

    def check(self) -> None:
        """See AsyncLease.check."""
        self._lease.check()
