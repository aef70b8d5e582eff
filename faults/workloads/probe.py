"""How long a key goes without an acknowledged write, asked by clients that are never cut off themselves."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from faults.check.history import Outcome
from faults.workloads.recorder import Recorder


class Probe:
    """Writes to one key, one write after the other, ``period`` seconds apart.

    ``acknowledged``: when the last write was, None before the first. ``worst``: longest time in seconds without one.
    """

    def __init__(self, recorder: Recorder, key: str, now: Callable[[], float], period: float) -> None:
        self.key = key
        self.acknowledged: float | None = None
        self.worst = 0.0
        self.when = ""
        self._recorder = recorder
        self._now = now
        self._period = period

    async def write(self, over: Callable[[], bool]) -> None:
        """Until ``over``; then the client is closed."""
        last, number = self._now(), 0
        while not over():
            number += 1
            written = await self._recorder.put(self.key, f"{self._recorder.name}-{number}")
            if written.outcome is Outcome.OK:
                now = self.acknowledged = self._now()
                if now - last > self.worst:
                    self.worst, self.when = now - last, f"{self.key} from {last:.3f} to {now:.3f}"
                last = now
            await asyncio.sleep(self._period)
        await self._recorder.client.close()
