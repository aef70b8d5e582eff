"""How attempts share messages."""

from __future__ import annotations

import asyncio
import itertools
from typing import TYPE_CHECKING, cast

from raftkv.api.batcher import LONGEST
from raftkv.api.pipeline import Answers, Batch
from raftkv.client.call import Call
from raftkv.client.channel import Channel
from raftkv.client.session import ClientSession
from raftkv.clock import SystemClock
from raftkv.commands.results import Result
from raftkv.v1 import kv_pb2

if TYPE_CHECKING:
    from raftkv.client.transport import Endpoint


class Node:
    """Endpoint and stream in one: answers every message in one."""

    cluster_id = "c"

    def __init__(self) -> None:
        self.sizes: list[int] = []
        self._answers: asyncio.Queue[Answers | None] = asyncio.Queue()

    async def open(self) -> Node:
        return self

    async def write(self, batch: Batch) -> None:
        self.sizes.append(len(batch.ids))
        await self._answers.put(Answers(batch.ids, [Result(0) for _ in batch.ids], 0))

    async def read(self) -> Answers | None:
        return await self._answers.get()

    def cancel(self) -> None:
        self._answers.put_nowait(None)

    async def close(self) -> None:
        pass


class Client:
    """An observer with so many ``attempts`` under way on so many ``channels``."""

    def __init__(self, channels: int, attempts: int) -> None:
        self._load = channels, attempts

    def load(self) -> tuple[int, int]:
        return self._load

    def on_busy(self) -> None:
        pass

    def on_slow(self, call: Call, seconds: float) -> None:
        pass

    def on_state(self, address: str, ok: bool) -> None:
        pass

    def on_epoch(self, epoch: int) -> None:
        pass

    def refusal(self, cluster_id: str) -> str | None:
        return None


def sizes(calls: int, *, channels: int = 1, writes: bool = False, rounds: int = 1) -> list[int]:
    """Operations of each message, if ``calls`` attempts start together on each channel, ``rounds`` times."""

    async def go() -> list[int]:
        node, clock = Node(), SystemClock()
        channel = Channel("a", cast("Endpoint", node), clock, itertools.count(1), Client(channels, channels * calls))
        session = ClientSession(b"s" * 16)
        for _ in range(rounds):
            futures = []
            for at in range(calls):
                call = Call(kv_pb2.KIND_PUT if writes else kv_pb2.KIND_GET, b"%d" % at)
                call.slot = 0
                if writes:
                    call.value, call.session, call.seq = b"v", session, session.begin()
                futures.append(channel.send(call, 1.0, clock.now(), 5.0))
            await asyncio.gather(*futures)
        await channel.close()
        return node.sizes

    return asyncio.run(go())


def test_reads_of_an_only_channel_travel_in_two_halves() -> None:
    assert sizes(50) == [25, 25]
    assert sizes(33) == [17, 16]


def test_few_reads_travel_together() -> None:
    assert sizes(31) == [31]


def test_reads_travel_together_while_other_channels_are_at_work_too() -> None:
    assert sizes(50, channels=2) == [50]
    assert sizes(300, channels=3, writes=True) == [300]


def test_writes_travel_together_unless_there_are_many() -> None:
    assert sizes(50, writes=True, rounds=2) == [50, 50]
    assert sizes(256, writes=True, rounds=2) == [256, 256]
    assert sizes(257, writes=True) == [129, 128]


def test_only_writes_wait_longer_for_others() -> None:
    """Not beside reads, neither those that wait with them nor those of the latest message."""

    def call(kind: kv_pb2.Kind.ValueType, session: ClientSession) -> Call:
        made = Call(kind, b"k")
        made.slot = 0
        if kind == kv_pb2.KIND_PUT:
            made.value, made.session, made.seq = b"v", session, session.begin()
        return made

    async def go(*messages: str) -> float:
        node, clock = Node(), SystemClock()
        channel = Channel("a", cast("Endpoint", node), clock, itertools.count(1), Client(1, 1))
        session = ClientSession(b"s" * 16)
        *sent, waiting = [
            [call(kv_pb2.KIND_PUT if one == "w" else kv_pb2.KIND_GET, session) for one in message]
            for message in messages
        ]
        for calls in sent:
            await asyncio.gather(*(channel.send(one, 1.0, clock.now(), 5.0) for one in calls))
        for one in waiting:
            channel.send(one, 1.0, clock.now(), 5.0)
        _, _, longest = channel._bounds()
        await channel.close()
        return longest

    for messages, longer in (
        (("w",), True),
        (("ww", "w"), True),
        (("rw", "ww", "w"), True),
        (("r",), False),
        (("r", "w"), False),
        (("wr", "w"), False),
        (("w", "r"), False),
    ):
        assert (asyncio.run(go(*messages)) > LONGEST) is longer, messages
