"""Guarantee: what another node's clients read fills neither this node's memory nor the link to that node."""

from __future__ import annotations

import asyncio

from raftkv import limits
from raftkv.commands.records import Get
from raftkv.commands.results import Result
from raftkv.errors import Code
from raftkv.node.answers import bounded_answers
from raftkv.node.forwarding import Forwarding
from raftkv.node.leaders import Leaders
from tests.peer_world import ManualClock
from tests.unit.test_node_router import NoGroups, RecordingPeers

VALUE = Result(Code.OK, 1, b"x" * limits.MAX_VALUE_BYTES)
GETS = [Get(7, b"k") for _ in range(5)]
AGAIN = (Code.OVERLOADED, 0)


def answered(unsent: int, result: Result) -> list[tuple[int, int]]:
    told: list[tuple[int, int]] = []
    answer = bounded_answers(GETS, lambda _, given: told.append((given.code, given.retry_ms)), lambda: unsent)
    for index in range(len(GETS)):
        answer(index, result)
    return told


def test_reads_are_put_off_while_much_waits_on_the_link() -> None:
    least = answered(limits.MAX_UNSENT_ANSWER_BYTES, VALUE)
    assert least[0] == (Code.OK, -1)
    assert AGAIN in least, "one message asks for more than is answered at once"
    assert answered(limits.MAX_UNSENT_ANSWER_BYTES + 1, VALUE) == [AGAIN] * 5
    assert answered(limits.MAX_UNSENT_ANSWER_BYTES + 1, Result(Code.OK)) == [(Code.OK, -1)] * 5


def test_answers_of_one_turn_count_before_they_are_sent() -> None:
    async def main() -> None:
        clock, peers = ManualClock(), RecordingPeers()
        leaders = Leaders(2, NoGroups(), peers)
        forwarding = Forwarding(
            leaders=leaders,
            peers=peers,
            clock=clock,
            first_number=1,
            ended=lambda request, result: None,
        )
        for number in range(3):
            forwarding.answer(1, number, 0, VALUE)
        assert forwarding.unsent(1) == 3 * limits.MAX_VALUE_BYTES
        assert forwarding.unsent(3) == 0
        await clock.advance(0.0)
        assert forwarding.unsent(1) == 0
        peers.waiting = 5
        assert forwarding.unsent(1) == 5

    asyncio.run(main())
