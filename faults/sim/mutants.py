"""Planted faults: each switches one safeguard off, and the simulator has to notice.

A checker is worth what it has caught. Every mutant is data: which attribute of the product is replaced by what, and in
which weather its fault is likely to matter. docs/simulation.md tells how many storms it took to catch each.
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Final, Literal
from unittest import mock

import raftkv.raft.group as group_module
from faults.sim import planted, planted_moves
from faults.sim.disk import SimFile, SimFileSystem
from faults.sim.storm import MOVING, RUINOUS, Bounds, Storm
from raftkv.client.engine import Engine
from raftkv.client.retry import Progress as Attempts
from raftkv.node.node import RaftNode
from raftkv.node.outbox import DurableOutbox
from raftkv.node.router import Router
from raftkv.raft.core import Core
from raftkv.raft.elections import Elections
from raftkv.raft.group import RaftGroup
from raftkv.raft.snapshots import GroupSnapshots
from raftkv.storage import wal_format
from raftkv.store import copying, meta_commands
from raftkv.store.moving import Moves
from raftkv.store.records import Store
from raftkv.store.sessions import Session
from raftkv.store.slot import Slot

Patch = tuple[Any, str, Any]


@dataclass(frozen=True, slots=True)
class Mutant:
    """``fault``: the hazard of docs/adapter.md, or the promise, that the safeguard guards. ``patches``: (where, name,
    replacement). ``faults``: what the storm has in it for sure. ``only``: nothing else. ``tune``: further changes."""

    name: str
    fault: str
    what: str
    patches: tuple[Patch, ...]
    faults: tuple[str, ...] = ()
    only: bool = False
    tune: Callable[[Storm], Storm] = lambda storm: storm

    def storm(self, seed: int) -> Storm:
        """The storm of ``seed`` in this mutant's weather."""
        drawn = Storm.draw(seed)
        rng = random.Random(f"{self.name} {seed}")
        if self.faults:
            kinds = {} if self.only else dict(drawn.faults)
            kinds.update({kind: round(rng.uniform(0.6, 2.0), 2) for kind in self.faults})
            drawn = replace(drawn, faults=kinds, gentle=False)
        return self.tune(drawn)

    @contextlib.contextmanager
    def in_place(self) -> Iterator[None]:
        """The product with the fault in it."""
        with contextlib.ExitStack() as stack:
            for target, name, value in self.patches:
                stack.enter_context(mock.patch.object(target, name, value))
            yield


# -- weather


def _three(storm: Storm) -> Storm:
    return _with_reads(replace(storm, nodes=3, replicas=3, groups=1), "lease")


def _five(storm: Storm) -> Storm:
    return _with_reads(replace(storm, nodes=5, replicas=5, groups=1), "lease")


def _restless(storm: Storm) -> Storm:
    """Short terms and much to write."""
    fast = replace(storm.settings, election_min=0.15, election_max=0.25, heartbeat=0.03)
    return replace(storm, pause=0.005, settings=fast, workloads=("registers", "unique-set"))


def _again(storm: Storm, share: float = 0.5) -> Storm:
    conditions = replace(storm.settings.conditions, again=share, late=0.8)
    return replace(storm, settings=replace(storm.settings, conditions=conditions))


def _gentle(storm: Storm) -> Storm:
    return replace(Storm.draw_gentle(storm.seed), faults=storm.faults)


def _slow_disks(storm: Storm) -> Storm:
    return replace(storm, settings=replace(storm.settings, sync=0.02, sync_spread=0.5))


def _often(storm: Storm, **periods: float) -> Storm:
    return replace(storm, faults={**storm.faults, **periods})


def _long_tails(storm: Storm) -> Storm:
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


def _long_elections(storm: Storm) -> Storm:
    """Votes wait for slow disks and come one by one, while candidates wait long for them."""
    slow = replace(storm.settings, election_min=0.5, election_max=1.0, heartbeat=0.1, sync=0.1, sync_spread=1.0)
    return replace(storm, settings=slow, seconds=20.0, clients=2, tasks=1, pause=0.05)


def _small_snapshots(storm: Storm) -> Storm:
    small = replace(storm.settings, snapshot_bytes=4096, chunk_bytes=512, keep_entries=0, segment_bytes=4096)
    return replace(storm, settings=small)


