"""Random faults over a group of replicas on virtual time: what Raft promises must hold in every run.

A failure names its seed; ``pytest tests/unit/test_raft_storm.py -k 'seed17'`` repeats it exactly.
"""

from typing import Any

import pytest

from faults.sim.persisted import LabError
from faults.sim.raftreplica import LabReplica
from faults.sim.raftstorm import RaftStorm
from raftkv.errors import RaftKVError
from raftkv.raft.consensus import Consensus


@pytest.mark.parametrize("fix", ["append guard", "durability barrier"])
def test_storm_notices_a_fix_that_is_off(monkeypatch: pytest.MonkeyPatch, fix: str) -> None:
    """The storm is worth something only if it finds planted faults: within a few seeds it does."""
    if fix == "durability barrier":
        monkeypatch.setattr(LabReplica, "hold", LabReplica.send)
    else:

        def library_append(
            group: Consensus,
            peer: int,
            term: int,
            seq: int,
            link_number: int,
            at: int,
            at_term: int,
            commit: int,
            raw: Any,
        ) -> None:
            if term >= group.core.term():
                entries = [(command, at + 1 + number, of) for number, (of, command) in enumerate(raw)]
                reply = group.core.receive_append(peer, term, at, at_term, entries, commit)
                group._acknowledge(peer, seq, link_number, matches=reply["success"], index=reply["next_node_idx"])

        monkeypatch.setattr(Consensus, "_on_append", library_append)
    with pytest.raises((AssertionError, LabError, RaftKVError)):  # noqa: PT012 - whichever seed it is
        for seed in range(12):
            RaftStorm(seed).run()


@pytest.mark.parametrize("seed", range(30), ids=lambda seed: f"seed{seed}")
def test_no_fault_breaks_a_promise(seed: int) -> None:
    """Kills, power loss, cuts in one direction, loss, repeats, reordering, drifting clocks: acknowledged writes stay,
    reads are linearizable, replicas apply the same, and the group converges once the faults are over."""
    storm = RaftStorm(seed)
    storm.run()
    assert storm.written > 10
