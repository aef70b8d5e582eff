"""Clients and nodes whose clocks are wrong."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from random import Random
from typing import ClassVar, Final

import raftkv
from faults.abuse.stage import AbuseScenario, Stage
from faults.abuse.wire import answers, pipe
from faults.keys import PREFIX
from raftkv.clock import SystemClock
from raftkv.commands.client_ids import TAIL_BYTES, client_id
from raftkv.errors import RaftKVError
from raftkv.v1 import kv_pb2

_HOUR: Final = 3600.0
_TAG: Final = "ahead"
_TIMEOUT: Final = 20.0
_UNDER_WAY: Final = 500


class Ahead(SystemClock):
    """A wall clock that is so many seconds ahead."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds

    def wall(self) -> float:
        return super().wall() + self._seconds


async def write_as_many(address: str, ahead: float, count: int, seed: int) -> Counter[str]:
    """``count`` writes to one slot, each with a client id of its own, drawn ``ahead`` seconds in the future."""
    rng, clock = Random(seed), SystemClock()
    found: Counter[str] = Counter()
    async with pipe(address) as one:
        for first in range(0, count, _UNDER_WAY):
            some = min(_UNDER_WAY, count - first)
            for number in range(some):
                operation = kv_pb2.Operation(
                    id=number + 1,
                    kind=kv_pb2.KIND_PUT,
                    key=f"{PREFIX}{{{_TAG}}}/{number}".encode(),
                    value=b"x",
                    sequence=1,
                )
                request = kv_pb2.PipelineRequest(
                    client_id=client_id(int(1000 * (clock.wall() + ahead)), rng.randbytes(TAIL_BYTES)),
                    first_incomplete=1,
                    operations=[operation],
                    timeout_ms=10_000,
                )
                await one.write(request.SerializeToString())
            found += await answers(one, some)
    return found


async def honest(endpoints: str, clients: int, ahead: float = 0.0) -> tuple[int, Counter[str]]:
    """How many of some new clients, whose clocks are ``ahead``, could write to that slot; what the others were told."""
    done, failed = 0, Counter[str]()
    for number in range(clients):
        try:
            async with raftkv.AsyncClient(endpoints, timeout=_TIMEOUT, clock=Ahead(ahead)) as client:
                for _ in range(3):
                    await client.put(f"{PREFIX}{{{_TAG}}}/honest/{number}", b"x")
            done += 1
        except RaftKVError as problem:
            failed[type(problem).__name__] += 1
    return done, failed


class _Sessions(AbuseScenario):
    hours: ClassVar[float]
    count: ClassVar[int]

    async def run(self, stage: Stage) -> None:
        async with (
            stage.watched(),
            raftkv.AsyncClient(stage.cluster.endpoints, timeout=_TIMEOUT) as old,
        ):
            key = f"{PREFIX}{{{_TAG}}}/old"
            await old.put(key, b"x")
            slot = await old.slot_of(key)
            leader = stage.cluster.address(await stage.settled((await stage.map()).owners[slot]))
            codes = await write_as_many(leader, self.hours * _HOUR, self.count, 1)
            stage.note("its writes were answered", ", ".join(f"{code} {many}" for code, many in sorted(codes.items())))
            done, failed = await honest(stage.cluster.endpoints, 5)
            stage.note("new honest clients that write to the slot", done, least=5)
            stage.note("the others were told", ", ".join(sorted(failed)) or "-")
            try:
                await old.put(key, b"y")
                told = "served"
            except RaftKVError as problem:
                told = type(problem).__name__
            stage.note("a client of before is served", int(told == "served"), least=1)
            told_codes = await write_as_many(leader, 0.0, 20, 2)
            stage.note("ids of the present that are taken", told_codes["OK"], least=20)


class SessionsAhead(_Sessions):
    name = "sessions-ahead"
    what = "8,500 writes to a slot with client ids of a time 47 h ahead"
    hours = 47.0
    count = 8500


class ClientAhead(_Sessions):
    name = "client-30h-fast"
    what = "a machine whose clock is 30 h fast, with 4,500 short-lived clients; it is served itself"
    hours = 30.0
    count = 4500

    async def run(self, stage: Stage) -> None:
        await super().run(stage)
        for hours in (30, 72):
            done, failed = await honest(stage.cluster.endpoints, 3, hours * _HOUR)
            stage.note(f"clients {hours} h fast that are served", done, least=3)
            if failed:
                stage.note(f"other clients {hours} h fast were told", ", ".join(sorted(failed)))


class NodeBehind(AbuseScenario):
    name = "node-3d-behind"
    what = "a node whose wall clock is 3 days behind: writes through it, and what health says"
    wall: ClassVar[Mapping[int, float]] = {2: -72 * _HOUR}

    async def run(self, stage: Stage) -> None:
        tags = list((await stage.tags()).values())
        async with stage.watched(), stage.beside(tags=tags, through=stage.cluster.address(2)):
            done, failed = await honest(stage.cluster.endpoints, 5)
            stage.note("new clients that write", done, least=5)
            stage.note("the others were told", ", ".join(sorted(failed)) or "-")
        codes = await write_as_many(stage.cluster.address(2), 0.0, 20, 3)
        stage.note("ids of the present that the node takes", codes["OK"], least=20)
        await stage.note_health("meanwhile", "clock_skew")
