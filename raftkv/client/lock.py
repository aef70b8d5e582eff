"""Locks: a fair queue, a fencing token, and the knowledge of whether one still holds it."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any

from raftkv.client.arguments import check_wait, encode_value
from raftkv.client.queue import AsyncTurn, Turn

if TYPE_CHECKING:
    from raftkv.client.parts import Parts


def holder_of(holder: bytes | str | None) -> bytes:
    """What a lock says of its holder: by default host and process."""
    return encode_value(f"{socket.gethostname()}:{os.getpid()}" if holder is None else holder, "holder")


class AsyncLock(AsyncTurn):
    """A lock that one holder has at a time, in all of the cluster: made by :meth:`raftkv.AsyncClient.lock`.

    Who asks first gets it first. It is kept while this process is alive and reaches the cluster, and free ``ttl``
    seconds later at the earliest, else as it is released. ``token`` is higher than that of each earlier holder.

    In ``async with`` the block is cancelled once it is not sure any more that the lock is held, and LockLost is raised,
    as ``asyncio.timeout`` raises TimeoutError. It may have been acquired before by the same task. An object has one
    holder: each task makes its own.

    A lock cannot stop a process that stands still and goes on later: it protects only what checks the token. A
    transaction does, with keys of the lock's hash tag.

    >>> async with kv.lock("report", ttl=10) as lock:
    ...     txn = kv.txn().check(lock.key, version=lock.token)
    ...     (await txn.put("{lock:report}state", "done").commit()).succeeded
    True
    """

    def __init__(self, parts: Parts, name: bytes | str, ttl: float, holder: bytes | str | None) -> None:
        super().__init__(parts, "lock", name, holder_of(holder), ttl)

    async def acquire(self, *, timeout: float | None = None) -> bool:
        """Wait until it is held, or until others have held it for ``timeout`` seconds (0: only try); whether it is.

        Raises what a call raises that finds no cluster in time. If it is cancelled, it does not stay in the queue.

        >>> lock = kv.lock("report")
        >>> await lock.acquire()
        True
        >>> await kv.lock("report").acquire(timeout=0)
        False
        >>> await lock.release()
        """
        return await self._enter(check_wait(timeout))

    async def release(self, *, timeout: float | None = None) -> None:
        """Let the next one have it. Raises LockLost if it was not held until now.

        If the cluster is not reached within ``timeout`` seconds, it expires.

        >>> lock = kv.lock("report")
        >>> if await lock.acquire(timeout=5):
        ...     await lock.release()
        >>> lock.held
        False
        """
        await self._leave(timeout)


class Lock(Turn):
    """As :class:`AsyncLock`, without await; made by :meth:`raftkv.Client.lock`.

    Nobody ends a ``with`` block from outside: ask ``lost``, or let ``check()`` raise LockLost. Its end does too.
    """

    def __init__(
        self,
        lock: AsyncLock,
        run: Callable[[Coroutine[Any, Any, Any]], Any],
        start: Callable[[Callable[[], Coroutine[Any, Any, object]]], None],
    ) -> None:
        super().__init__(lock, lock.acquire, lock.release, run, start)

    def acquire(self, *, timeout: float | None = None) -> bool:
        """See AsyncLock.acquire."""
        return self._enter(timeout)

    def release(self, *, timeout: float | None = None) -> None:
        """See AsyncLock.release."""
        self._leave(timeout)
