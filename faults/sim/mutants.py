"""Planted faults: each switches one safeguard off, and the simulator has to notice.

A checker is worth what it has caught. Every mutant is data: which attribute of the product is replaced by what, and in
which weather its fault is likely to matter. docs/simulation.md tells how many storms it took to catch each.
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final
from unittest import mock

import raftkv.raft.group as group_module
from faults.sim.disk import SimFile, SimFileSystem
from faults.sim.storm import Storm
from raftkv.client.engine import Engine
from raftkv.client.retry import Progress as Attempts
from raftkv.errors import Code, RaftKVError
from raftkv.node.node import RaftNode
from raftkv.node.outbox import DurableOutbox
from raftkv.node.router import Router
from raftkv.peer.hello import Hello
from raftkv.raft.core import Core
from raftkv.raft.group import RaftGroup
from raftkv.raft.guard import Judgement, judge
from raftkv.raft.log import FIRST_INDEX, Entry, GroupLog
from raftkv.raft.messages import Type
from raftkv.raft.replication import majority_value
from raftkv.raft.snapshots import GroupSnapshots, align
from raftkv.storage import wal_format
from raftkv.store.operations import Result
from raftkv.store.sessions import Session

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
        kinds = {} if self.only else dict(drawn.faults)
        kinds.update({kind: round(rng.uniform(0.6, 2.0), 2) for kind in self.faults})
        return self.tune(replace(drawn, faults=kinds) if self.faults else drawn)

    @contextlib.contextmanager
    def planted(self) -> Iterator[None]:
        """The product with the fault in it."""
        with contextlib.ExitStack() as stack:
            for target, name, value in self.patches:
                stack.enter_context(mock.patch.object(target, name, value))
            yield


# -- the append guard


def _library_append(
    group: RaftGroup, peer: int, term: int, seq: int, epoch: int, at: int, at_term: int, commit: int, raw: Any
) -> None:
    """What the library does by itself: cut behind the previous index, commit what the leader has committed."""
    if term >= group.core.term():
        group._hear_leader()
        entries = [(command, at + 1 + number, of) for number, (of, command) in enumerate(raw)]
        reply = group.core.receive_append(peer, term, at, at_term, entries, commit)
        group._acknowledge(peer, seq, epoch, matches=reply["success"], index=reply["next_node_idx"])
        group._wake()


def _vouches_for_all(
    log: GroupLog, committed: int, previous: int, previous_term: int, raw: Sequence[tuple[int, bytes]]
) -> Judgement:
    """An append that matches vouches for whatever stands behind its entries too."""
    found = judge(log, committed, previous, previous_term, raw)
    return found._replace(next_index=max(found.next_index, log.last_index + 1)) if found.matches else found


_on_ack = RaftGroup._on_ack


def _any_term_ack(group: RaftGroup, peer: int, term: int, *fields: Any) -> None:
    if group._leading and term < group._lead_term:
        term = group._lead_term
    _on_ack(group, peer, term, *fields)


# -- what counts as stored, and as committed


def _commits_alone(group: RaftGroup) -> None:
    core = group.core
    if group.log.last_index > core.commit_index() and group.log.last_term == group._lead_term:
        core.set_commit_index(group.log.last_index)


def _commits_any(group: RaftGroup, own: int, *, own_term_only: bool = True) -> None:
    core = group.core
    held = [core.match_index(peer) for peer in group._progress]
    index = int(majority_value([own, *held]))
    if index > core.commit_index() and (not own_term_only or group.log.term_at(index) == group._lead_term):
        core.set_commit_index(index)


def _votes_at_once(outbox: DurableOutbox, node: int, message: list[Any]) -> None:
    if message[1] in (Type.VOTE, Type.VOTE_REPLY):
        outbox.send(node, message)
    else:
        _send_when_durable(outbox, node, message)


_send_when_durable = DurableOutbox.send_when_durable
_group_init = RaftGroup.__init__


def _trusts_its_log(group: RaftGroup, *arguments: Any, **options: Any) -> None:
    _group_init(group, *arguments, **options)
    if group.log.last_index > group.core.commit_index():
        group.core.set_commit_index(group.log.last_index)


# -- elections and leases


def _speaks_at_once(group: RaftGroup, *arguments: Any, **options: Any) -> None:
    _group_init(group, *arguments, **options)
    group._silent_until = float("-inf")


def _keeps_prevotes(group: RaftGroup) -> None:
    group._heard = group._clock.now()


def _campaigns_at_once(group: RaftGroup) -> None:
    group.core.step_down()
    group._campaign(transfer=False)


def _transfers_for_ever(group: RaftGroup, target: int) -> bool:
    started = _transfer(group, target)
    if group._transfer is not None:
        group._transfer.deadline = float("inf")
    return started


def _admits_anyone(node: RaftNode, hello: Hello) -> None:
    if hello.node not in node._folder.peers:
        node._folder.remember_peer(hello.node, hello.incarnation)


_transfer = RaftGroup.transfer
_tick = RaftGroup.tick


def _never_steps_down(group: RaftGroup) -> None:
    if group._leading:
        group._lead_since = group._clock.now()
    _tick(group)


def _counts_each_vote(core: Core, peer: int, term: int) -> None:
    core._votes.clear()
    _receive_vote(core, peer, term)


_receive_vote = Core.receive_vote


def _reads_whenever_it_leads(group: RaftGroup) -> bool:
    return group._ready and group.core.applied_index() == group.core.commit_index()


def _lease_before_the_term_is_open(group: RaftGroup) -> bool:
    return group._leading and not group._lease_off and group._clock.now() < group._contact() + group._config.lease


def _lease_from_receipt(group: RaftGroup, peer: int, *fields: Any) -> None:
    before = group._progress[peer].acked if peer in group._progress else 0
    _on_ack(group, peer, *fields)
    if peer in group._progress and group._progress[peer].acked > before:
        group._progress[peer].contact = group._clock.now()


def _contact_of_one(group: RaftGroup) -> float:
    return max(progress.contact for progress in group._progress.values())


def _lease_goes_on(group: RaftGroup) -> None:
    _continue_transfer(group)
    group._lease_off = False


_continue_transfer = RaftGroup._continue_transfer


def _read_without_round(group: RaftGroup, quorum: bool, done: Any) -> None:
    if group._leading:
        group._reads.add(-1, group.core.commit_index(), quorum, done)
        group._wake()
    else:
        done(Code(group._not_leader().code))


def _any_replica_reads(router: Router, request: Any) -> None:
    group = router.map.owners[request.op.slot] if router.map is not None else 0
    replica = router._data.get(group)
    if request.op.kind == 1 and replica is not None and replica.group.caught_up:
        router._finish(request, router._read(replica, request.op))
    else:
        _route(router, request)


_route = Router._route


# -- snapshots


_on_offer = GroupSnapshots._on_offer


def _offer_commits(snapshots: GroupSnapshots, peer: int, term: int, index: int, *fields: int) -> None:
    core = snapshots._group.core
    if term >= core.term() and index > core.commit_index():
        core.set_commit_index(min(index, snapshots._group.log.last_index))
    _on_offer(snapshots, peer, term, index, *fields)


def _installs_always(snapshots: GroupSnapshots, index: int, _term: int) -> bool:
    return index <= snapshots._group.core.commit_index()


def _drops_the_tail(*arguments: Any) -> tuple[tuple[int, int], list[Entry]]:
    base, kept = align(*arguments)
    info, compacted = arguments[1], arguments[2]
    return base, [] if info is not None and info.index > compacted else kept


def _starts_empty(*arguments: Any) -> tuple[tuple[int, int], list[Entry]]:
    try:
        return align(*arguments)
    except RaftKVError:
        return (FIRST_INDEX, 0), []


def _acknowledges_failure(snapshots: GroupSnapshots, problem: BaseException) -> None:
    receiving = snapshots._receiving
    _give_up(snapshots, problem)
    if receiving is not None:
        snapshots._group.acknowledge_snapshot(receiving.peer, receiving.index)


_give_up = GroupSnapshots._give_up


# -- once and only once


def _tells_refusal(group: RaftGroup) -> None:
    entries, group._proposals._open = group._proposals._open, type(group._proposals._open)()
    for entry in entries:
        for proposal in entry.proposals:
            proposal.refuse(Result(Code.INVALID_ARGUMENT, detail="planted"))
    _stop_leading(group)


_stop_leading = RaftGroup._stop_leading
_judge_attempt = Attempts.judge


def _never_maybe(attempts: Attempts, result: Result) -> Any:
    step = _judge_attempt(attempts, result)
    attempts.maybe = False
    return step


_attempt = Engine._attempt


def _new_name(engine: Engine, call: Any, *rest: Any) -> Any:
    if call.session is not None:
        call.session.end(call.seq)
        call.seq = call.session.begin()
    return _attempt(engine, call, *rest)


def _raw(attribute: str, value: Any) -> Patch:
    return (RaftGroup, attribute, value)


# -- weather


def _three(storm: Storm) -> Storm:
    return _with_reads(replace(storm, nodes=3, replicas=3, groups=1, wild=False), "lease")


def _five(storm: Storm) -> Storm:
    return _with_reads(replace(storm, nodes=5, replicas=5, groups=1, wild=False), "lease")


def _restless(storm: Storm) -> Storm:
    """Short terms and much to write."""
    fast = replace(storm.settings, election_min=0.15, election_max=0.25, heartbeat=0.03)
    return replace(storm, pause=0.005, settings=fast, workloads=("registers", "unique-set"))


def _again(storm: Storm) -> Storm:
    conditions = replace(storm.settings.conditions, again=0.5, late=0.8)
    return replace(storm, settings=replace(storm.settings, conditions=conditions))


def _small_snapshots(storm: Storm) -> Storm:
    small = replace(storm.settings, snapshot_bytes=4096, chunk_bytes=512, keep_entries=0, segment_bytes=4096)
    return replace(storm, settings=small)


MUTANTS: Final[tuple[Mutant, ...]] = (
    Mutant(
        "acks of any term",
        "H2",
        "acknowledgements carry their term",
        (_raw("_on_ack", _any_term_ack),),
        ("partition", "transfer", "slow link", "one way"),
        only=True,
        tune=lambda storm: _restless(_five(storm)),
    ),
    Mutant(
        "acknowledges its own end",
        "H1",
        "an acknowledgement and a commit reach no further than what the append vouches for",
        ((group_module, "judge", _vouches_for_all),),
        ("reset", "power loss", "partition", "slow link"),
        only=True,
        tune=lambda storm: _again(_restless(storm)),
    ),
    Mutant(
        "speaks right after a start",
        "H4, lease",
        "a node that has just started is silent for the shortest election time-out",
        (_raw("__init__", _speaks_at_once),),
        ("bridge", "kill"),
        only=True,
        tune=lambda storm: replace(_three(storm), aim=0.0),
    ),
    Mutant(
        "installs over its own log",
        "H8c",
        "a snapshot that the log holds already is not installed",
        ((GroupSnapshots, "_held", _installs_always),),
        ("slow sync", "kill", "partition", "transfer"),
        tune=lambda storm: _small_snapshots(_restless(storm)),
    ),
    Mutant(
        "failed load acknowledged",
        "H8b",
        "only a snapshot that was taken over is acknowledged",
        ((GroupSnapshots, "_give_up", _acknowledges_failure),),
        ("full disk", "kill", "partition"),
        tune=_small_snapshots,
    ),
    Mutant(
        "lease from the receipt",
        "promise 2",
        "a lease counts from the time of sending",
        (_raw("_on_ack", _lease_from_receipt),),
        ("slow link", "one way"),
        only=True,
        tune=_three,
    ),
    Mutant(
        "the latest acknowledgement decides",
        "promise 2",
        "contact is what a majority has acknowledged",
        (_raw("_contact", _contact_of_one),),
        ("partition", "one way"),
        only=True,
        tune=_five,
    ),
    Mutant(
        "lost leaders stay",
        "H5",
        "a leader without contact steps down",
        (_raw("tick", _never_steps_down),),
        ("one way", "partition", "pause"),
    ),
    Mutant(
        "transfers stick",
        "H14d",
        "a transfer that comes to nothing ends after a while",
        (_raw("transfer", _transfers_for_ever),),
        ("transfer", "kill", "one way"),
    ),
    Mutant(
        "wiped node votes",
        "H7",
        "a node that comes back with another data folder is refused",
        ((RaftNode, "_admit", _admits_anyone),),
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
        (_raw("_on_append", _library_append),),
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
        ((DurableOutbox, "send_when_durable", _votes_at_once),),
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
        (_raw("_advance_commit", lambda group: _commits_any(group, group.log.last_index)),),
        ("power loss", "blackout", "slow sync"),
    ),
    Mutant(
        "commits alone",
        "promise 1",
        "a majority stores an entry before it is acknowledged",
        (_raw("_advance_commit", _commits_alone),),
    ),
    Mutant(
        "commits older terms",
        "Raft, figure 8",
        "only an entry of the own term is committed by counting",
        (_raw("_advance_commit", lambda group: _commits_any(group, group.log.durable_index, own_term_only=False)),),
        ("kill", "pause", "partition"),
    ),
    Mutant(
        "no refusal of votes",
        "H4, lease",
        "a node that hears a leader refuses its vote",
        (_raw("_sticky", lambda _: False),),
        ("one way", "partition"),
    ),
    Mutant(
        "no pre-vote, no refusal",
        "H4",
        "a node that cannot win does not disturb",
        (_raw("_sticky", lambda _: False), _raw("_start_prevote", _campaigns_at_once)),
        ("one way",),
    ),
    Mutant(
        "pre-votes survive the leader's voice",
        "H4",
        "a candidate drops its pre-votes when it hears a leader",
        (_raw("_hear_leader", _keeps_prevotes),),
        ("one way", "slow link", "flapping"),
    ),
    Mutant(
        "offers commit",
        "H8a",
        "a snapshot on its way commits nothing",
        ((GroupSnapshots, "_on_offer", _offer_commits),),
        ("partition", "kill"),
    ),
    Mutant(
        "tail dropped at start",
        "H8d",
        "what the WAL holds behind a new snapshot is kept",
        ((group_module, "align", _drops_the_tail),),
        ("kill", "power loss", "blackout"),
    ),
    Mutant(
        "refused although it happened",
        "H9, promise 3",
        "a leader that lost its term says UNKNOWN",
        (_raw("_stop_leading", _tells_refusal),),
        ("partition", "pause"),
    ),
    Mutant(
        "each vote counts",
        "H14a",
        "a voter counts once in a term",
        ((Core, "receive_vote", _counts_each_vote),),
        ("flapping", "reset", "kill"),
    ),
    Mutant(
        "trusts its log's end",
        "H14b",
        "a restarted node learns the commit index from a leader",
        (_raw("__init__", _trusts_its_log),),
        ("kill", "partition"),
    ),
    Mutant(
        "starts empty",
        "H14e",
        "an unreadable snapshot stops the node",
        ((group_module, "align", _starts_empty),),
        ("flipped bit",),
    ),
    Mutant(
        "reads without a lease",
        "promise 2",
        "a leader reads at once only while its lease holds",
        (_raw("lease_holds", _reads_whenever_it_leads),),
        ("partition", "pause"),
        tune=lambda storm: _with_reads(storm, "lease"),
    ),
    Mutant(
        "lease before the term is open",
        "promise 2",
        "a leader knows what is committed only once it has committed an entry of its term",
        (_raw("lease_holds", _lease_before_the_term_is_open),),
        ("kill", "stop"),
        tune=lambda storm: _with_reads(storm, "lease"),
    ),
    Mutant(
        "lease outlives a transfer",
        "promise 2",
        "a leader gives its lease up before it hands over",
        (_raw("_continue_transfer", _lease_goes_on),),
        ("stop",),
        tune=lambda storm: _with_reads(storm, "lease"),
    ),
    Mutant(
        "quorum reads without a round",
        "promise 2",
        "a read that has no lease waits for a round of the majority",
        (_raw("read", _read_without_round),),
        ("partition", "pause"),
        tune=lambda storm: _with_reads(storm, "quorum"),
    ),
    Mutant(
        "any replica reads",
        "promise 2",
        "only leaders answer linearizable reads",
        ((Router, "_route", _any_replica_reads),),
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
        ((Engine, "_attempt", _new_name),),
        ("drop replies",),
    ),
    Mutant(
        "unknown told as refused",
        "promise 3",
        "a client says that a write may have happened",
        ((Attempts, "judge", _never_maybe),),
        ("drop replies", "kill"),
    ),
    Mutant(
        "each leader's own clock",
        "time to live",
        "group time goes on from the last entry",
        (_raw("time", lambda group: max(group.machine.time, int(group._clock.now() * 1000))),),
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
)
"""All planted faults."""


def _with_reads(storm: Storm, reads: str) -> Storm:
    return replace(storm, settings=replace(storm.settings, reads=reads))  # type: ignore[arg-type]


def find(name: str) -> Mutant:
    """The mutant of that name. Raises KeyError."""
    return {mutant.name: mutant for mutant in MUTANTS}[name]
