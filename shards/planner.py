"""Plans for a cluster that changes: which slots move between groups, which nodes hold a group.

Pure: a plan follows from the map and the arguments alone, whatever their order, and a map that already is as a plan
wants it gives an empty plan. Applying a plan is the caller's.

Plans of nodes name the wanted voters, first the one preferred as leader. No two voters of a group are on one host when
there is a choice: its voters are spread over the hosts as evenly as these have nodes. A learner is a member half-way in
or out: it counts as no load, but a node that has the log already as a learner is taken first, so that a change which
was cut short goes on the same way.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from types import MappingProxyType
from typing import Final

from shards.leaders import LeaderLoad, LeaderPlaces, Voters, led_by
from shards.map import META_GROUP, Group, ShardMap
from shards.placement import ReplicaLoad, apart, meta_voters

MIN_WEIGHT: Final = 1e-6
MAX_WEIGHT: Final = 1e6

_EQUAL: Final[Mapping[int, float]] = MappingProxyType({})


class PlanError(ValueError):
    """What is asked for cannot be planned; the message says why, for people."""


@dataclass(frozen=True)
class Move:
    """``slots`` pass from the group ``source`` to the group ``target``."""

    slots: tuple[int, ...]
    source: int
    target: int


@dataclass(frozen=True)
class Share:
    """Slots that a data group has, and its ideal number of them, in slots; 0.0 for a group to be drained."""

    group: int
    slots: int
    ideal: float


@dataclass(frozen=True)
class Balance:
    """How evenly the slots lie; ``shares`` has every data group, by id."""

    total: int
    shares: tuple[Share, ...]

    @property
    def peak_to_mean(self) -> float:
        """The greatest ratio of slots to ideal: with equal weights, the fullest group over the mean.

        Groups to be drained have no ideal and are left out; see :attr:`draining`.
        """
        return max(share.slots / share.ideal for share in self.shares if share.ideal)

    @property
    def draining(self) -> int:
        """Slots that still lie on groups of weight 0."""
        return sum(share.slots for share in self.shares if not share.ideal)

    def moved_share(self, moves: Iterable[Move]) -> float:
        """Part of all slots that ``moves`` carry, from 0.0 to 1.0."""
        return sum(len(move.slots) for move in moves) / self.total


# Slots


def plan_slots(shard_map: ShardMap, weights: Mapping[int, float] = _EQUAL) -> tuple[Move, ...]:
    """The fewest moves of slots after which every data group has its ideal number, rounded down or up.

    ``weights``: data group's id to weight; 1 if not given, 0 drains the group. A group that is at either rounding of
    its ideal keeps that as far as the sum allows. One move per pair of groups, by source and target. Raises PlanError
    for a weight out of range, of an unknown group, or if all are 0.
    """
    owned = _owned(shard_map)
    targets = _targets(shard_map.slots, {group: len(slots) for group, slots in owned.items()}, _shares(owned, weights))
    given = [(slot, group) for group, slots in owned.items() for slot in slots[targets[group] :]]
    wanted = [group for group, slots in owned.items() for _ in range(targets[group] - len(slots))]
    moves: dict[tuple[int, int], list[int]] = {}
    for (slot, source), target in zip(given, wanted, strict=True):
        moves.setdefault((source, target), []).append(slot)
    return tuple(Move(tuple(slots), *pair) for pair, slots in moves.items())


def batches(moves: Iterable[Move], slots_per_move: int) -> tuple[Move, ...]:
    """``moves`` cut into ones of at most ``slots_per_move`` (>= 1) slots, in an order that lets many go on at once.

    The order is made of rounds in which no group takes part twice, as full as can be; pairs that lag behind go first.
    Raises PlanError if ``slots_per_move`` is less than 1.
    """
    if slots_per_move < 1:
        raise PlanError(f"a move needs at least one slot, not {slots_per_move}")
    left: dict[tuple[int, int], list[int]] = {}
    for move in sorted(moves, key=lambda one: (one.source, one.target, one.slots)):
        if move.slots:
            left.setdefault((move.source, move.target), []).extend(move.slots)
    total = {pair: len(slots) for pair, slots in left.items()}
    cut: list[Move] = []
    while left:
        busy: set[int] = set()
        for pair in sorted(left, key=lambda one: (-len(left[one]) / total[one], -total[one], one)):
            if busy.isdisjoint(pair):
                busy.update(pair)
                slots = left.pop(pair)
                cut.append(Move(tuple(slots[:slots_per_move]), *pair))
                if len(slots) > slots_per_move:
                    left[pair] = slots[slots_per_move:]
    return tuple(cut)


def balance(shard_map: ShardMap, weights: Mapping[int, float] = _EQUAL) -> Balance:
    """How evenly the slots lie over the data groups by ``weights``. Raises PlanError as :func:`plan_slots` does."""
    owned = _owned(shard_map)
    shares = _shares(owned, weights)
    rows = (Share(group, len(slots), float(shares[group] * shard_map.slots)) for group, slots in owned.items())
    return Balance(shard_map.slots, tuple(rows))


def _owned(shard_map: ShardMap) -> dict[int, list[int]]:
    """Slots of each data group, both ascending."""
    owned: dict[int, list[int]] = {group.id: [] for group in _by_id(shard_map.data_groups())}
    for slot, owner in enumerate(shard_map.owners):
        owned[owner].append(slot)
    return owned


def _shares(groups: Iterable[int], weights: Mapping[int, float]) -> dict[int, Fraction]:
    """The part of all slots that is each group's by its weight; they sum to 1."""
    exact = {group: _weight(group, weights.get(group, 1)) for group in groups}
    for group in sorted(weights):
        if group not in exact:
            raise PlanError(f"group {group} has a weight but is not a data group")
    total = sum(exact.values())
    if not total:
        raise PlanError("at least one group must have a weight above 0")
    return {group: weight / total for group, weight in exact.items()}


