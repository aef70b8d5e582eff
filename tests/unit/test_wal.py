"""The write-ahead log: group commit, failure, segments, collection. Recovery has its own file."""

import asyncio
import errno
from pathlib import Path

import pytest

from faults.sim.disk import PowerLoss
from faults.sim.worker import SimWorker
from raftkv.errors import CorruptData, StorageError
from raftkv.storage.fs import OsFileSystem, ThreadWorker
from raftkv.storage.wal import GroupState, Wal
from tests.waiting import PATIENCE
from tests.wal_world import SMALL, Node, command, fill


def drop(_: BaseException) -> None:
    raise AssertionError("the log failed")


def write_everything(wal: Wal) -> None:
    wal.group(1, (1, 2, 3))
    wal.hard_state(1, 5, 2)
    wal.group(7, [4])
    for index in range(1, 11):
        wal.entry(1, index, index // 4, command(index))
    wal.entry(7, 1, 1, bytes(70_000))
    wal.entry(7, 2, 1, memoryview(b"view").tobytes())
    wal.truncate(1, 9)
    wal.entry(1, 9, 3, b"")
    wal.hard_state(1, 6, 0)
    wal.snapshot(1, 4, 1)
    wal.flush()


def check_everything(recovered: dict[int, GroupState]) -> None:
    entries = [(command(index), index, index // 4) for index in range(5, 9)]
    assert recovered == {
        1: GroupState((1, 2, 3), 6, 0, 4, 1, [*entries, (b"", 9, 3)]),
        7: GroupState((4,), 0, 0, 0, 0, [(bytes(70_000), 1, 1), (b"view", 2, 1)]),
    }
    assert recovered[1].last_index == 9


def test_everything_written_is_recovered() -> None:
    """A restart finds voters, hard state and log of each group as they were appended, and the numbering goes on."""
    node = Node()
    assert node.wal.recovered == {}
    write_everything(node.wal)
    appended = node.wal.appended
    assert appended == node.wal.durable == 19
    check_everything(node.restart())
    assert node.wal.appended == node.wal.durable == appended
    node.wal.entry(1, 10, 6, b"next")
    node.wal.flush()
    assert node.announced == [appended + 1]
    assert node.restart()[1].entries[-1] == (b"next", 10, 6)


def test_everything_written_is_recovered_from_real_files(tmp_path: Path) -> None:
    """The same through the operating system, a thread and a loop."""

    async def main() -> None:
        worker = ThreadWorker(asyncio.get_running_loop())
        fs = OsFileSystem()
        wal = Wal.open(fs, worker, f"{tmp_path}/wal", drop, segment_bytes=1 << 16)
        durable = asyncio.Event()
        wal.on_durable.append(lambda lsn: durable.set() if lsn == wal.appended else None)
        write_everything(wal)
        assert wal.durable == 0
        await asyncio.wait_for(durable.wait(), PATIENCE)
        for round_ in range(10, 200):  # goes through several segments, the next one prepared meanwhile
            durable.clear()
            wal.entry(7, round_ - 7, 1, bytes(2000))
            wal.flush()
            await asyncio.wait_for(durable.wait(), PATIENCE)
        assert wal.total_bytes > 5 * (1 << 16)
        wal.snapshot(7, 192, 1)
        wal.truncate(7, 3)
        wal.close()
        await asyncio.to_thread(worker.close)
        await asyncio.sleep(0)

        worker = ThreadWorker(asyncio.get_running_loop())
        wal = Wal.open(fs, worker, f"{tmp_path}/wal", drop, segment_bytes=1 << 16)
        assert [entry[1] for entry in wal.recovered[7].entries] == list(range(1, 193))
        wal.recovered[7].entries[2:] = []
        check_everything(wal.recovered)
        wal.snapshot(1, 9, 3)
        wal.snapshot(7, 192, 1)
        wal.flush()
        wal.collect()
        durable.clear()
        wal.on_durable.append(lambda _: durable.set())
        await asyncio.wait_for(durable.wait(), PATIENCE)
        removed = asyncio.Event()
        worker.submit(lambda: None, lambda *_: removed.set())
        await asyncio.wait_for(removed.wait(), PATIENCE)
        assert len([name for name in fs.listdir(f"{tmp_path}/wal") if name.endswith(".log")]) == 1
        wal.close()
        worker.close()
        await asyncio.sleep(0)

    asyncio.run(main())


def test_h3_nothing_is_announced_before_its_sync() -> None:
    """H3: durable advances, and listeners hear of it, only when the fdatasync of all records up to there has ended."""
    node = Node(inline=False)
    wal = node.wal
    wal.hard_state(1, 1, 1)
    assert (wal.appended, wal.durable) == (1, 0)
    wal.flush()
    assert (wal.durable, node.announced, node.worker.waiting) == (0, [], 1)
    wal.entry(1, 1, 1, b"a")
    wal.flush()
    wal.entry(1, 2, 1, b"b")
    wal.flush()
    assert node.worker.waiting == 1, "one sync at a time: the rest gathers"
    node.worker.complete()
    assert (wal.durable, node.announced, node.worker.waiting) == (1, [1], 1)
    synced = node.disk.operations
    node.worker.complete()
    assert (wal.durable, node.announced, node.worker.waiting) == (3, [1, 3], 0)
    assert node.disk.operations == synced + 2, "one write and one sync for both entries"
    twin = node.disk.copy()
    twin.crash_keeping(0, names=False)
    found = Wal.open(twin.mount(), SimWorker(), "n/wal", drop, identity=b"node", segment_bytes=1 << 16).recovered
    assert found[1] == GroupState(term=1, vote=1, entries=[(b"a", 1, 1), (b"b", 2, 1)])


def test_h3_a_vote_and_the_entries_before_it_are_one_prefix() -> None:
    """H3: with one log for all, no power loss keeps a later vote and loses an earlier entry, or the reverse."""
    fates = set()
    kept = 0
    while (True, True) not in fates:
        node = Node()
        node.disk.power_off_after(1)  # after the write, before the sync
        node.wal.entry(1, 1, 1, bytes(300))
        node.wal.hard_state(2, 7, 1)
        with pytest.raises(PowerLoss):
            node.wal.flush()
        assert kept <= node.disk.unsynced_bytes()
        node.disk.crash_keeping(kept)
        groups = node.restart()
        fates.add((1 in groups, 2 in groups))
        kept += 1
    assert fates == {(False, False), (True, True)}


def test_a_listener_may_append_and_flush() -> None:
    """Records appended by a listener go into the next batch."""
    node = Node()
    wal = node.wal

    def more(lsn: int) -> None:
        if lsn < 5:
            wal.entry(1, lsn + 1, 1, b"x")
            wal.flush()

    wal.on_durable.append(more)
    wal.entry(1, 1, 1, b"x")
    wal.flush()
    assert node.announced == [1, 2, 3, 4, 5]
    assert wal.durable == 5


@pytest.mark.parametrize("fault", ["sync", "write"])
def test_h14f_a_failure_ends_the_log_once_and_for_all(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """H14f: appending never raises; one failed write or fsync stops the node, nothing is retried, nothing announced."""
    node = Node()
    node.wal.entry(1, 1, 1, b"kept")
    node.wal.flush()
    if fault == "sync":
        node.disk.fail_syncs("wal")
    else:
        monkeypatch.setattr(node.disk, "begin_change", broken)
    node.wal.entry(1, 2, 1, b"lost")
    node.wal.flush()
    assert len(node.failures) == 1
    assert isinstance(node.failures[0], OSError)
    assert node.wal.failure is node.failures[0]
    node.disk.before_sync = None
    monkeypatch.undo()
    operations = node.disk.operations
    node.wal.entry(1, 3, 1, b"later")
    node.wal.snapshot(1, 1, 1)
    node.wal.flush()
    node.wal.collect()
    assert node.disk.operations == operations
    assert (node.announced, node.wal.durable, len(node.failures)) == ([1], 1, 1)


def broken(boot: int) -> None:
    raise OSError(errno.EIO, "Input/output error")


def test_a_sync_that_failed_is_not_believed_after_a_restart() -> None:
    """After a failed fsync data is readable yet not on disk: a restart writes what it adopts again before it counts."""
    node = Node()
    node.wal.entry(1, 1, 1, b"a")
    node.wal.flush()
    node.disk.fail_syncs("wal")
    node.wal.entry(1, 2, 1, b"b")
    node.wal.flush()
    node.disk.before_sync = None
    assert [entry[1] for entry in node.restart()[1].entries] == [1, 2]
    assert node.wal.durable == 2
    node.disk.crash_keeping(0, names=False)
    assert [entry[1] for entry in node.start().recovered[1].entries] == [1, 2]


def test_a_gap_ends_the_log() -> None:
    """An entry that does not follow would make the log unreadable: the node stops, what is stored stays readable."""
    node = Node()
    fill(node.wal, 1, 1, 3)
    node.wal.entry(1, 5, 1, b"")
    node.wal.flush()
    assert [type(failure) for failure in node.failures] == [StorageError]
    assert node.restart()[1].last_index == 3


def test_an_entry_may_replace_a_tail() -> None:
    """Appending at an index that is held drops it and what follows."""
    node = Node()
    fill(node.wal, 1, 1, 5)
    node.wal.entry(1, 3, 2, b"new")
    node.wal.flush()
    assert node.restart()[1].entries == [(command(1), 1, 1), (command(2), 2, 1), (b"new", 3, 2)]
    node.wal.entry(1, 4, 2, b"more")
    node.wal.flush()
    assert node.restart()[1].last_index == 4


def test_a_snapshot_beyond_the_log_starts_it_anew() -> None:
    """An installed snapshot replaces the log; entries follow it."""
    node = Node()
    fill(node.wal, 1, 1, 5)
    node.wal.snapshot(1, 100, 3)
    node.wal.entry(1, 101, 3, b"x")
    node.wal.flush()
    assert node.restart()[1] == GroupState((), 0, 0, 100, 3, [(b"x", 101, 3)])


def test_segments_follow_each_other_and_keep_everything() -> None:
    """Rotation keeps all entries; a prepared spare becomes the next segment."""
    node = Node(SMALL)
    node.wal.group(1, (1, 2, 3))
    node.wal.hard_state(1, 4, 3)
    fill(node.wal, 1, 1, 50)
    assert len(node.segments()) > 5
    assert node.wal.total_bytes == len(node.segments()) * SMALL
    fill(node.wal, 1, 51, 51, size=10 * SMALL)
    fill(node.wal, 1, 52, 60)
    state = node.restart()[1]
    assert (state.founders, state.term, state.vote) == ((1, 2, 3), 4, 3)
    assert state.entries == [(command(i, 10 * SMALL if i == 51 else 100), i, 1) for i in range(1, 61)]
    assert not [path for path in node.disk.files() if not path.endswith(".log")], "spares go at a start"


def test_a_flush_waits_for_a_segment_under_preparation() -> None:
    """The log does not make a segment of its own while one is being made; the end of that one flushes."""
    node = Node(SMALL, inline=False)
    for index in range(1, 20):
        node.wal.entry(1, index, 1, command(index))
        node.wal.flush()
        while node.worker.waiting:
            node.worker.complete()
        if node.wal.durable < index:
            break
    assert node.background.waiting == 1
    assert len(node.segments()) == 1
    node.background.complete()
    node.worker.complete()
    assert node.wal.durable == node.wal.appended
    assert len(node.segments()) == 2


def test_segments_go_when_every_group_has_a_snapshot_beyond_them() -> None:
    """Collection frees the oldest segments only, and only with all groups' consent; the rest is enough to recover."""
    node = Node(SMALL)
    wal = node.wal
    wal.group(1, (1, 2))
    wal.hard_state(1, 3, 1)
    fill(wal, 2, 1, 1)
    fill(wal, 1, 1, 40)
    before = node.segments()
    assert wal.pinned_by() == (len(before) * SMALL, 1)
    wal.snapshot(1, 30, 1)
    wal.flush()
    wal.collect()
    assert node.segments() == before
    assert wal.pinned_by() == (len(before) * SMALL, 2)
    wal.snapshot(2, 1, 1)
    wal.flush()
    wal.collect()
    left = node.segments()
    assert left == before[-len(left) :]
    assert len(left) < 4
    assert wal.pinned_by() == (len(left) * SMALL, 1)
    state = node.restart()
    assert state[1] == GroupState((1, 2), 3, 1, 30, 1, [(command(i), i, 1) for i in range(31, 41)])
    assert state[2] == GroupState((), 0, 0, 1, 1, [])
    assert node.wal.pinned_by() == (len(left) * SMALL, 1)
    fill(node.wal, 2, 2, 2)
    assert node.restart()[2].entries == [(command(2), 2, 1)]


def test_nothing_is_collected_before_the_snapshot_record_is_durable() -> None:
    """A segment must not go while a power loss could take the record that makes it superfluous."""
    node = Node(SMALL)
    fill(node.wal, 1, 1, 20)
    before = node.segments()
    node.worker.inline = False
    node.wal.snapshot(1, 20, 1)
    node.wal.collect()
    assert node.segments() == before
    node.wal.flush()
    assert node.segments() == before
    node.worker.complete()
    assert len(node.segments()) == 1
    assert node.restart()[1].snapshot_index == 20


def test_truncated_entries_hold_no_segment() -> None:
    """A snapshot can never reach entries that were truncated: they must not keep segments for ever."""
    node = Node(SMALL)
    fill(node.wal, 1, 1, 30)
    node.wal.truncate(1, 11)
    node.wal.snapshot(1, 10, 1)
    node.wal.flush()
    node.wal.collect()
    assert len(node.segments()) == 1
    assert node.restart()[1] == GroupState((), 0, 0, 10, 1, [])


def hosted(wal: Wal, group: int, last: int) -> None:
    wal.group(group, (1, 2, 3))
    wal.snapshot(group, 1, 0)
    wal.hard_state(group, 7, 2)
    fill(wal, group, 2, last)


def test_of_a_dropped_group_term_and_vote_and_the_end_of_its_log_are_kept() -> None:
    """Its entries and its snapshot are forgotten, and so is that it was hosted; also when segments come and go."""
    node = Node(SMALL)
    hosted(node.wal, 1, 30)
    node.wal.snapshot(1, 20, 1)
    node.wal.drop(1, 1, 30)
    kept = GroupState((), 7, 2, floor=(1, 30))
    assert node.wal.promised(1) == kept
    node.wal.flush()
    for _ in range(3):
        assert node.restart()[1] == kept
        assert node.wal.promised(1) == kept
        fill(node.wal, 2, node.wal.recovered.get(2, GroupState()).last_index + 1, 60)
        node.wal.snapshot(2, 60, 1)
        node.wal.flush()
        node.wal.collect()
    assert len(node.segments()) < 3


@pytest.mark.parametrize("flushed", [False, True], ids=["one batch", "batches"])
def test_a_dropped_group_comes_back_with_an_empty_log(flushed: bool) -> None:
    """Entries of its new log begin at 2 again, in any mixture with the old ones."""
    node = Node(SMALL)
    for life in range(1, 4):
        node.wal.group(1, (1, 2, 3))
        node.wal.snapshot(1, 1, 0)
        for index in range(2, 20 - life):
            node.wal.entry(1, index, life, command(index))
            if flushed:
                node.wal.flush()
        if life < 3:
            node.wal.drop(1, life, 19 - life)
    node.wal.flush()
    assert node.restart() == {
        1: GroupState((1, 2, 3), 0, 0, 1, 0, [(command(i), i, 3) for i in range(2, 17)], floor=(2, 17))
    }


@pytest.mark.parametrize("restarted", [False, True])
def test_a_dropped_group_holds_no_segment(restarted: bool) -> None:
    """Nothing waits for a snapshot that nobody will take."""
    node = Node(SMALL)
    hosted(node.wal, 1, 30)
    fill(node.wal, 2, 1, 5)
    node.wal.snapshot(2, 5, 1)
    node.wal.drop(1, 1, 30)
    node.wal.flush()
    if restarted:
        node.restart()
    assert node.wal.pinned_by()[1] is None
    node.wal.collect()
    assert len(node.segments()) == 1
    assert node.restart()[1] == GroupState((), 7, 2, floor=(1, 30))


def test_a_drop_that_was_not_durable_did_not_happen() -> None:
    """Kill -9 before its batch is written: the group is there as before."""
    node = Node(SMALL)
    hosted(node.wal, 1, 10)
    node.wal.drop(1, 1, 10)
    assert node.restart()[1] == GroupState((1, 2, 3), 7, 2, 1, 0, [(command(i), i, 1) for i in range(2, 11)])


def test_the_floor_only_rises() -> None:
    """A shorter log that is dropped later does not make the longer one before it forgotten."""
    node = Node()
    node.wal.drop(1, 4, 9)
    node.wal.drop(1, 3, 90)
    node.wal.drop(1, 4, 8)
    node.wal.flush()
    assert node.restart()[1].floor == (4, 9)
    node.wal.drop(1, 5, 2)
    node.wal.flush()
    assert node.restart()[1].floor == (5, 2)


@pytest.mark.parametrize("restarted", [False, True])
def test_pinning_is_known_after_a_restart_too(restarted: bool) -> None:
    """The node can always ask the group that holds the oldest segment for a snapshot."""
    node = Node(SMALL)
    fill(node.wal, 3, 1, 2)
    fill(node.wal, 4, 1, 20)
    if restarted:
        node.restart()
    node.wal.snapshot(4, 20, 1)
    assert node.wal.pinned_by()[1] == 3
    node.wal.snapshot(3, 2, 1)
    assert node.wal.pinned_by()[1] is None


def test_h8d_a_contradiction_within_the_log_is_settled_at_the_start() -> None:
    """A snapshot record whose term differs from the entry held there: the start drops the tail, for good."""
    node = Node()
    fill(node.wal, 1, 1, 10)
    node.wal.snapshot(1, 6, 2)
    node.wal.flush()
    assert node.restart()[1] == GroupState((), 0, 0, 6, 2, [])
    node.wal.entry(1, 7, 2, b"new")
    node.wal.flush()
    assert node.restart()[1].entries == [(b"new", 7, 2)]


def test_h14e_a_lost_log_stops_the_start() -> None:
    """H14e: a node that has started before does not start with an empty log."""
    node = Node()
    for path in list(node.disk.files()):
        node.disk.delete(path)
    node.disk.kill()
    with pytest.raises(CorruptData, match="the log is missing"):
        node.start(must_exist=True)


def test_h14b_no_commit_index_is_stored() -> None:
    """H14b: what a start trusts is the log and the snapshots; the recovered state has no commit index at all."""
    assert set(GroupState.__dataclass_fields__) == {
        "founders", "term", "vote", "snapshot_index", "snapshot_term", "entries", "floor", "lost"
    }  # fmt: skip


def test_a_segment_of_another_node_is_refused() -> None:
    """A log copied from another node is not this node's promises."""
    node = Node()
    fill(node.wal, 1, 1, 3)
    node.disk.kill()
    with pytest.raises(CorruptData, match="of another place or node"):
        Wal.open(node.disk.mount(), SimWorker(), "n/wal", drop, identity=b"other")


def test_close_ends_after_what_is_under_way() -> None:
    """Closing keeps what was flushed and writes nothing more."""
    node = Node(inline=False)
    node.wal.entry(1, 1, 1, b"a")
    node.wal.flush()
    node.wal.entry(1, 2, 1, b"b")
    node.wal.close()
    node.wal.close()
    node.worker.drain()
    assert node.announced == [1]
    assert node.restart()[1].last_index == 1


def test_lost_entries_are_remembered_until_the_group_is_dropped() -> None:
    """Through starts and new segments; then the floor is what had been acknowledged, not what was left of it."""
    node = Node(SMALL)
    fill(node.wal, 1, 1, 5)
    node.wal.lost(1, 1, 9)
    node.wal.lost(1, 1, 7)
    node.wal.flush()
    assert node.restart()[1].lost == (1, 9)
    node.wal.hard_state(1, 3, 2)
    fill(node.wal, 2, 1, 30)
    node.wal.snapshot(1, 5, 1)
    node.wal.snapshot(2, 30, 1)
    node.wal.flush()
    node.wal.collect()
    fill(node.wal, 2, 31, 60)
    assert node.restart()[1].lost == (1, 9)
    node.wal.drop(1, 1, 5)
    assert node.wal.promised(1) == GroupState(term=3, vote=2, floor=(1, 9))
    node.wal.flush()
    assert node.restart()[1] == GroupState((), 3, 2, floor=(1, 9))
