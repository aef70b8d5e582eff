"""By hand in the Raft laboratory: groups whose members change."""

from __future__ import annotations

from collections.abc import Callable

from faults.sim.raftlab import Lab
from faults.sim.raftreplica import LabAnswer, LabReplica
from raftkv.errors import Code
from raftkv.raft import RaftConfig


def led(
    nodes: int = 4,
    founders: tuple[int, ...] = (1, 2, 3),
    learners: tuple[int, ...] = (4,),
    config: RaftConfig | None = None,
    kind: Callable[..., Lab] = Lab,
) -> tuple[Lab, LabReplica]:
    """By hand: node 1 leads and has heard of everyone."""
    lab = kind(nodes, founders=founders, by_hand=True, config=config)
    lab.set_learners(*learners)
    leader = lab.elect(1)
    beat(lab)
    return lab, leader


def beat(lab: Lab, node: int = 1, times: int = 2) -> None:
    """Heartbeats of ``node``, so that everyone in reach holds its log and knows its commit index."""
    for _ in range(times):
        lab.tick(node, after=0.15)
        lab.pump()


def write(lab: Lab, leader: LabReplica, *values: bytes) -> None:
    for value in values:
        outcome = leader.put(value)
        lab.run(0.0)
        lab.pump()
        assert outcome.ok


def change(lab: Lab, leader: LabReplica, *voters: int) -> None:
    """A change that succeeds, and that everyone in reach gets to know."""
    outcome = leader.change(*voters)
    lab.run(0.0)
    lab.pump()
    assert outcome.ok, outcome
    beat(lab, leader.node)


def refusal(outcome: LabAnswer) -> str:
    assert outcome.code == Code.CONDITION_FAILED, outcome
    return outcome.answers[0].detail
