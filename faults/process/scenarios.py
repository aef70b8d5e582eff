"""What a run does to the cluster, by name."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from faults.process.nemesis import FAULTS
from faults.workloads.kinds import MIXED


@dataclass(frozen=True, slots=True)
class ChaosScenario:
    """``faults``: kinds, injected one after the other in a random order, each as often as the others.

    ``combined``: two at a time. ``operator``: usual seconds between two actions of an operator meanwhile (slots
    move, moves are cancelled, leaderships are handed over), 0 = nothing.
    """

    name: str
    what: str
    faults: tuple[str, ...]
    workloads: tuple[str, ...] = MIXED
    combined: bool = False
    operator: float = 0.0


_SCENARIOS: Final = (
    ChaosScenario(
        "simple",
        "set a key, kill a random replica, read the key back: what a demonstration would show",
        ("kill leader", "kill follower"),
        workloads=("read-back",),
    ),
    ChaosScenario(
        "kills",
        "kill -9 of leader, follower, minority, majority, all; orderly stops",
        tuple(kind for kind in FAULTS if kind.startswith(("kill", "stop"))),
    ),
    ChaosScenario("leaders", "leaders die or are isolated, all the time", ("kill leader", "isolate leader")),
    ChaosScenario(
        "pauses", "SIGSTOP for 1 to 30 s", ("pause leader", "pause follower", "pause majority", "long pause")
    ),
    ChaosScenario(
        "partitions",
        "cuts between nodes, as black holes and as resets",
        ("isolate leader", "split", "one way", "bridge", "majorities ring"),
    ),
    ChaosScenario(
        "links",
        "links that flap, delay, throttle, slice, or stay open behind a dead node",
        ("flapping", "latency", "bandwidth", "slicer", "slow close"),
    ),
    ChaosScenario(
        "clients",
        "clients lose sight of nodes, or are alone with an old leader, while leaders die",
        ("cut client", "lose answers", "isolate with client", "kill leader"),
    ),
    ChaosScenario("disks", "disks that are slow or full", ("slow disk", "full disk")),
    ChaosScenario(
        "moves",
        "slots move and leaderships are handed over while leaders die, stop or are cut off",
        ("kill leader", "isolate leader", "split", "pause leader", "one way", "kill majority"),
        operator=1.5,
    ),
    ChaosScenario(
        "replacement",
        "nodes are lost for good and replaced, while others are slow, cut off or killed",
        ("replace node", "latency", "replace node", "one way", "replace node", "kill follower"),
        operator=4.0,
    ),
    ChaosScenario(
        "combined",
        "two faults at a time, while slots move",
        (
            "kill leader",
            "kill follower",
            "pause leader",
            "isolate leader",
            "split",
            "one way",
            "bridge",
            "flapping",
            "latency",
            "cut client",
            "lose answers",
            "kill majority",
        ),
        combined=True,
        operator=2.0,
    ),
    ChaosScenario(
        "abuse",
        "floods, idle connections and answers that nobody reads, two at a time, while leaders die",
        ("flood", "idle sockets", "large answers", "kill leader"),
        combined=True,
    ),
    ChaosScenario(
        "bank",
        "transfers between accounts: the total never changes",
        ("kill leader", "isolate leader", "pause leader", "split", "one way", "kill all"),
        workloads=("bank",),
        operator=3.0,
    ),
    ChaosScenario(
        "scans",
        "scans over all groups miss nothing that stands and give nothing twice, while slots move and leaders die",
        ("kill leader", "isolate leader", "pause leader", "one way", "cut client"),
        workloads=("scans",),
        operator=1.5,
    ),
    ChaosScenario(
        "transactions",
        "transactions on keys of one slot and counters, each once, while replies are lost and slots move",
        ("kill leader", "isolate leader", "pause leader", "lose answers", "cut client", "kill all"),
        workloads=("increments", "transactions"),
        operator=3.0,
    ),
    ChaosScenario(
        "watches",
        "watches are told each change once and in order, beside transactions and scans, while slots and leaders move",
        ("kill leader", "isolate leader", "pause leader", "one way", "cut client", "kill all"),
        workloads=("watches", "transactions", "scans"),
        operator=1.5,
    ),
)

SCENARIOS: Final = {one.name: one for one in _SCENARIOS}
