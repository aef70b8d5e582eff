"""The replicas of one node: which groups it hosts, and how it lets go of one."""

from __future__ import annotations

import random
from typing import Any, cast

import pytest

from faults.sim.disk import SimDisk
from faults.sim.raftlab import VirtualTime
from faults.sim.worker import SimWorker
from raftkv.commands.group import Tick
from raftkv.commands.records import Put
from raftkv.commands.results import Result
from raftkv.errors import Code
from raftkv.limits import MAX_VALUE_BYTES, WAL_SEGMENT_BYTES
from raftkv.node.replicas import Replicas
from raftkv.peer.links import Links
from raftkv.raft import RaftConfig, RaftGroup
from raftkv.raft.entries import pack_batch
from raftkv.raft.log import FIRST_INDEX
from raftkv.raft.messages import Type
from raftkv.storage.snapshots import SnapshotStore
from raftkv.storage.wal import Wal
from shards.map import META_GROUP
from tests.group_lab import LabClock

GROUP = 4
NODE = 1


class FakeLinks:
    """Links to nobody; what would be sent is kept."""

    def __init__(self) -> None:
        self.sent: list[tuple[int, list[Any]]] = []

    def send(self, node: int, message: list[Any]) -> None:
        self.sent.append((node, message))

    def flush(self) -> None:
        pass

    def unsent(self, node: int) -> int:
        return 0

    def up(self, node: int) -> bool:
        return True

    def link_number(self, node: int) -> int:
        return 1


class Host:
    """Node 1 on a simulated disk; ``start`` again is kill -9 and a restart. ``background`` finishes when told so."""

    def __init__(self) -> None:
        self.disk = SimDisk()
        self.world = VirtualTime()
        self.start()

    def start(self) -> None:
        self.disk.kill()
        self.failures: list[BaseException] = []
        self.links = FakeLinks()
        self.worker, self.background = SimWorker(False), SimWorker(False)
        fs = self.disk.mount()
        fs.makedirs("n")
        self.wal = Wal.open(fs, self.worker, "n/wal", self.failures.append, background=self.background)
        self.files = SnapshotStore(fs, self.background, "n/snapshots")
        self.replicas = Replicas(
            NODE,
            wal=self.wal,
            files=self.files,
            links=cast(Links, self.links),
            clock=LabClock(lambda: self.world.now, lambda delay, call: self.world.at(self.world.now + delay, call)),
            rng=random.Random(1),
            config=RaftConfig(keep_entries=0),
            fatal=self.failures.append,
        )
        self.replicas.recover()

    def run(self, seconds: float = 0.0, *, background: bool = True) -> None:
        """Turns of the loop, with all that is written meanwhile."""
        end = self.world.now + seconds
        while True:
            self.world.run(0.0)
            if self.worker.waiting:
                self.worker.complete()
            elif background and self.background.waiting:
                self.background.complete()
            elif self.world.now < end:
                self.world.run(min(end - self.world.now, 0.02))
                self.replicas.tick()
            else:
                break
        assert not self.failures

    def group(self, number: int = GROUP) -> RaftGroup:
        found = self.replicas.get(number)
        assert found is not None
        return found

    def lead(self, number: int = GROUP) -> RaftGroup:
        """Host the group as its only voter, and wait until it leads."""
        self.replicas.ensure(number, (NODE,))
        self.run(2.0)
        assert self.group(number).ready()
        return self.group(number)

    def write(self, count: int = 1, number: int = GROUP) -> list[Result]:
        answers: list[Result] = []
        for _ in range(count):
            self.group(number).propose([Tick()], 0, answers.extend)
            self.run()
        return answers

    def snapshot(self) -> None:
        self.group().snapshots.want()
        self.replicas._wake(GROUP)
        self.run()
        assert self.files.latest(GROUP) is not None

    def paths(self) -> list[str]:
        return [path for path in self.disk.files() if path.startswith("n/snapshots/")]


def test_a_group_is_there_again_after_a_restart() -> None:
    """With its founders, term and log; one that this node has no vote in waits for its leader."""
    host = Host()
    host.lead()
    assert [answer.code for answer in host.write(3)] == [Code.OK] * 3
    host.replicas.ensure(9, (5, 6, 7))
    host.run()
    last = host.group().log.last_index
    host.start()
    assert host.group().log.last_index == last
    assert host.group(9).voters == (5, 6, 7)
    host.links.sent.clear()
    host.run(5.0)
    assert host.group().ready()
    assert not [message for _, message in host.links.sent if message[0] == 9]


