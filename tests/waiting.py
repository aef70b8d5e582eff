"""Waiting for what others bring about: for a condition, never for a time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

from raftkv.clock import SystemClock
from raftkv.local.process import pause

PATIENCE: Final = 100.0
"""Seconds for whatever must come about: far more than it takes beside other work, so that only a hang meets it."""
_POLL: Final = 0.05


def until(condition: Callable[[], object], what: str = "it becomes so") -> None:
    """Block until ``condition`` holds."""
    clock = SystemClock()
    end = clock.now() + PATIENCE
    while not condition():
        assert clock.now() < end, f"not within {PATIENCE:g} s: {what}"
        pause(_POLL)


async def becomes(condition: Callable[[], object], what: str = "it becomes so") -> None:
    """Wait until ``condition``, which other tasks bring about, holds."""
    clock = SystemClock()
    end = clock.now() + PATIENCE
    while not condition():
        assert clock.now() < end, f"not within {PATIENCE:g} s: {what}"
        await asyncio.sleep(0.005)
