"""Snapshots: verified before they replace anything, never at the cost of an acknowledged entry (H8, H14e, H14g)."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from faults.sim.persisted import Persisted
from faults.sim.raftlab import Envelope, append, batch
from faults.sim.raftreplica import GROUP
from raftkv import limits
from raftkv.errors import Code, CorruptData
from raftkv.raft import RaftConfig, guard
from raftkv.raft.leadership import Leadership
from raftkv.raft.messages import Type
from raftkv.raft.ready import Covered, Entry
from raftkv.raft.snapshots import GroupSnapshots, align
from raftkv.storage.snapshot_format import SnapshotInfo
from raftkv.storage.snapshots import SnapshotStore
from tests.group_lab import GroupLab, GroupMachine, GroupReplica, LabWal

MUTANT = pytest.mark.parametrize("mutant", [False, True], ids=["fixed", "mutant"])
EAGER = RaftConfig(snapshot_bytes=1000, keep_entries=0, open_entries=64)
_BIG = b"v" * 60_000


def _snapshot(lab: GroupLab, replica: GroupReplica) -> None:
    replica.take_snapshot()
    lab.run(0.0)


def _lagging(count: int = 5, value: bytes = b"") -> tuple[GroupLab, GroupReplica]:
    """By hand: node 1 leads and has a snapshot with ``count`` writes, of which node 3 has nothing and waits for it."""
    lab = GroupLab(by_hand=True, config=RaftConfig(keep_entries=0))
    leader = lab.elect(1)
    lab.pump()
    lab.isolate(3)
    for number in range(count):
        leader.put(b"%d" % number + value)
        lab.run(0.0)
        lab.pump()
    _snapshot(lab, leader)
    assert leader.raft.log.base_index == count + 2
    lab.heal()
    lab.tick(1, after=0.2)
    lab.pump(1, 3, Type.APPEND)
    lab.pump(3, 1, Type.ACK)
    lab.tick(1, after=0.2)
    return lab, leader


def _pump_without(lab: GroupLab, drop: Callable[[Envelope], bool]) -> int:
    dropped = 0
    while lab.wire:
        envelope = lab.wire.pop(0)
        if drop(envelope):
            dropped += 1
        else:
            lab.deliver(envelope)
    return dropped


@pytest.mark.parametrize("value", [b"", _BIG], ids=["one chunk", "many chunks"])
def test_lagging_follower_gets_a_snapshot(value: bytes) -> None:
    """A follower whose next entry is gone from the log takes over the leader's snapshot and goes on behind it."""
    lab, leader = _lagging(20, value)
    lab.pump()
    assert lab[3].commands() == leader.commands()
    assert lab[3].status().snapshot_index == 22
    outcome = leader.put(b"next")
    lab.run(0.0)
    lab.take(1, 2)
    lab.pump()
    assert outcome.ok
    lab[3].kill()
    lab[3].start()
    assert lab[3].commands()[-1] == b"19" + value, "the snapshot is loaded at start, the tail behind it is kept"
    assert lab[3].raft.log.last_index == 23


def test_h8a_offer_and_chunks_commit_nothing() -> None:
    """Entries that were never committed stay so while a snapshot arrives, and go with its installation."""
    lab = GroupLab(by_hand=True, config=RaftConfig(keep_entries=0, open_entries=64))
    old = lab.elect(1)
    lab.pump()
    ghosts = [old.put(b"ghost%d" % number) for number in range(3)]
    lab.run(0.0)
    lab.take()
    lab.isolate(1)
    leader = lab.elect(2)
    for number in range(10):
        leader.put(b"y%d" % number)
        lab.run(0.0)
        lab.pump()
    _snapshot(lab, leader)
    lab.heal()
    while not lab.find(1, 2, Type.SNAPSHOT_PULL):
        lab.tick(2, after=0.2)
        lab.take(2, 3)
        lab.pump(2, 1)
        lab.pump(1, 2, Type.ACK)
    assert (old.raft.core.commit_index(), old.commands()) == (2, [])
    assert [ghost.code for ghost in ghosts] == [Code.UNKNOWN] * 3
    lab.pump()
    assert old.commands() == [b"y%d" % number for number in range(10)]
    old.kill()
    old.start()
    assert old.commands() == [b"y%d" % number for number in range(10)]
    assert old.raft.log.last_index == leader.raft.log.last_index


