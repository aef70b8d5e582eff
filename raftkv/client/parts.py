"""What leases, locks and elections have of the client that made them."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from random import Random
from typing import TYPE_CHECKING, Any, Final, TypeVar

from raftkv.client.arguments import check_timeout
from raftkv.clock import heard

if TYPE_CHECKING:
    from raftkv.client.engine import Engine
    from raftkv.client.values import Decode, Encode
    from raftkv.clock import Clock

T = TypeVar("T")

_LAST: Final = 1.0
"""Seconds that the end of a client waits for the end of what it held: whoever comes next waits for it, too."""


class Parts:
    """``timeout``: seconds of calls that name none. Tasks that it starts end with the client."""

    def __init__(
        self, engine: Engine, clock: Clock, timeout: float, rng: Random, encode: Encode, decode: Decode | None
    ) -> None:
        self.engine = engine
        self.clock = clock
        self.timeout = timeout
        self.rng = rng
        self.encode = encode
        self.decode = decode
        self._tasks: set[asyncio.Task[Any]] = set()
        self._last: set[asyncio.Task[Any]] = set()

    def budget(self, timeout: float | None) -> float:
        """Seconds of a call that names ``timeout``. Raises InvalidArgument."""
        return self.timeout if timeout is None else check_timeout(timeout)

    def start(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Go on with ``work`` whatever becomes of the caller. Nobody need hear how it ends."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def finish(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """The same with what removes something, for which the client's end waits a while."""
        task = self.start(work)
        self._last.add(task)
        return task

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        self._last.discard(task)
        heard(task)

    async def settle(self) -> None:
        """Wait a while for what is to be removed."""
        loop = asyncio.get_running_loop()
        last = [task for task in self._last if task.get_loop() is loop]
        if last:
            await asyncio.wait(last, timeout=_LAST)

    async def end(self) -> None:
        """End all of it."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
