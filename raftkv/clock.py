"""The only place that reads time and starts timers.

Nodes take a :class:`Clock`, so that the simulator can run them on virtual clocks that drift.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any, Protocol

_BOOTTIME = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


class Timer(Protocol):
    """A pending call."""

    def cancel(self) -> None: ...


class Clock(Protocol):
    """Monotonic time and timers, both in seconds."""

    def now(self) -> float:
        """Seconds since an arbitrary point; never goes back; goes on while the machine sleeps."""

    def wall(self) -> float:
        """Unix time in seconds. For people and first guesses only: no decision of the store depends on it."""

    def call_later(self, delay: float, callback: Callable[[], None]) -> Timer:
        """Call ``callback`` from the loop in ``delay`` seconds."""


class SystemClock:
    """The machine's clock. CLOCK_BOOTTIME where there is one: a lease must not outlive a suspended machine."""

    def now(self) -> float:
        return time.clock_gettime(_BOOTTIME)

    def wall(self) -> float:
        return time.time()

    def call_later(self, delay: float, callback: Callable[[], None]) -> Timer:
        return asyncio.get_running_loop().call_later(delay, callback)


async def wait(clock: Clock, future: asyncio.Future[Any], timeout: float) -> bool:
    """Whether ``future`` was done within ``timeout`` seconds. It is neither cancelled nor asked for its result."""
    if future.done():
        return True
    over: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def end(_: object = None) -> None:
        if not over.done():
            over.set_result(None)

    timer = clock.call_later(max(timeout, 0.0), end)
    future.add_done_callback(end)
    try:
        await over
    finally:
        timer.cancel()
        future.remove_done_callback(end)
    return future.done()


def heard(task: asyncio.Future[Any]) -> None:
    """Whoever gives up waiting for ``task`` need not hear how it ends."""
    if not task.cancelled():
        task.exception()


async def sleep(clock: Clock, delay: float) -> None:
    """Return in ``delay`` seconds."""
    await wait(clock, asyncio.get_running_loop().create_future(), delay)