def _moving(storm: Storm) -> Storm:
    """Slots move all the time, and somebody often changes his mind."""
    moving = Storm.draw(MOVING + storm.seed)
    more = {kind: often for kind, often in storm.faults.items() if kind not in (*RUINOUS, "wild clock", "drift")}
    return replace(moving, seed=storm.seed, moves=0.3, pause=0.02, groups=3, faults={**moving.faults, **more})


def _moving_with(workload: str) -> Callable[[Storm], Storm]:
    return lambda storm: replace(_moving(storm), workloads=(workload,))


def _with_reads(storm: Storm, reads: Literal["lease", "quorum"]) -> Storm:
    """Leases are only for clocks that keep to their allowance."""
    tame = {kind: often for kind, often in storm.faults.items() if kind != "wild clock"}
    if reads == "lease":
        storm = replace(storm, faults=tame, wild=False)
    return replace(storm, settings=replace(storm.settings, reads=reads))


MUTANTS: Final[tuple[Mutant, ...]] = (
    Mutant(
        "acks of any term",
        "H2",
        "acknowledgements carry their term",
        ((RaftGroup, "_on_ack", planted.any_term_ack),),
        ("partition", "transfer", "reset", "slow link"),
        only=True,
        tune=lambda storm: _often(
            _long_tails(_again(_restless(_five(storm)), 0.9)),
            **{"partition": 0.5, "transfer": 0.3, "reset": 0.05, "slow link": 0.5},
        ),
    ),
    Mutant(
        "acknowledges its own end",
        "H1",
        "an acknowledgement and a commit reach no further than what the append vouches for",
        ((group_module, "judge", planted.vouches_for_all),),
        ("reset", "power loss", "partition", "slow link"),
        only=True,
        tune=lambda storm: _again(_restless(storm)),
    ),
    Mutant(
        "speaks right after a start",
        "H4, lease",
        "a node that has just started is silent for the shortest election time-out",
        ((RaftGroup, "__init__", planted.speaks_at_once),),
        ("bridge", "kill"),
        only=True,
        tune=lambda storm: replace(_three(storm), aim=0.0),
    ),
    Mutant(
        "installs over its own log",
        "H8c",
        "a snapshot that the log holds already is not installed",
        ((GroupSnapshots, "_held", planted.installs_always),),
        ("slow sync", "kill", "partition", "transfer"),
        tune=lambda storm: _small_snapshots(_restless(storm)),
    ),
    Mutant(
        "failed load acknowledged",
        "H8b",
        "only a snapshot that was taken over is acknowledged",
        ((GroupSnapshots, "_give_up", planted.acknowledges_failure),),
        ("full disk", "kill", "partition"),
        tune=_small_snapshots,
    ),
    Mutant(
        "lease from the receipt",
        "promise 2",
        "a lease counts from the time of sending",
        ((RaftGroup, "_on_ack", planted.lease_from_receipt),),
        ("slow link", "one way"),
        only=True,
        tune=_three,
    ),
    Mutant(
        "the latest acknowledgement decides",
        "promise 2",
        "contact is what a majority has acknowledged",
        ((RaftGroup, "contact", planted.contact_of_one),),
        ("partition", "one way"),
        only=True,
        tune=_five,
    ),
    Mutant(
        "lost leaders stay",
        "H5",
        "a leader without contact steps down",
        ((RaftGroup, "tick", planted.never_steps_down),),
        ("one way", "partition", "pause"),
    ),
    Mutant(
        "transfers stick",
        "H14d",
        "a transfer that comes to nothing ends after a while",
        ((RaftGroup, "transfer", planted.transfers_for_ever),),
        ("transfer", "pause"),
        only=True,
        tune=_gentle,
    ),
    Mutant(
        "wiped node votes",
        "H7",
        "a node that comes back with another data folder is refused",
        ((RaftNode, "_admit", planted.admits_anyone),),
        ("wiped disk",),
    ),
    Mutant(
        "damage unnoticed",
        "storage",
        "the WAL's batches carry a checksum",
        ((wal_format, "crc32", lambda *_: 0),),
        ("flipped bit", "power loss"),
    ),
    Mutant(
        "library's append",
        "H1",
        "the append guard: appends go to the library as they come",
        ((RaftGroup, "_on_append", planted.library_append),),
    ),
    Mutant(
        "acknowledges before the sync",
        "H3",
        "messages wait until the WAL is durable",
        ((DurableOutbox, "send_when_durable", DurableOutbox.send),),
        ("power loss",),
    ),
    Mutant(
        "votes before the sync",
        "H3",
        "vote requests and votes wait until the WAL is durable",
        ((DurableOutbox, "send_when_durable", planted.votes_at_once),),
        ("power loss", "slow sync"),
    ),
    Mutant(
        "no fsync",
        "H3",
        "the WAL is synced",
        ((SimFile, "write_durably", SimFile.write_at),),
        ("power loss", "blackout"),
    ),
    Mutant(
        "counts itself at once",
        "H3",
        "the leader counts its own log only as far as it is durable",
        ((RaftGroup, "_advance_commit", planted.counts_itself_at_once),),
        ("power loss", "blackout", "slow sync"),
    ),
    Mutant(
        "commits alone",
        "promise 1",
        "a majority stores an entry before it is acknowledged",
        ((RaftGroup, "_advance_commit", planted.commits_alone),),
    ),
    Mutant(
        "commits older terms",
        "Raft, figure 8",
        "only an entry of the own term is committed by counting",
        (
            (
                RaftGroup,
                "_advance_commit",
                planted.commits_older_terms,
            ),
        ),
        ("kill", "pause", "partition"),
    ),
    Mutant(
        "no refusal of votes",
        "H4, lease",
        "a node that hears a leader refuses its vote",
        ((Elections, "_sticky", lambda _: False),),
        ("one way", "partition"),
    ),
    Mutant(
        "no pre-vote, no refusal",
        "H4",
        "a node that cannot win does not disturb",
        ((Elections, "_sticky", lambda _: False), (Elections, "stand", planted.campaigns_at_once)),
        ("one way",),
    ),
    Mutant(
        "pre-votes survive the leader's voice",
        "H4",
        "a candidate drops its pre-votes when it hears a leader",
        ((Elections, "hear_leader", planted.keeps_prevotes),),
        ("bridge", "flapping"),
        only=True,
        tune=_three,
    ),
    Mutant(
        "offers commit",
        "H8a",
        "a snapshot on its way commits nothing",
        ((GroupSnapshots, "_on_offer", planted.offer_commits),),
        ("partition", "kill"),
    ),
    Mutant(
        "tail dropped at start",
        "H8d",
        "what the WAL holds behind a new snapshot is kept",
        ((group_module, "align", planted.drops_the_tail),),
        ("kill", "power loss", "blackout"),
        only=True,
        tune=lambda storm: _slow_disks(_small_snapshots(storm)),
    ),
    Mutant(
        "refused although it happened",
        "H9, promise 3",
        "a leader that lost its term says UNKNOWN",
        ((RaftGroup, "_stop_leading", planted.tells_refusal),),
        ("partition", "pause"),
    ),
    Mutant(
        "each vote counts",
        "H14a",
        "a voter counts once in a term",
        ((Core, "receive_vote", planted.counts_each_vote),),
        ("transfer", "reset", "kill"),
        only=True,
        tune=lambda storm: _often(
            _long_elections(_again(_restless(_five(storm)), 0.9)), transfer=1.0, reset=0.05, kill=1.5
        ),
    ),
    Mutant(
        "trusts its log's end",
        "H14b",
        "a restarted node learns the commit index from a leader",
        ((RaftGroup, "__init__", planted.trusts_its_log),),
        ("kill", "partition"),
    ),
    Mutant(
        "starts empty",
        "H14e",
        "an unreadable snapshot stops the node",
        ((group_module, "align", planted.starts_empty),),
        ("flipped bit",),
    ),
    Mutant(
        "reads without a lease",
        "promise 2",
        "a leader reads at once only while its lease holds",
        ((RaftGroup, "lease_holds", planted.reads_whenever_it_leads),),
        ("partition", "pause"),
        tune=lambda storm: _with_reads(storm, "lease"),
    ),
    Mutant(
        "lease before the term is open",
        "promise 2",
        "a leader knows what is committed only once it has committed an entry of its term",
        ((RaftGroup, "lease_holds", planted.lease_before_the_term_is_open),),
        ("kill", "stop"),
        tune=lambda storm: _with_reads(storm, "lease"),
    ),
    Mutant(
        "lease outlives a transfer",
        "promise 2",
        "a leader gives its lease up before it hands over",
        ((RaftGroup, "_continue_transfer", planted.lease_goes_on),),
        ("stop",),
        tune=lambda storm: _with_reads(storm, "lease"),
    ),
    Mutant(
        "quorum reads without a round",
        "promise 2",
        "a read that has no lease waits for a round of the majority",
        ((RaftGroup, "read", planted.read_without_round),),
        ("partition", "pause"),
        tune=lambda storm: _with_reads(storm, "quorum"),
    ),
    Mutant(
        "any replica reads",
        "promise 2",
        "only leaders answer linearizable reads",
        ((Router, "_route", planted.any_replica_reads),),
    ),
    Mutant(
        "no dedupe",
        "promise 3",
        "a write that is sent again is answered from its record",
        ((Session, "find", lambda *_: None),),
        ("drop replies",),
    ),
    Mutant(
        "a new name for each attempt",
        "promise 3",
        "all attempts of a write carry one request id",
        ((Engine, "_attempt", planted.new_name),),
        ("drop replies",),
    ),
    Mutant(
        "unknown told as refused",
        "promise 3",
        "a client says that a write may have happened",
        ((Attempts, "judge", planted.never_maybe),),
        ("drop replies", "kill"),
    ),
    Mutant(
        "each leader's own clock",
        "time to live",
        "group time goes on from the last entry",
        ((RaftGroup, "time", lambda group: max(group.machine.time, int(group._clock.now() * 1000))),),
        ("kill",),
        tune=lambda storm: replace(storm, workloads=("ttl",)),
    ),
    Mutant(
        "names are not synced",
        "storage",
        "a folder is synced after a change of names",
        ((SimFileSystem, "sync_dir", lambda *_: None),),
        ("power loss", "blackout"),
    ),
    Mutant(
        "reads while frozen",
        "moves",
        "a frozen slot answers nothing, as its new owner may have written",
        ((Store, "read", planted_moves.reads_while_frozen),),
        tune=_moving_with("registers"),
    ),
    Mutant(
        "cancelled and committed",
        "moves",
        "the meta group's log decides between cancel and commit once",
        ((meta_commands, "_COMMANDS", planted_moves.COMMANDS),),
        tune=_moving,
    ),
    Mutant(
        "copied once",
        "moves",
        "what is written during the copy is copied again, and the copy is compared",
        (
            (Slot, "changes_after", planted_moves.forgets_changes),
            (Moves, "_import_final", planted_moves.believes_the_copy),
        ),
        tune=_moving_with("registers"),
    ),
    Mutant(
        "sessions stay behind",
        "moves",
        "the records of who wrote what move along, and the copy is compared",
        (
            (copying, "_sessions", planted_moves.leaves_sessions),
            (Moves, "_import_final", planted_moves.believes_the_copy),
        ),
        ("drop replies",),
        tune=_moving_with("retry"),
    ),
    Mutant(
        "the source's time at the target",
        "moves",
        "times to live are carried over to the target's time",
        ((Moves, "_serve", planted_moves.keeps_the_source_time),),
        tune=_moving_with("ttl"),
    ),
)
"""All planted faults."""

