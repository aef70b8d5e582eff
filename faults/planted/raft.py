"""What takes the place of safeguards of Raft, of nodes and of clients."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any
from weakref import WeakKeyDictionary

from msgspec import structs

from faults.sim.network import MemoryNetwork
from raftkv.client.channel import Channel
from raftkv.client.retry import Attempts
from raftkv.commands.base import Command
from raftkv.commands.bounds import Mode
from raftkv.commands.records import Get
from raftkv.commands.results import Result
from raftkv.errors import Code, RaftKVError
from raftkv.node.outbox import DurableOutbox
from raftkv.node.router import Router
from raftkv.peer.links import Links
from raftkv.raft.configurations import Configurations
from raftkv.raft.consensus import Consensus
from raftkv.raft.elections import Elections
from raftkv.raft.group import RaftGroup
from raftkv.raft.guard import AppendDecision
from raftkv.raft.leadership import Leadership
from raftkv.raft.log import FIRST_INDEX, GroupLog
from raftkv.raft.messages import Type
from raftkv.raft.replication import majority_value
from raftkv.storage.folder import DataFolder

Message = list[Any]

# -- the append guard: messages


def acks_of_any_term(links: Links, message: Message) -> Message:
    """What a follower has acknowledged once it acknowledges for ever, whatever became of its log in later terms."""
    if message[1] == Type.ACK:
        acknowledged = _acknowledged.setdefault(links, {})
        index = max(message[6] if message[5] else 0, acknowledged.get(message[0], 0))
        acknowledged[message[0]] = index
        message = [*message[:5], index > 0, index or message[6], *message[7:]]
    return message


_acknowledged: WeakKeyDictionary[Links, dict[int, int]] = WeakKeyDictionary()


def claims_all_it_holds(_: Links, message: Message) -> Message:
    """An acknowledgement vouches for whatever stands behind the append too."""
    if message[1] == Type.ACK and message[5]:
        message = [*message[:6], max(message[6], message[7] + 1), *message[7:]]
    return message


def library_append(
    log: GroupLog, _committed: int, previous: int, previous_term: int, raw: Sequence[tuple[int, bytes]]
) -> AppendDecision:
    """The library gets each append as it came, and cuts behind its previous index."""
    matches = log.term_at(previous) == previous_term
    entries = [(command, previous + 1 + at, term) for at, (term, command) in enumerate(raw)]
    after = previous + len(entries) + 1 if matches else min(previous, log.last_index + 1)
    return AppendDecision(matches, previous, previous_term, entries, after)


# -- what counts as stored, and as committed: a rule of values


def commits_alone(log: GroupLog, _held: Iterable[int], term: int) -> int:
    return log.last_index if log.last_term == term else 0


def counts_itself_at_once(log: GroupLog, held: Iterable[int], term: int) -> int:
    index = int(majority_value([log.last_index, *held]))
    return index if log.term_at(index) == term else 0


def commits_older_terms(log: GroupLog, held: Iterable[int], _term: int) -> int:
    return int(majority_value([log.durable_index, *held]))


# -- persist before send: the outbox


def votes_at_once(outbox: DurableOutbox, node: int, message: Message) -> None:
    if message[1] in (Type.VOTE, Type.VOTE_REPLY):
        outbox.send(node, message)
    else:
        _send_when_durable(outbox, node, message)


_send_when_durable = DurableOutbox.send_when_durable

# -- what a replica starts with: its ports

_init = RaftGroup.__init__
_log_init = GroupLog.__init__


def trusts_its_log(group: RaftGroup, *arguments: Any, **given: Any) -> None:
    """What is in the log of a restarted node counts as committed."""
    _init(group, *arguments, **given)
    if group.log.last_index > group.core.commit_index():
        group.core.set_commit_index(group.log.last_index)


def drops_the_tail(group: RaftGroup, *arguments: Any, **given: Any) -> None:
    """The WAL's entries behind a snapshot that it does not mention yet are left out."""
    info = given["files"].latest(arguments[0])
    if info is not None and info.index > given["compacted"]:
        given["entries"] = [entry for entry in given["entries"] if entry[1] <= info.index]
    _init(group, *arguments, **given)