def test_a_dropped_group_leaves_nothing_but_its_promises() -> None:
    """Its snapshots go, its messages fall on deaf ears, and no restart brings it back; term and vote stay."""
    host = Host()
    group = host.lead()
    host.write(3)
    host.snapshot()
    term, end = group.core.term(), (group.log.last_term, group.log.last_index)
    host.replicas.drop(GROUP)
    assert host.replicas.get(GROUP) is None
    assert GROUP not in host.replicas.data
    assert host.replicas.receive(2, [GROUP, int(Type.VOTE), 99, 99, 99, True])
    host.run()
    assert host.paths() == []
    for _ in range(2):
        promised = host.wal.promised(GROUP)
        assert (promised.term, promised.vote, promised.floor) == (term, NODE, end)
        host.start()
        assert host.replicas.all() == ()
    host.replicas.drop(GROUP)
    host.run()
    assert host.replicas.all() == ()


def test_what_waits_for_a_dropped_group_is_answered() -> None:
    """Each proposal once; nobody waits for a group that is gone."""
    host = Host()
    host.lead()
    answers: list[Result] = []
    host.group().propose([Tick()], 0, answers.extend)
    host.world.run(0.0)
    host.group().propose([Tick()], 0, answers.extend)
    host.replicas.drop(GROUP)
    assert [answer.code for answer in answers] == [Code.UNKNOWN, Code.UNAVAILABLE]
    host.run(1.0)
    assert len(answers) == 2


