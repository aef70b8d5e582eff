"""What planted faults put in the place of the product's safeguards; :mod:`faults.sim.mutants` says where and why."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from raftkv.client.engine import Engine
from raftkv.client.retry import Progress as Attempts
from raftkv.commands.records import Get
from raftkv.commands.results import Result
from raftkv.errors import Code, RaftKVError
from raftkv.node.node import RaftNode
from raftkv.node.outbox import DurableOutbox
from raftkv.node.router import Router
from raftkv.peer.hello import Hello
from raftkv.raft.core import Core
from raftkv.raft.elections import Elections
from raftkv.raft.group import RaftGroup
from raftkv.raft.guard import Judgement, judge
from raftkv.raft.log import FIRST_INDEX, Entry, GroupLog
from raftkv.raft.messages import Type
from raftkv.raft.replication import majority_value
from raftkv.raft.snapshots import GroupSnapshots, align

# -- the append guard


def library_append(
    group: RaftGroup, peer: int, term: int, seq: int, epoch: int, at: int, at_term: int, commit: int, raw: Any
) -> None:
    """What the library does by itself: cut behind the previous index, commit what the leader has committed."""
    if term >= group.core.term():
        group.elections.hear_leader()
        entries = [(command, at + 1 + number, of) for number, (of, command) in enumerate(raw)]
        reply = group.core.receive_append(peer, term, at, at_term, entries, commit)
        group._acknowledge(peer, seq, epoch, matches=reply["success"], index=reply["next_node_idx"])
        group._wake()


def vouches_for_all(
    log: GroupLog, committed: int, previous: int, previous_term: int, raw: Sequence[tuple[int, bytes]]
) -> Judgement:
    """An append that matches vouches for whatever stands behind its entries too."""
    found = judge(log, committed, previous, previous_term, raw)
    return found._replace(next_index=max(found.next_index, log.last_index + 1)) if found.matches else found


_on_ack = RaftGroup._on_ack


def any_term_ack(group: RaftGroup, peer: int, term: int, *fields: Any) -> None:
    if group._leading and term < group._lead_term:
        term = group._lead_term
    _on_ack(group, peer, term, *fields)


# -- what counts as stored, and as committed


def commits_alone(group: RaftGroup) -> None:
    core = group.core
    if group.log.last_index > core.commit_index() and group.log.last_term == group._lead_term:
        core.set_commit_index(group.log.last_index)


def counts_itself_at_once(group: RaftGroup) -> None:
    _commit_by_count(group, group.log.last_index, own_term_only=True)


def commits_older_terms(group: RaftGroup) -> None:
    _commit_by_count(group, group.log.durable_index, own_term_only=False)


def _commit_by_count(group: RaftGroup, own: int, *, own_term_only: bool) -> None:
    core = group.core
    held = [core.match_index(peer) for peer in core.peers()]
    index = int(majority_value([own, *held]))
    if index > core.commit_index() and (not own_term_only or group.log.term_at(index) == group._lead_term):
        core.set_commit_index(index)


def votes_at_once(outbox: DurableOutbox, node: int, message: list[Any]) -> None:
    if message[1] in (Type.VOTE, Type.VOTE_REPLY):
        outbox.send(node, message)
    else:
        _send_when_durable(outbox, node, message)


_send_when_durable = DurableOutbox.send_when_durable
_group_init = RaftGroup.__init__


def trusts_its_log(group: RaftGroup, *arguments: Any, **options: Any) -> None:
    _group_init(group, *arguments, **options)
    if group.log.last_index > group.core.commit_index():
        group.core.set_commit_index(group.log.last_index)


# -- elections and leases


def speaks_at_once(group: RaftGroup, *arguments: Any, **options: Any) -> None:
    _group_init(group, *arguments, **options)
    group.elections._silent_until = float("-inf")


def keeps_prevotes(elections: Elections) -> None:
    elections.heard = elections._clock.now()


def campaigns_at_once(elections: Elections) -> None:
    elections._group.core.step_down()
    elections.campaign(transfer=False)


def transfers_for_ever(group: RaftGroup, target: int) -> bool:
    started = _transfer(group, target)
    if group._transfer is not None:
        group._transfer.deadline = float("inf")
    return started


def admits_anyone(node: RaftNode, hello: Hello) -> None:
    if hello.node not in node._folder.peers:
        node._folder.remember_peer(hello.node, hello.incarnation)


_transfer = RaftGroup.transfer
_tick = RaftGroup.tick


def never_steps_down(group: RaftGroup) -> None:
    if group._leading:
        group._lead_since = group._clock.now()
    _tick(group)


def counts_each_vote(core: Core, peer: int, term: int) -> None:
    core._votes.clear()
    _receive_vote(core, peer, term)


_receive_vote = Core.receive_vote


def reads_whenever_it_leads(group: RaftGroup) -> bool:
    return group._ready and group.core.applied_index() == group.core.commit_index()


def lease_before_the_term_is_open(group: RaftGroup) -> bool:
    return group._leading and not group._lease_off and group._clock.now() < group.contact() + group._config.lease


def lease_from_receipt(group: RaftGroup, peer: int, *fields: Any) -> None:
    before = group._progress[peer].acked if peer in group._progress else 0
    _on_ack(group, peer, *fields)
    if peer in group._progress and group._progress[peer].acked > before:
        group._progress[peer].contact = group._clock.now()


def contact_of_one(group: RaftGroup) -> float:
    return max(progress.contact for progress in group._counted)


def lease_goes_on(group: RaftGroup) -> None:
    _continue_transfer(group)
    group._lease_off = False


_continue_transfer = RaftGroup._continue_transfer


def read_without_round(group: RaftGroup, quorum: bool, done: Any) -> None:
    if group._leading:
        group._reads.add(-1, group.core.commit_index(), quorum, done)
        group._wake()
    else:
        done(Code(group._not_leader().code))


def any_replica_reads(router: Router, request: Any) -> None:
    group = router._group_of(request.op, router.map) if router.map is not None else 0
    replica = router._data.get(group)
    if isinstance(request.op, Get) and replica is not None and replica.group.caught_up:
        router._finish(request, request.op.read(replica.store))
    else:
        _route(router, request)


_route = Router._route


# -- snapshots


_on_offer = GroupSnapshots._on_offer


def offer_commits(snapshots: GroupSnapshots, peer: int, term: int, index: int, *fields: int) -> None:
    core = snapshots._group.core
    if term >= core.term() and index > core.commit_index():
        core.set_commit_index(min(index, snapshots._group.log.last_index))
    _on_offer(snapshots, peer, term, index, *fields)


def installs_always(snapshots: GroupSnapshots, index: int, _term: int) -> bool:
    return index <= snapshots._group.core.commit_index()


def drops_the_tail(*arguments: Any) -> tuple[tuple[int, int], list[Entry]]:
    base, kept = align(*arguments)
    info, compacted = arguments[1], arguments[2]
    return base, [] if info is not None and info.index > compacted else kept


def starts_empty(*arguments: Any) -> tuple[tuple[int, int], list[Entry]]:
    try:
        return align(*arguments)
    except RaftKVError:
        return (FIRST_INDEX, 0), []


def acknowledges_failure(snapshots: GroupSnapshots, problem: BaseException) -> None:
    receiving = snapshots._receiving
    _give_up(snapshots, problem)
    if receiving is not None:
        snapshots._group.acknowledge_snapshot(receiving.peer, receiving.index)


_give_up = GroupSnapshots._give_up


# -- once and only once


def tells_refusal(group: RaftGroup) -> None:
    entries, group._proposals._open = group._proposals._open, type(group._proposals._open)()
    for entry in entries:
        for proposal in entry.proposals:
            proposal.refuse(Result(Code.INVALID_ARGUMENT, detail="planted"))
    _stop_leading(group)


_stop_leading = RaftGroup._stop_leading
_judge_attempt = Attempts.judge


def never_maybe(attempts: Attempts, result: Result) -> Any:
    step = _judge_attempt(attempts, result)
    attempts.maybe = False
    return step


_attempt = Engine._attempt


def new_name(engine: Engine, call: Any, *rest: Any) -> Any:
    if call.session is not None:
        call.session.end(call.seq)
        call.seq = call.session.begin()
    return _attempt(engine, call, *rest)