def _weight(group: int, weight: float) -> Fraction:
    if not math.isfinite(weight) or (weight != 0 and not MIN_WEIGHT <= weight <= MAX_WEIGHT):
        raise PlanError(f"the weight of group {group} must be 0 or from {MIN_WEIGHT:g} to {MAX_WEIGHT:g}, not {weight}")
    # By way of its text, so that 0.1 is a tenth and thrice 0.1 is 0.3.
    return Fraction(str(float(weight)))


def _targets(slots: int, have: Mapping[int, int], shares: Mapping[int, Fraction]) -> dict[int, int]:
    """Slots that each group shall have: its ideal rounded down, and one more for as many groups as the sum needs.

    The method of the largest remainder, but first what saves moves counts, then what lets a group keep what it has.
    """
    ideal = {group: share * slots for group, share in shares.items()}
    targets = {group: math.floor(exact) for group, exact in ideal.items()}

    def rank(group: int) -> tuple[int, Fraction, int, int]:
        over = have[group] - targets[group]
        claim = 0 if over == 1 else 1 if over > 1 else 2 if over < 0 else 3
        return claim, targets[group] - ideal[group], have[group], group

    broken = sorted((group for group in ideal if ideal[group] != targets[group]), key=rank)
    for group in broken[: slots - sum(targets.values())]:
        targets[group] += 1
    return targets


# Nodes


def place_group(shard_map: ShardMap, replicas: int, among: Iterable[int] | None = None) -> Voters:
    """Voters for a new data group: ``replicas`` (>= 1) nodes of different hosts, preferred leader first; least loaded.

    Least loaded: fewest replicas of data groups, then on a host with the fewest for each of its nodes, then first voter
    of fewest groups, then lowest id. Leaders are spread as the map says. ``among``: ids of the nodes to choose from,
    all if None. Raises PlanError if there are too few, or one is unknown.
    """
    nodes = _eligible(shard_map, among)
    if replicas < 1:
        raise PlanError(f"a group needs at least one replica, not {replicas}")
    if replicas > len(nodes):
        raise PlanError(f"{replicas} replicas need as many nodes, there are {len(nodes)}")
    load = _Load(shard_map)
    chosen = apart(nodes, replicas, load.hosts, load.rank)
    return led_by(min(chosen, key=lambda node: (load.leads.rank(node), load.rank(node))), chosen)


def drain_node(shard_map: ShardMap, node: int, among: Iterable[int] | None = None) -> dict[int, Voters]:
    """Voters, without ``node``, of every group that has a replica on it.

    In its place comes the least loaded other node that is not a voter of the group (see :func:`place_group`), on a host
    with as few of its voters as possible, out of ``among`` if given. If ``node`` was the first voter, one follows it as
    for a new group. The meta group goes without a substitute if fewer nodes want fewer voters; a group with no more
    than a learner on ``node`` keeps its voters. Raises PlanError that names the groups for which no node is left, or if
    a node is unknown.
    """
    _known(shard_map, node)
    others = [other for other in _eligible(shard_map, among) if other != node]
    load = _Load(shard_map)
    plan: dict[int, Voters] = {}
    short: list[int] = []
    for group in _by_id(shard_map.groups_on(node)):
        if node not in group.voters:
            plan[group.id] = group.voters
        elif len(group.voters) > (size := _size_without_node(shard_map, group)):
            plan[group.id] = _shrunk(group, node, size, others, load.hosts)
        elif (substitute := load.substitute(group, node, others)) is None:
            short.append(group.id)
        else:
            plan[group.id] = _exchanged(group.voters, node, substitute)
        if group.id in plan and group.voters[0] == node:
            plan[group.id] = load.led(plan[group.id], group)
    if short:
        raise PlanError(f"too few nodes are left for {_named(short)}: none can take the place of node {node}")
    return plan