@MUTANT
def test_h8b_damaged_snapshot_is_not_acknowledged(monkeypatch: pytest.MonkeyPatch, mutant: bool) -> None:
    """A chunk damaged on its way makes the whole file invalid: nothing is claimed, and a later attempt succeeds."""
    if mutant:
        plain = GroupSnapshots._give_up

        def claim(self: GroupSnapshots, problem: BaseException) -> None:
            receiving = self._receiving
            assert receiving is not None
            plain(self, problem)
            self._replica.snapshot_kept(receiving.offer.peer, receiving.offer.index)
            self._wake()

        monkeypatch.setattr(GroupSnapshots, "_give_up", claim)
        monkeypatch.setattr(Persisted, "take", lambda *_: None)  # it would notice that at once
    lab, leader = _lagging(20, _BIG)
    matches: list[Envelope] = []
    damaged = False
    while lab.wire and not matches:
        envelope = lab.wire.pop(0)
        message = envelope.message
        if envelope.type == Type.SNAPSHOT_CHUNK and not damaged:
            message[5] = message[5][:-1] + b"?"
            assert lab[3].receive(1, message)
            lab.run(0.0)
            damaged = True
            continue
        lab.deliver(envelope)
        matches = [ack for ack in lab.find(3, 1, Type.ACK) if ack.message[5]]
    assert damaged
    assert (len(matches) > 0) is mutant
    assert lab[3].commands() == []
    if not mutant:
        lab.tick(1, after=0.2)
        lab.pump()
        assert lab[3].commands() == leader.commands()


