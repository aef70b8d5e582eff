"""Operations that arrive by themselves, whether or not the store keeps up: the open loop.

In a closed loop a worker asks again when it has its answer. A store that stalls for a second is then asked nothing for
a second, and one bad latency per worker stands for all the operations that would have come meanwhile: the measurement
is coordinated with what it measures. Here each operation has an intended start drawn beforehand, and its latency counts
from that moment, so that whatever comes during a stall waits and says so.

No more operations are under way than there are workers. One that arrives while all of them are busy is begun by the
first that is free, in the order of arrival; its latency holds the wait, and :attr:`Arrivals.waited` counts it.
"""

from __future__ import annotations

import asyncio
import ctypes
import ctypes.util
import os
import random
from collections import deque
from collections.abc import Callable
from time import perf_counter
from typing import Final, Literal, TypeAlias, get_args

Spacing: TypeAlias = Literal["poisson", "even"]
SPACINGS: Final[tuple[str, ...]] = get_args(Spacing)

_STEP: Final = 0.0001
"""Seconds. Arrivals that lie closer together begin together, so that the alarm costs little at any rate."""
_MONOTONIC: Final = 1
_NONBLOCK: Final = 0o4000


class Arrivals:
    """Intended starts, in seconds of ``clock``, from ``first`` until ``end``, ``rate`` per second.

    ``poisson``: independent of each other, as those of many clients are; ``even``: at a fixed distance. Those before
    ``begin`` warm up and are not counted. To be closed.
    """

    def __init__(
        self,
        rate: float,
        spacing: Spacing,
        first: float,
        begin: float,
        end: float,
        rng: random.Random,
        clock: Callable[[], float] = perf_counter,
    ) -> None:
        self._gap: Callable[[], float] = (lambda: 1 / rate) if spacing == "even" else (lambda: rng.expovariate(rate))
        self._next = first + (0.0 if spacing == "even" else self._gap())
        self._begin, self._end = begin, end
        self._clock = clock
        self._idle: deque[asyncio.Future[float | None]] = deque()
        self._alarm = Alarm(self._ring)
        self.waited = 0
        """Operations that found all workers busy."""

    async def take(self) -> float | None:
        """The intended start of the next operation, once it has come; None when all have been taken."""
        if self._next >= self._end:
            self._release()
            return None
        if self._next <= self._clock():
            if not self._idle and self._next >= self._begin:
                self.waited += 1
            return self._following()
        mine: asyncio.Future[float | None] = asyncio.get_running_loop().create_future()
        self._idle.append(mine)
        if len(self._idle) == 1:
            self._alarm.set(self._next - self._clock())
        return await mine

    def left(self) -> int:
        """Take all operations that nobody has begun; how many there were."""
        count = 0
        while self._next < self._end:
            count += self._following() >= self._begin
        return count

    def close(self) -> None:
        self._alarm.close()

    def _following(self) -> float:
        intended = self._next
        self._next += self._gap()
        return intended

    def _ring(self) -> None:
        now = self._clock()
        while self._idle and self._next <= now and self._next < self._end:
            worker = self._idle.popleft()
            if not worker.done():
                worker.set_result(self._following())
        if self._next >= self._end:
            self._release()
        elif self._idle:
            self._alarm.set(max(self._next - now, _STEP))

    def _release(self) -> None:
        while self._idle:
            worker = self._idle.popleft()
            if not worker.done():
                worker.set_result(None)


class Alarm:
    """Calls ``ring`` from the loop at a time that is exact to some 50 microseconds.

    The loop's own timers are exact to a millisecond only, which is more than a read takes. Where the kernel has no
    timer files, or the loop watches none, they have to do.
    """

    def __init__(self, ring: Callable[[], None]) -> None:
        self._ring = ring
        self._loop = asyncio.get_running_loop()
        self._libc = ctypes.CDLL(ctypes.util.find_library("c"), use_errno=True)
        self._file = self._libc.timerfd_create(_MONOTONIC, _NONBLOCK) if hasattr(self._libc, "timerfd_create") else -1
        self._pending: asyncio.TimerHandle | None = None
        # Seconds and nanoseconds of the period, which is 0 = once, and of the delay.
        self._when = (ctypes.c_long * 4)()
        if self._file >= 0:
            try:
                self._loop.add_reader(self._file, self._rang)
            except NotImplementedError:
                os.close(self._file)
                self._file = -1

    def set(self, delay: float) -> None:
        """Ring once in ``delay`` seconds, and not when it was to ring before."""
        if self._file < 0:
            if self._pending is not None:
                self._pending.cancel()
            self._pending = self._loop.call_later(delay, self._ring)
            return
        # A delay of 0 would switch it off.
        nanoseconds = max(1, int(delay * 1e9))
        self._when[2], self._when[3] = divmod(nanoseconds, 1_000_000_000)
        self._libc.timerfd_settime(self._file, 0, self._when, None)

    def close(self) -> None:
        if self._pending is not None:
            self._pending.cancel()
        if self._file >= 0:
            self._loop.remove_reader(self._file)
            os.close(self._file)
            self._file = -1

    def _rang(self) -> None:
        try:
            os.read(self._file, 8)
        except BlockingIOError:
            # It was set anew since.
            return
        self._ring()