def replace_node(shard_map: ShardMap, old: int, new: int) -> dict[int, Voters]:
    """Voters of every group that has a replica on ``old``, with ``new`` in its place.

    A group with no more than a learner on ``old`` keeps its voters. Raises PlanError if a node is unknown, both are
    one, or ``new`` is a voter of one of the groups already.
    """
    _known(shard_map, old)
    _known(shard_map, new)
    if old == new:
        raise PlanError(f"node {old} cannot replace itself")
    groups = _by_id(shard_map.groups_on(old))
    both = [group.id for group in groups if old in group.voters and new in group.voters]
    if both:
        raise PlanError(f"node {new} cannot replace node {old}: it already has a replica of {_named(both)}")
    return {group.id: _exchanged(group.voters, old, new) for group in groups}


def balance_nodes(shard_map: ShardMap, among: Iterable[int] | None = None) -> dict[int, Voters]:
    """Voters of the data groups to change, so that the nodes' numbers of replicas of data groups differ by one at most.

    First voters that share a host without need part, then numbers are levelled without bringing any together; so nodes
    of unequal hosts may differ by more. The fewest replicas move; first learners that are there already, then ones of
    groups that change least, then ones that are not the first voter. Places of voters are kept. ``among``: the nodes to
    level, all if None; the others neither give nor get. Raises PlanError if one is unknown.
    """
    nodes = _eligible(shard_map, among)
    hosts = _hosts(shard_map)
    groups = {group.id: group for group in _by_id(shard_map.data_groups())}
    voters = {group.id: group.voters for group in groups.values()}
    held = {node: {group.id for group in groups.values() if node in group.voters} for node in nodes}
    moved: Counter[int] = Counter()

    def move(group: int, old: int, new: int) -> None:
        voters[group] = _exchanged(voters[group], old, new)
        held[old].remove(group)
        held[new].add(group)
        moved[group] += 1

    def best(full: int, empty: int) -> int | None:
        """The group to go from ``full`` to ``empty``; None if each would have more voters on one host."""
        ranks = [
            (empty not in groups[group].learners, moved[group], voters[group][0] == full, group)
            for group in held[full] - held[empty]
            if _crowding(voters[group], full, empty, hosts) <= 0
        ]
        return min(ranks)[-1] if ranks else None

    for one in groups.values():
        while exchange := _parting(one, voters[one.id], nodes, hosts, lambda node: len(held[node])):
            move(one.id, *exchange)
    # From the fullest to the emptiest: where hosts do not stand in the way, the fuller one always has a group that the
    # emptier one has not, no node both gives and gets, and no move needs a second one to make room for it.
    while change := next(
        (
            (group, full, empty)
            for full in sorted(nodes, key=lambda node: (-len(held[node]), node))
            for empty in sorted(nodes, key=lambda node: (len(held[node]), node))
            if len(held[full]) - len(held[empty]) > 1 and (group := best(full, empty)) is not None
        ),
        None,
    ):
        move(*change)
    return {group: voters[group] for group in voters if moved[group]}


def meta_members(shard_map: ShardMap, among: Iterable[int] | None = None) -> Voters:
    """Wanted voters of the meta group: the present ones and as many others as a new cluster of these nodes would have.

    Never fewer than at present; :func:`shards.placement.meta_voters` states the wanted number. Of voters that share a
    host without need, some give way. ``among``: nodes that may come or give way, all if None. Raises PlanError if one
    is unknown.
    """
    meta = shard_map.group(META_GROUP)
    nodes, hosts = _eligible(shard_map, among), _hosts(shard_map)
    voters = meta.voters
    wanted = len(meta_voters([node.id for node in shard_map.nodes]))
    while len(voters) < wanted and (others := [node for node in nodes if node not in voters]):
        on = Counter(hosts[voter] for voter in voters)
        new = min(others, key=lambda node: (on[hosts[node]], node not in meta.learners, node))
        voters = (*voters, new)
    while change := _parting(meta, voters, nodes, hosts, lambda _: 0):
        voters = _exchanged(voters, *change)
    return voters


