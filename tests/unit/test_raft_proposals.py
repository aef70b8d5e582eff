"""Proposals: each is answered once and truthfully; applying is total and happens once (H9, H10, H12, H14f)."""

import contextlib
import gc
import weakref
from typing import Any

import pytest

from faults.sim.raftlab import Lab, append, batch
from faults.sim.raftreplica import GROUP
from raftkv import limits
from raftkv.commands.records import Put
from raftkv.commands.results import Result
from raftkv.errors import Code
from raftkv.raft import BrokenInvariant, RaftConfig
from raftkv.raft.consensus import Consensus
from raftkv.raft.log import GroupLog
from raftkv.raft.messages import Type
from raftkv.raft.ready import Outputs
from tests.group_lab import GroupLab, GroupMachine

MUTANT = pytest.mark.parametrize("mutant", [False, True], ids=["fixed", "mutant"])


def test_h9_all_proposals_are_answered_on_step_down() -> None:
    """In the log: UNKNOWN. Not in the log: NOT_LEADER or UNAVAILABLE, and then it surely never takes effect."""
    lab = Lab(by_hand=True)
    leader = lab.elect(1)
    lab.pump()
    written = leader.put(b"in the log")
    lab.run(0.0)
    waiting = leader.put(b"gathered")
    lab.run(0.0)
    assert written.answers == waiting.answers == []
    lab.take()
    lab.isolate(1)
    lab.tick(1, after=1.0)
    assert written.code == Code.UNKNOWN
    assert waiting.code in (Code.NOT_LEADER, Code.UNAVAILABLE)
    lab.heal()
    leader = lab.elect(1)
    lab.pump()
    assert leader.commands() == [b"in the log"], "an unknown outcome may come true, a refused one never"


def test_h9_deposed_leader_answers_at_once() -> None:
    """The append of a later term ends the wait of everybody, with a hint at who leads now."""
    lab = Lab(by_hand=True)
    leader = lab.elect(1)
    lab.pump()
    written = leader.put(b"a")
    lab.run(0.0)
    leader.receive(3, append(5, 2, 1, [(5, b"\x01")]))
    lab.run(0.0)
    assert written.code == Code.UNKNOWN
    late = leader.put(b"b")
    assert (late.code, late.answers[0].hint) == (Code.NOT_LEADER, 3)


def test_h9_nothing_is_forwarded() -> None:
    """A follower refuses with a hint and sends nothing: a forwarded proposal could take effect twice."""
    lab = Lab(by_hand=True)
    lab.elect(1)
    lab.pump()
    outcome = lab[2].put(b"a")
    lab.run(0.0)
    assert (outcome.code, outcome.answers[0].hint) == (Code.NOT_LEADER, 1)
    assert lab.find(2) == []


def test_h9_without_leader_the_answer_is_unavailable() -> None:
    """Nobody to hint at."""
    lab = Lab(by_hand=True)
    assert lab[1].put(b"a").code == Code.UNAVAILABLE


@pytest.mark.parametrize("led", [True, False], ids=["written", "refused"])
def test_who_keeps_a_proposal_to_withdraw_it_is_no_garbage_afterwards(led: bool) -> None:
    """45,000 objects in circles at a time held nodes up for 40 ms (found by abuse)."""

    class Asker:
        def take(self, results: list[Result]) -> None:
            self.results = results

    lab = GroupLab()
    replica = lab.wait_for_leader() if led else lab[1]
    asker = Asker()
    asker.proposal = replica.propose([Put(0, b"k", b"")], 1, asker.take)  # type: ignore[attr-defined]
    lab.run(1.0)
    assert asker.results
    gone = weakref.ref(asker)
    gc.disable()
    try:
        del asker
        assert gone() is None
    finally:
        gc.enable()


