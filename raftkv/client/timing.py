"""Waiting on the client's clock: the slow paths only, since the hot one has no timers."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from raftkv.clock import Clock


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


async def sleep(clock: Clock, delay: float) -> None:
    """Return in ``delay`` seconds."""
    await wait(clock, asyncio.get_running_loop().create_future(), delay)