class _Load:
    """What each node carries: replicas of data groups, and how many groups' first voter it is. Plans add to it."""

    def __init__(self, shard_map: ShardMap) -> None:
        self.hosts = _hosts(shard_map)
        self._replicas = ReplicaLoad(self.hosts, (node for group in shard_map.data_groups() for node in group.voters))
        places = LeaderPlaces(shard_map.nodes, shard_map.leaders_over)
        self.leads = LeaderLoad(places, (group.voters[0] for group in shard_map.groups))

    def rank(self, node: int) -> tuple[int, Fraction, int, int]:
        """The less loaded, the less."""
        return *self._replicas.rank(node), self.leads.of[node], node

    def substitute(self, group: Group, node: int, nodes: Iterable[int]) -> int | None:
        """The one of ``nodes`` that can best take the place of ``node`` as a voter of ``group``, now loaded with it.

        None if none can.
        """
        free = [other for other in nodes if other not in group.voters]
        if not free:
            return None

        def rank(other: int) -> tuple[int, bool, tuple[int, Fraction, int, int]]:
            crowding = _crowding(group.voters, node, other, self.hosts)
            return crowding, other not in group.learners, self.rank(other)

        best = min(free, key=rank)
        if group.id != META_GROUP:
            self._replicas.add(best)
        return best

    def led(self, voters: Voters, group: Group) -> Voters:
        """``voters`` of ``group`` with the one in front that should lead; at a tie, one that was there before."""
        best = min(voters, key=lambda node: (self.leads.rank(node), node not in group.voters, node))
        self.leads.add(best)
        return led_by(best, voters)


def _size_without_node(shard_map: ShardMap, group: Group) -> int:
    """Voters that ``group`` shall have once there is one node less."""
    if group.id != META_GROUP:
        return len(group.voters)
    return max(1, min(len(group.voters), len(meta_voters(range(len(shard_map.nodes) - 1)))))


def _shrunk(group: Group, node: int, size: int, others: list[int], hosts: Mapping[int, str]) -> Voters:
    """``size`` voters of ``group`` without ``node``, rather ones that are in ``others``, then apart; in order."""
    fit = [voter for voter in group.voters if voter in others]
    rest = sorted(set(group.voters) - {node, *fit})
    stay = apart(fit, min(size, len(fit)), hosts, lambda voter: voter) + rest[: max(0, size - len(fit))]
    return tuple(voter for voter in group.voters if voter in stay)


def _hosts(shard_map: ShardMap) -> dict[int, str]:
    return {node.id: node.host for node in shard_map.nodes}


def _crowding(voters: Voters, old: int, new: int, hosts: Mapping[int, str]) -> int:
    """How many more pairs of voters share a host if ``new`` takes the place of ``old``."""
    others = Counter(hosts[voter] for voter in voters if voter != old)
    return others[hosts[new]] - others[hosts[old]]


def _parting(
    group: Group, voters: Voters, nodes: Sequence[int], hosts: Mapping[int, str], load: Callable[[int], int]
) -> tuple[int, int] | None:
    """Of ``voters`` of ``group``, one that shares a host, and one of ``nodes`` on another host to take its place.

    The exchange that parts most; None if none parts any.
    """
    ranks = [
        (crowding, new not in group.learners, -load(old), load(new), old == voters[0], old, new)
        for old in voters
        for new in nodes
        if old in nodes and new not in voters and (crowding := _crowding(voters, old, new, hosts)) < 0
    ]
    return min(ranks)[-2:] if ranks else None


def _exchanged(voters: Voters, old: int, new: int) -> Voters:
    return tuple(new if voter == old else voter for voter in voters)


def _eligible(shard_map: ShardMap, among: Iterable[int] | None) -> list[int]:
    if among is None:
        return sorted(node.id for node in shard_map.nodes)
    nodes = sorted(set(among))
    for node in nodes:
        _known(shard_map, node)
    return nodes


def _known(shard_map: ShardMap, node: int) -> None:
    if all(member.id != node for member in shard_map.nodes):
        raise PlanError(f"node {node} is not a member of the cluster")


def _by_id(groups: Iterable[Group]) -> list[Group]:
    return sorted(groups, key=lambda group: group.id)


def _named(groups: list[int]) -> str:
    return ("group " if len(groups) == 1 else "groups ") + ", ".join(map(str, groups))
