"""Guarantee: whoever asks for little does not wait behind all that others ask for."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from raftkv import limits
from raftkv.commands.records import Put
from raftkv.raft.proposals import Proposal, Proposals


def proposal(source: int, ops: int = 1, name: str = "") -> Proposal:
    put = Put(0, name.encode() or b"k", b"v")
    return Proposal([put] * ops, ops, lambda results: None, source)


def names(taken: list[Proposal]) -> list[str]:
    return [one.ops[0].key.decode() for one in taken if isinstance(one.ops[0], Put)]


def test_a_source_that_comes_goes_into_the_next_entry() -> None:
    proposals = Proposals()
    for number in range(18 * 50):
        proposals.add(proposal(1 + number % 18, 100))
    for _ in range(3):
        # The others have had their first turns, and who came last time has been forgotten.
        for _ in range(8):
            proposals.take()
        proposals.add(proposal(99, name="mine"))
        assert names(proposals.take()[1])[0] == "mine"


def test_who_comes_again_at_once_takes_turns() -> None:
    proposals = Proposals()
    for _ in range(50):
        proposals.add(proposal(1, limits.MAX_ENTRY_OPS, "flood"))
    order: list[str] = []
    for _ in range(20):
        proposals.add(proposal(2, 1, "quick"))
        order += names(proposals.take()[1])
    assert order.count("flood") >= 9, "who comes and goes does not keep others out"
    assert order.count("quick") >= 9


def test_an_entry_is_bounded_in_operations() -> None:
    proposals = Proposals()
    for _ in range(5000):
        proposals.add(proposal(1))
    assert len(proposals.take()[0]) == limits.MAX_ENTRY_OPS
    proposals.add(proposal(2, 4000))
    assert len(proposals.take()[0]) == 4000, "what was proposed together shares an entry"


@given(st.lists(st.tuples(st.integers(0, 3), st.booleans(), st.integers(0, 2)), max_size=60))
def test_each_source_keeps_its_order_and_nothing_is_lost(steps: list[tuple[int, bool, int]]) -> None:
    """(source, withdrawn later, entries taken afterwards)."""
    proposals = Proposals()
    added: list[Proposal] = []
    taken: list[Proposal] = []
    for number, (source, withdrawn, entries) in enumerate(steps):
        added.append(proposal(source, 200, f"{number}"))
        proposals.add(added[-1])
        if withdrawn:
            added.pop().withdraw()
        for _ in range(entries):
            taken += proposals.take()[1]
    while proposals.waiting:
        taken += proposals.take()[1]
    assert len(taken) == len(added)
    for source in range(4):
        assert [one for one in taken if one.source == source] == [one for one in added if one.source == source]