def starts_empty(group: RaftGroup, *arguments: Any, **given: Any) -> None:
    """Whoever cannot read its snapshot begins anew."""
    try:
        _init(group, *arguments, **given)
    except RaftKVError:
        empty = {"files": _NoFiles(given["files"]), "compacted": FIRST_INDEX, "entries": ()}
        _init(group, *arguments, **{**given, **empty})


def acknowledges_failure(group: RaftGroup, *arguments: Any, **given: Any) -> None:
    """A snapshot that could not be taken over is acknowledged too."""
    _init(group, *arguments, **{**given, "files": _Believed(given["files"], group)})


def forgets_changes_of_voters(log: GroupLog, *arguments: Any, **given: Any) -> None:
    """A restarted node goes on with the voters at its log's base."""
    _log_init(log, *arguments, **given)
    log.configurations = Configurations(log.configurations.at(log.base_index))


class _Port:
    """A port with all that it has, but for what subclasses change."""

    def __init__(self, port: Any) -> None:
        self._port = port

    def __getattr__(self, name: str) -> Any:
        return getattr(self._port, name)


class _NoFiles(_Port):
    def latest(self, _group: int) -> None:
        return None


class _Believed(_Port):
    def __init__(self, port: Any, group: RaftGroup) -> None:
        super().__init__(port)
        self._group = group

    def incoming(self, number: int, index: int, term: int, size: int) -> _BelievedIncoming:
        return _BelievedIncoming(self._port.incoming(number, index, term, size), self._group, index)


class _BelievedIncoming(_Port):
    def __init__(self, port: Any, group: RaftGroup, index: int) -> None:
        super().__init__(port)
        self._group = group
        self._index = index

    def write(self, offset: int, data: bytes, done: Callable[[BaseException | None], None]) -> None:
        def written(problem: BaseException | None) -> None:
            done(problem)
            self._acknowledge(problem)

        self._port.write(offset, data, written)

    def commit(self, done: Callable[[Any, BaseException | None], None]) -> None:
        def committed(info: Any, problem: BaseException | None) -> None:
            done(info, problem)
            self._acknowledge(problem)

        self._port.commit(committed)

    def _acknowledge(self, problem: BaseException | None) -> None:
        if problem is not None and (leader := self._group.leader()):
            self._group.consensus.snapshot_kept(leader, self._index)
            self._group.step()
            self._group.apply()


# -- elections: messages


def votes_whenever_asked(_: RaftGroup, peer: int, message: Message) -> tuple[int, Message]:
    """A vote is asked for as in a transfer, which no leader's voice stands against."""
    if message[1] == Type.VOTE:
        message = [*message[:5], True]
    return peer, message


def grants_prevotes(_: Links, message: Message) -> Message:
    if message[1] == Type.PREVOTE_REPLY:
        message = [*message[:3], True, message[4]]
    return message


def campaigns_at_once(elections: Elections) -> None:
    elections.campaign(transfer=False)


def keeps_prevotes(elections: Elections) -> None:
    kept = elections.prevotes
    _hear_leader(elections)
    elections.prevotes = kept


_hear_leader = Elections.hear_leader
_seen: WeakKeyDictionary[RaftGroup, set[tuple[int, int]]] = WeakKeyDictionary()


def each_vote_counts(group: RaftGroup, peer: int, message: Message) -> tuple[int, Message]:
    """A vote that comes again counts for a voter that has said nothing yet."""
    if message[1] == Type.VOTE_REPLY:
        term, seen = message[2], _seen.setdefault(group, set())
        if (term, peer) in seen:
            others = (one for one in group.voters if one != group.node and (term, one) not in seen)
            peer = next(others, peer)
        seen.add((term, peer))
    return peer, message


def same_incarnation(fs: Any, path: str, cluster_id: str, node_id: int, rng: Any, incarnation: str = "") -> DataFolder:
    """A node that lost its data folder cannot be told from the one that it was."""
    return _open(fs, path, cluster_id, node_id, rng, incarnation or f"{node_id:032x}")


