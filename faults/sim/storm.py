"""What a seed draws: a cluster, its network and disks, who works on it, and which faults come how often.

Each seed leaves most kinds of faults out ("swarm testing"), so that those that are left meet more often, and no two
storms are alike.
"""

from __future__ import annotations

import contextlib
import math
import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Final, Literal
from unittest import mock

import raftkv.store.ageing as ageing_module
import raftkv.store.history as history_module
import raftkv.store.records as records_module
import raftkv.store.snapshot as snapshot_module
from faults.sim.cluster import SimSettings
from faults.sim.network import Conditions
from faults.workloads.kinds import MIXED
from raftkv import limits
from raftkv.raft import consensus

NETWORK: Final = ("partition", "bridge", "ring", "one way", "flapping", "reset", "slow link", "drop replies")
DISK: Final = ("power loss", "blackout", "slow sync", "failing sync", "full disk", "flipped bit")
PROCESS: Final = ("kill", "stop", "transfer", "pause", "drift", "wild clock", "wiped disk")
KINDS: Final[tuple[str, ...]] = (*NETWORK, *DISK, *PROCESS)
"""Every kind of fault that somebody injects at a moment. Loss, tails and late bytes are part of the network's
conditions all the time."""

RUINOUS: Final = ("flipped bit", "wiped disk")
"""After these a node does not come back; a storm has room for a minority of each group only."""

GENTLE: Final = (
    "partition",
    "one way",
    "flapping",
    "reset",
    "kill",
    "power loss",
    "stop",
    "transfer",
    "pause",
    "slow sync",
)
"""Of these one at a time leaves each group a healthy majority."""

DRIFT: Final = 0.048
"""Clock rates within 1 +- this differ by less than the lease's allowance of a tenth."""

FASTEST_WILD: Final = 4.0
"""The highest rate of a clock that leaves the allowance."""

MOVING: Final = 1_000_000
"""Seeds from here on draw storms in which slots, groups and members move."""

TRANSACTING: Final = 2_000_000
"""Seeds from here on draw storms of transactions and counters; slots move in half of them."""

LOCKING: Final = 3_000_000
"""Seeds from here on draw storms of locks and watches; slots move in half of them."""

_FAR: Final = 0.2
"""Of the storms but gentle ones: their nodes and clients are far from each other."""

_SHARE: Final = 0.35
"""Of the kinds of faults in one storm."""


