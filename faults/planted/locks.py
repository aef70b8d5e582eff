"""What takes the place of safeguards of locks."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from typing import Any

from raftkv.client.call import Call
from raftkv.client.engine import Engine
from raftkv.client.lease import Hold
from raftkv.client.types import Record
from raftkv.commands.results import Result
from raftkv.errors import RaftKVError

_confirm = Hold.confirm


def from_the_answer(hold: Hold, sent: float, ttl: float) -> None:
    """The time to live is thought to begin when the answer comes."""
    _confirm(hold, max(sent, hold.clock.now()), ttl)


def before_by_key(queue: Iterable[Record[Any]], version: int) -> Record[Any] | None:
    """The lowest key is thought to be the first."""
    rows = sorted(queue, key=lambda one: one.key)
    at = next(number for number, one in enumerate(rows) if one.version == version)
    return rows[at - 1] if at else None


async def answers_late(engine: Engine, calls: Sequence[Call], timeout: float) -> list[Result | RaftKVError]:
    """Of what renews a lease, by half of its time to live: twice the call's time-out."""
    answers = await _run_many(engine, calls, timeout)
    await asyncio.sleep(2.0 * timeout)
    return answers


_run_many = Engine.run_many
