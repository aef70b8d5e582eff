"""Guarantee: nothing gets into a group's log that could not be sent on: it is TOO_LARGE, or not taken."""

from __future__ import annotations

import pytest

from faults.sim.raftlab import Lab
from raftkv import limits
from raftkv.api.pipeline import Batch, read_request, request_of
from raftkv.commands.base import Command
from raftkv.commands.meta import ChangeCluster
from raftkv.commands.moving import ImportChunk
from raftkv.commands.records import Cas, Delete, Get, Put
from raftkv.commands.registry import Piped
from raftkv.commands.results import Result
from raftkv.commands.transactions import Check, GetStep, Transact
from raftkv.errors import Code, TooLarge
from raftkv.frontend.port import Origin
from raftkv.node import messages
from raftkv.peer.frames import Encoder
from raftkv.raft.messages import Type, check
from raftkv.raft.proposals import Proposal, Proposals
from tests.store_helpers import scan_of

SLOT = 7


def test_a_proposal_that_fits_into_no_entry_is_refused_whoever_proposes_it() -> None:
    lab = Lab(3)
    lab.run_until(lab.leader)
    leader = lab.leader()
    assert leader is not None
    lab.run(1.0)
    before = leader.raft.log.last_index
    answers: list[list[Result]] = []
    ops = [Put(0, b"k", b"v"), Put(0, b"l", b"v")]
    leader.propose(ops, limits.MAX_PROPOSAL_BYTES + 1, answers.append)
    assert [[one.code for one in results] for results in answers] == [[Code.TOO_LARGE] * 2]
    lab.run(1.0)
    assert leader.raft.log.last_index == before
    leader.propose(ops, limits.MAX_PROPOSAL_BYTES, answers.append)
    lab.run(1.0)
    assert [one.code for one in answers[1]] == [Code.OK] * 2


def test_the_longest_entry_fits_into_a_frame() -> None:
    numbers = [2**62 - 1] * 6
    command = b"x" * limits.MAX_COMMAND_BYTES
    message = [2**31, int(Type.APPEND), *numbers, [[2**62 - 2, command]]]
    assert check(message)
    Encoder().frame_of([message])
    message[8] = [[2**62 - 2, command + b"x"]]
    assert not check(message)


@pytest.mark.parametrize(
    ("op", "taken"),
    [
        (Put(0, b"k" * limits.MAX_KEY_BYTES, b"v" * limits.MAX_VALUE_BYTES), True),
        (Put(0, b"k" * (limits.MAX_KEY_BYTES + 1), b"v"), False),
        (Put(0, b"k", b"v" * (limits.MAX_VALUE_BYTES + 1)), False),
        (Cas(0, b"k", b"v", expected=b"v" * (limits.MAX_VALUE_BYTES + 1)), False),
        (Get(0, b"k" * (limits.MAX_KEY_BYTES + 1)), False),
        (scan_of(0, b"k" * (limits.MAX_KEY_BYTES + 2)), False),
        (Delete(0, b"k" * (limits.MAX_KEY_BYTES + 1)), False),
        (Put(0, b"k", b"v", client=b"c" * 16, seq=0), False),
        (Put(0, b"k", b"v", client=b"c" * 16, seq=1, first=2), False),
        (Put(0, b"k", b"v", client=b"c" * 15, seq=1, first=1), False),
        (ImportChunk(1, 1, 1, b"", b"v" * limits.MAX_BATCH_BYTES), True),
        (ChangeCluster(0, b"t" * 16, "plan", b"v" * (limits.MAX_BATCH_BYTES + 1)), False),
    ],
)
def test_the_limits_of_operations(op: Command, taken: bool) -> None:
    assert (op.refusal() is None) is taken


def transact(parts: int) -> Transact:
    """One of so many checks and steps, as small as they can be."""
    most = limits.MAX_TXN_STEPS
    checks = tuple(Check(b"k") for _ in range(min(parts, most)))
    steps = tuple(GetStep(b"k") for _ in range(parts - len(checks)))
    return Transact(SLOT, checks, steps[:most], steps[most:])


@pytest.mark.parametrize("packed", [False, True])
def test_a_message_has_no_more_steps_of_transactions_than_operations(packed: bool) -> None:
    def read(parts: int) -> int:
        ops: list[Piped] = [transact(parts)] * (limits.MAX_BATCH_OPS // parts)
        return len(read_request(request_of(Batch(list(range(len(ops))), ops, 1000), packed=packed).SerializeToString()))

    assert read(1) == read(64) == read(3 * limits.MAX_TXN_STEPS) == 3
    ops: list[Piped] = [transact(3 * limits.MAX_TXN_STEPS)] * 12
    assert sum(3 * limits.MAX_TXN_STEPS for _ in ops) > limits.MAX_BATCH_OPS
    with pytest.raises(TooLarge, match="with 1024 for each check and operation"):
        read_request(request_of(Batch(list(range(len(ops))), ops, 1000), packed=packed).SerializeToString())


def test_an_entry_has_no_more_steps_than_a_message() -> None:
    proposals = Proposals()
    for parts in (1, 64, 3 * limits.MAX_TXN_STEPS):
        op = transact(parts)
        for _ in range(limits.MAX_ENTRY_OPS):
            assert proposals.add(Proposal([op], limits.OP_OVERHEAD + op.size(), lambda _: None, source=1)) is None
    entries = []
    while proposals.due:
        taken = [op for op in proposals.take()[0] if isinstance(op, Transact)]
        entries.append(sum(len(op.checks) + len(op.steps) + len(op.otherwise) for op in taken))
    assert sum(entries) == limits.MAX_ENTRY_OPS * (1 + 64 + 3 * limits.MAX_TXN_STEPS)
    assert max(entries) <= limits.MAX_BATCH_OPS


@pytest.mark.parametrize("length", [17, 2**20])
def test_client_ids_of_another_length_are_malformed(length: int) -> None:
    with pytest.raises(messages.Malformed):
        messages.operations(messages.ask(1, 1, Origin(1), [Put(0, b"k", b"v", client=b"c" * length, seq=1, first=1)]))


@pytest.mark.parametrize(
    "result",
    [
        *(Result(-1), Result(2**31), Result(0, -1), Result(0, 2**63), Result(0, ttl=-2), Result(0, hint=-1)),
        *(Result(0, ttl=2**63), Result(0, hint=2**31), Result(2, detail="x" * 100_000)),
    ],
)
def test_results_that_no_client_could_be_told_are_malformed(result: Result) -> None:
    assert messages.answers(messages.answer([(1, 0, Result(0, 5, b"v"))])) == [(1, 0, Result(0, 5, b"v"))]
    with pytest.raises(messages.Malformed):
        messages.answers(messages.answer([(1, 0, result)]))


def test_groups_and_maps_of_peers_are_bounded() -> None:
    assert messages.groups(["leads", [1, 2]]) == [1, 2]
    with pytest.raises(messages.Malformed):
        messages.groups(["leads", [0] * 65_537])
    assert messages.encoded_map(["map", b"m"]) == b"m"
    with pytest.raises(messages.Malformed):
        messages.encoded_map(["map", b"m" * (limits.MAX_MAP_BYTES + 1)])