@dataclass(frozen=True, slots=True)
class Bounds:
    """Bounds of the product that a small simulation would never reach. Sizes in bytes, times in seconds.

    ``sessions``: of a slot. ``idle``: group time after which a session goes. ``snapshot_chunk``: of the state, between
    two of which others may write. ``apply``: applied in one turn. ``entry``: of one entry, and of what one append
    carries. ``appends``: sent before the first acknowledgement. ``expired``: records and sessions that one entry
    removes. ``kept``: of the results that a slot keeps. ``scan``: keys that a page of a scan looks at.
    """

    sessions: int
    idle: float
    snapshot_chunk: int
    apply: int
    entry: int
    appends: int
    expired: int
    kept: int = limits.MAX_KEPT_BYTES
    scan: int = limits.MAX_SCAN_KEYS

    @contextlib.contextmanager
    def tight(self) -> Iterator[None]:
        """The product within these bounds."""
        changes = (
            (limits, "MAX_SESSIONS_PER_SLOT", self.sessions),
            (records_module, "_EVICTED_AT_ONCE", 1),
            (ageing_module, "IDLE_MS", int(self.idle * 1000)),
            (limits, "SNAPSHOT_CHUNK_BYTES", self.snapshot_chunk),
            (snapshot_module, "_ITEM_BYTES", max(1, self.snapshot_chunk // 8)),
            (consensus, "_APPLY_BYTES", self.apply),
            (limits, "MAX_ENTRY_BYTES", self.entry),
            (limits, "MAX_INFLIGHT_APPENDS", self.appends),
            (limits, "MAX_EXPIRED_PER_ENTRY", self.expired),
            (limits, "MAX_KEPT_BYTES", self.kept),
            (limits, "MAX_SCAN_KEYS", self.scan),
            (history_module, "_BLOCK_EVENTS", 2),
        )
        with contextlib.ExitStack() as stack:
            for module, name, value in changes:
                stack.enter_context(mock.patch.object(module, name, value))
            yield


@dataclass(frozen=True, slots=True)
class Storm:
    """The plan of one run. Times in seconds.

    ``tasks``: of each client, which share it. ``timeout``: of the clients' calls. ``pause``: usual time between two
    steps of a task. ``cancels``: share of the writes that the caller gives up by cancelling them. ``faults``: kind ->
    usual time between the starts of two. ``aim``: share of process and disk faults that are aimed at a leader.
    ``wild``: clocks may leave the allowance of leases, so reads ask a majority. ``gentle``: one fault of a minority at
    a time, so every group must go on. ``moves``: usual time between two actions of an operator who moves slots and
    groups, 0 = there is none; ``members``: he changes members too; ``actions``: how often he does what, where that is
    not as usual. ``stalls``: usual time between two moments in which a client stands still for less than a second,
    while its clock, which runs fast or slow as those of nodes may, goes on; 0 = never.
    """

    seed: int
    nodes: int
    groups: int
    replicas: int
    slots: int
    settings: SimSettings
    seconds: float
    clients: int
    tasks: int
    workloads: tuple[str, ...]
    timeout: float
    pause: float
    cancels: float
    faults: dict[str, float]
    aim: float
    wild: bool
    gentle: bool = False
    bounds: Bounds | None = None
    moves: float = 0.0
    members: bool = False
    actions: Mapping[str, int] = field(default_factory=dict)
    stalls: float = 0.0

    @classmethod
    def draw(cls, seed: int) -> Storm:
        """The same seed always gives the same storm; every tenth below MOVING is a gentle one."""
        if seed >= LOCKING:
            storm = cls._draw_locking(seed)
        elif seed >= TRANSACTING:
            storm = cls._draw_transacting(seed)
        elif seed >= MOVING:
            storm = cls._draw_moving(seed)
        else:
            storm = cls.draw_gentle(seed) if seed % 10 == 0 else cls._draw_wild(seed)
        far = random.Random(f"far {seed}")
        if far.random() < _FAR and not storm.gentle:
            # A vote and an append still come in time, but many entries of a leader are on their way at once.
            base = _logarithmic(far, 0.02, 0.2) * storm.settings.election_min
            conditions = replace(storm.settings.conditions, base=base, spread=0.2)
            storm = replace(storm, settings=replace(storm.settings, conditions=conditions))
        one_machine = random.Random(f"machines {seed}").random() < 0.5
        return replace(storm, settings=replace(storm.settings, one_machine=one_machine))

    @classmethod
    def draw_gentle(cls, seed: int) -> Storm:
        """A storm that must not stop any group for long."""
        rng = random.Random(f"storm {seed}")
        nodes = rng.choice((3, 5))
        return cls(
            seed=seed,
            nodes=nodes,
            groups=rng.choice((1, 3)),
            replicas=nodes,
            slots=256,
            settings=_gentle_settings(rng),
            seconds=round(rng.uniform(15.0, 25.0), 1),
            clients=3,
            tasks=1,
            workloads=(rng.choice(MIXED),),
            timeout=5.0,
            pause=0.05,
            cancels=0.0,
            faults={rng.choice(GENTLE): 1.0},
            aim=0.8,
            wild=False,
            gentle=True,
        )

    @classmethod
    def _draw_moving(cls, seed: int) -> Storm:
        rng = random.Random(f"moves {seed}")
        storm = replace(cls._draw_wild(seed), moves=_logarithmic(rng, 0.2, 2.0), groups=rng.choice((1, 2, 3)))
        if rng.random() < 0.5:
            # Who is a member changes all the time, so that no count of ruined nodes would stay below a majority.
            faults = {kind: seconds for kind, seconds in storm.faults.items() if kind not in RUINOUS}
            storm = replace(storm, members=True, nodes=5, replicas=3, faults=faults)
        return storm

    @classmethod
    def _draw_transacting(cls, seed: int) -> Storm:
        rng = random.Random(f"transactions {seed}")
        storm = cls._draw_moving(seed) if rng.random() < 0.5 else cls._draw_wild(seed)
        workloads = rng.choice((("transactions",), ("transactions",), ("increments", "transactions")))
        faults = {**storm.faults, "drop replies": round(_logarithmic(rng, 0.3, 3.0), 2)}
        return replace(storm, workloads=workloads, faults=faults)

    @classmethod
    def _draw_locking(cls, seed: int) -> Storm:
        rng = random.Random(f"locks {seed}")
        storm = cls._draw_moving(seed) if rng.random() < 0.5 else cls._draw_wild(seed)
        workloads = rng.choice((("locks",), ("locks",), ("locks", "watches")))
        # No lease vouches for anything where clocks are wild.
        faults = {kind: seconds for kind, seconds in storm.faults.items() if kind != "wild clock"}
        return replace(storm, workloads=workloads, faults=faults, wild=False, stalls=_logarithmic(rng, 0.5, 4.0))

    @classmethod
    def _draw_wild(cls, seed: int) -> Storm:
        rng = random.Random(f"storm {seed}")
        nodes = rng.choice((3, 3, 5))
        replicas = rng.choice((3, 5)) if nodes == 5 else 3
        faults = _faults(rng)
        workloads = tuple(sorted(rng.sample(MIXED, rng.choice((1, 2, 2)))))
        if "retry" in workloads:
            faults.setdefault("drop replies", round(_logarithmic(rng, 0.5, 2.0), 2))
        wild = "wild clock" in faults
        return cls(
            seed=seed,
            nodes=nodes,
            groups=rng.choice((1, 2, 3)),
            replicas=replicas,
            slots=256,
            settings=_settings(rng, "quorum" if wild or rng.random() < 0.25 else "lease"),
            seconds=round(rng.uniform(6.0, 16.0), 1),
            clients=rng.randint(2, 5),
            tasks=rng.choice((1, 1, 2, 3)),
            workloads=workloads,
            timeout=rng.choice((0.5, 2.0, 5.0)),
            pause=_logarithmic(rng, 0.01, 0.15),
            cancels=rng.choice((0.0, 0.0, 0.05)),
            faults=faults,
            aim=rng.choice((0.0, 0.5, 0.9)),
            wild=wild,
            bounds=_bounds(random.Random(f"bounds {seed}")),
        )

    @property
    def fastest_clock(self) -> float:
        """Seconds that a node's clock may show in one true second."""
        return FASTEST_WILD if self.wild else 1.0 + DRIFT

    def describe(self) -> list[str]:
        """Lines for people."""
        settings, wire = self.settings, self.settings.conditions
        snapshots = f"snapshots after {settings.snapshot_bytes}, sent in parts of {settings.chunk_bytes}"
        often = ", ".join(f"{kind} every {seconds:.1f} s" for kind, seconds in sorted(self.faults.items()))
        nodes = f"{self.nodes} nodes{' of one machine' * settings.one_machine}"
        return [
            f"{nodes}, {self.groups} groups of {self.replicas}, {settings.reads} reads, {self.seconds} s",
            f"{self.clients} clients of {self.tasks} tasks, workloads {', '.join(self.workloads)}",
            f"calls of {self.timeout} s, a step every {self.pause * 1000:.0f} ms, {self.cancels:.0%} of writes dropped",
            f"segments of {settings.segment_bytes} bytes, {snapshots}, {settings.keep_entries} entries kept",
            f"syncs of {settings.sync * 1000:.2f} ms, delays of {wire.base * 1000:.2f} ms, {wire.slow:.1%} slow",
            f"{wire.loss:.1%} lost, after a reset {wire.late:.0%} late and {wire.again:.0%} again",
            f"bounds: {self.bounds or 'usual'}",
            *([f"an operator every {self.moves:.1f} s{', members too' * self.members}"] if self.moves else ()),
            *([f"a client stalls every {self.stalls:.1f} s"] if self.stalls else ()),
            f"faults: {often or 'none'}; {self.aim:.0%} aimed at leaders{', one at a time' if self.gentle else ''}",
        ]


def _faults(rng: random.Random) -> dict[str, float]:
    chosen = [kind for kind in KINDS if rng.random() < _SHARE]
    if "drift" in chosen and "wild clock" in chosen:
        chosen.remove("drift")
    return {kind: round(_logarithmic(rng, 0.8, 8.0), 2) for kind in chosen}


def _settings(rng: random.Random, reads: Literal["lease", "quorum"]) -> SimSettings:
    calm = rng.choice((0.15, 0.25, 0.5))
    return SimSettings(
        election_min=calm,
        election_max=calm * rng.uniform(1.3, 2.0),
        heartbeat=calm / 5,
        segment_bytes=rng.choice((4096, 8192, 32 * 1024)),
        snapshot_bytes=rng.choice((4096, 8192, 16 * 1024)),
        chunk_bytes=rng.choice((512, 1024, 4096)),
        keep_entries=rng.choice((0, 5, 20, 50)),
        reads=reads,
        sync=_logarithmic(rng, 0.0002, 0.01),
        sync_spread=rng.choice((0.2, 0.5, 1.0)),
        conditions=Conditions(
            base=_logarithmic(rng, 0.0002, 0.01),
            spread=rng.choice((0.2, 0.5, 1.0)),
            slow=rng.choice((0.0, 0.01, 0.05)),
            tail=_logarithmic(rng, 0.002, 0.05),
            loss=rng.choice((0.0, 0.0, 0.005, 0.03)),
            pieces=rng.choice((0.0, 0.05, 0.3)),
            late=rng.choice((0.0, 0.3, 0.8)),
            again=rng.choice((0.0, 0.0, 0.1, 0.5)),
        ),
    )


def _bounds(rng: random.Random) -> Bounds | None:
    """None: those of the product."""
    if rng.random() < 0.3:
        return None
    return Bounds(
        sessions=rng.choice((2, 3, 4096)),
        idle=rng.choice((0.5, 2.0, 6.0, 3600.0)),
        snapshot_chunk=rng.choice((64, 512, 2048)),
        apply=rng.choice((1, 256, 4096)),
        entry=rng.choice((256, 1024, 8192)),
        appends=rng.choice((1, 4, 64)),
        expired=rng.choice((1, 3, 1000)),
        kept=rng.choice((400, 2000, limits.MAX_KEPT_BYTES)),
        scan=rng.choice((5, 50, 2048)),
    )


def _gentle_settings(rng: random.Random) -> SimSettings:
    """Times as a real cluster in one room has them."""
    usual = SimSettings()
    return replace(
        _settings(rng, "lease"),
        election_min=usual.election_min,
        election_max=usual.election_max,
        heartbeat=usual.heartbeat,
        sync=0.001,
        sync_spread=0.2,
        conditions=Conditions(tail=0.002),
    )


def _logarithmic(rng: random.Random, low: float, high: float) -> float:
    """A number between the bounds whose logarithm is spread evenly."""
    return math.exp(rng.uniform(math.log(low), math.log(high)))
