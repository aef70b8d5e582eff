"""Guarantee: what another node's clients read fills neither this node's memory nor the link to that node."""

from __future__ import annotations

import asyncio
from typing import Any

from raftkv import limits
from raftkv.commands.records import Get, Put
from raftkv.commands.results import Result
from raftkv.commands.transactions import GetStep, PutStep, Transact
from raftkv.commands.updates import GetAndDelete, Increment
from raftkv.errors import Code
from raftkv.node.answers import bounded_answers, put_off
from raftkv.node.forwarding import Forwarding
from raftkv.node.leaders import Leaders
from raftkv.store.records import Store
from tests.peer_world import ManualClock
from tests.store_helpers import make, one
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


def test_writes_that_tell_much_are_not_executed_while_there_is_no_room_for_their_answers() -> None:
    """Unlike a read, they could not be asked again."""
    store = make(0)
    for number in range(5):
        one(store, Put(0, b"%d" % number, b"x" * limits.MAX_VALUE_BYTES))
    takes = [GetAndDelete(0, b"%d" % number) for number in range(5)]
    small = [
        Increment(0, b"n", 1),
        GetAndDelete(0, b"none"),
        Transact(0, (), (PutStep(b"a", b"b" * limits.MAX_VALUE_BYTES),)),
    ]
    reads = [Transact(0, (), (GetStep(b"0"),))] * 40

    def refused(ops: list[Any], unsent: int = 0, store: Store | None = store) -> list[int]:
        found = put_off(ops, lambda _: store, unsent)
        assert {(result.code, result.retry_ms) for result in found.values()} <= {AGAIN}
        return list(found)

    # With what stands before its value a record is a little longer: two of them do not fit.
    assert refused([*takes, *small]) == [1, 2, 3, 4]
    assert refused([*small, *GETS]) == []
    assert 0 < len(refused(reads)) < len(reads) // 2
    assert refused([*takes, *reads, *small], limits.MAX_UNSENT_ANSWER_BYTES + 1) == list(range(45))
    assert refused(takes, limits.MAX_UNSENT_ANSWER_BYTES + 1, None) == []


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
