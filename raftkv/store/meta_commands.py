"""The commands of the meta group: what each verb asks, when it is refused, and the state that it leads to.

Pure functions from a state to a state; a command that is refused changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any, Final

from raftkv.addresses import canonical, parse_address
from raftkv.api.status import FinishedMove, Job, Move, PlannedMove
from raftkv.store.meta_state import MAX_FINISHED, JoinToken, MetaState, Refused
from shards.map import Group, LeadersOver, Node, ShardMap
from shards.moves import Phase

MAX_CONCURRENCY: Final = 64
MAX_GROUPS: Final = 256
JOIN_TOKEN_MS: Final = 3_600_000
"""Group time for which a join token is valid."""
MAX_JOIN_TOKENS: Final = 64
"""Valid ones that nobody has used yet."""
_DIGEST_BYTES: Final = 32
_HOW_TO_JOIN: Final = "`raftkv-admin node add` prints a new one"
_MAX_RATE: Final = 2**40

Outcome = tuple[MetaState, int]
"""The state that a command leads to, and the number that it answers: an id, or 0."""


def execute(state: MetaState, now: int, verb: str, arguments: Sequence[Any]) -> Outcome:
    """Execute a command at group time ``now`` (ms).

    Raises Refused with the reason for people; TypeError, ValueError or KeyError for a malformed command.
    """
    if state.map is None:
        raise Refused("the cluster is not formed yet")
    command = _COMMANDS.get(verb)
    if command is None:
        raise ValueError("unknown command")
    return command(state, state.map, now, *arguments)


def check(state: MetaState, now: int | None, verb: str, arguments: Sequence[Any]) -> None:
    """Look at a command before it gets into the log. Raises as :func:`execute`.

    ``now``: group time in ms; None while ``state`` may be behind. What earlier versions took in is refused here and not
    there: their logs must lead every replica to one state.
    """
    if verb == "add node":
        # A new leader may know no nodes or not all, until its log is applied: what is no address is refused then too.
        _check_newcomer(state, now, *arguments)
    elif verb == "readdress node":
        _check_moved(state.map.nodes if state.map is not None else (), *arguments)


# -- slots


def _plan(
    state: MetaState, shard_map: ShardMap, now: int, epoch: int, plans: Any, concurrency: int, rate: int
) -> Outcome:
    """Carry out moves [[slots, source, target], ...] of the map of ``epoch``."""
    if _number(epoch, 0) != shard_map.epoch:
        raise Refused(f"the map has epoch {shard_map.epoch} now, the plan was made for {epoch}: plan again")
    if state.job is not None and state.job.open:
        raise Refused(f"job {state.job.id} is under way: wait for it or cancel it")
    pending = tuple(
        PlannedMove(_slots(slots), _number(source, 0), _number(target, 0)) for slots, source, target in plans
    )
    planned: set[int] = set()
    for plan in pending:
        _check_plan(shard_map, plan)
        if not planned.isdisjoint(plan.slots):
            raise Refused("the plan moves a slot twice")
        planned.update(plan.slots)
    if not pending:
        raise Refused("there is nothing to move")
    number = state.last_job + 1
    job = Job(
        number,
        pending,
        len(pending),
        len(planned),
        _number(rate, 0, _MAX_RATE),
        _number(concurrency, 1, MAX_CONCURRENCY),
        now,
    )
    return replace(state, job=job, last_job=number), number


def _check_plan(shard_map: ShardMap, plan: PlannedMove) -> None:
    groups = {group.id for group in shard_map.data_groups()}
    for group in (plan.source, plan.target):
        if group not in groups:
            raise Refused(f"there is no data group {group}")
    if plan.source == plan.target:
        raise Refused(f"group {plan.source} is both source and target")
    for slot in plan.slots:
        if slot >= shard_map.slots:
            raise Refused(f"there is no slot {slot}")
        if shard_map.owners[slot] != plan.source:
            raise Refused(f"slot {slot} belongs to group {shard_map.owners[slot]}, not to group {plan.source}")


def _next(state: MetaState, shard_map: ShardMap, now: int) -> Outcome:
    """Start the next move of the job. Answers its id, 0 if none may start."""
    job = state.job
    if job is None or job.paused or not job.pending or len(state.moves) >= job.concurrency:
        return state, 0
    plan, *rest = job.pending
    try:
        _check_plan(shard_map, plan)
    except Refused:
        # The map has changed since the plan was made.
        return _settle(replace(state, job=replace(job, pending=tuple(rest), failed=job.failed + 1)), now), 0
    number = state.last_move + 1
    move = Move(number, plan.slots, plan.source, plan.target, Phase.STARTED, now)
    job = replace(job, pending=tuple(rest))
    return replace(state, job=job, last_move=number, moves={**state.moves, number: move}), number


def _commit(state: MetaState, shard_map: ShardMap, _: int, number: int) -> Outcome:
    """The slots of a move change owner, unless it was cancelled before."""
    move = _move(state, number)
    if move.phase is Phase.CANCELLED:
        raise Refused(f"move {number} was cancelled")
    if move.phase is Phase.COMMITTED:
        return state, 0
    moves = {**state.moves, number: replace(move, phase=Phase.COMMITTED)}
    return replace(state, map=shard_map.with_owner(move.slots, move.target), moves=moves), 0


def _finish(state: MetaState, _map: ShardMap, now: int, number: int, records: int, size: int, freeze: int) -> Outcome:
    """Forget a move that was committed or cancelled, and keep its counters."""
    if number not in state.moves:
        return state, 0
    move = state.moves[number]
    if move.phase is Phase.STARTED:
        raise Refused(f"move {number} is still under way")
    committed = move.phase is Phase.COMMITTED
    counters = (_number(records, 0), _number(size, 0), _number(freeze, 0), now - move.started)
    finished = FinishedMove(number, len(move.slots), move.source, move.target, committed, *counters)
    moves = {key: value for key, value in state.moves.items() if key != number}
    job = state.job
    if job is not None:
        if committed:
            job = replace(job, done=job.done + 1, done_slots=job.done_slots + len(move.slots))
        else:
            job = replace(job, failed=job.failed + 1)
    kept = (*state.finished, finished)[-MAX_FINISHED:]
    return _settle(replace(state, moves=moves, job=job, finished=kept), now), 0


def _settle(state: MetaState, now: int) -> MetaState:
    """End the job if nothing is left of it."""
    job = state.job
    if job is None or not job.open or job.pending or state.moves:
        return state
    return replace(state, job=replace(job, ended=max(now, 1), paused=False))


def _cancel(state: MetaState, _map: ShardMap, now: int) -> Outcome:
    """End the job: what has not been committed goes back."""
    job = _open_job(state)
    moves = {
        number: replace(move, phase=Phase.CANCELLED) if move.phase is Phase.STARTED else move
        for number, move in state.moves.items()
    }
    job = replace(job, failed=job.failed + len(job.pending), pending=(), cancelled=True)
    return _settle(replace(state, moves=moves, job=job), now), job.id


def _abandon(state: MetaState, _map: ShardMap, _: int, number: int) -> Outcome:
    """Cancel one move, which cannot go on."""
    move = _move(state, number)
    if move.phase is Phase.COMMITTED:
        raise Refused(f"move {number} is committed")
    moves = {**state.moves, number: replace(move, phase=Phase.CANCELLED)}
    return replace(state, moves=moves), 0


def _pause(state: MetaState, _map: ShardMap, _: int, paused: bool) -> Outcome:
    """Start no further moves, or go on."""
    job = _open_job(state)
    if type(paused) is not bool:
        raise TypeError("paused must be true or false")
    return replace(state, job=replace(job, paused=paused)), job.id


def _tune(state: MetaState, _map: ShardMap, _: int, concurrency: int, rate: int) -> Outcome:
    """Another concurrency and rate for the job under way."""
    job = _open_job(state)
    job = replace(job, concurrency=_number(concurrency, 1, MAX_CONCURRENCY), rate=_number(rate, 0, _MAX_RATE))
    return replace(state, job=job), job.id


def _open_job(state: MetaState) -> Job:
    if state.job is None or not state.job.open:
        raise Refused("nothing is under way")
    return state.job


def _move(state: MetaState, number: int) -> Move:
    if number not in state.moves:
        raise Refused(f"there is no move {number}")
    return state.moves[number]


# -- groups


def _add_group(state: MetaState, shard_map: ShardMap, _: int, voters: Any) -> Outcome:
    """A new data group without slots. Answers its id."""
    number = state.last_group + 1
    if len(shard_map.groups) > MAX_GROUPS:
        raise Refused(f"there are {MAX_GROUPS} data groups already")
    group = Group(number, _voters(state, shard_map, voters))
    return replace(state, map=shard_map.with_group(group), last_group=number), number


def _remove_group(state: MetaState, shard_map: ShardMap, _: int, number: int) -> Outcome:
    """Remove a data group that owns no slots."""
    if number not in {group.id for group in shard_map.data_groups()}:
        raise Refused(f"there is no data group {number}")
    slots = shard_map.slots_of(number)
    if slots:
        raise Refused(f"group {number} owns {len(slots)} slots: drain it first")
    job = state.job
    planned = list(state.moves.values()) + list(job.pending if job is not None else ())
    if any(number in (one.source, one.target) for one in planned):
        raise Refused(f"a move of slots from or to group {number} is under way")
    wanted = {group: voters for group, voters in state.wanted.items() if group != number}
    state = replace(state, noted={group: index for group, index in state.noted.items() if group != number})
    state = _left(state, number, shard_map.group(number).replicas, ())
    return replace(state, map=shard_map.without_group(number), wanted=wanted), 0


def _left(state: MetaState, group: int, before: Iterable[int], after: Iterable[int]) -> MetaState:
    """Replicas that are no longer members count as garbage until their nodes say that they are gone."""
    return replace(state, garbage=state.garbage | {(group, node) for node in set(before) - set(after)})


def _dropped(state: MetaState, _map: ShardMap, _: int, number: int, node: int) -> Outcome:
    """``node`` has dropped its replica of a group that it had left."""
    return replace(state, garbage=state.garbage - {(number, node)}), 0


def _want(state: MetaState, shard_map: ShardMap, _: int, epoch: int, desired: Any) -> Outcome:
    """Give groups other voters, [[group, voters], ...]: members are added and removed one by one from now on."""
    if _number(epoch, 0) != shard_map.epoch:
        raise Refused(f"the map has epoch {shard_map.epoch} now, not {epoch}: plan again")
    return _with_desired(state, shard_map, desired), 0


def _spread_leaders(state: MetaState, shard_map: ShardMap, now: int, epoch: int, over: str, desired: Any) -> Outcome:
    """As :func:`_want`, and preferred leaders are to be spread over ``over`` from now on."""
    state, number = _want(state, shard_map, now, epoch, desired)
    if state.map is not None and state.map.leaders_over != (chosen := LeadersOver(over)):
        state = replace(state, map=state.map.with_leaders_over(chosen))
    return state, number


def _with_desired(state: MetaState, shard_map: ShardMap, desired: Any) -> MetaState:
    """A learner stays one whatever is desired: only its group's log can tell that nobody makes it a voter any more."""
    for number, voters in desired:
        group = _group(shard_map, number)
        wanted = _voters(state, shard_map, voters, group.voters)
        rest = {key: value for key, value in state.wanted.items() if key != number}
        if set(wanted) != set(group.voters) or group.learners:
            state = replace(state, wanted={**rest, number: wanted})
            continue
        if wanted != group.voters:
            shard_map = shard_map.with_group(replace(group, voters=wanted))
        state = replace(state, map=shard_map, wanted=rest)
    return state


