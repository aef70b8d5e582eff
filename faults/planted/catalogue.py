"""All planted faults, as data: what each switches off, where it sits, and in which storms it is likely to matter."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from faults.planted import maps, moves, raft
from faults.planted.fault import PlantedFault, messages_in, messages_out
from faults.sim import profiles
from faults.sim.disk import SimFile, SimFileSystem
from faults.sim.network import MemoryNetwork
from raftkv.client.channel import Channel
from raftkv.client.retry import Attempts
from raftkv.commands.moving import Activate
from raftkv.node.drivers import mover
from raftkv.node.drivers.membership import MembershipDriver
from raftkv.node.map_copy import MapCopy
from raftkv.node.outbox import DurableOutbox
from raftkv.node.router import Router
from raftkv.raft import guard, membership, replication
from raftkv.raft.config import RaftConfig
from raftkv.raft.consensus import Consensus
from raftkv.raft.elections import Elections
from raftkv.raft.group import RaftGroup
from raftkv.raft.leadership import Leadership
from raftkv.raft.log import GroupLog
from raftkv.storage import wal_format
from raftkv.storage.folder import DataFolder
from raftkv.store import meta, moving
from raftkv.store.copying import Summary
from raftkv.store.records import Store
from raftkv.store.sessions import Session
from raftkv.store.slot import Slot

NEVER: Final = float("inf")

PLANTED: Final[tuple[PlantedFault, ...]] = (
    PlantedFault(
        "acks of any term",
        "H2",
        "an acknowledgement counts only in the term in which it was given",
        ("match", "stopped", "convergence"),
        (messages_out(raft.acks_of_any_term),),
        {"partition": 0.3, "transfer": 0.5},
        lambda storm: profiles.busy(storm, nodes=5, seconds=8.0),
    ),
    PlantedFault(
        "acknowledges its own end",
        "H1",
        "an acknowledgement and a commit reach no further than what the append vouches for",
        ("match", "committed"),
        (messages_out(raft.claims_all_it_holds),),
        {"partition": 0.3, "kill": 0.2},
        lambda storm: profiles.small_appends(profiles.busy(storm)),
    ),
    PlantedFault(
        "speaks right after a start",
        "H4, lease",
        "a node that has just started is silent for the shortest election time-out",
        ("lease",),
        ((RaftConfig, "silence", 0.0),),
        {"bridge": 0.5, "kill": 0.15, "power loss": 0.15},
        lambda storm: profiles.quick(storm, groups=3, times=(0.3, 0.4, 0.09), aim=0.0, pause=1.0),
    ),
    PlantedFault(
        "installs over its own log",
        "H8c",
        "a snapshot that the log holds already is not installed",
        ("held", "state", "stopped", "exception"),
        ((guard, "superfluous", raft.installs_always),),
        {"kill": 1.0},
        lambda storm: profiles.small_snapshots(profiles.busy(storm, seconds=8.0)),
        ((Consensus, "tick", raft.offers_again),),
    ),
    PlantedFault(
        "failed load acknowledged",
        "H8b",
        "only a snapshot that was taken over is acknowledged",
        ("match",),
        ((RaftGroup, "__init__", raft.acknowledges_failure),),
        {"failing sync": 0.2, "partition": 0.5, "pause": 0.3},
        lambda storm: profiles.small_snapshots(profiles.busy(storm, pause=0.02, aim=0.0)),
    ),
    PlantedFault(
        "lease from the receipt",
        "promise 2",
        "a lease counts from the time of sending",
        ("lease",),
        ((Consensus, "receive", raft.lease_from_receipt),),
        {"one way": 0.3},
        lambda storm: profiles.quick(storm, times=(0.15, 0.18, 0.03), delay=0.005, seconds=8.0),
        ((MemoryNetwork, "delay", raft.slow_to_the_first),),
    ),
    PlantedFault(
        "the latest acknowledgement decides",
        "promise 2",
        "contact is what a majority has acknowledged",
        ("lease",),
        ((Leadership, "contact", raft.contact_of_one),),
        {"partition": 0.5, "one way": 0.5},
        lambda storm: profiles.quick(storm, nodes=5),
    ),
    PlantedFault(
        "lost leaders stay",
        "H5",
        "a leader without contact steps down",
        ("contact",),
        ((RaftConfig, "contact_timeout", NEVER),),
        {"one way": 1.0, "partition": 1.0, "pause": 1.0},
    ),
    PlantedFault(
        "transfers stick",
        "H14d",
        "a transfer that comes to nothing ends after a while",
        ("availability",),
        ((RaftConfig, "transfer_timeout", NEVER),),
        {"transfer": 0.5, "pause": 1.0},
        profiles.gentle,
    ),
    PlantedFault(
        "wiped node votes",
        "H7",
        "a node that comes back with another data folder is refused",
        ("ruin", "convergence"),
        ((DataFolder, "open", raft.SAME_INCARNATION),),
        {"wiped disk": 1.0},
    ),
    PlantedFault(
        "damage unnoticed",
        "storage",
        "the WAL's batches carry a checksum",
        ("ruin", "stopped", "state", "committed"),
        ((wal_format, "crc32", lambda *_: 0),),
        {"flipped bit": 0.5, "power loss": 1.0},
        lambda storm: profiles.many_segments(profiles.busy(storm, seconds=8.0)),
    ),
    PlantedFault(
        "library's append",
        "H1",
        "the append guard: appends go to the library as they come",
        ("stopped", "committed"),
        ((guard, "judge", raft.library_append),),
        {"partition": 0.7, "kill": 0.5, "reset": 0.2},
    ),
    PlantedFault(
        "acknowledges before the sync",
        "H3",
        "messages wait until the WAL is durable",
        ("match",),
        ((DurableOutbox, "send_when_durable", DurableOutbox.send),),
        {"power loss": 1.0},
    ),
    PlantedFault(
        "votes before the sync",
        "H3",
        "vote requests and votes wait until the WAL is durable",
        ("wal",),
        ((DurableOutbox, "send_when_durable", raft.votes_at_once),),
        {"power loss": 0.2},
        lambda storm: profiles.quick(storm, sync=0.03, pause=0.3),
    ),
    PlantedFault(
        "no fsync",
        "H3",
        "the WAL is synced",
        ("wal",),
        ((SimFile, "write_durably", SimFile.write_at),),
        {"power loss": 1.0, "blackout": 1.0},
    ),
    PlantedFault(
        "counts itself at once",
        "H3",
        "the leader counts its own log only as far as it is durable",
        ("commit",),
        ((replication, "committable", raft.counts_itself_at_once),),
        {"power loss": 1.0, "blackout": 1.0, "slow sync": 1.0},
    ),
    PlantedFault(
        "commits alone",
        "promise 1",
        "a majority stores an entry before it is acknowledged",
        ("commit",),
        ((replication, "committable", raft.commits_alone),),
        {},
    ),
    PlantedFault(
        "commits older terms",
        "Raft, figure 8",
        "only an entry of the own term is committed by counting",
        ("commit",),
        ((replication, "committable", raft.commits_older_terms),),
        {"transfer": 0.5, "kill": 1.0},
        lambda storm: profiles.busy(storm, sync=0.03),
    ),
    PlantedFault(
        "no refusal of votes",
        "H4, lease",
        "a node that hears a leader refuses its vote",
        ("lease",),
        (messages_in(raft.votes_whenever_asked), messages_out(raft.grants_prevotes)),
        {"bridge": 0.5},
        lambda storm: profiles.quick(storm, pause=1.0),
    ),
    PlantedFault(
        "no pre-vote, no refusal",
        "H4",
        "a node that cannot win does not disturb",
        ("lease",),
        (messages_in(raft.votes_whenever_asked), (Elections, "stand", raft.campaigns_at_once)),
        {"bridge": 0.5},
        profiles.quick,
    ),
    PlantedFault(
        "pre-votes survive the leader's voice",
        "H4",
        "a candidate drops its pre-votes when it hears a leader",
        ("lease",),
        ((Elections, "hear_leader", raft.keeps_prevotes),),
        {"bridge": 0.5, "flapping": 0.3},
        lambda storm: profiles.quick(storm, delay=0.015, pause=0.5),
    ),
    PlantedFault(
        "offers commit",
        "H8a",
        "a snapshot on its way commits nothing",
        ("committed",),
        (messages_in(raft.offer_commits),),
        {"partition": 0.7},
        lambda storm: profiles.small_snapshots(profiles.busy(storm, pause=0.02)),
    ),
    PlantedFault(
        "tail dropped at start",
        "H8d",
        "what the WAL holds behind a new snapshot is kept",
        ("durability",),
        ((RaftGroup, "__init__", raft.drops_the_tail),),
        {"kill": 0.2, "power loss": 0.3},
        lambda storm: profiles.small_snapshots(profiles.busy(storm, sync=0.02, pause=0.02)),
    ),
    PlantedFault(
        "refused although it happened",
        "H9, promise 3",
        "a leader that lost its term says UNKNOWN",
        ("counter", "unique-set", "history"),
        ((RaftGroup, "propose", raft.tells_refusal),),
        {"partition": 1.0, "pause": 1.0},
        lambda storm: profiles.busy(storm, workloads=("counter",)),
    ),
    PlantedFault(
        "each vote counts",
        "H14a",
        "a voter counts once in a term",
        ("votes",),
        (messages_in(raft.each_vote_counts),),
        {"transfer": 0.5, "reset": 0.05, "kill": 0.7},
        lambda storm: profiles.again(
            profiles.quick(storm, nodes=5, times=(0.5, 1.0, 0.1), sync=0.1, clients=2, seconds=12.0), 0.9
        ),
    ),
    PlantedFault(
        "trusts its log's end",
        "H14b",
        "a restarted node learns the commit index from a leader",
        ("leader", "committed", "state"),
        ((RaftGroup, "__init__", raft.trusts_its_log),),
        {"kill": 0.4, "partition": 0.7},
    ),
    PlantedFault(
        "starts empty",
        "H14e",
        "an unreadable snapshot stops the node",
        ("ruin", "convergence"),
        ((RaftGroup, "__init__", raft.starts_empty),),
        {"flipped bit": 0.3},
        lambda storm: profiles.one_segment(profiles.small_snapshots(profiles.busy(storm, seconds=12.0))),
    ),
    PlantedFault(
        "reads without a lease",
        "promise 2",
        "a leader reads at once only while its lease holds",
        ("lease",),
        ((Leadership, "lease_holds", raft.lease_while_it_leads),),
        {"partition": 1.0, "pause": 1.0},
    ),
    PlantedFault(
        "lease before the term is open",
        "promise 2",
        "a leader knows what is committed only once it has committed an entry of its term",
        ("lease", "history"),
        ((Leadership, "lease_holds", raft.lease_before_the_term_is_open),),
        {"transfer": 0.15},
        lambda storm: profiles.busy(storm, sync=0.06, clients=4, pause=0.02, seconds=12.0),
    ),
    PlantedFault(
        "lease outlives a transfer",
        "promise 2",
        "a leader gives its lease up before it hands over",
        ("lease",),
        ((Leadership, "lease_holds", raft.lease_outlives_a_transfer),),
        {"stop": 1.0},
    ),
    PlantedFault(
        "quorum reads without a round",
        "promise 2",
        "a read that has no lease waits for a round of the majority",
        ("history",),
        ((RaftGroup, "read", raft.read_without_round),),
        {"transfer": 0.15},
        lambda storm: profiles.busy(storm, sync=0.06, clients=4, pause=0.02, seconds=12.0, reads="quorum"),
    ),
    PlantedFault(
        "any replica reads",
        "promise 2",
        "only leaders answer linearizable reads",
        ("history",),
        ((Router, "submit", raft.any_replica_reads),),
        {"partition": 0.7, "transfer": 0.5},
        lambda storm: profiles.busy(storm, times=(0.15, 1.0, 0.03), clients=4),
    ),
    PlantedFault(
        "no dedupe",
        "promise 3",
        "a write that is sent again is answered from its record",
        ("unique-set", "counter", "history"),
        ((Session, "find", lambda *_: None),),
        {"drop replies": 1.0},
        lambda storm: profiles.busy(storm, workloads=("counter",)),
    ),
    PlantedFault(
        "a new name for each attempt",
        "promise 3",
        "all attempts of a write carry one request id",
        ("unique-set", "counter", "history"),
        ((Channel, "send", raft.new_name),),
        {"drop replies": 1.0},
        lambda storm: profiles.busy(storm, workloads=("counter",)),
    ),
    PlantedFault(
        "unknown told as refused",
        "promise 3",
        "a client says that a write may have happened",
        ("unique-set", "counter", "history"),
        ((Attempts, "judge", raft.never_maybe),),
        {"drop replies": 0.5, "kill": 1.0},
        profiles.impatient,
    ),
    PlantedFault(
        "each leader's own clock",
        "time to live",
        "group time goes on from the last entry",
        ("ttl", "history"),
        ((Consensus, "group_time", raft.own_clock),),
        {"kill": 1.0},
        lambda storm: profiles.busy(storm, workloads=("ttl",)),
    ),
    PlantedFault(
        "names are not synced",
        "storage",
        "a folder is synced after a change of names",
        ("wal",),
        ((SimFileSystem, "sync_dir", lambda *_: None),),
        {"power loss": 1.0, "blackout": 1.0},
    ),
    PlantedFault(
        "writes while frozen",
        "moves",
        "a frozen slot takes nothing, as its copy is complete",
        ("unique-set",),
        ((Store, "write", moves.writes_while_frozen),),
        {},
        profiles.moving("unique-set", seconds=5.0),
    ),
    PlantedFault(
        "committed and cancelled",
        "moves",
        "a move that was committed is not cancelled any more",
        ("owners", "convergence"),
        ((meta, "execute", moves.cancels_what_was_committed),),
        {"partition": 2.5, "pause": 4.0},
        profiles.changing_his_mind,
    ),
    PlantedFault(
        "serves before the commit",
        "moves",
        "the target serves only once the meta group's log has the commit",
        ("owners",),
        ((mover, "next_step", moves.serves_early),),
        {"partition": 2.5, "pause": 4.0},
        profiles.changing_his_mind,
    ),
    PlantedFault(
        "a move is never over",
        "moves",
        "a group remembers which moves are over, so that late steps of them do nothing",
        ("convergence",),
        ((Store, "apply", moves.forgets_what_is_over),),
        {"partition": 2.5, "pause": 4.0},
        lambda storm: replace(profiles.changing_his_mind(storm), seconds=8.0),
        ((mover.Mover, "__init__", moves.steps_come_again),),
    ),
    PlantedFault(
        "copied once",
        "moves",
        "what is written during the copy is copied again, and the copy is compared",
        ("history",),
        ((Slot, "changes_after", moves.forgets_changes), (Summary, "decode", moves.BELIEVED)),
        {},
        profiles.moving("registers", tasks=4),
    ),
    PlantedFault(
        "sessions stay behind",
        "moves",
        "the records of who wrote what move along, and the copy is compared",
        ("retry", "history"),
        ((moving, "load", moves.leaves_sessions), (Summary, "decode", moves.BELIEVED)),
        {"drop replies": 0.15},
        profiles.moving("retry", seconds=5.0, moves=0.1, tasks=4),
    ),
    PlantedFault(
        "the source's time at the target",
        "moves",
        "times to live are carried over to the target's time",
        ("ttl", "history"),
        ((Activate, "apply", moves.keeps_the_source_time),),
        {"kill": 1.0},
        profiles.moving("ttl", seconds=6.0),
        ((Consensus, "applied", moves.times_apart),),
    ),
    PlantedFault(
        "all voters at once",
        "members",
        "voters change one by one, and each change is committed before the next",
        ("voters", "leader", "committed"),
        ((MembershipDriver, "__init__", moves.all_at_once), (membership, "differ_by_one", lambda *_: True)),
        {"partition": 1.0, "kill": 1.0},
        profiles.changing_members,
    ),
    PlantedFault(
        "learners count",
        "members",
        "a learner does not count",
        ("commit",),
        ((replication, "counted", moves.counts_all),),
        {},
        lambda storm: profiles.changing_members(storm, nodes=4, replicas=2),
    ),
    PlantedFault(
        "voters forgotten by a restart",
        "members",
        "a restarted node has the voters that its log names",
        ("voters",),
        ((GroupLog, "__init__", raft.forgets_changes_of_voters),),
        {"kill": 1.0},
        profiles.changing_members,
    ),
    PlantedFault(
        "any map is believed",
        "maps",
        "a map is saved, and nodes are given up by it, only once the meta group has confirmed it",
        ("stopped",),
        ((MapCopy, "take", maps.believes_any_map),),
        {"kill": 2.0},
        lambda storm: profiles.quick(storm, seconds=8.0),
        ((MapCopy, "run", maps.told_a_forged_map),),
    ),
)


def find(name: str) -> PlantedFault:
    """The planted fault of that name. Raises KeyError."""
    return {fault.name: fault for fault in PLANTED}[name]
