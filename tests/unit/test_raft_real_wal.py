"""The adapter over the real WAL: whatever records a storm leaves behind, the node comes back with the right log."""

import random

import pytest

from faults.sim.disk import SimDisk
from faults.sim.raftlab import Lab
from faults.sim.raftreplica import GROUP, Dropped, LabReplica, fit, recover
from faults.sim.raftstorm import MemberStorm
from faults.sim.worker import SimWorker
from raftkv.raft import RaftConfig
from raftkv.raft.log import FIRST_INDEX
from raftkv.raft.ready import Entry
from raftkv.raft.snapshots import align
from raftkv.storage.snapshots import SnapshotStore
from raftkv.storage.wal import Wal
from tests.group_lab import GroupLab, GroupMachine, write_file


def _real(replica: LabReplica, rng: random.Random) -> tuple[tuple[int, int], tuple[int, int], list[Entry]]:
    """(hard state, base, entries) that the real WAL finds, given the records that survived on this replica's disk."""
    disk = SimDisk()

    def mount() -> Wal:
        failures: list[BaseException] = []
        return Wal.open(
            disk.mount(), SimWorker(True), "wal", failures.append, background=SimWorker(True), segment_bytes=16_384
        )

    wal = mount()
    wal.group(GROUP, replica.founders)
    wal.snapshot(GROUP, FIRST_INDEX, 0)
    for record in replica.durable:
        if isinstance(record, Dropped):
            wal.drop(GROUP, record.term, record.index)
            wal.group(GROUP, replica.founders)  # and back again, as Replicas.ensure does it
            wal.snapshot(GROUP, FIRST_INDEX, 0)
        else:
            record.write(wal, GROUP)
        if rng.random() < 0.3:
            wal.flush()
        if rng.random() < 0.05:
            wal.collect()
    wal.flush()
    assert wal.durable == wal.appended
    disk.kill()
    store = SnapshotStore(disk.mount(), SimWorker(True), "snapshots")
    if replica.snapshot is not None:
        write_file(replica.snapshot, store)
    wal = mount()
    state = wal.recovered[GROUP]
    assert state.founders == replica.founders
    assert state.floor == recover(replica.durable).floor
    base, entries = align(GROUP, store.latest(GROUP), state.snapshot_index, state.entries, wal, GroupMachine(), store)
    return (state.term, state.vote), base, entries


def _laboratory(replica: LabReplica) -> tuple[tuple[int, int], tuple[int, int], list[Entry]]:
    found, snapshot = recover(replica.durable), replica.snapshot
    base = (FIRST_INDEX, 0) if snapshot is None else (snapshot.index, snapshot.term)
    return (found.term, found.vote), base, fit(found, snapshot)[0]


@pytest.mark.parametrize("seed", range(12))
def test_real_wal_and_laboratory_recover_the_same(seed: int) -> None:
    """Elections, conflicts, compactions, installed snapshots and crashes in any order: the real WAL and the simple one
    of the laboratory agree on term, vote, base and entries at every restart."""
    rng = random.Random(f"real wal {seed}")
    lab = Lab(
        3,
        seed=seed,
        config=RaftConfig(snapshot_bytes=rng.choice((800, 3000)), keep_entries=rng.choice((0, 10))),
        sync_delay=rng.choice((0.0005, 0.01)),
        file_delay=0.004,
    )
    compared = 0
    for _ in range(25):
        for _ in range(rng.randint(5, 40)):
            lab.run(0.01)
            for replica in lab.nodes.values():
                if replica.alive and replica.leads():
                    replica.put(b"x" * rng.randint(1, 200))
        for replica in lab.nodes.values():
            if not replica.alive:
                assert _real(replica, rng) == _laboratory(replica)
                compared += 1
                replica.start()
        lab.heal()
        if rng.random() < 0.4:
            lab.isolate(rng.randint(1, 3))
        for node in rng.sample(range(1, 4), rng.choice((0, 1, 1, 2, 3))):
            lab[node].kill()
    assert compared > 10


@pytest.mark.parametrize("seed", [0, 2, 3, 4, 9, 13])
def test_they_agree_on_replicas_that_were_dropped(seed: int) -> None:
    """Members come and go, replicas are dropped and begin anew: both find the same log, votes and promises."""
    storm = MemberStorm(seed)
    storm.run()
    rng = random.Random(f"real wal {seed}")
    for replica in storm.lab.nodes.values():
        assert _real(replica, rng) == _laboratory(replica)
    assert storm.drops > 0


def _restarted(disk: SimDisk) -> Wal:
    disk.kill()
    return Wal.open(disk.mount(), SimWorker(True), "wal", _fail, background=SimWorker(True))


def _fail(problem: BaseException) -> None:
    raise problem


def _with_ten_entries(term: int) -> tuple[SimDisk, GroupLab]:
    """A real WAL with entries 2 to 11 of ``term``, and a replica with a snapshot of entry 5, term 1."""
    lab = GroupLab(1, by_hand=True)
    leader = lab.elect(1)
    for number in range(3):
        leader.put(b"%d" % number)
        lab.run(0.0)
    leader.take_snapshot()
    lab.run(0.0)
    disk = SimDisk()
    wal = Wal.open(disk.mount(), SimWorker(True), "wal", _fail, background=SimWorker(True))
    wal.group(GROUP, (1,))
    wal.snapshot(GROUP, FIRST_INDEX, 0)
    for index in range(2, 12):
        wal.entry(GROUP, index, term, b"\x00old")
    wal.flush()
    return disk, lab


def test_h8d_a_snapshot_that_the_wal_does_not_know_keeps_the_tail_at_both_starts() -> None:
    """Kill -9 between a snapshot's rename and its record: what stands behind it survives this start and the next."""
    disk, lab = _with_ten_entries(term=1)
    info = lab[1].files.latest(GROUP)
    assert info is not None
    for _ in range(2):
        wal = _restarted(disk)
        state = wal.recovered[GROUP]
        base, kept = align(GROUP, info, state.snapshot_index, state.entries, wal, GroupMachine(), lab[1].files)
        assert base == (info.index, info.term)
        assert [entry[1] for entry in kept] == list(range(info.index + 1, 12))
        wal.flush()


def test_h8d_a_tail_of_another_history_is_gone_for_good_and_what_follows_stays() -> None:
    """Entries that contradict the snapshot go; entries written behind it are there at the second start."""
    disk, lab = _with_ten_entries(term=3)
    info = lab[1].files.latest(GROUP)
    assert info is not None
    wal = _restarted(disk)
    state = wal.recovered[GROUP]
    assert align(GROUP, info, state.snapshot_index, state.entries, wal, GroupMachine(), lab[1].files)[1] == []
    wal.entry(GROUP, info.index + 1, 9, b"\x00new")
    wal.flush()
    wal = _restarted(disk)
    state = wal.recovered[GROUP]
    base, kept = align(GROUP, info, state.snapshot_index, state.entries, wal, GroupMachine(), lab[1].files)
    assert base == (info.index, info.term)
    assert kept == [(b"\x00new", info.index + 1, 9)]