def _learn(state: MetaState, shard_map: ShardMap, _: int, number: int, node: int) -> Outcome:
    """A node that is wanted as a voter gets the group's log."""
    group = _group(shard_map, number)
    if node in group.replicas:
        return state, 0
    if node not in state.wanted.get(number, ()):
        raise Refused(f"node {node} is not wanted in group {number}")
    if (number, node) in state.garbage:
        raise Refused(f"node {node} has not dropped its former replica of group {number} yet")
    learners = (*group.learners, node)
    return replace(state, map=shard_map.with_group(replace(group, learners=learners))), 0


def _note_voters(state: MetaState, shard_map: ShardMap, _: int, number: int, index: int, voters: Any) -> Outcome:
    """The group has committed these voters, as of its commit index; a report may come late, and then it is refused."""
    group = _group(shard_map, number)
    if _number(index, 0) < state.noted.get(number, 0):
        raise Refused(f"the voters of group {number} are known as of entry {state.noted[number]}, this is of {index}")
    state = replace(state, noted={**state.noted, number: index})
    have = {_number(node, 1) for node in voters}
    if not have or not have <= {node.id for node in shard_map.nodes}:
        raise ValueError("voters must be nodes")
    wanted = state.wanted.get(number, group.voters)
    # As they are wanted, then those that are still to go.
    order = tuple(node for node in (*wanted, *group.voters) if node in have)
    order = tuple(dict.fromkeys((*order, *sorted(have))))
    learners = tuple(node for node in group.learners if node not in have)
    changed = replace(group, voters=order, learners=learners)
    if changed != group:
        state = replace(_left(state, number, group.replicas, changed.replicas), map=shard_map.with_group(changed))
    if set(order) == set(wanted) and not learners:
        state = replace(state, wanted={key: value for key, value in state.wanted.items() if key != number})
    return state, 0


