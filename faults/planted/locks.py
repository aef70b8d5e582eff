"""What takes the place of safeguards of locks."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from raftkv.client.lease import Hold
from raftkv.client.types import Record

_confirm = Hold.confirm


def from_the_answer(hold: Hold, sent: float, ttl: float) -> None:
    """The time to live is thought to begin when the answer comes."""
    _confirm(hold, max(sent, hold.clock.now()), ttl)


def before_by_key(queue: Iterable[Record[Any]], version: int) -> Record[Any] | None:
    """The lowest key is thought to be the first."""
    rows = sorted(queue, key=lambda one: one.key)
    at = next(number for number, one in enumerate(rows) if one.version == version)
    return rows[at - 1] if at else None
