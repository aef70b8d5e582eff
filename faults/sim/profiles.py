"""Profiles: changes of a storm, to be put one upon the other, that make some kind of fault likely to matter."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal

from faults.sim.network import Conditions
from faults.sim.storm import Bounds, Storm


def quick(
    storm: Storm,
    *,
    nodes: int = 3,
    groups: int = 1,
    times: tuple[float, float, float] = (0.15, 0.25, 0.03),
    delay: float = 0.002,
    sync: float = 0.0005,
    reads: Literal["lease", "quorum"] = "lease",
    clients: int = 1,
    pause: float = 0.1,
    aim: float = 1.0,
    seconds: float = 15.0,
    workloads: tuple[str, ...] = ("registers",),
) -> Storm:
    """A small cluster with little to do, whose storms cost little. ``times``: shortest and longest election time-out,
    heartbeat. ``delay``: of the network. ``sync``: of a disk."""
    low, high, heartbeat = times
    settings = replace(
        storm.settings,
        reads=reads,
        election_min=low,
        election_max=high,
        heartbeat=heartbeat,
        sync=sync,
        sync_spread=0.5,
        conditions=Conditions(base=delay, spread=0.5, slow=0.02, tail=0.02),
    )
    calm = replace(storm, nodes=nodes, replicas=nodes, groups=groups, settings=settings, clients=clients, tasks=1)
    own = replace(calm, pause=pause, aim=aim, seconds=seconds, workloads=workloads)
    return replace(own, bounds=None, cancels=0.0, timeout=2.0)


def busy(storm: Storm, *, clients: int = 3, pause: float = 0.03, **others: Any) -> Storm:
    """The same with more to do."""
    return quick(storm, clients=clients, pause=pause, **others)


def impatient(storm: Storm) -> Storm:
    """Many calls end before anybody knows what came of them."""
    return replace(busy(storm, workloads=("unique-set",), seconds=10.0), timeout=0.3)


def small_appends(storm: Storm) -> Storm:
    """A follower that has missed some takes long to catch up, since it gets few entries at a time."""
    few = Bounds(sessions=4096, idle=3600.0, snapshot_chunk=2048, apply=4096, entry=256, appends=1, expired=1000)
    return replace(storm, bounds=few, tasks=2, timeout=0.5)


def small_snapshots(storm: Storm) -> Storm:
    """Taken often, and nothing is kept behind them."""
    small = replace(storm.settings, snapshot_bytes=1024, chunk_bytes=512, keep_entries=0, segment_bytes=4096)
    return replace(storm, settings=small)


def one_segment(storm: Storm) -> Storm:
    """All of the log is in one segment, so that what rots on a disk is a snapshot."""
    return replace(storm, settings=replace(storm.settings, segment_bytes=1024 * 1024))


def again(storm: Storm, share: float) -> Storm:
    conditions = replace(storm.settings.conditions, again=share, late=0.8)
    return replace(storm, settings=replace(storm.settings, conditions=conditions))


def gentle(storm: Storm) -> Storm:
    """Each fault leaves every group a majority, and no group may go without a write for long."""
    calm = quick(storm, times=(0.5, 0.9, 0.1), delay=0.0005, clients=2)
    return replace(calm, gentle=True, timeout=5.0)


def many_segments(storm: Storm) -> Storm:
    """The log is in many segments, so that what rots on a disk is one of them."""
    return replace(storm, settings=replace(storm.settings, segment_bytes=4096, snapshot_bytes=1024 * 1024))


def moving(workload: str, *, seconds: float = 12.0, moves: float = 0.2, tasks: int = 1) -> Callable[[Storm], Storm]:
    """Slots move all the time, and this work goes on."""

    def change(storm: Storm) -> Storm:
        calm = busy(storm, groups=3, delay=0.004, sync=0.004, seconds=seconds, workloads=(workload,))
        return replace(calm, moves=moves, tasks=tasks)

    return change


def locking(storm: Storm) -> Storm:
    """Clients that stand still now and then, whose clocks run fast or slow, have little else to do than lock."""
    return replace(busy(storm, clients=4, seconds=10.0, workloads=("locks",)), stalls=1.0)


def changing_his_mind(storm: Storm) -> Storm:
    """Small moves are often cancelled, while leaders of the meta group come and go."""
    times = (0.25, 0.4, 0.05)
    calm = quick(storm, groups=3, times=times, clients=2, pause=0.02, delay=0.005, sync=0.005, seconds=20.0)
    settings = replace(calm.settings, conditions=Conditions(base=0.005, spread=1.0))
    actions = {"plan": 6, "cancel": 3, "pause": 0, "add group": 0, "remove group": 0, "prefer": 0}
    return replace(calm, settings=settings, moves=0.15, workloads=("counter",), actions=actions)


def changing_members(storm: Storm, *, nodes: int = 5, replicas: int = 3) -> Storm:
    """Groups get other members all the time."""
    calm = quick(storm, nodes=nodes, groups=2, clients=2, pause=0.03, delay=0.004, sync=0.004, seconds=12.0)
    actions = {"plan": 1, "members": 12, "add group": 0}
    return replace(calm, replicas=replicas, moves=0.3, members=True, workloads=("counter",), actions=actions)
