"""Watchers of a store, and writes that last until every one of them has been told."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Final

from bench.targets import Caller, Target
from raftkv.errors import DeadlineExceeded, Unavailable

MARK_BYTES: Final = 8
"""Of a value, that name its write."""


@dataclass(slots=True)
class _Telling:
    """A write that ``left`` watchers have not been told of."""

    left: int
    over: asyncio.Future[None]


class Audience:
    """``watchers`` of them. ``value``: what is written; ``timeout``: seconds for a write and its events."""

    def __init__(self, watchers: int, value: bytes, timeout: float) -> None:
        self._watchers = watchers
        self._rest = value[MARK_BYTES:]
        self._timeout = timeout
        self._numbers = count()
        self._tellings: dict[bytes, _Telling] = {}

    async def tell(self, target: Target, key: bytes) -> None:
        """Write a record, and return when all watchers have its event.

        Raises DeadlineExceeded, and what the write raises.
        """
        mark = next(self._numbers).to_bytes(MARK_BYTES, "big")
        one = self._tellings[mark] = _Telling(self._watchers, asyncio.get_running_loop().create_future())
        try:
            async with asyncio.timeout(self._timeout):
                await target.set(key, mark + self._rest)
                await one.over
        except TimeoutError:
            raise DeadlineExceeded from None
        finally:
            del self._tellings[mark]

    def heard(self, value: bytes) -> None:
        """A watcher has an event with this value."""
        one = self._tellings.get(value[:MARK_BYTES])
        if one is not None:
            one.left -= 1
            if not one.left and not one.over.done():
                one.over.set_result(None)


@contextlib.asynccontextmanager
async def watching(targets: Sequence[Target], watchers: int, value: bytes, timeout: float) -> AsyncIterator[Audience]:
    """Watchers of all keys, shared out over the targets, and live.

    Raises Unavailable, and what ends a watch. Raises ValueError if the targets cannot watch.
    """
    audience = Audience(watchers, value, timeout)
    left = asyncio.Semaphore(0)
    try:
        async with asyncio.TaskGroup() as group:
            tasks = []
            for number in range(watchers):
                target = targets[number % len(targets)]
                if not isinstance(target, Caller):
                    raise ValueError("this client cannot watch")  # noqa: TRY004 - the plan is wrong, not the code
                tasks.append(group.create_task(target.watch(left.release, audience.heard)))
            try:
                async with asyncio.timeout(timeout):
                    for _ in tasks:
                        await left.acquire()
            except TimeoutError:
                raise Unavailable("watches did not begin in time") from None
            yield audience
            for task in tasks:
                task.cancel()
    except ExceptionGroup as several:
        raise several.exceptions[0] from None
