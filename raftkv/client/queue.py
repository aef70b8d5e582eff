"""A queue in one slot: whoever's record has the lowest version has the turn, and that version is its fencing token.

Versions of a slot rise, and no key of a queue is written twice. So a record with a lower version than one's own was
there before; once a read that began later shows none, there will never be one again.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine, Iterable
from contextlib import aclosing
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Self

from raftkv.client.arguments import encode_key, key_range
from raftkv.client.call import Call
from raftkv.client.lease import AsyncLease, Guard
from raftkv.client.scan import Scan
from raftkv.client.types import ABSENT, Record
from raftkv.client.watch import AsyncWatch
from raftkv.clock import wait
from raftkv.commands.bounds import Mode
from raftkv.commands.ranges import Content
from raftkv.commands.records import Delete
from raftkv.errors import InvalidArgument, LockLost, RaftKVError, UsageError
from raftkv.text import shown

if TYPE_CHECKING:
    from raftkv.client.parts import Parts

_ID_BYTES: Final = 8


def prefix_of(kind: str, name: bytes | str) -> bytes:
    """What all keys of a queue begin with, and nothing else: other keys may share the hash tag, and so the slot.

    Raises InvalidArgument and TooLarge.
    """
    text = encode_key(name)
    if b"}" in text:
        raise InvalidArgument(f"the name {shown(text)} of a {kind} must not hold a closing brace")
    prefix = b"{%s:%s}queue:" % (kind.encode(), text)
    encode_key(prefix + b"." * 2 * _ID_BYTES)
    return prefix


def before(queue: Iterable[Record[Any]], version: int) -> Record[Any] | None:
    """Who stands right before ``version`` in the queue; None: nobody."""
    return max((one for one in queue if one.version < version), key=lambda one: one.version, default=None)


class AsyncTurn:
    """What :class:`AsyncLock` and :class:`AsyncElection` share: a place in a queue, and the turn that it comes to."""

    def __init__(self, parts: Parts, kind: str, name: bytes | str, value: bytes, ttl: float) -> None:
        self._parts = parts
        self._clock = parts.clock
        self._prefix = prefix_of(kind, name)
        self._said = f"{kind} {shown(encode_key(name))}"
        self._value = value
        self._ttl = ttl
        self._lease: AsyncLease[Any] = AsyncLease(parts, ttl)
        self._key = b""
        self._token = 0
        self._busy = False
        self._owner: asyncio.Task[Any] | None = None
        """The task that acquired it."""
        self._guard: Guard | None = None

    async def __aenter__(self) -> Self:
        if not (self._token and self._guard is None and self._owner is asyncio.current_task()):
            await self._enter(None)
        self._guard = Guard()
        self._lease.watch_over(self._guard)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        guard, self._guard = self._guard, None
        assert guard is not None
        ended, lost = guard.leave(kind), self._loss()
        if self._token:
            try:
                await self._leave(None)
            except LockLost as gone:
                lost = gone
            else:
                lost = lost if ended else None
        if lost is not None and (ended or kind is None):
            raise lost from error

    @property
    def token(self) -> int:
        """The fencing token: higher than that of everybody who had it before. Raises UsageError if it is not held."""
        self._check_held()
        return self._token

    @property
    def key(self) -> bytes:
        """Of the record that stands for this holder: its version is the token. Raises UsageError if it is not held."""
        self._check_held()
        return self._key

    @property
    def held(self) -> bool:
        """Whether it was acquired and not released: it may be lost."""
        return bool(self._token)

    @property
    def remaining(self) -> float:
        """Seconds for which it is surely held, if nothing is confirmed any more; 0 if it is not."""
        return self._lease.remaining if self._token else 0.0

    @property
    def lost(self) -> bool:
        """Whether it was acquired, and is not surely held any more."""
        return bool(self._token) and self._lease.lost

    def check(self) -> None:
        """Raises LockLost if it is lost, UsageError if it was not acquired.

        >>> async with kv.lock("report") as lock:
        ...     lock.check()
        """
        self._check_held()
        lost = self._loss()
        if lost is not None:
            raise lost

    def _check_held(self) -> None:
        if not self._token:
            raise UsageError(f"{self._said} is not held")

    def _loss(self) -> LockLost | None:
        if not self.lost:
            return None
        try:
            self._lease.check()
        except RaftKVError as error:
            return LockLost(f"{self._said} is lost: {error}")
        return None

    # The queue

    async def _enter(self, timeout: float | None) -> bool:
        """Stand in the queue until it is one's turn, or for ``timeout`` seconds; whether it came."""
        if self._token or self._busy:
            raise UsageError(f"{self._said} is held or waited for with this object: make another one")
        deadline = None if timeout is None else self._clock.now() + timeout
        self._busy = True
        try:
            while True:
                lease = self._lease = AsyncLease(self._parts, self._ttl)
                self._key = self._prefix + self._parts.rng.randbytes(_ID_BYTES).hex().encode()
                try:
                    token = await self._stand(lease, deadline)
                except BaseException:
                    self._parts.finish(self._go(lease, self._key))
                    raise
                if token:
                    self._token, self._owner = token, asyncio.current_task()
                    return True
                # Whoever comes next is not to find a place that nobody waits at.
                await asyncio.wait([self._parts.finish(self._go(lease, self._key))])
                if deadline is not None and self._clock.now() >= deadline:
                    return False
        finally:
            self._busy = False

    async def _stand(self, lease: AsyncLease[Any], deadline: float | None) -> int:
        """The token; 0 if the time is up, or the place in the queue is lost."""
        written = await lease.put_bytes(self._key, self._value, ABSENT)
        while True:
            queue = await self.queue(Content.KEYS)
            if lease.lost or all(one.version != written.version for one in queue):
                return 0
            first = before(queue, written.version)
            if first is None:
                return written.version
            if deadline is not None and self._clock.now() >= deadline:
                return 0
            await self._until_gone(first.key, lease, deadline)

    async def queue(self, content: Content) -> list[Record[Any]]:
        """Who stands in it, as it is now, in no order."""
        keys = key_range(self._prefix, None, None)
        scan = Scan(self._parts.engine, self._clock, keys, int(Mode.LINEARIZABLE), self._parts.timeout, content=content)
        async with aclosing(scan.batches()) as batches:
            return [record async for batch in batches for record in batch]

    async def _until_gone(self, key: bytes, lease: AsyncLease[Any], deadline: float | None) -> None:
        """Wait while the record of ``key`` is there, the time is not up and the own place is not lost.

        Not for longer than the time to live: to look at the queue again costs little, whatever a watch may miss.
        """
        until = self._clock.now() + self._ttl
        until = until if deadline is None else min(until, deadline)
        gone = asyncio.create_task(self._gone(key))
        try:
            while not gone.done():
                left = min(lease.remaining, until - self._clock.now())
                if left <= 0:
                    return
                await wait(self._clock, gone, left)
            gone.result()
        finally:
            gone.cancel()
            await asyncio.gather(gone, return_exceptions=True)

    async def _gone(self, key: bytes) -> None:
        parts, there = self._parts, False
        watch: AsyncWatch[bytes] = AsyncWatch(
            parts.engine, self._clock, key_range(None, None, None), key, None, True, parts.timeout
        )
        async with watch:
            async for event in watch:
                if event.type in ("image", "initial"):
                    there = event.type == "initial"
                elif event.type in ("delete", "expire") or (event.type == "whole" and not there):
                    return

    async def _go(self, lease: AsyncLease[Any], key: bytes) -> None:
        """Out of the queue, which nobody waits for: the record expires if it cannot be removed."""
        known = key in lease.keys or lease.lost
        await lease.close()
        if not known:
            # Whether it was written is not known. The key was made for this place alone.
            await self._parts.engine.run(Call.of(Delete(0, key)), self._parts.timeout)

    async def _leave(self, timeout: float | None) -> None:
        """Give the turn to the next one. Raises LockLost if it was not one's own until now."""
        self._check_held()
        lease, key, lost, there = self._lease, self._key, self._loss(), None
        budget = min(self._parts.budget(timeout), self._ttl)
        self._token, self._owner = 0, None
        try:
            there = await lease.delete(key, timeout=budget)
        except RaftKVError:
            pass  # it expires
        finally:
            self._parts.finish(lease.close())
        if there is False:
            raise lost or LockLost(f"{self._said} was lost: its record was removed or has expired")
        if there is None and lost is not None:
            raise lost


