"""Members that come and go in the middle of random faults: there is one history and one line of changes.

A failure names its seed; ``pytest tests/unit/test_raft_members_storm.py -k 'seed17'`` repeats it exactly.
"""

from typing import Any

import pytest

from faults.sim.persisted import LabError
from faults.sim.raftstorm import MemberStorm
from raftkv.errors import RaftKVError
from raftkv.raft.configurations import Configurations
from raftkv.raft.leadership import Leadership
from raftkv.raft.log import GroupLog


@pytest.mark.parametrize("seed", range(25), ids=lambda seed: f"seed{seed}")
def test_no_fault_breaks_a_promise_while_members_change(seed: int) -> None:
    """Additions, removals, learners, dropped replicas, kills, power loss, cuts, loss, repeats, transfers, snapshots."""
    storm = MemberStorm(seed)
    storm.run()
    assert storm.written > 10


@pytest.mark.parametrize("fix", ["replay", "truncation", "the term is open"])
def test_storm_notices_a_fix_that_is_off(monkeypatch: pytest.MonkeyPatch, fix: str) -> None:
    """The storm is worth something only if it finds planted faults: within a few seeds it does."""
    if fix == "truncation":
        monkeypatch.setattr(Configurations, "truncate", lambda configurations, first: None)
    elif fix == "the term is open":
        monkeypatch.setattr(Leadership, "open", property(lambda _: True, lambda *_: None), raising=False)
    else:
        plain, note = GroupLog.__init__, GroupLog._note

        def forgetful(log: GroupLog, *arguments: Any) -> None:
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(GroupLog, "_note", lambda *_: None)
                plain(log, *arguments)
            assert GroupLog._note is note

        monkeypatch.setattr(GroupLog, "__init__", forgetful)
    with pytest.raises((AssertionError, LabError, RaftKVError)):  # noqa: PT012 - whichever seed it is
        for seed in range(15):
            MemberStorm(seed).run()
