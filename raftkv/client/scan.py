"""Reading all records: several slots are read ahead, and their records come in the order of the slots."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator
from typing import TYPE_CHECKING, Final

from raftkv.client.types import Record

if TYPE_CHECKING:
    from raftkv.client.engine import Engine

_AHEAD: Final = 8
"""Slots whose first page is asked for before it is needed."""

Page = tuple[list[Record], bool]


async def record_pages(engine: Engine, mode: int, timeout: float) -> AsyncGenerator[list[Record], None]:
    """All records of the cluster in pages; ``timeout`` seconds for each."""
    slots = await engine.slots(timeout)
    ahead: deque[asyncio.Task[Page]] = deque()
    following = 0
    try:
        for slot in range(slots):
            while following < min(slot + _AHEAD, slots):
                ahead.append(asyncio.create_task(engine.scan(following, b"", 0, mode, timeout)))
                following += 1
            page, more = await ahead[0]
            ahead.popleft()
            while True:
                if page:
                    yield page
                if not more or not page:
                    break
                page, more = await engine.scan(slot, page[-1].key, 0, mode, timeout)
    finally:
        for task in ahead:
            task.cancel()
        await asyncio.gather(*ahead, return_exceptions=True)