def test_a_raising_receiver_keeps_no_other_answer(caplog: pytest.LogCaptureFixture) -> None:
    """A result handler that fails is logged; the others get theirs, and nothing is applied twice (found by reading)."""
    lab = GroupLab(by_hand=True)
    leader = lab.elect(1)
    lab.pump()

    def fail(results: list[Result]) -> None:
        raise ValueError("planted")

    before = leader.put(b"a")
    leader.propose([Put(0, b"k", b"b")], 1, fail)
    after = leader.put(b"c")
    lab.run(0.0)
    lab.pump()
    assert before.ok
    assert after.ok
    assert leader.commands() == [b"a", b"b", b"c"]
    assert "receiver of results failed" in caplog.text


def test_what_no_replica_could_decode_does_not_reach_the_log(caplog: pytest.LogCaptureFixture) -> None:
    """It would stop every replica, at every start. What was proposed beside it is done."""
    lab = GroupLab(by_hand=True)
    leader = lab.elect(1)
    lab.pump()
    answers: list[Result] = []
    before = leader.put(b"a")
    leader.propose([Put(0, b"k", b"b", expect=2**64 - 1)], 1, answers.extend)
    after = leader.put(b"c")
    lab.run(0.0)
    lab.pump()
    assert [answer.code for answer in answers] == [Code.INVALID_ARGUMENT]
    assert before.ok
    assert after.ok
    assert leader.commands() == [b"a", b"c"]
    assert "malformed operations are not proposed" in caplog.text


def test_what_is_withdrawn_before_it_reaches_the_log_never_does() -> None:
    """Whoever asked has gone: it takes no room, changes nothing and has no results."""
    lab = Lab(by_hand=True)
    leader = lab.elect(1)
    lab.pump()
    answers: list[Result] = []
    first = leader.propose([Put(0, b"k", b"a")], 1, answers.extend)
    alone = leader.propose([Put(0, b"k", b"b")], 1, answers.extend)
    assert alone.withdraw()
    assert not alone.withdraw()
    lab.run(0.0)
    assert not first.withdraw(), "it is in the log"
    second = leader.propose([Put(0, b"k", b"c")], 1, answers.extend)
    assert second.withdraw()
    after = leader.put(b"d")
    lab.pump()
    assert after.ok
    assert leader.commands() == [b"a", b"d"]
    assert len(answers) == 1


@MUTANT
def test_h10_entry_that_cannot_be_applied_stops_the_node(monkeypatch: pytest.MonkeyPatch, mutant: bool) -> None:
    """The applied index advances first, so that an entry whose application fails is never applied again."""
    attempts: list[bytes] = []
    plain_apply = GroupMachine.apply

    def apply(machine: GroupMachine, now: int, commands: Any, entry: memoryview) -> list[Result]:
        attempts.extend(command.value for command in commands)
        return plain_apply(machine, now, commands, entry)

    monkeypatch.setattr(GroupMachine, "apply", apply)
    if mutant:
        plain = Consensus._hand_out

        def handed_out_again(replica: Consensus) -> Any:
            replica._handed = replica.core.applied_index()
            return plain(replica)

        monkeypatch.setattr(Consensus, "_hand_out", handed_out_again)
    lab = GroupLab(by_hand=True)
    node = lab[2]
    node.machine.poison = b"bad"
    for _ in range(3):
        with (
            pytest.raises(BrokenInvariant, match="cannot be applied")
            if not attempts or mutant
            else contextlib.nullcontext()
        ):
            node.receive(1, append(1, 1, 0, [(1, batch(b"bad"))], commit=2))
            lab.run(0.0)
    assert len(node.fatal) == (3 if mutant else 1)
    assert attempts == [b"bad"] * (3 if mutant else 1)


@pytest.mark.parametrize("command", [b"\x01", b"\x02junk", b"\x03\x80\x04K\x05.", b"\x03junk"])
def test_h10_entries_of_the_librarys_own_kinds_are_never_interpreted(command: bytes) -> None:
    """MEMBERSHIP and VERSION entries, whatever they hold, change nothing: no pickle is ever loaded."""
    lab = Lab(by_hand=True)
    node = lab[2]
    node.receive(1, append(1, 1, 0, [(1, batch(b"a")), (1, command), (1, batch(b"b"))], commit=4))
    lab.run(0.0)
    assert node.commands() == [b"a", b"b"]
    assert node.raft.core.applied_index() == 4
    assert node.raft.core.peers() == [1, 3]


