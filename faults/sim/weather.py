"""The weather in which planted faults are likely to matter: changes of a storm, to be put one upon the other."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Literal

from faults.sim.network import Conditions
from faults.sim.storm import MOVING, RUINOUS, Bounds, Storm


def three(storm: Storm) -> Storm:
    return with_reads(replace(storm, nodes=3, replicas=3, groups=1), "lease")


def five(storm: Storm) -> Storm:
    return with_reads(replace(storm, nodes=5, replicas=5, groups=1), "lease")


def restless(storm: Storm) -> Storm:
    """Short terms and much to write."""
    fast = replace(storm.settings, election_min=0.15, election_max=0.25, heartbeat=0.03)
    return replace(storm, pause=0.005, settings=fast, workloads=("registers", "unique-set"))


def far_apart(storm: Storm) -> Storm:
    """Connections take long to be made, compared with a term; all nodes fail alike."""
    far = Conditions(base=0.006, spread=0.5)
    settings = replace(storm.settings, election_min=0.2, election_max=0.3, heartbeat=0.04, sync=0.0005, conditions=far)
    return replace(storm, settings=settings, groups=3, aim=0.0, clients=2, tasks=1, pause=0.05, seconds=30.0)


def again(storm: Storm, share: float = 0.5) -> Storm:
    conditions = replace(storm.settings.conditions, again=share, late=0.8)
    return replace(storm, settings=replace(storm.settings, conditions=conditions))


def gentle(storm: Storm) -> Storm:
    return replace(Storm.draw_gentle(storm.seed), faults=storm.faults)


def slow_disks(storm: Storm) -> Storm:
    return replace(storm, settings=replace(storm.settings, sync=0.02, sync_spread=0.5))


def often(storm: Storm, **periods: float) -> Storm:
    return replace(storm, faults={**storm.faults, **periods})


def long_tails(storm: Storm) -> Storm:
    """A leader in a minority gathers many entries, since many callers wait for it; and a follower that has missed some
    takes long to catch up, since it gets few at a time."""
    conditions = replace(storm.settings.conditions, base=0.005)
    settings = replace(
        storm.settings,
        election_min=0.25,
        election_max=0.4,
        heartbeat=0.05,
        sync=0.002,
        sync_spread=0.5,
        conditions=conditions,
    )
    few = Bounds(sessions=4096, idle=3600.0, snapshot_chunk=2048, apply=4096, entry=256, appends=1, expired=1000)
    busy = replace(storm, settings=settings, seconds=20.0, clients=5, tasks=6, pause=0.3, timeout=0.5, aim=1.0)
    return replace(busy, bounds=few)


def long_elections(storm: Storm) -> Storm:
    """Votes wait for slow disks and come one by one, while candidates wait long for them."""
    slow = replace(storm.settings, election_min=0.5, election_max=1.0, heartbeat=0.1, sync=0.1, sync_spread=1.0)
    return replace(storm, settings=slow, seconds=20.0, clients=2, tasks=1, pause=0.05)


def small_snapshots(storm: Storm) -> Storm:
    small = replace(storm.settings, snapshot_bytes=4096, chunk_bytes=512, keep_entries=0, segment_bytes=4096)
    return replace(storm, settings=small)


def moving(storm: Storm) -> Storm:
    """Slots move all the time, and somebody often changes his mind."""
    drawn = Storm.draw(MOVING + storm.seed)
    more = {kind: period for kind, period in storm.faults.items() if kind not in (*RUINOUS, "wild clock", "drift")}
    return replace(drawn, seed=storm.seed, moves=0.3, pause=0.02, groups=3, faults={**drawn.faults, **more})


def moving_with(workload: str) -> Callable[[Storm], Storm]:
    """With this work only."""
    return lambda storm: replace(moving(storm), workloads=(workload,))


def changing_his_mind(storm: Storm) -> Storm:
    """Small moves are often cancelled, while leaders of the meta group come and go; nothing else goes wrong."""
    drawn = with_reads(moving_with("counter")(storm), "lease")
    settings = replace(drawn.settings, sync=0.005, sync_spread=0.5, conditions=Conditions(base=0.005, spread=1.0))
    deeds = {"plan": 6, "cancel": 3, "pause": 0, "add group": 0, "remove group": 0, "prefer": 0}
    patient = replace(drawn, settings=settings, seconds=40.0, aim=1.0, clients=2, tasks=1, bounds=None)
    return replace(patient, moves=0.15, members=False, faults={"partition": 2.5, "pause": 4.0}, deeds=deeds)


def changing_members(storm: Storm) -> Storm:
    """Groups get other members all the time."""
    drawn = moving_with("counter")(storm)
    calm = {kind: period for kind, period in drawn.faults.items() if kind not in RUINOUS}
    deeds = {"plan": 1, "members": 12, "add group": 0}
    return replace(drawn, nodes=5, replicas=3, members=True, groups=2, faults=calm, seconds=20.0, deeds=deeds)


def with_reads(storm: Storm, reads: Literal["lease", "quorum"]) -> Storm:
    """Leases are only for clocks that keep to their allowance."""
    tame = {kind: often for kind, often in storm.faults.items() if kind != "wild clock"}
    if reads == "lease":
        storm = replace(storm, faults=tame, wild=False)
    return replace(storm, settings=replace(storm.settings, reads=reads))