def test_a_read_sees_all_that_was_committed_before_it() -> None:
    """Also in the step that hands out the last of it."""
    host = Host()
    host.lead()
    for _ in range(4):
        host.group().propose([Put(0, b"k", bytes(MAX_VALUE_BYTES // 2))], MAX_VALUE_BYTES // 2, lambda _: None)
        host.run()
    host.start()
    group = host.group()
    while not group.leads():
        host.world.run(0.02)
        host.replicas.tick()
    seen: list[tuple[Code, int]] = []
    group.read(False, lambda code: seen.append((code, group.core.applied_index())))
    host.run()
    assert seen == [(Code.OK, group.core.no_op_index())]


class Following:
    """A replica that follows node 2, with one entry that is stored, acknowledged and not committed."""

    def __init__(self) -> None:
        self.host = Host()
        self.host.replicas.ensure(GROUP, (NODE, 2, 3))
        self.host.run()
        self.seq = 0
        self.take(commit=FIRST_INDEX)
        self.host.run()
        assert self.acknowledged == FIRST_INDEX + 1

    def take(self, *, commit: int, size: int = 0) -> None:
        """An append of one entry, with a value of ``size`` bytes, arrives, and the loop's turn ends."""
        last, self.seq = FIRST_INDEX + self.seq, self.seq + 1
        entry = (1, pack_batch(self.seq, [Put(0, b"k", bytes(size))]))
        append = [GROUP, int(Type.APPEND), 1, self.seq, 1, last, 1 if last > FIRST_INDEX else 0, commit, [entry]]
        assert self.host.replicas.receive(2, append)
        self.host.world.run(0.0)

    @property
    def acknowledged(self) -> int:
        """The last entry that was."""
        return max(int(message[6]) - 1 for _, message in self.host.links.sent if message[1] == Type.ACK)

    @property
    def applied(self) -> int:
        return self.host.group().core.applied_index()


def test_a_follower_acknowledges_before_it_applies() -> None:
    """Its leader waits for the acknowledgement, and nobody for what is applied."""
    one = Following()
    one.take(commit=FIRST_INDEX + 1)
    assert (one.acknowledged, one.applied) == (FIRST_INDEX + 1, FIRST_INDEX), "the disk is at work"
    one.host.worker.complete()
    assert (one.acknowledged, one.applied) == (FIRST_INDEX + 2, FIRST_INDEX)
    one.host.world.run(0.0)
    assert one.applied == FIRST_INDEX + 1


def test_a_follower_that_is_behind_does_not_wait_for_its_disk() -> None:
    """It may get more with each sync than one step hands out."""
    one = Following()
    for _ in range(6):
        one.take(commit=FIRST_INDEX, size=MAX_VALUE_BYTES // 2)
    one.take(commit=FIRST_INDEX + 7)
    one.host.world.run(0.0)
    assert one.applied > FIRST_INDEX + 4
    assert one.acknowledged == FIRST_INDEX + 1, "nothing is synced yet"


def test_a_slow_disk_does_not_hold_up_what_is_committed() -> None:
    one = Following()
    for ahead in (1, 2, 3):
        one.take(commit=FIRST_INDEX + ahead)
    assert one.applied == FIRST_INDEX
    for _ in range(3):
        one.host.replicas.tick()
        one.host.world.run(0.0)
    assert (one.acknowledged, one.applied) == (FIRST_INDEX + 1, FIRST_INDEX + 3)
    one.host.run()
    assert one.acknowledged == FIRST_INDEX + 4


def test_a_group_that_is_dropped_before_it_applies_is_done_with() -> None:
    one = Following()
    one.take(commit=FIRST_INDEX + 1)
    group = one.host.group()
    one.host.replicas.drop(GROUP)
    assert group.core.applied_index() == FIRST_INDEX + 1
    one.host.run(1.0)
    assert not one.host.replicas._unapplied


def test_a_group_comes_back_empty_and_keeps_its_promises() -> None:
    """The term stays, and as the log is shorter than the one before, it neither stands nor votes for as short a one."""
    host = Host()
    group = host.lead()
    host.write(5)
    term, end = group.core.term(), (group.log.last_term, group.log.last_index)
    host.replicas.drop(GROUP)
    host.replicas.ensure(GROUP, (NODE, 2))
    host.run()
    for _ in range(2):
        group = host.group()
        assert (group.core.term(), group.log.last_index) == (term, 1)
        host.links.sent.clear()
        host.run(3.0)
        assert host.links.sent == [], "it does not stand"
        host.replicas.receive(2, [GROUP, int(Type.PREVOTE), term + 1, end[1] - 1, end[0]])
        host.replicas.receive(2, [GROUP, int(Type.PREVOTE), term + 1, end[1], end[0]])
        host.run()
        assert [message[3] for _, message in host.links.sent] == [False, True]
        host.start()


def test_a_group_comes_back_only_when_the_old_files_are_gone() -> None:
    """Otherwise the new log would begin with the old snapshot, or lose its own."""
    host = Host()
    host.lead()
    host.write(3)
    host.snapshot()
    host.replicas.drop(GROUP)
    host.replicas.ensure(GROUP, (NODE,))
    host.run(background=False)
    assert host.replicas.get(GROUP) is None
    assert host.paths() != []
    host.run()
    assert host.paths() == []
    assert host.group().log.last_index == 1


def test_a_group_that_is_dropped_again_stays_away() -> None:
    """The last word counts."""
    host = Host()
    host.lead()
    host.replicas.drop(GROUP)
    host.replicas.ensure(GROUP, (NODE,))
    host.replicas.drop(GROUP)
    host.run()
    assert host.replicas.all() == ()


@pytest.mark.parametrize("durable", [False, True])
def test_kill_9_in_the_middle_of_a_drop(durable: bool) -> None:
    """Before the record is durable the group is there with its snapshot; after it, the rest of the files goes."""
    host = Host()
    host.lead()
    host.write(3)
    host.snapshot()
    host.replicas.drop(GROUP)
    if durable:
        host.run(background=False)
    assert host.paths() != []
    host.start()
    if durable:
        host.replicas.ensure(GROUP, (NODE,))
        assert host.replicas.get(GROUP) is None, "not before the files are gone"
        host.run()
        assert host.paths() == []
        assert host.group().log.last_index == 1
    else:
        assert host.group().snapshots.index > 1
        assert host.paths() != []


def test_a_snapshot_under_way_does_not_outlive_its_group() -> None:
    """Neither its file nor its record comes after the drop."""
    host = Host()
    host.lead()
    host.write(3)
    host.group().snapshots.want()
    host.replicas._wake(GROUP)
    host.run(background=False)
    host.replicas.drop(GROUP)
    host.run()
    assert host.paths() == []
    host.start()
    assert host.replicas.all() == ()
    host.replicas.ensure(GROUP, (NODE,))
    host.run()
    assert host.group().log.last_index == 1


def test_files_that_cannot_be_removed_stop_the_node(monkeypatch: pytest.MonkeyPatch) -> None:
    """A snapshot that stays could be taken for that of the group's next log."""
    host = Host()
    host.lead()
    host.write(3)
    host.snapshot()
    monkeypatch.setattr(host.files, "discard", lambda group, done: done(OSError("planted")))
    host.replicas.drop(GROUP)
    with pytest.raises(AssertionError):
        host.run()
    assert "planted" in str(host.failures[0])


def test_the_map_goes_with_the_meta_group() -> None:
    """A node that leaves the meta group has no authoritative map any more."""
    host = Host()
    host.lead(META_GROUP)
    before = host.replicas.meta
    host.replicas.drop(META_GROUP)
    assert host.replicas.meta is not before
    host.run()
    assert host.replicas.get(META_GROUP) is None


SMALL = 50 * 1024


def fill_segments(host: Host, count: int, *, background: bool = True) -> None:
    """Write until the log has so many segments, or waits. Each write is small enough not to be held before."""
    while host.wal.segments < count and not host.wal.limited:
        for _ in range(10):
            host.group().propose([Put(0, b"k", bytes(SMALL))], SMALL, lambda _: None)
        host.run(background=background)


def test_a_small_disk_makes_snapshots_come_sooner() -> None:
    """The log is cut when it takes half of the room there is, long before what its settings allow."""
    host = Host()
    host.lead()
    for room, expected in ((1 << 40, 0), (2 * WAL_SEGMENT_BYTES, 1)):
        fill_segments(host, 3)
        host.replicas.reclaim(room)
        host.run()
        assert bool(host.files.latest(GROUP)) == bool(expected)
    host.write()
    host.replicas.reclaim(1 << 40)
    host.run()
    assert host.wal.segments == 1


def test_a_log_that_grows_faster_than_snapshots_are_written_waits_for_them() -> None:
    """Not for ever: what no majority holds can be in none."""
    host = Host()
    host.lead()
    room = WAL_SEGMENT_BYTES
    fill_segments(host, 2)
    host.replicas.reclaim(room)
    fill_segments(host, 3)
    host.replicas.reclaim(room)
    host.run(background=False)
    assert host.files.busy
    fill_segments(host, 10, background=False)
    assert host.wal.limited
    segments = host.wal.segments
    for _ in range(100):
        host.replicas.reclaim(room)
        host.run(0.1, background=False)
    assert (host.wal.segments, host.wal.limited) == (segments, True), "a snapshot is under way"
    host.run()
    host.replicas.reclaim(room)
    host.run()
    assert not host.wal.limited
    assert host.wal.durable == host.wal.appended


def test_a_log_that_no_snapshot_can_cut_goes_on_after_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    host = Host()
    group = host.lead()
    monkeypatch.setattr(group.snapshots, "maybe_take", lambda: None)
    fill_segments(host, 2)
    host.replicas.reclaim(0)
    fill_segments(host, 10)
    assert host.wal.limited
    for _ in range(50):
        host.replicas.reclaim(0)
        host.run(0.1)
    assert host.wal.durable == host.wal.appended


def test_large_writes_wait_before_a_log_that_snapshots_hold_up_is_full_and_small_ones_go_on() -> None:
    host = Host()
    host.lead()
    fill_segments(host, 2)
    host.replicas.reclaim(WAL_SEGMENT_BYTES)
    fill_segments(host, 3)
    host.replicas.reclaim(0)
    host.run(background=False)
    assert host.files.busy, "the snapshot that will make room"
    written: list[str] = []
    host.group().propose([Put(0, b"k", bytes(MAX_VALUE_BYTES))], MAX_VALUE_BYTES, lambda _: written.append("large"))
    host.group().propose([Put(0, b"k", b"")], 1, lambda _: written.append("small"))
    host.run(background=False)
    assert written == ["small"]
    host.run()
    host.replicas.reclaim(1 << 40)
    host.run()
    assert written == ["small", "large"]


def test_large_writes_wait_for_no_snapshot_that_never_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    host = Host()
    group = host.lead()
    monkeypatch.setattr(group.snapshots, "maybe_take", lambda: None)
    fill_segments(host, 2)
    host.replicas.reclaim(0)
    written: list[str] = []
    group.propose([Put(0, b"k", bytes(MAX_VALUE_BYTES))], MAX_VALUE_BYTES, lambda _: written.append("large"))
    host.run()
    assert not written
    for _ in range(50):
        host.replicas.reclaim(0)
        host.run(0.1)
    assert written == ["large"]


def test_a_dropped_group_holds_no_segment_of_the_log() -> None:
    """The other groups' log goes on and is collected."""
    host = Host()
    host.lead()
    host.write(3)
    host.replicas.ensure(5, (NODE,))
    host.run()
    host.replicas.drop(GROUP)
    host.run()
    assert host.wal.pinned_by()[1] is None
