"""An open loop that remembers when each operation was to start: it can be laid beside what else went on then."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Final

from bench.arrivals import Arrivals
from bench.load import undisturbed
from raftkv.errors import RaftKVError

_WORKERS: Final = 1_000
"""Operations under way at a time, at most: those that arrive in a second of stall."""

_PREPARING: Final = 0.1
"""Seconds in which the workers are made before the first of them is to start."""


@dataclass(frozen=True, slots=True)
class Timed:
    """One operation: when it was to start, by the clock of the measurement, and how long it then took, in seconds.

    ``late``: how long after that it began: what the client, or the processor that it runs on, had no time for.
    """

    began: float
    took: float
    late: float = 0.0
    failed: bool = False


async def steady(
    operation: Callable[[bytes], Awaitable[object]],
    keys: Sequence[bytes],
    rate: float,
    seconds: float,
    seed: int = 1,
    clock: Callable[[], float] = perf_counter,
) -> list[Timed]:
    """Start ``operation`` ``rate`` times a second for ``seconds``, each time with one of ``keys``; wait for the last.

    Failures count as operations that took until they failed. Times are seconds of ``clock``.
    """
    done: list[Timed] = []
    rng = random.Random(seed)
    first = clock() + _PREPARING
    arrivals = Arrivals(rate, "even", first, first, first + seconds, rng, clock)

    async def serve() -> None:
        while (intended := await arrivals.take()) is not None:
            failed, late = False, clock() - intended
            try:
                await operation(keys[int(rng.random() * len(keys))])
            except RaftKVError:
                failed = True
            done.append(Timed(intended, clock() - intended, late, failed))

    with undisturbed():
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(_WORKERS):
                    group.create_task(serve())
        finally:
            arrivals.close()
    return done
