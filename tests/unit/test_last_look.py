"""Guarantee: the last look asks for everything, and does not wait long for each key of a group that is dead."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import cast

from faults.check.history import History, Kind
from faults.sim.loop import SimLoop, simulate
from faults.workloads.kinds import UniqueSet
from faults.workloads.look import LAST_TIMEOUT, look_at_everything
from faults.workloads.recorder import Recorder
from raftkv import AsyncClient
from raftkv.client.types import Record, WriteResult
from raftkv.errors import Unavailable

KEYS = 40
KEY = "unique-set-{}"


class HalfDead:
    """A store whose even keys belong to a group without a leader."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    async def _answer(self, key: str, timeout: float) -> None:
        self.asked.append(key)
        if int(key.rpartition("-")[2]) % 2 == 0:
            await asyncio.sleep(timeout)
            raise Unavailable("no leader")

    async def put(self, key: str, value: str, **_: object) -> WriteResult:
        await self._answer(key, LAST_TIMEOUT)
        return WriteResult(1)

    async def get(self, key: str, *, consistency: str, timeout: float | None = None) -> Record | None:
        await self._answer(key, LAST_TIMEOUT if timeout is None else timeout)
        return None

    async def scan(self) -> AsyncIterator[Record]:
        for record in list[Record]():
            yield record

    async def close(self) -> None:
        pass


def test_a_dead_group_costs_the_last_look_no_ten_seconds_for_each_of_its_keys() -> None:
    store, told = HalfDead(), list[str]()
    took = 0.0

    async def main(loop: SimLoop) -> None:
        nonlocal took
        history = History()
        for number in range(KEYS):
            history.begin("c1", Kind.GET, KEY.format(number), 0.0)
        last = Recorder(cast(AsyncClient, store), "last", history, loop.time)
        began = loop.time()
        await look_at_everything(last, history, ["f-1", "f-2"], [UniqueSet()], lambda kind, text: told.append(kind))
        took = loop.time() - began

    simulate(main)
    fresh = ["f-1", "f-2"]
    assert sorted(store.asked) == sorted([*fresh, *fresh, *map(KEY.format, range(KEYS))]), "nothing is left out"
    assert told == ["liveness"] * (2 + KEYS // 2)
    assert took < LAST_TIMEOUT + KEYS
