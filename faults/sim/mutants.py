"""Planted faults: each switches one safeguard off, and the simulator has to notice.

A checker is worth what it has caught. Every mutant is data: which attribute of the product is replaced by what, and in
which weather its fault is likely to matter. docs/simulation.md tells how many storms it took to catch each.
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Final
from unittest import mock

import raftkv.raft.group as group_module
from faults.sim import planted, planted_moves, weather
from faults.sim.disk import SimFile, SimFileSystem
from faults.sim.storm import Storm
from raftkv.client.engine import Engine
from raftkv.client.retry import Progress as Attempts
from raftkv.node.membership import Membership as DriverOfMembers
from raftkv.node.node import RaftNode
from raftkv.node.outbox import DurableOutbox
from raftkv.node.router import Router
from raftkv.raft.core import Core
from raftkv.raft.elections import Elections
from raftkv.raft.group import RaftGroup
from raftkv.raft.log import GroupLog
from raftkv.raft.membership import Membership
from raftkv.raft.snapshots import GroupSnapshots
from raftkv.storage import wal_format
from raftkv.store import copying, meta_commands
from raftkv.store.moving import Moves
from raftkv.store.records import Store
from raftkv.store.sessions import Session
from raftkv.store.slot import Slot
from shards import moves

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


MUTANTS: Final[tuple[Mutant, ...]] = (
    Mutant(
        "acks of any term",
        "H2",
        "acknowledgements carry their term",
        ((RaftGroup, "_on_ack", planted.any_term_ack),),
        ("partition", "transfer", "reset", "slow link"),
        only=True,
        tune=lambda storm: weather.often(
            weather.long_tails(weather.again(weather.restless(weather.five(storm)), 0.9)),
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
        tune=lambda storm: weather.often(
            weather.long_tails(weather.again(weather.restless(weather.three(storm)), 0.9)),
            **{"partition": 0.5, "reset": 0.1, "slow link": 0.5},
        ),
    ),
    Mutant(
        "speaks right after a start",
        "H4, lease",
        "a node that has just started is silent for the shortest election time-out",
        ((RaftGroup, "__init__", planted.speaks_at_once),),
        ("bridge", "kill"),
        only=True,
        tune=lambda storm: weather.often(weather.far_apart(weather.three(storm)), bridge=0.6, kill=0.5),
    ),
    Mutant(
        "installs over its own log",
        "H8c",
        "a snapshot that the log holds already is not installed",
        ((GroupSnapshots, "_held", planted.installs_always),),
        ("slow sync", "kill", "partition", "transfer"),
        tune=lambda storm: weather.small_snapshots(weather.restless(storm)),
    ),
    Mutant(
        "failed load acknowledged",
        "H8b",
        "only a snapshot that was taken over is acknowledged",
        ((GroupSnapshots, "_give_up", planted.acknowledges_failure),),
        ("full disk", "kill", "partition"),
        tune=weather.small_snapshots,
    ),
    Mutant(
        "lease from the receipt",
        "promise 2",
        "a lease counts from the time of sending",
        ((RaftGroup, "_on_ack", planted.lease_from_receipt),),
        ("slow link", "one way"),
        only=True,
        tune=weather.three,
    ),
    Mutant(
        "the latest acknowledgement decides",
        "promise 2",
        "contact is what a majority has acknowledged",
        ((RaftGroup, "contact", planted.contact_of_one),),
        ("partition", "one way"),
        only=True,
        tune=weather.five,
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
        tune=weather.gentle,
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
        tune=weather.three,
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
        tune=lambda storm: weather.slow_disks(weather.small_snapshots(storm)),
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
        tune=lambda storm: weather.often(
            weather.long_elections(weather.again(weather.restless(weather.five(storm)), 0.9)),
            transfer=1.0,
            reset=0.05,
            kill=1.5,
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
        tune=lambda storm: weather.with_reads(storm, "lease"),
    ),
    Mutant(
        "lease before the term is open",
        "promise 2",
        "a leader knows what is committed only once it has committed an entry of its term",
        ((RaftGroup, "lease_holds", planted.lease_before_the_term_is_open),),
        ("kill", "stop"),
        tune=lambda storm: weather.with_reads(storm, "lease"),
    ),
    Mutant(
        "lease outlives a transfer",
        "promise 2",
        "a leader gives its lease up before it hands over",
        ((RaftGroup, "_continue_transfer", planted.lease_goes_on),),
        ("stop",),
        tune=lambda storm: weather.with_reads(storm, "lease"),
    ),
    Mutant(
        "quorum reads without a round",
        "promise 2",
        "a read that has no lease waits for a round of the majority",
        ((RaftGroup, "read", planted.read_without_round),),
        ("partition", "pause"),
        tune=lambda storm: weather.with_reads(storm, "quorum"),
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
        "writes while frozen",
        "moves",
        "a frozen slot takes nothing, as its copy is complete",
        ((Store, "write", planted_moves.writes_while_frozen),),
        tune=weather.moving_with("unique-set"),
    ),
    Mutant(
        "committed and cancelled",
        "moves",
        "a move that was committed is not cancelled any more",
        ((meta_commands, "_COMMANDS", planted_moves.CANCEL_ANYWAY),),
        tune=weather.changing_his_mind,
    ),
    Mutant(
        "serves before the commit",
        "moves",
        "the target serves only once the meta group's log has the commit",
        ((moves, "_STARTED", planted_moves.EARLY),),
        tune=weather.changing_his_mind,
    ),
    Mutant(
        "a move is never over",
        "moves",
        "a group remembers which moves are over, so that late steps of them do nothing",
        ((Moves, "_ended", lambda *_: (0, 0)),),
        tune=weather.changing_his_mind,
    ),
    Mutant(
        "copied once",
        "moves",
        "what is written during the copy is copied again, and the copy is compared",
        (
            (Slot, "changes_after", planted_moves.forgets_changes),
            (Moves, "import_final", planted_moves.believes_the_copy),
        ),
        tune=weather.moving_with("registers"),
    ),
    Mutant(
        "sessions stay behind",
        "moves",
        "the records of who wrote what move along, and the copy is compared",
        (
            (copying, "_sessions", planted_moves.leaves_sessions),
            (Moves, "import_final", planted_moves.believes_the_copy),
        ),
        ("drop replies",),
        tune=weather.moving_with("retry"),
    ),
    Mutant(
        "the source's time at the target",
        "moves",
        "times to live are carried over to the target's time",
        ((Moves, "_serve", planted_moves.keeps_the_source_time),),
        tune=weather.moving_with("ttl"),
    ),
    Mutant(
        "all voters at once",
        "members",
        "voters change one by one, and each change is committed before the next",
        (
            (DriverOfMembers, "_step", planted_moves.all_at_once),
            (Membership, "_refusal", planted_moves.never_too_many),
        ),
        ("partition", "kill"),
        tune=weather.changing_members,
    ),
    Mutant(
        "learners count",
        "members",
        "a learner counts for nothing",
        ((RaftGroup, "_advance_commit", planted_moves.counts_learners),),
        ("partition", "kill"),
        tune=weather.changing_members,
    ),
    Mutant(
        "voters forgotten by a restart",
        "members",
        "a restarted node has the voters that its log names",
        ((GroupLog, "__init__", planted_moves.forgets_changes_of_voters),),
        ("kill",),
        tune=weather.changing_members,
    ),
)
"""All planted faults."""

NOTICED_BY: Final[dict[str, int]] = {
    "acks of any term": 11,
    "acknowledges its own end": 4,
    "speaks right after a start": 11,
    "installs over its own log": 81,
    "failed load acknowledged": 78,
    "lease from the receipt": 22,
    "the latest acknowledgement decides": 2,
    "lost leaders stay": 1,
    "transfers stick": 4,
    "wiped node votes": 1,
    "damage unnoticed": 4,
    "library's append": 2,
    "acknowledges before the sync": 1,
    "votes before the sync": 2,
    "no fsync": 1,
    "counts itself at once": 1,
    "commits alone": 1,
    "commits older terms": 3,
    "no refusal of votes": 14,
    "no pre-vote, no refusal": 14,
    "pre-votes survive the leader's voice": 9,
    "offers commit": 50,
    "tail dropped at start": 11,
    "refused although it happened": 2,
    "each vote counts": 1,
    "trusts its log's end": 5,
    "starts empty": 3,
    "reads without a lease": 1,
    "lease before the term is open": 41,
    "lease outlives a transfer": 1,
    "quorum reads without a round": 12,
    "any replica reads": 2,
    "no dedupe": 3,
    "a new name for each attempt": 1,
    "unknown told as refused": 2,
    "each leader's own clock": 3,
    "names are not synced": 1,
    "writes while frozen": 1,
    "committed and cancelled": 1,
    "serves before the commit": 1,
    "a move is never over": 1,
    "copied once": 17,
    "sessions stay behind": 20,
    "the source's time at the target": 34,
    "all voters at once": 3,
    "learners count": 9,
    "voters forgotten by a restart": 3,
}
"""The first seed that noticed each."""


def find(name: str) -> Mutant:
    """The mutant of that name. Raises KeyError."""
    return {mutant.name: mutant for mutant in MUTANTS}[name]