_open = DataFolder.open
SAME_INCARNATION = staticmethod(same_incarnation)

# -- leases and reads: questions to a leader


def lease_while_it_leads(lead: Leadership, _now: float) -> bool:
    return lead.open


def lease_before_the_term_is_open(lead: Leadership, now: float) -> bool:
    return lead.in_contact(now)


def lease_outlives_a_transfer(lead: Leadership, now: float) -> bool:
    return lead.open and lead.in_contact(now)


_receive = Consensus.receive


def lease_from_receipt(replica: Consensus, peer: int, message: Message, now: float) -> bool:
    """Contact counts from when an acknowledgement came, not from when the append was sent."""
    counted = {} if replica.lead is None else replica.lead.counted
    before = counted[peer].acked if peer in counted else 0
    works = _receive(replica, peer, message, now)
    if peer in counted and counted[peer].acked > before:
        counted[peer].contact = now
    return works


def contact_of_one(lead: Leadership, _now: float) -> float:
    return max(progress.contact for progress in lead.counted.values())


def _all_applied(group: RaftGroup) -> bool:
    return group.core.applied_index() == group.core.commit_index()


def slow_to_the_first(network: MemoryNetwork, source: str, target: str) -> float:
    """What is sent to node 1 arrives late: acknowledgements, and what would tell it of another leader."""
    return _delay(network, source, target) + (0.09 if target == "n1" else 0.0)


_delay = MemoryNetwork.delay


def read_without_round(group: RaftGroup, quorum: bool, done: Callable[[Code], None]) -> None:
    if group.leads() and _all_applied(group):
        done(Code.OK)
    else:
        _read(group, quorum, done)


_read = RaftGroup.read


def any_replica_reads(router: Router, ops: Sequence[Command], *rest: Any) -> None:
    """All reads are taken for stale ones."""
    _submit(router, [structs.replace(op, mode=Mode.STALE) if isinstance(op, Get) else op for op in ops], *rest)


_submit = Router.submit


def own_clock(replica: Consensus, now: float) -> int:
    return max(replica.time, int(now * 1000))


# -- snapshots: messages, and a rule of values


def offer_commits(group: RaftGroup, peer: int, message: Message) -> tuple[int, Message]:
    """What is offered is committed, so what stands there is taken for it."""
    if message[1] == Type.SNAPSHOT_OFFER:
        term, index = message[2:4]
        if term >= group.core.term() and index > group.core.commit_index():
            group.core.set_commit_index(min(index, group.log.last_index))
    return peer, message


def installs_always(log: GroupLog, _committed: int, index: int, _term: int) -> bool:
    return index <= log.base_index


_tick = Consensus.tick


def offers_again(replica: Consensus, now: float) -> bool:
    """A leader offers its snapshot to everybody, also to followers that hold all of it."""
    due, lead = _tick(replica, now), replica.lead
    if lead is not None:
        for peer, progress in lead.counted.items():
            lead.offer(peer, progress)
    return due or lead is not None


# -- once and only once: results, attempts


def tells_refusal(
    group: RaftGroup, ops: Sequence[Command], size: int, done: Callable[[list[Result]], None], *rest: Any
) -> Any:
    """Whoever does not know the outcome says that there was none."""

    def refused(results: list[Result]) -> None:
        done([Result(Code.INVALID_ARGUMENT) if one.code == Code.UNKNOWN else one for one in results])

    return _propose(group, ops, size, refused, *rest)


_propose = RaftGroup.propose
_judge = Attempts.judge


def never_maybe(attempts: Attempts, result: Result) -> Any:
    step = _judge(attempts, result)
    attempts.maybe = False
    return step


def new_name(channel: Channel, call: Any, *rest: Any) -> Any:
    """Each attempt of a write is another write."""
    if call.session is not None:
        call.session.end(call.seq)
        call.seq = call.session.begin()
    return _send(channel, call, *rest)


_send = Channel.send
