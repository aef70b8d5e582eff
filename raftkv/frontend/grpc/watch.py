"""Watches as server-streaming RPCs: one message is made when the one before has left, so none holds more than one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any, Final

from raftkv.api.failures import failure_of, overloaded
from raftkv.commands.bounds import MAX_COUNT, check_bound, check_key
from raftkv.commands.results import Result
from raftkv.errors import InvalidArgument
from raftkv.frontend.grpc.guard import COPIES, SMALL, STOPPING, abort, caller, on_end
from raftkv.frontend.port import slots_of
from raftkv.frontend.shares import Shares
from raftkv.limits import DEFAULT_TIMEOUT, MAX_WATCHES, STALLED_READER
from raftkv.store.watching import Part, WatchAsk
from raftkv.v1 import kv_pb2

if TYPE_CHECKING:
    from grpc import aio

    from raftkv.frontend.port import NodePort
    from raftkv.frontend.resources import Resources

    Context = aio.ServicerContext[Any, Any]

_STALLED: Final = overloaded("the watch did not read for long, and others need what its messages hold")


class _Stream:
    """``since``: when the message that waits for its client to read was ready. ``why``: it is ended."""

    def __init__(self, task: asyncio.Task[Any] | None) -> None:
        self.task = task
        self.since: float | None = None
        self.why: Result | None = None

    def end(self, why: Result) -> None:
        self.why = why
        if self.task is not None:
            self.task.cancel()


class WatchStreams:
    """All watches of a node's clients."""

    def __init__(self, node: NodePort, resources: Resources) -> None:
        self._node = node
        self._held = resources.held
        self._clock = resources.clock
        self._shares = Shares(MAX_WATCHES, resources.clock)
        self._streams: dict[_Stream, None] = {}
        self._draining = False

    def drain(self) -> None:
        """End all, and take no further one."""
        self._draining = True
        for stream in self._streams:
            stream.end(STOPPING)

    def end_stalled(self, late: float) -> None:
        """End those that wait for their readers since ``late`` or longer."""
        for stream in self._streams:
            if stream.since is not None and stream.since <= late:
                stream.end(_STALLED)

    async def serve(self, request: kv_pb2.WatchRequest, context: Context) -> AsyncIterator[bytes]:
        """One of them, as serialized messages."""
        peer = context.peer()
        if self._draining:
            await abort(context, STOPPING)
        if self._shares.room(peer) <= 0:
            await abort(context, overloaded("too many watches on this connection or on the node"))
        try:
            ask = ask_of(request, slots_of(self._node))
        except InvalidArgument as error:
            await abort(context, failure_of(error))
        self._shares.take(peer, 1)
        on_end(context, lambda: self._shares.take(peer, -1))
        asking = caller()
        stream = _Stream(asyncio.current_task())
        self._streams[stream] = None
        parts = self._node.watch(ask, DEFAULT_TIMEOUT, asking)
        try:
            async for part in parts:
                if isinstance(part, Result):
                    await abort(context, part)
                size = COPIES * part.size
                if size > SMALL and not await self._held.acquire(peer, size, STALLED_READER):
                    await abort(context, _STALLED)
                stream.since = self._clock.now()
                if part.message is None:
                    part.message = response_of(part).SerializeToString()
                try:
                    yield part.message
                finally:
                    stream.since = None
                    if size > SMALL:
                        self._held.take(peer, -size)
        except asyncio.CancelledError:
            if stream.why is None:
                raise
            await abort(context, stream.why)
        finally:
            asking.gone = True
            self._streams.pop(stream, None)
            await parts.aclose()


def ask_of(request: kv_pb2.WatchRequest, slots: int) -> WatchAsk:
    """Raises InvalidArgument or TooLarge."""
    places: dict[int, int | None] = {}
    for place in request.places:
        if place.slot >= slots:
            raise InvalidArgument(f"no slot {place.slot}: there are {slots}")
        if place.slot in places:
            raise InvalidArgument(f"slot {place.slot} is named twice")
        if place.after > MAX_COUNT:
            raise InvalidArgument(f"{place.after} is not a number of a slot")
        places[place.slot] = place.after if place.HasField("after") else None
    if not places:
        raise InvalidArgument("the watch names no slot")
    key = request.key if request.HasField("key") else None
    if key is not None:
        check_key(key)
    check_bound(request.prefix)
    return WatchAsk(places, key, request.prefix, request.initial)


def response_of(part: Part) -> kv_pb2.WatchResponse:
    """The message that tells ``part``."""
    response = kv_pb2.WatchResponse()
    for slot, after, number in part.opened:
        response.opened.add(slot=slot, after=after, number=number)
    response.released.extend(part.released)
    for slot, after, upto, events in part.spans:
        span = response.spans.add(slot=slot, after=after, upto=upto)
        for event in events:
            span.events.add(
                number=event.number,
                change=kv_pb2.Change.ValueType(event.change),
                key=event.key,
                value=event.value or b"",
                more=event.more,
            )
    for slot, number, records, begins, whole in part.images:
        image = response.images.add(slot=slot, number=number, begins=begins, whole=whole)
        for key, value, version, ttl in records:
            row = image.records.add(key=key, value=value, version=version)
            if ttl >= 0:
                row.ttl_ms = ttl
    for slot, floor in part.compacted:
        response.compacted.add(slot=slot, floor=floor)
    return response