NOTICED_BY: Final[dict[str, int]] = {
    "acks of any term": 13,
    "acknowledges its own end": 2,
    "speaks right after a start": 43,
    "installs over its own log": 40,
    "failed load acknowledged": 11,
    "lease from the receipt": 2,
    "the latest acknowledgement decides": 2,
    "lost leaders stay": 1,
    "transfers stick": 4,
    "wiped node votes": 1,
    "damage unnoticed": 4,
    "library's append": 2,
    "acknowledges before the sync": 1,
    "votes before the sync": 6,
    "no fsync": 1,
    "counts itself at once": 1,
    "commits alone": 1,
    "commits older terms": 2,
    "no refusal of votes": 13,
    "no pre-vote, no refusal": 17,
    "pre-votes survive the leader's voice": 13,
    "offers commit": 35,
    "tail dropped at start": 8,
    "refused although it happened": 2,
    "each vote counts": 2,
    "trusts its log's end": 3,
    "starts empty": 3,
    "reads without a lease": 1,
    "lease before the term is open": 2,
    "lease outlives a transfer": 6,
    "quorum reads without a round": 18,
    "any replica reads": 6,
    "no dedupe": 3,
    "a new name for each attempt": 2,
    "unknown told as refused": 1,
    "each leader's own clock": 1,
    "names are not synced": 1,
}
"""The first seed that noticed each."""


def find(name: str) -> Mutant:
    """The mutant of that name. Raises KeyError."""
    return {mutant.name: mutant for mutant in MUTANTS}[name]
