"""Snapshot files: whole or absent, verified before they count, never replaced by an older one."""

from pathlib import Path

import pytest

from faults.sim.disk import PowerLoss, SimDisk
from faults.sim.worker import SimWorker
from raftkv.errors import CorruptData, StorageError
from raftkv.storage.fs import FileSystem, OsFileSystem
from raftkv.storage.snapshots import SnapshotInfo, SnapshotStore

FOLDER = "n/snapshots"
CHUNKS = [b"first", b"second" * 100, b"3"]


class Outcome:
    """Collects what a ``done`` callback was told."""

    def __init__(self) -> None:
        self.info: SnapshotInfo | None = None
        self.failures: list[BaseException | None] = []

    def done(self, failure: BaseException | None) -> None:
        self.failures.append(failure)

    def committed(self, info: SnapshotInfo | None, failure: BaseException | None) -> None:
        self.info = info
        self.failures.append(failure)

    @property
    def failure(self) -> BaseException | None:
        return next((failure for failure in self.failures if failure is not None), None)


def open_store(disk: SimDisk) -> SnapshotStore:
    disk.kill()
    return SnapshotStore(disk.mount(), SimWorker(), FOLDER)


def write(store: SnapshotStore, group: int, index: int, term: int, chunks: list[bytes] = CHUNKS) -> Outcome:
    outcome = Outcome()
    writer = store.writer(group, index, term, [1, 2, 3])
    for chunk in chunks:
        writer.add([chunk], outcome.done)
    writer.commit(outcome.committed)
    return outcome


def receive(store: SnapshotStore, group: int, index: int, term: int, data: bytes, piece: int = 100) -> Outcome:
    outcome = Outcome()
    incoming = store.incoming(group, index, term, len(data))
    for offset in range(0, len(data), piece):
        incoming.write(offset, data[offset : offset + piece], outcome.done)
    incoming.commit(outcome.committed)
    return outcome


def raw(store: SnapshotStore, info: SnapshotInfo) -> bytes:
    return b"".join(store.read_raw(info, offset, 64) for offset in range(0, info.size, 64))


