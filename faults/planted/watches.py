"""What takes the place of safeguards of watches."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from raftkv.client.following import Following
from raftkv.frontend.grpc.watch import ask_of
from raftkv.store.watching import WatchAsk
from raftkv.v1 import kv_pb2


async def opens_from_now_on(work: Following, source: Any) -> Any:
    """A stream that takes the place of another one begins with what happens next."""
    if work.opened:
        for slot in source.slots:
            work.cursor = work.cursor.at(slot, None)
    return await _open(work, source)


_open = Following.open


def begins_early(request: kv_pb2.WatchRequest, slots: int) -> WatchAsk:
    """The node begins with the last that the watch has had."""
    ask = ask_of(request, slots)
    places = {slot: None if after is None else max(after - 2, 0) for slot, after in ask.places.items()}
    return replace(ask, places=places)
