"""What a replica keeps in memory is bounded in bytes, and large writes hold up no small ones."""

from __future__ import annotations

import random

import pytest

from faults.sim.raftlab import Lab
from raftkv import limits
from raftkv.commands.base import Command
from raftkv.commands.moving import ImportChunk, ImportFinal
from raftkv.commands.records import Put
from raftkv.commands.results import Result
from raftkv.raft import RaftConfig
from raftkv.raft.log import GroupLog
from raftkv.raft.proposals import Proposal, Proposals
from raftkv.raft.ready import Outputs
from tests.group_lab import GroupLab

_MIB = 1024 * 1024


def _log(*sizes: int) -> tuple[GroupLog, Outputs]:
    outputs = Outputs()
    log = GroupLog(1, outputs, (1, 0), (1, 2, 3), [], 1, 0)
    for at, size in enumerate(sizes):
        log.append(b"v" * size, at + 2, 1)
    return log, outputs


def test_the_log_counts_what_it_holds_and_what_its_disk_lacks() -> None:
    """Through additions, syncs, truncations, compactions and a snapshot, both counts are the sums of the commands."""
    rng = random.Random(7)
    log, outputs = _log()
    for _ in range(2000):
        step = rng.random()
        if step < 0.6:
            log.append(b"v" * rng.randrange(100), log.last_index + 1, 1)
        elif step < 0.8:
            log.on_synced(outputs.recorded)
            log.commit(log.last_index)
        elif step < 0.95 and log.last_index > log._commit:
            log.truncate(rng.randrange(log._commit + 1, log.last_index + 1))
        elif step < 0.99:
            log.compact(rng.randrange(log.base_index, log._commit + 1))
        else:
            log.reset(log.last_index, 1, (1, 2, 3))
        held = log.between(log.base_index + 1, log.last_index + 1)
        assert log.bytes == sum(len(entry[0]) for entry in held)
        assert log.syncing_bytes == sum(len(entry[0]) for entry in held if entry[1] > log.durable_index)


@pytest.mark.parametrize(
    ("most", "most_bytes", "expected"),
    [(100, 10**9, 1), (3, 10**9, 8), (100, 2500, 9), (100, 2000, 9), (100, 1999, 10), (100, 0, 11), (0, 10**9, 11)],
)
def test_the_tail_behind_a_snapshot_is_bounded_in_entries_and_bytes(most: int, most_bytes: int, expected: int) -> None:
    log, _ = _log(*[1000] * 20)
    assert log.tail(11, most, most_bytes) == expected
    log.compact(expected)
    assert log.base_index == expected


def test_after_a_snapshot_no_more_than_the_tail_stays_in_memory() -> None:
    """Entries of large values are not kept by their number (480 MiB of values of 1 MiB took 2 GB a node)."""
    lab = GroupLab(config=RaftConfig(snapshot_bytes=50_000, snapshot_share=0.0, keep_bytes=30_000))
    leader = lab.wait_for_leader()
    for _ in range(60):
        lab.commit(leader, b"v" * 10_000)
    lab.run(1.0)
    for node in lab.nodes:
        replica = lab[node]
        assert replica.snapshots.index > 0
        assert replica.raft.log.bytes < 2 * 50_000 + 30_000


def test_a_leader_whose_own_disk_lags_proposes_no_more() -> None:
    """Its followers could commit any number of entries that wait in its memory for its disk."""
    lab = Lab(by_hand=True)
    leader = lab.elect(1)
    lab.pump()
    held = leader.raft.log
    held.syncing_bytes = limits.MAX_UNSYNCED_BYTES
    last, outcome = held.last_index, leader.put(b"waits")
    lab.run(0.0)
    assert (held.last_index, outcome.answers) == (last, [])
    held.syncing_bytes = 0
    leader.wake()
    lab.run(0.0)
    lab.pump()
    assert outcome.ok


_PUT = Put(0, b"k", b"")


def _proposal(size: int, op: Command = _PUT) -> Proposal:
    def done(_: list[Result]) -> None: ...

    return Proposal([op], size, done)


def test_a_small_write_waits_for_no_more_than_one_entry_of_large_ones() -> None:
    proposals = Proposals()
    large, small = [_proposal(_MIB) for _ in range(16)], _proposal(100)
    for proposal in (*large, small):
        proposals.add(proposal)
    assert proposals.take()[1] == [large[0], small]
    for proposal in large[1:]:
        assert proposals.take()[1] == [proposal]
    assert not proposals.waiting


def test_small_writes_do_not_starve_large_ones() -> None:
    proposals = Proposals()
    large = [_proposal(300_000) for _ in range(6)]
    for proposal in large:
        proposals.add(proposal)
    for _ in range(3):
        for _ in range(300):
            proposals.add(_proposal(60_000))
        taken = proposals.take()[1]
        assert sum(proposal.size for proposal in taken) <= limits.MAX_ENTRY_BYTES
        large = large[3:] if taken[:3] == large[:3] else large
    assert not large


def test_what_is_asked_of_a_group_keeps_its_order() -> None:
    """The last page of a move and its end are proposed together, in this order."""
    proposals = Proposals()
    page, final = _proposal(_MIB, ImportChunk(1, 1, 1, b"", b"")), _proposal(100, ImportFinal(1, 1, b""))
    for proposal in (page, final):
        proposals.add(proposal)
    assert proposals.take()[1] == [page, final]


def test_all_that_waits_is_refused_when_the_leader_steps_down() -> None:
    proposals, refused = Proposals(), list[Result]()
    for size in (10, _MIB, 20):
        proposals.add(Proposal([Put(0, b"k", b"")], size, refused.extend))
    for proposal in proposals.drop_waiting():
        proposal.refuse(Result(5))
    assert refused == [Result(5)] * 3
    assert not proposals.waiting


def test_a_snapshot_hurries_when_the_node_needs_it() -> None:
    """What is written together is built in one turn of the loop then, chunk by chunk else."""
    turns = {}
    for hurry in (False, True):
        lab = GroupLab(by_hand=True, config=RaftConfig(snapshot_bytes=1 << 40))
        leader = lab.elect(1)
        lab.pump()
        leader.files.hurry = hurry
        gathered: list[bytes] = []
        chunks = iter([b"c" * 1000] * 5)
        more = True
        turns[hurry] = 0
        while more:
            more = leader.snapshots._gather(chunks, gathered)
            turns[hurry] += 1
        assert gathered == [b"c" * 1000] * 5
    assert turns == {False: 6, True: 1}


def test_a_snapshot_is_late_when_the_log_is_longer_than_it_should_be() -> None:
    lab = GroupLab(by_hand=True, config=RaftConfig(snapshot_bytes=1000))
    snapshots = lab.elect(1).snapshots
    for size, late in ((1000, False), (1250, False), (1251, True)):
        snapshots.bytes_since = size
        assert snapshots.late is late


def test_a_log_that_is_durable_to_before_its_base_has_no_durable_entries_behind_it() -> None:
    """A snapshot may be on stable storage before the entries that it covers, while the WAL waits for room."""
    log, _ = _log(1, 1, 1, 1, 1, 1)
    log.commit(5)
    log.compact(5)
    assert log.durable_index < log.base_index
    assert log.between(log.base_index + 1, log.durable_index + 1) == []
    assert [index for _, index, _ in log.between(6, 8)] == [6, 7]
