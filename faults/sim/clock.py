"""The clock of one simulated machine: it may run fast or slow, and shows another time than its neighbours'."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from faults.sim.loop import SimLoop, SimProcess
from raftkv.clock import Timer


class SimClock:
    """See :class:`raftkv.clock.Clock`. Timers are callbacks of ``process``.

    ``rate``: seconds shown per true second. ``offset`` and ``wall``: what it shows at the start, in seconds.
    """

    def __init__(
        self, loop: SimLoop, process: SimProcess, *, rate: float = 1.0, offset: float = 0.0, wall: float = 1.7e9
    ) -> None:
        self.process = process
        """Whose timers it starts; another one after a restart of the machine."""
        self.watch: Callable[[Callable[[], None]], None] | None = None
        """Calls each timer's callback in the place of the loop."""
        self._loop = loop
        self._rate = rate
        self._since = loop.now
        self._shown = offset
        self._wall = wall - offset
        self._wall_off = 0.0

    @property
    def rate(self) -> float:
        return self._rate

    def set_rate(self, rate: float) -> None:
        """Run at another rate from now on. Timers that were started keep their true time."""
        self._shown = self.now()
        self._since = self._loop.now
        self._rate = rate

    def set_wall_off(self, seconds: float) -> None:
        """Let the wall clock be off by so much, instead of what it was set off by before."""
        self.step_wall(seconds - self._wall_off)
        self._wall_off = seconds

    def step_wall(self, seconds: float) -> None:
        """Set the wall clock forward, or back."""
        self._wall += seconds

    def now(self) -> float:
        return self._shown + (self._loop.now - self._since) * self._rate

    def wall(self) -> float:
        return self._wall + self.now()

    def call_later(self, delay: float, callback: Callable[[], None]) -> Timer:
        loop = self._loop
        if self.watch is not None:
            callback = partial(self.watch, callback)
        if delay <= 0:
            return loop.call_soon(callback, context=self.process.context)
        return loop.call_at(loop.now + delay / self._rate, callback, context=self.process.context)