# -- nodes


def _add_join_token(state: MetaState, _: ShardMap, now: int, digest: bytes) -> Outcome:
    """One data folder may join with the token that has this SHA-256."""
    if type(digest) is not bytes or len(digest) != _DIGEST_BYTES:
        raise ValueError("a SHA-256 is expected")
    tokens = {known: token for known, token in state.join_tokens.items() if token.expires > now}
    if digest not in tokens:
        if sum(not token.incarnation for token in tokens.values()) >= MAX_JOIN_TOKENS:
            raise Refused(f"{MAX_JOIN_TOKENS} join tokens are valid and not used yet: wait until they expire")
        tokens[digest] = JoinToken(now + JOIN_TOKEN_MS)
    return replace(state, join_tokens=tokens), 0


def _join_token(state: MetaState, now: int, digest: bytes) -> JoinToken:
    """The token with this SHA-256. Raises Refused if nobody may join with it now."""
    if type(digest) is not bytes:
        raise TypeError("a SHA-256 is expected")
    if not digest:
        raise Refused(f"a join token is missing: {_HOW_TO_JOIN}")
    token = state.join_tokens.get(digest)
    if token is None:
        raise Refused(f"the cluster does not know this join token, or it has expired: {_HOW_TO_JOIN}")
    if token.incarnation:
        raise Refused(f"this join token was used already, each lets one node join: {_HOW_TO_JOIN}")
    if token.expires <= now:
        raise Refused(f"this join token has expired: {_HOW_TO_JOIN}")
    return token


