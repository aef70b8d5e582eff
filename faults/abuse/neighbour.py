"""The well-behaved client: a few operations a second on each group, and how long each had to wait."""

from __future__ import annotations

import asyncio
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

import raftkv
from faults.abuse.wire import asleep
from faults.keys import PREFIX
from raftkv.api.failures import error_of
from raftkv.client.transport import FAILURES, connect, failure
from raftkv.clock import SystemClock
from raftkv.errors import RaftKVError
from raftkv.v1 import kv_pb2, kv_pb2_grpc

_KEYS: Final = 50
"""Of each worker; they are written in turn."""
_WORKERS: Final = 4
"""Of each group. One alone would be late for all that is due while it waits, so that waits as long as the time between
two operations added up without end."""


class NeighbourStore(Protocol):
    """What the neighbour asks."""

    async def put(self, key: str, value: str) -> object: ...

    async def get(self, key: str) -> Any: ...

    async def close(self) -> None: ...


class Through:
    """All calls go to one node, as with a client that knows no map."""

    def __init__(self, address: str, timeout: float) -> None:
        self._channel = connect(address)
        self._stub: Any = kv_pb2_grpc.KVStub(self._channel)
        self._timeout = timeout

    async def put(self, key: str, value: str) -> object:
        """Raises RaftKVError."""
        return await self._ask(self._stub.Put, kv_pb2.PutRequest(key=key.encode(), value=value.encode()))

    async def get(self, key: str) -> kv_pb2.Record | None:
        """Raises RaftKVError."""
        answer = await self._ask(self._stub.Get, kv_pb2.GetRequest(key=key.encode()))
        return answer.record if answer.HasField("record") else None

    async def _ask(self, method: Any, request: Any) -> Any:
        try:
            return await method(request, timeout=self._timeout)
        except FAILURES as problem:
            raise error_of(failure(problem)) from None

    async def close(self) -> None:
        await self._channel.close(None)


@dataclass(slots=True)
class _Seen:
    """``waits``: seconds of each operation that was done, from when it was due."""

    waits: list[float] = field(default_factory=list)
    acknowledged: dict[str, int] = field(default_factory=dict)
    writes: int = 0
    failed: Counter[str] = field(default_factory=Counter)
    gap: float = 0.0
    lost: int = 0

    def tell(self, counts: dict[str, Any]) -> None:
        counts["operations"] = len(self.waits)
        counts["writes"] = self.writes
        counts["failed"] = dict(self.failed)
        counts["gap"] = self.gap
        counts["lost"] = self.lost
        if self.waits:
            counts["max"] = max(self.waits)

    def conclude(self, counts: dict[str, Any]) -> None:
        self.tell(counts)
        waits: Sequence[float] = sorted(self.waits) or [0.0]
        counts["p50"] = statistics.median(waits)
        counts["p99"] = waits[min(len(waits) - 1, round(0.99 * len(waits)))]


async def behave(
    counts: dict[str, Any],
    over: asyncio.Event,
    *,
    endpoints: str,
    tags: Sequence[str],
    name: str = "client",
    through: str = "",
    period: float = 0.05,
    timeout: float = 30.0,
) -> None:
    """Write a key and read it, again and again for each of the ``tags``, an operation each ``period`` seconds on
    average, by several workers in turns, until it is over.

    ``name``: of its keys; nobody else may write them. ``through``: the node that is asked for everything; else the
    client finds the leaders. ``ready``: each tag has been written. Waits count from when an operation was due, so that
    what one holds up counts too; without a ``period`` each begins when the one before has ended. ``gap``: the longest
    time between two answers for a tag. ``lost``: keys that are older than what was acknowledged.
    """
    store: NeighbourStore = Through(through, timeout) if through else raftkv.AsyncClient(endpoints, timeout=timeout)
    seen = _Seen()
    ready: set[str] = set()
    try:
        async with asyncio.TaskGroup() as group:
            workers = _WORKERS if period else 1
            prefixes = [
                f"{PREFIX}{name}/{{{tag}}}/{at}/{worker}/" for worker in range(workers) for at, tag in enumerate(tags)
            ]
            for number, prefix in enumerate(prefixes):
                delay = number // len(tags) * period
                group.create_task(_work(store, prefix, seen, ready, over, delay, period * workers))
            while not over.is_set():
                counts["ready"] = len(ready) == len(prefixes)
                seen.tell(counts)
                await asleep(over, 0.1)
        await _look(store, seen.acknowledged, seen)
    finally:
        seen.conclude(counts)
        await store.close()


async def _work(
    store: NeighbourStore, prefix: str, seen: _Seen, ready: set[str], over: asyncio.Event, delay: float, period: float
) -> None:
    clock = SystemClock()
    await asleep(over, delay)
    number, due, answered = 0, clock.now(), clock.now()
    while not over.is_set():
        number += 1
        key = f"{prefix}{number % _KEYS}"
        try:
            if number % 2:
                await store.put(key, str(number))
            else:
                key = f"{prefix}{(number - 1) % _KEYS}"
                found = await store.get(key)
                seen.lost += _older(found, seen.acknowledged.get(key, 0))
        except RaftKVError as problem:
            seen.failed[type(problem).__name__] += 1
        else:
            now = clock.now()
            if number % 2:
                seen.acknowledged[key] = number
                seen.writes += 1
            if prefix in ready:
                seen.waits.append(now - due)
                seen.gap = max(seen.gap, now - answered)
            else:
                # The first one had to connect.
                ready.add(prefix)
                due = now
            answered = now
        due = due + period if period else clock.now()
        await asleep(over, max(0.0, due - clock.now()))


async def _look(store: NeighbourStore, acknowledged: Mapping[str, int], seen: _Seen) -> None:
    for key, number in acknowledged.items():
        try:
            found = await store.get(key)
        except RaftKVError as problem:
            seen.failed[f"last look: {type(problem).__name__}"] += 1
            return
        seen.lost += _older(found, number)


def _older(found: Any, acknowledged: int) -> bool:
    """Whether a record is not as new as what was acknowledged, 0 = nothing."""
    return acknowledged > (0 if found is None else int(found.value))
