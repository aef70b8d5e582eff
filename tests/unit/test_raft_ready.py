"""Persist before send, as a property of the value that a step returns."""

from typing import Any

import pytest

from faults.sim.persisted import LabError, Persisted
from faults.sim.raftlab import Lab, append, batch
from faults.sim.raftreplica import GROUP
from raftkv.raft import ready
from raftkv.raft.log import GroupLog
from raftkv.raft.messages import WAITS, Type
from raftkv.raft.ready import Appended, HardState, Ready


def value(*after: list[Any], records: tuple[Any, ...] = (), messages: tuple[Any, ...] = ()) -> Ready:
    return Ready(records, messages, [(2, message) for message in after], (), (), (), None, (), False)


@pytest.mark.parametrize(
    ("said", "record"),
    [
        ([GROUP, Type.VOTE_REPLY, 3], HardState(3, 2)),
        ([GROUP, Type.VOTE, 3, 1, 0, False], HardState(3, 1)),
        ([GROUP, Type.STALE, 3], HardState(3, 0)),
        ([GROUP, Type.ACK, 1, 1, 1, True, 3, 2, (1, 1)], Appended(2, 1, b"\x01")),
    ],
)
def test_what_is_said_follows_from_what_is_persisted(said: list[Any], record: Any) -> None:
    Persisted(1, 1, 0, 1).take(value(said, records=(record,)))
    with pytest.raises(LabError):
        Persisted(1, 1, 0, 1).take(value(said))


def test_what_speaks_of_the_disk_is_among_what_waits_for_it() -> None:
    with pytest.raises(LabError):
        Persisted(1, 1, 0, 1).take(value(messages=((2, [GROUP, Type.STALE, 1]),)))


@pytest.mark.parametrize("fault", ["a vote is not persisted", "an entry is not persisted", "nothing waits"])
def test_the_laboratory_looks_at_every_value(monkeypatch: pytest.MonkeyPatch, fault: str) -> None:
    """It is worth something only if it finds planted faults: an election and a write are enough."""
    if fault == "nothing waits":
        monkeypatch.setattr(ready, "WAITS", tuple(False for _ in WAITS))
    elif fault == "a vote is not persisted":
        monkeypatch.setattr(GroupLog, "set_hard_state", lambda log, term, vote: setattr(log, "term", term))
    else:
        monkeypatch.setattr(GroupLog, "append", _forgetful)
    lab = Lab(by_hand=True)
    with pytest.raises(LabError, match="says"):  # noqa: PT012 - whichever of them it is
        lab[2].receive(1, append(1, 1, 0, [(1, batch(b"a"))]))
        lab.run(0.0)
        lab.elect(3)


def _forgetful(log: GroupLog, command: bytes, index: int, term: int) -> None:
    log.entries.append((command, index, term))


def test_a_step_takes_its_outputs_out_once() -> None:
    lab = Lab(by_hand=True)
    replica = lab[2].raft
    replica.receive(1, append(1, 1, 0, [(1, batch(b"a"))]), lab[2].now())
    first, second = (replica.step(lab[2].now()) for _ in range(2))
    assert [type(record) for record in first.records] == [HardState, Appended]
    assert [message[1] for _, message in first.after] == [Type.ACK]
    assert [message[1] for _, message in first.messages] == [Type.HEARD]
    assert (second.records, second.messages, second.after, second.committed) == ([], [], [], [])