def _add_node(
    state: MetaState,
    shard_map: ShardMap,
    now: int,
    address: str,
    peer_address: str,
    incarnation: str,
    digest: bytes | None = None,
) -> Outcome:
    """A node joins, without replicas at first. Answers its id; that of a data folder that has joined stays the same.

    ``digest``: of its join token; None in logs of before there were any.
    """
    for node in shard_map.nodes:
        if node.incarnation == incarnation and incarnation:
            if (node.address, node.peer_address) != (address, peer_address):
                raise Refused(f"node {node.id} joined from this data folder with other addresses")
            return state, node.id
        if {address, peer_address} & {node.address, node.peer_address}:
            raise Refused(f"node {node.id} has the address {address} or {peer_address} already")
    if digest is not None:
        used = replace(_join_token(state, now, digest), incarnation=incarnation)
        state = replace(state, join_tokens={**state.join_tokens, digest: used})
    number = state.last_node + 1
    added = Node(number, address, peer_address, incarnation)
    return replace(state, map=shard_map.with_node(added), last_node=number), number


def _check_newcomer(
    state: MetaState, now: int | None, address: str, peer_address: str, incarnation: str, digest: bytes = b""
) -> None:
    nodes = state.map.nodes if state.map is not None else ()
    for node in nodes:
        if incarnation and node.incarnation == incarnation:
            if (node.address, node.peer_address) != (address, peer_address):
                places = f"{node.address} and {node.peer_address}"
                raise Refused(f"node {node.id} joined from this data folder with other addresses, {places}")
            return
    _check_apart(nodes, address, peer_address)
    if now is not None or not digest:
        _join_token(state, now or 0, digest)


def _check_apart(others: Iterable[Node], address: str, peer_address: str) -> None:
    """A node may be reached there. Raises Refused, or ValueError for what is no address."""
    wanted = {str(parse_address(text)): text for text in (address, peer_address)}
    if len(wanted) < 2:
        raise Refused(f"{address} is given both for clients and for nodes: they need an address each")
    for node in others:
        for known in (canonical(node.address), canonical(node.peer_address)):
            if known in wanted:
                raise Refused(f"node {node.id} has the address {wanted[known]} already")


def _readdress_node(
    state: MetaState, shard_map: ShardMap, _: int, number: int, incarnation: str, address: str, peer_address: str
) -> Outcome:
    """A member, the one of that data folder, is reached at other addresses from now on."""
    _check_node(shard_map, number)
    node = shard_map.node(number)
    if node.incarnation != incarnation:
        raise Refused(f"node {number} has another data folder")
    for other in shard_map.nodes:
        if other.id != number and {address, peer_address} & {other.address, other.peer_address}:
            raise Refused(f"node {other.id} has the address {address} or {peer_address} already")
    moved = replace(node, address=address, peer_address=peer_address)
    return (state, 0) if moved == node else (replace(state, map=shard_map.with_node(moved)), 0)