def test_entries_are_applied_once_each_in_order() -> None:
    """However many are committed at a time, also when they take several turns."""
    lab = Lab(by_hand=True)
    node = lab[2]
    values = [b"%d" % number + b"x" * 300_000 for number in range(10)]
    node.receive(1, append(1, 1, 0, [(1, batch(value)) for value in values], commit=11))
    node.step()
    assert 0 < len(node.commands()) < 10, "a turn applies about a megabyte"
    lab.run(0.0)
    assert node.commands() == values


@pytest.mark.parametrize(
    "size",
    [0, 1, 31, 32, 255, 256, 65_535, 65_536, 65_537, 1_048_576, limits.MAX_ENTRY_BYTES - 100, limits.MAX_ENTRY_BYTES],
)
def test_h12_entries_of_every_size_replicate(size: int) -> None:
    """No size of an entry up to the limit gets stuck, among others before and behind it."""
    lab = Lab(config=RaftConfig(open_entries=8))
    leader = lab.wait_for_leader()
    values = [b"before", b"v" * size, b"behind"]
    outcomes = [lab.commit(leader, value) for value in values]
    assert all(outcome.ok for outcome in outcomes)
    lab.run(0.3)
    assert all(replica.commands() == values for replica in lab.nodes.values())


def test_entries_stay_below_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Proposals gathered for one entry are split by bytes, and keep their order."""
    monkeypatch.setattr(limits, "MAX_OPEN_BYTES", 4 * limits.MAX_ENTRY_BYTES)
    lab = Lab(by_hand=True, config=RaftConfig(open_entries=100))
    leader = lab.elect(1)
    lab.pump()
    first = leader.raft.log.last_index + 1
    values = [b"%03d" % number + b"v" * 60_000 for number in range(200)]
    outcomes = [leader.put(value) for value in values]
    lab.run(0.0)
    sizes = [len(entry[0]) for entry in leader.raft.log.between(first, leader.raft.log.last_index + 1)]
    assert len(sizes) == 3
    assert max(sizes) <= limits.MAX_ENTRY_BYTES + 64
    lab.pump()
    assert all(outcome.ok for outcome in outcomes)
    lab.tick(1, after=0.2)
    lab.pump()
    assert leader.commands() == lab[2].commands() == values


def test_proposals_of_a_turn_share_one_entry() -> None:
    """What gathers while an entry is open goes into the next one together."""
    lab = Lab(by_hand=True)
    leader = lab.elect(1)
    lab.pump()
    last = leader.raft.log.last_index
    first = [leader.put(b"%d" % number) for number in range(50)]
    lab.run(0.0)
    second = [leader.put(b"%d" % number) for number in range(50, 100)]
    lab.run(0.0)
    assert leader.raft.log.last_index == last + 1
    lab.pump()
    assert leader.raft.log.last_index == last + 2
    assert all(outcome.ok for outcome in first + second)


def test_h14f_log_storage_never_fails_in_the_middle() -> None:
    """Adding to the log touches memory only; an entry out of order is a broken promise, not a lost callback."""
    lab = Lab(by_hand=True)
    leader = lab.elect(1)
    leader.sync_delay = None
    appended = len(leader.durable)
    outcome = leader.put(b"a")
    lab.run(0.0)
    assert len(leader.durable) == appended
    assert outcome.answers == []
    with pytest.raises(BrokenInvariant, match="added after"):
        leader.raft.log.append(b"\x01", 99, 1)


def test_log_refuses_entries_out_of_order() -> None:
    """A log that is recovered with a hole is not used."""
    with pytest.raises(BrokenInvariant, match="at position"):
        GroupLog(GROUP, Outputs(), (1, 0), (1,), [(b"\x01", 3, 1)], 1, 0)


def test_group_time_never_goes_back() -> None:
    """Over leaders with different clocks and restarts the time of entries only grows (the machine checks it)."""
    lab = Lab()
    for number, rate in enumerate((0.9, 1.1, 1.0)):
        leader = lab.wait_for_leader()
        leader.set_rate(rate)
        for _ in range(10):
            assert lab.commit(leader, b"a").ok
            lab.run(0.05)
        leader.kill()
        lab.run(1.0)
        leader.start()
        assert number < 3
    leader = lab.wait_for_leader()
    assert lab.commit(leader, b"b").ok
    times = [time for time, _, _ in leader.machine.applied]
    assert times == sorted(times)
    assert 1000 < times[-1] < 6000


def test_restarted_node_catches_up() -> None:
    """A node that was away gets all it missed, in a few messages, and applies it in order."""
    lab = Lab(config=RaftConfig(open_entries=64))
    leader = lab.wait_for_leader()
    away = next(replica for replica in lab.nodes.values() if replica is not leader)
    away.kill()
    for number in range(300):
        leader.put(b"%d" % number)
        lab.run(0.001)
    lab.run(0.2)
    before = lab.messages
    away.start()
    lab.run(0.5)
    assert away.commands() == leader.commands()
    assert len(away.commands()) == 300
    assert lab.messages - before < 60


def test_malformed_messages_are_refused_and_change_nothing() -> None:
    """A message of the wrong shape is reported by False, and neither state, WAL nor network notice it."""
    lab = GroupLab(by_hand=True)
    leader = lab.elect(1)
    lab.pump()
    good: list[list[Any]] = [
        append(1, 1, 0, [(1, batch(b"a"))]),
        [GROUP, Type.ACK, 1, 1, 1, True, 3, 2, [1, 1]],
        [GROUP, Type.STALE, 9],
        [GROUP, Type.PREVOTE, 9, 9, 9],
        [GROUP, Type.PREVOTE_REPLY, 9, True, 9],
        [GROUP, Type.VOTE, 9, 9, 9, True],
        [GROUP, Type.VOTE_REPLY, 9],
        [GROUP, Type.TIMEOUT_NOW, 9],
        [GROUP, Type.SNAPSHOT_OFFER, 9, 9, 9, 9],
        [GROUP, Type.SNAPSHOT_PULL, 9, 9, 9],
        [GROUP, Type.SNAPSHOT_CHUNK, 9, 9, 9, b"data"],
        [GROUP, Type.HEARD, 9, 9],
        [GROUP, Type.LOST, 9, 9, 9],
        [GROUP, Type.BARRED, 9],
    ]
    assert [message[1] for message in good] == list(Type)
    bad: list[list[Any]] = [[GROUP], [GROUP, 0], [GROUP, 99], [GROUP, "1"], [GROUP, None], [GROUP, [1]], [GROUP, True]]
    for message in good:
        bad += [message[:-1], [*message, 1]]
        for position in range(2, len(message)):
            wrong: tuple[Any, ...] = (None, "x", -1, 1.5, {}, [], [1], [[1]], b"x", True, 3, 2**62, 2**64 - 1)
            for value in wrong:
                if type(value) is not type(message[position]) or value in (-1, 2**62, 2**64 - 1):
                    bad.append([*message[:position], value, *message[position + 1 :]])
    shapes: list[Any] = [[[1]], [[1, b""]], [["1", b"x"]], [[1, "x"]], [None], [[1, b"x", 2]], [5]]
    for entries in shapes:
        bad.append(append(1, 1, 0, entries))
    status, appended = leader.status(), leader.recorded
    refused = 0
    for message in bad:
        if message[1:2] == [Type.APPEND] and message[-1] == []:
            continue  # an append without entries is well-formed
        assert leader.receive(2, message) is False, message
        refused += 1
    lab.run(0.0)
    assert refused > 300
    assert (leader.status(), leader.recorded, lab.wire) == (status, appended, [])