@pytest.fixture(params=["real", "simulated"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[FileSystem, str]:
    if request.param == "real":
        return OsFileSystem(), f"{tmp_path}/snapshots"
    return SimDisk().mount(), FOLDER


def test_a_snapshot_is_found_again_and_reaches_a_peer(place: tuple[FileSystem, str]) -> None:
    """What was committed is the latest after a restart, and its raw bytes are a snapshot elsewhere."""
    fs, folder = place
    store = SnapshotStore(fs, SimWorker(), folder)
    assert store.latest(1) is None
    assert write(store, 2, 5, 1).failure is None
    outcome = write(store, 1, 10, 3)
    assert outcome.failures == [None] * 4
    info = outcome.info
    assert info is not None
    assert (info.group, info.index, info.term, info.voters) == (1, 10, 3, (1, 2, 3))
    assert info.size == fs.size(info.path)

    again = SnapshotStore(fs, SimWorker(), folder)
    assert again.latest(1) == info
    assert list(again.open(info)) == CHUNKS
    assert write(again, 3, 1, 1, []).info == again.latest(3)
    empty = again.latest(3)
    assert empty is not None
    assert list(again.open(empty)) == []

    peer = SnapshotStore(fs, SimWorker(), f"{folder}/peer")
    received = receive(peer, 1, 10, 3, raw(store, info)).info
    assert received is not None
    assert received == peer.latest(1)
    assert (received.voters, received.size) == (info.voters, info.size)
    assert list(peer.open(received)) == CHUNKS


def test_a_snapshot_counts_only_when_it_is_durable() -> None:
    """Power loss at any operation: then there is the old snapshot or the whole new one, the new one if done."""
    operations = 0
    seen = set()
    while True:
        disk = SimDisk()
        store = open_store(disk)
        write(store, 1, 10, 1)
        outcome = Outcome()
        disk.power_off_after(operations)
        try:
            outcome = write(store, 1, 20, 2, [bytes(1000)])
            store.prune(1, 20)
            finished = True
        except PowerLoss:
            finished = False
        for names in (False, True):
            twin = disk.copy()
            twin.crash_keeping(0, names)
            after = open_store(twin)
            latest = after.latest(1)
            assert latest is not None
            assert list(after.open(latest)) == ([bytes(1000)] if latest.index == 20 else CHUNKS)
            assert latest.index == 20 or not finished
            assert not any(path.endswith(".tmp") for path in twin.files())
            seen.add(latest.index)
        if finished:
            assert outcome.info is not None
            break
        operations += 1
    assert seen == {10, 20}
    assert operations > 5


def test_h14g_an_older_snapshot_never_replaces_a_newer_one() -> None:
    """H14g: a node's own late snapshot finds that a newer one was installed meanwhile, and goes."""
    disk = SimDisk()
    store = open_store(disk)
    writer = store.writer(1, 10, 1, [1])
    writer.add([b"old"], Outcome().done)
    newer = write(store, 1, 20, 2).info
    outcome = Outcome()
    writer.commit(outcome.committed)
    assert newer is not None
    assert (outcome.info, outcome.failure) == (newer, None)
    assert list(disk.files()) == [newer.path]
    assert open_store(disk).latest(1) == newer


def test_h14e_a_damaged_snapshot_stops_the_node() -> None:
    """H14e: a flipped bit in any byte is noticed at the start or, at the latest, when the state is loaded."""
    disk = SimDisk()
    info = write(open_store(disk), 1, 10, 1).info
    assert info is not None
    for offset in range(info.size):
        disk.flip(info.path, offset, 1 << offset % 8)
        before = disk.files()
        with pytest.raises((CorruptData, StorageError)) as raised:
            list(open_store(disk).open(info))
        assert isinstance(raised.value, CorruptData), offset
        assert raised.value.path == info.path
        assert "replace the node" in str(raised.value)
        assert disk.files() == before
        disk.flip(info.path, offset, 1 << offset % 8)
    assert list(open_store(disk).open(info)) == CHUNKS


def test_h14e_a_snapshot_cut_anywhere_stops_the_node() -> None:
    """H14e: nor does a file that lost its end, or gained one, start an empty node."""
    disk = SimDisk()
    info = write(open_store(disk), 1, 10, 1).info
    assert info is not None
    whole = disk.files()[info.path]
    for data in (*(whole[:size] for size in range(len(whole))), whole + b"\0", whole + whole):
        disk.replace(info.path, data)
        with pytest.raises(CorruptData):
            list(open_store(disk).open(info))


def test_h14e_a_snapshot_under_another_name_stops_the_node() -> None:
    disk = SimDisk()
    info = write(open_store(disk), 1, 10, 1).info
    assert info is not None
    disk.replace(f"{FOLDER}/snap-2-10-1.snap", disk.files()[info.path])
    with pytest.raises(CorruptData, match="a snapshot of group 1 at index 10 and term 1, not of 2, 10, 1"):
        open_store(disk)


def test_h8ef_a_torn_or_mixed_stream_replaces_nothing() -> None:
    """H8e, H8f: what a peer sends is verified as a whole before the good snapshot gives way."""
    source = open_store(SimDisk())
    one = write(source, 1, 20, 2, [b"a" * 500, b"b" * 500]).info
    two = write(source, 1, 21, 2, [b"a" * 500, b"c" * 500]).info
    assert one is not None
    assert two is not None
    data, other = raw(source, one), raw(source, two)
    disk = SimDisk()
    store = open_store(disk)
    good = write(store, 1, 10, 1).info
    assert good is not None
    flipped = bytearray(data)
    flipped[700] ^= 1
    for bad in (data[:600] + other[600:], data[:-1], bytes(flipped), other, b"", data + b"x"):
        outcome = receive(store, 1, 20, 2, bytes(bad))
        assert isinstance(outcome.failure, CorruptData)
        assert outcome.info is None
        assert store.latest(1) == good
        assert list(disk.files()) == [good.path]
    assert receive(store, 1, 20, 2, data).failure is None
    assert [info and info.index for info in (store.latest(1), open_store(disk).latest(1))] == [20, 20]


def test_a_gap_in_what_is_received_is_an_error() -> None:
    disk = SimDisk()
    store = open_store(disk)
    for offset, size in ((1, 5), (0, 11)):
        outcome = Outcome()
        incoming = store.incoming(1, 20, 2, 10)
        incoming.write(offset, bytes(size), outcome.done)
        incoming.commit(outcome.committed)
        assert [type(failure) for failure in outcome.failures] == [StorageError, StorageError]
    assert disk.files() == {}


def test_abort_leaves_nothing_and_later_calls_are_told() -> None:
    disk = SimDisk()
    store = open_store(disk)
    writer = store.writer(1, 10, 1, [1])
    writer.add([b"x"], Outcome().done)
    assert len(disk.files()) == 1
    writer.abort()
    writer.abort()
    assert disk.files() == {}
    with pytest.raises(StorageError, match="committed or aborted"):
        writer.add([b"y"], Outcome().done)
    with pytest.raises(StorageError, match="committed or aborted"):
        writer.commit(Outcome().committed)


def test_a_full_disk_fails_the_snapshot_and_harms_nothing() -> None:
    """The group goes on with the snapshot it has; the space is given back."""
    disk = SimDisk()
    store = open_store(disk)
    good = write(store, 1, 10, 1).info
    assert good is not None
    disk.capacity = disk.used() + 100
    outcome = write(store, 1, 20, 1, [bytes(50), bytes(100), bytes(10)])
    assert [failure is None for failure in outcome.failures] == [True, False, False, False]
    assert isinstance(outcome.failure, OSError)
    assert store.latest(1) == good
    assert list(disk.files()) == [good.path]


def test_a_failed_sync_fails_the_snapshot() -> None:
    disk = SimDisk()
    store = open_store(disk)
    disk.fail_syncs(".tmp")
    outcome = write(store, 1, 10, 1)
    assert isinstance(outcome.failure, OSError)
    assert store.latest(1) is None
    assert disk.files() == {}


def test_prune_keeps_the_latest_and_other_groups() -> None:
    disk = SimDisk()
    store = open_store(disk)
    for index in (10, 20, 30):
        write(store, 1, index, 1)
    write(store, 2, 5, 1)
    old = SnapshotInfo(1, 10, 1, (1, 2, 3), f"{FOLDER}/snap-1-10-1.snap", 0)
    store.prune(1, 20)
    assert sorted(disk.files()) == [f"{FOLDER}/snap-{name}-1.snap" for name in ("1-20", "1-30", "2-5")]
    with pytest.raises(StorageError, match="was replaced"):
        store.read_raw(old, 0, 10)
    store.prune(1, 1000)
    assert sorted(disk.files()) == [f"{FOLDER}/snap-{name}-1.snap" for name in ("1-30", "2-5")]