class Turn:
    """What :class:`Lock` and :class:`Election` share. ``enter``, ``leave``: what its turn calls to begin and to end."""

    def __init__(
        self,
        turn: AsyncTurn,
        enter: Callable[..., Coroutine[Any, Any, bool]],
        leave: Callable[..., Coroutine[Any, Any, None]],
        run: Callable[[Coroutine[Any, Any, Any]], Any],
        start: Callable[[Callable[[], Coroutine[Any, Any, object]]], None],
    ) -> None:
        self._turn = turn
        self._begin = enter
        self._end = leave
        self._run = run
        self._start = start
        self._owner = 0
        """The thread that acquired it and has not begun a block yet."""

    def __enter__(self) -> Self:
        if not (self._turn.held and self._owner == threading.get_ident()):
            self._enter(None)
        self._owner = 0
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._turn.held:
            return
        try:
            self._leave(None)
        except LockLost:
            # What has ended the block goes first.
            if kind is None:
                raise

    def _enter(self, timeout: float | None) -> bool:
        try:
            entered: bool = self._run(self._begin(timeout=timeout))
            self._owner = threading.get_ident() if entered else 0
        except Exception:
            raise
        except BaseException:
            # Interrupted, perhaps just after it was entered: nobody would give it back.
            self._start(self._end)
            raise
        return entered

    def _leave(self, timeout: float | None) -> None:
        self._run(self._end(timeout=timeout))

    @property
    def token(self) -> int:
        """See AsyncLock.token."""
        return self._turn.token

    @property
    def key(self) -> bytes:
        """See AsyncLock.key."""
        return self._turn.key

    @property
    def held(self) -> bool:
        """See AsyncLock.held."""
        return self._turn.held

    @property
    def remaining(self) -> float:
        """See AsyncLock.remaining."""
        return self._turn.remaining

    @property
    def lost(self) -> bool:
        """See AsyncLock.lost."""
        return self._turn.lost

    def check(self) -> None:
        """See AsyncLock.check."""
        self._turn.check()