@pytest.mark.parametrize("where", ["chunks", "restore", "finish"])
def test_h8b_snapshot_that_cannot_be_loaded_harms_nothing(monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    """If a verified snapshot cannot be taken over, the state stays as it was, and the next attempt starts anew."""
    lab, leader = _lagging()

    def fail(*arguments: Any) -> Iterator[bytes]:
        raise CorruptData("snapshot", 0, "planted")
        yield b""

    with monkeypatch.context() as patch:
        if where == "chunks":
            patch.setattr(lab[3].files, "open", fail)
        else:
            restore = lab[3].machine.begin_restore()
            method = "feed" if where == "restore" else "finish"
            patch.setattr(type(restore), method, lambda *arguments: next(fail(*arguments)))
        lab.pump()
        assert lab[3].commands() == []
        assert lab[3].status().snapshot_index == 0
        assert leader.raft.core.match_index(3) < leader.raft.log.base_index
    lab.tick(1, after=0.2)
    lab.pump()
    assert lab[3].commands() == leader.commands()


@MUTANT
def test_h8c_offer_of_a_snapshot_that_is_held_keeps_the_tail(monkeypatch: pytest.MonkeyPatch, mutant: bool) -> None:
    """A log that holds the snapshot's last entry keeps the acknowledged entries behind it."""
    if mutant:
        monkeypatch.setattr(guard, "superfluous", lambda *_: False)
    lab = GroupLab(by_hand=True)
    node, other = lab[2], lab[1]
    entries = [(1, batch(b"%d" % number)) for number in range(8)]
    for replica, peer in ((node, 1), (other, 2)):
        replica.receive(peer, append(1, 1, 0, entries, commit=3 if replica is node else 6))
    lab.run(0.0)
    _snapshot(lab, other)
    info = other.files.latest(GROUP)
    assert info is not None
    assert info.index == 6
    lab.take()
    node.receive(1, [GROUP, Type.SNAPSHOT_OFFER, 1, info.index, info.term, info.size])
    lab.run(0.0)
    if mutant:
        node.receive(1, [GROUP, Type.SNAPSHOT_CHUNK, 1, info.index, 0, other.files.read_raw(info, 0, info.size)])
        lab.run(0.0)
    assert node.raft.log.last_index == (6 if mutant else 9)
    assert [ack.message[6] for ack in lab.take(2, 1, Type.ACK)] == [7]


@MUTANT
def test_h8d_crash_between_rename_and_wal_record_keeps_the_tail(monkeypatch: pytest.MonkeyPatch, mutant: bool) -> None:
    """A node that dies after its snapshot got its name, but before the WAL knows, keeps the entries behind it."""
    if mutant:

        def wipe(*arguments: Any) -> tuple[tuple[int, int], list[Entry]]:
            base, kept = align(*arguments)
            return base, kept if arguments[1] is None else []

        monkeypatch.setattr("raftkv.raft.group.align", wipe)
    lab = GroupLab(by_hand=True, file_delay=0.01)
    node = lab[2]
    node.receive(1, append(1, 1, 0, [(1, batch(b"%d" % number)) for number in range(6)], commit=4))
    lab.run(0.0)
    node.take_snapshot()
    while node.files.latest(GROUP) is None:
        lab.run(0.001)
    assert Covered(4, 1) not in [*node.durable, *node.unsynced]
    node.kill()
    node.start()
    assert node.commands() == [b"0", b"1", b"2"]
    assert node.raft.log.last_index == (4 if mutant else 7)
    lab.run(0.0)
    assert Covered(4, 1) in node.durable


def test_h8f_chunks_of_two_leaders_do_not_mix() -> None:
    """A chunk counts only if it comes from the node, of the snapshot and at the offset that was asked for."""
    lab, leader = _lagging(20, _BIG)
    info = leader.files.latest(GROUP)
    assert info is not None
    lab.pump(1, 3, Type.SNAPSHOT_OFFER)
    chunk = leader.files.read_raw(info, 0, limits.SNAPSHOT_PART_BYTES)
    lab[3].receive(2, [GROUP, Type.SNAPSHOT_CHUNK, 1, info.index, 0, chunk])
    lab[3].receive(1, [GROUP, Type.SNAPSHOT_CHUNK, 1, info.index + 1, 0, chunk])
    lab[3].receive(1, [GROUP, Type.SNAPSHOT_CHUNK, 1, info.index, 5, chunk])
    lab[3].receive(1, [GROUP, Type.SNAPSHOT_CHUNK, 1, info.index, 0, b""])
    lab.run(0.0)
    assert len(lab.find(3, 1, Type.SNAPSHOT_PULL)) == 1, "only the first pull so far"
    lab.pump()
    assert lab[3].commands() == leader.commands()


def test_snapshot_goes_on_where_it_was_interrupted() -> None:
    """A lost chunk is asked for again, from its offset on, and nothing that had arrived is sent twice."""
    lab, leader = _lagging(40, _BIG)
    info = leader.files.latest(GROUP)
    assert info is not None
    chunks = 0

    def third_chunk(envelope: Envelope) -> bool:
        nonlocal chunks
        chunks += envelope.type == Type.SNAPSHOT_CHUNK
        return envelope.type == Type.SNAPSHOT_CHUNK and chunks == 3

    assert _pump_without(lab, third_chunk) == 1
    assert lab[3].commands() == []
    for _ in range(15):
        lab.tick(1, after=0.1)
        _pump_without(lab, third_chunk)
    assert lab[3].commands() == leader.commands()
    assert chunks == -(-info.size // limits.SNAPSHOT_PART_BYTES) + 1


def test_leader_change_in_the_middle_of_a_snapshot() -> None:
    """The new leader's snapshot replaces the half that came from the old one."""
    lab, leader = _lagging(20, _BIG)
    _snapshot(lab, lab[2])
    seen = 0

    def after_two(envelope: Envelope) -> bool:
        nonlocal seen
        seen += envelope.type == Type.SNAPSHOT_CHUNK
        return seen > 2

    _pump_without(lab, after_two)
    leader.kill()
    lab.take()
    successor = lab.elect(2)
    for _ in range(5):
        lab.tick(2, after=0.2)
        lab.pump()
    assert lab[3].commands() == successor.commands() != []
    assert len(lab[3].disk.files()) == 1, "the half is gone"


def test_h14g_own_late_snapshot_does_not_replace_a_newer_one() -> None:
    """A snapshot that a node takes while it installs a later one does not come back at its next start."""
    lab = GroupLab(by_hand=True)
    node, other = lab[2], lab[1]
    entries = [(1, batch(b"%d" % number)) for number in range(8)]
    node.receive(1, append(1, 1, 0, entries[:3], commit=4))
    other.receive(2, append(1, 1, 0, entries, commit=9))
    lab.run(0.0)
    _snapshot(lab, other)
    info = other.files.latest(GROUP)
    assert info is not None
    node.worker.delay = 0.5
    _snapshot(lab, node)
    node.worker.delay = 0.0
    lab.take()
    node.receive(1, [GROUP, Type.SNAPSHOT_OFFER, 1, info.index, info.term, info.size])
    lab.run(0.0)
    node.receive(1, [GROUP, Type.SNAPSHOT_CHUNK, 1, info.index, 0, other.files.read_raw(info, 0, info.size)])
    lab.run(0.0)
    assert node.status().snapshot_index == 9
    lab.run(2.0)
    assert node.status().snapshot_index == 9
    node.kill()
    node.start()
    assert node.commands() == other.commands()
    assert node.raft.log.base_index == 9


# -- at start


def _align(
    info: SnapshotInfo | None, compacted: int, entries: list[Entry], files: SnapshotStore
) -> tuple[tuple[int, int], list[Entry]]:
    lab = GroupLab(1, by_hand=True)
    return align(GROUP, info, compacted, entries, LabWal(lab[1]), GroupMachine(), files)


def test_h14e_damaged_snapshot_stops_the_start() -> None:
    """A node whose snapshot cannot be read does not come up with an empty state."""
    lab = GroupLab(by_hand=True)
    node = lab[2]
    node.receive(1, append(1, 1, 0, [(1, batch(b"a"))], commit=2))
    lab.run(0.0)
    _snapshot(lab, node)
    info = node.files.latest(GROUP)
    assert info is not None
    node.kill()
    node.disk.flip(info.path, info.size - 1)
    with pytest.raises(CorruptData, match="damaged"):
        node.start()
    node.disk.delete(info.path)
    with pytest.raises(CorruptData, match="missing"):
        node.start()


def test_hole_between_snapshot_and_log_stops_the_start() -> None:
    """Entries that do not follow the snapshot are not accepted."""
    lab = GroupLab(1, by_hand=True)
    with pytest.raises(CorruptData, match="no entries between 1 and 5"):
        _align(None, 1, [(batch(b"a"), 5, 1)], lab[1].files)


def test_log_that_contradicts_the_snapshot_is_dropped() -> None:
    """A tail of another history than the snapshot's goes, in the WAL too."""
    lab = GroupLab(by_hand=True)
    node = lab[2]
    node.receive(1, append(1, 1, 0, [(1, batch(b"ghost"))] * 4))
    lab.run(0.0)
    node.kill()
    donor = lab[1]
    donor.receive(3, append(2, 1, 0, [(2, batch(b"a")), (2, batch(b"b"))], commit=3))
    lab.run(0.0)
    _snapshot(lab, donor)
    node.disk = donor.disk.copy()
    node.start()
    assert (node.raft.log.base_index, node.raft.log.last_index) == (3, 3)
    lab.run(0.0)
    node.kill()
    node.start()
    assert node.raft.log.last_index == 3
    assert node.commands() == [b"a", b"b"]


# -- taking


def test_compaction_keeps_entries_for_followers_a_little_behind() -> None:
    """A follower that lags less than ``keep_entries`` needs no snapshot."""
    kinds: set[Type] = set()

    def note(envelope: Envelope) -> tuple[float]:
        kinds.add(envelope.type)
        return (0.001,)

    lab = GroupLab(config=RaftConfig(snapshot_bytes=1000, keep_entries=50), fate=note)
    leader = lab.wait_for_leader()
    slow = next(node for node in lab.nodes if node != leader.node)
    lab[slow].kill()
    for number in range(40):
        assert lab.commit(leader, b"%d" % number + b"x" * 50).ok
    assert leader.status().snapshot_index > 2
    lab[slow].start()
    lab.run(0.5)
    assert lab[slow].commands() == leader.commands()
    assert Type.SNAPSHOT_OFFER not in kinds


@MUTANT
def test_snapshot_in_use_is_not_replaced(monkeypatch: pytest.MonkeyPatch, mutant: bool) -> None:
    """Under steady writes a follower can finish a long snapshot and go on behind it (found by reading)."""
    if mutant:
        monkeypatch.setattr(GroupSnapshots, "_in_use", lambda self: False)
    config = RaftConfig(snapshot_bytes=20_000, snapshot_share=1.0, keep_entries=0, chunk_bytes=2500, open_entries=64)
    lab = GroupLab(config=config, fate=lambda envelope: (0.05 if envelope.type >= Type.SNAPSHOT_OFFER else 0.001,))
    leader = lab.wait_for_leader()
    slow = next(node for node in lab.nodes if node != leader.node)
    lab[slow].kill()
    for _ in range(20):
        lab.commit(leader, b"x" * 2000)
    lab[slow].start()
    caught_up = False
    for _ in range(150):
        leader.put(b"y" * 800)
        lab.run(0.02)
        caught_up |= lab[slow].raft.core.applied_index() > leader.raft.core.commit_index() - 5
    assert caught_up is not mutant
    lab.run(2.0)
    assert leader.status().snapshot_index > 100


@pytest.mark.parametrize(("share", "snapshots"), [(1.0, 2), (0.0, 20)], ids=["as much", "any"])
def test_snapshots_are_rarer_the_larger_the_state_is(share: float, snapshots: int) -> None:
    """Else each write would cost more, the more there is."""
    lab, leader = _lagging(20, _BIG)
    assert leader.snapshots.size > 20 * len(_BIG)
    leader.snapshots._config = RaftConfig(snapshot_bytes=2 * len(_BIG), snapshot_share=share, keep_entries=0)
    taken = []
    for number in range(41):
        leader.put(b"%d" % number + _BIG)
        lab.run(0.0)
        lab.pump(1, 2)
        lab.pump(2, 1)
        lab.run(0.0)
        taken.append(leader.status().snapshot_index)
    assert len(set(taken)) == pytest.approx(snapshots, rel=0.5)


def test_a_snapshot_under_way_is_enough() -> None:
    """Who wants one while one is taken does not get two."""
    lab, leader = _lagging()
    leader.worker.delay = 0.01
    leader.put(b"next")
    lab.run(0.0)
    lab.pump(1, 2)
    lab.pump(2, 1)
    lab.run(0.0)
    leader.take_snapshot()
    lab.run(0.0)
    assert leader.snapshots._taking
    leader.snapshots.want()
    assert not leader.snapshots._wanted


def test_dead_follower_holds_up_no_snapshot() -> None:
    """A follower that stopped in the middle of a snapshot does not keep the leader from taking the next."""
    lab, leader = _lagging(20, _BIG)
    lab.pump(1, 3, Type.SNAPSHOT_OFFER)
    lab.pump(3, 1, Type.SNAPSHOT_PULL)
    lab[3].kill()
    lab.take()
    leader.put(b"next")
    lab.run(0.0)
    lab.pump()
    assert leader.snapshots._in_use()
    lab.tick(1, after=0.8)
    lab.pump(1, 2)
    lab.pump(2, 1)
    lab.run(0.3)
    assert not leader.snapshots._in_use()
    _snapshot(lab, leader)
    assert leader.status().snapshot_index == leader.raft.core.applied_index()


@MUTANT
def test_follower_in_a_snapshot_counts_as_contact(monkeypatch: pytest.MonkeyPatch, mutant: bool) -> None:
    """A leader whose only living follower is taking over a snapshot goes on leading (found by reading)."""
    if mutant:
        plain = Leadership._send_append

        def quiet(lead: Leadership, peer: int, progress: Any, first: int, entries: Any, size: int) -> None:
            if lead._core.next_index(peer) > lead._log.base_index:
                plain(lead, peer, progress, first, entries, size)

        monkeypatch.setattr(Leadership, "_send_append", quiet)
    lab = GroupLab(
        config=RaftConfig(snapshot_bytes=40_000, keep_entries=0, open_entries=64),
        fate=lambda envelope: (0.3 if envelope.type == Type.SNAPSHOT_CHUNK else 0.001,),
    )
    leader = lab.wait_for_leader()
    other, slow = (replica for replica in lab.nodes.values() if replica is not leader)
    slow.kill()
    for _ in range(80):
        lab.commit(leader, b"x" * 20_000)
    slow.start()
    other.kill()
    term = leader.raft.core.term()
    lab.run(4.0)
    assert mutant or slow.commands() == leader.commands()
    assert (leader.raft.core.term() == term) is not mutant


def test_unreadable_snapshot_of_a_leader_harms_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """A leader whose snapshot cannot be read goes on leading; the follower asks again."""
    lab, leader = _lagging()

    def fail(*arguments: Any) -> bytes:
        raise OSError(5, "planted")

    with monkeypatch.context() as patch:
        patch.setattr(leader.files, "read_raw", fail)
        lab.pump()
    assert leader.leads()
    for _ in range(15):
        lab.tick(1, after=0.1)
        lab.pump()
    assert lab[3].commands() == leader.commands()


def test_h13f_waiting_for_a_snapshot_costs_few_messages() -> None:
    """A follower that cannot be helped yet costs a leader heartbeats and offers, not a spin."""
    lab, leader = _lagging()
    lab[3].kill()
    lab.take()
    before = lab.messages
    for _ in range(200):
        lab.tick(1, after=0.005)
        lab.pump(1, 2)
        lab.pump(2, 1)
    assert leader.leads()
    assert lab.messages - before < 60
