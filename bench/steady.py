"""An open loop: operations start at a steady rate, whether or not earlier ones have their answers.

A latency counts from the moment at which an operation was to start, so a stall shows in each one that it held up.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from math import ceil

from raftkv.clock import SystemClock
from raftkv.errors import RaftKVError

_TICK = 0.002
"""Seconds between two looks at what is to start: the resolution of a latency's beginning is the loop's."""


@dataclass(frozen=True, slots=True)
class Timed:
    """One operation: when it was to start (seconds on the machine's clock) and how long it then took (seconds)."""

    began: float
    took: float
    failed: bool = False


async def steady(
    operation: Callable[[bytes], Awaitable[object]], keys: Sequence[bytes], rate: float, seconds: float, seed: int = 1
) -> list[Timed]:
    """Start ``operation`` ``rate`` times a second for ``seconds``, each time with one of ``keys``; wait for the last.

    Failures count as operations that took until they failed.
    """
    clock, rng = SystemClock(), random.Random(seed)
    done: list[Timed] = []

    async def one(key: bytes, began: float) -> None:
        failed = False
        try:
            await operation(key)
        except RaftKVError:
            failed = True
        done.append(Timed(began, clock.now() - began, failed))

    began, started = clock.now(), 0
    total = round(rate * seconds)
    async with asyncio.TaskGroup() as group:
        while started < total:
            due = min(total, int((clock.now() - began) * rate) + 1)
            for number in range(started, due):
                group.create_task(one(keys[int(rng.random() * len(keys))], began + number / rate))
            started = due
            await asyncio.sleep(_TICK)
    return done


def at(values: Sequence[float], share: float) -> float:
    """The smallest of ``values`` that at least ``share`` of them do not exceed; 0 if there are none."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, max(0, ceil(len(ordered) * share) - 1))] if ordered else 0.0