def _check_moved(nodes: Sequence[Node], number: int, _: str, address: str, peer_address: str) -> None:
    _check_apart([node for node in nodes if node.id != number], address, peer_address)


def _drain(state: MetaState, shard_map: ShardMap, _: int, epoch: int, node: int, desired: Any) -> Outcome:
    """No replicas on ``node`` any more: as :func:`_want`, and it gets no new ones."""
    if _number(epoch, 0) != shard_map.epoch:
        raise Refused(f"the map has epoch {shard_map.epoch} now, not {epoch}: plan again")
    _check_node(shard_map, node)
    if any(node in voters for _, voters in desired):
        raise Refused(f"the plan leaves replicas on node {node}")
    state = replace(state, draining=tuple(sorted({*state.draining, node})))
    return _with_desired(state, shard_map, desired), 0


def _undrain(state: MetaState, shard_map: ShardMap, _: int, node: int) -> Outcome:
    """The node may get replicas again; what has not left it stays."""
    _check_node(shard_map, node)
    wanted = {group: voters for group, voters in state.wanted.items() if node not in shard_map.group(group).voters}
    return replace(state, draining=tuple(one for one in state.draining if one != node), wanted=wanted), 0


def _remove_node(state: MetaState, shard_map: ShardMap, _: int, node: int) -> Outcome:
    """A node without replicas leaves for good: its id never comes back."""
    if node in shard_map.removed:
        return state, 0
    _check_node(shard_map, node)
    voting = [group.id for group in shard_map.groups if node in group.voters]
    if voting:
        raise Refused(f"node {node} still holds replicas of the groups {_listed(voting)}: drain it first")
    if any(node in voters for voters in state.wanted.values()):
        raise Refused(f"node {node} is about to get replicas")
    for group in shard_map.groups_on(node):
        # It was about to become a voter, and will never answer again.
        learners = tuple(one for one in group.learners if one != node)
        shard_map = shard_map.with_group(replace(group, learners=learners))
    draining = tuple(one for one in state.draining if one != node)
    garbage = frozenset(one for one in state.garbage if one[1] != node)
    return replace(state, map=shard_map.without_node(node), draining=draining, garbage=garbage), 0


def _check_node(shard_map: ShardMap, node: int) -> None:
    if node not in {one.id for one in shard_map.nodes}:
        raise Refused(f"there is no node {node}")


# -- arguments


def _group(shard_map: ShardMap, number: int) -> Group:
    for group in shard_map.groups:
        if group.id == number:
            return group
    raise Refused(f"there is no group {number}")


def _voters(state: MetaState, shard_map: ShardMap, voters: Any, present: Iterable[int] = ()) -> tuple[int, ...]:
    """Checked: members, each once; a node that is drained only if it is there already."""
    chosen = tuple(_number(node, 1) for node in voters)
    if not chosen or len(set(chosen)) != len(chosen):
        raise Refused("a group needs voters, each once")
    for node in chosen:
        _check_node(shard_map, node)
        if node in state.draining and node not in present:
            raise Refused(f"node {node} is being drained")
    return chosen


def _slots(slots: Any) -> tuple[int, ...]:
    chosen = tuple(_number(slot, 0) for slot in slots)
    if not chosen or len(set(chosen)) != len(chosen):
        raise Refused("a move needs slots, each once")
    return chosen


def _number(value: Any, low: int, high: int = 2**62) -> int:
    if type(value) is not int or not low <= value <= high:
        raise ValueError(f"a number from {low} to {high} is expected")
    return value


def _listed(numbers: Iterable[int]) -> str:
    return ", ".join(str(number) for number in numbers)


_COMMANDS: Final[dict[str, Callable[..., Outcome]]] = {
    "plan": _plan,
    "next": _next,
    "commit": _commit,
    "finish": _finish,
    "cancel": _cancel,
    "abandon": _abandon,
    "pause": _pause,
    "tune": _tune,
    "add group": _add_group,
    "remove group": _remove_group,
    "dropped": _dropped,
    "want": _want,
    "spread leaders": _spread_leaders,
    "learn": _learn,
    "voters": _note_voters,
    "add join token": _add_join_token,
    "add node": _add_node,
    "readdress node": _readdress_node,
    "drain": _drain,
    "undrain": _undrain,
    "remove node": _remove_node,
}
"""Verb -> function of the state, its map, the group time and the verb's arguments."""
