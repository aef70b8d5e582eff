"""Plans of leaders: which voter is to lead each group, and who follows a leader that has gone. Pure.

Leaderships are spread over places, as the map's ``leaders_over`` says: hosts, or nodes. Leaders that sit on one node
share messages and syncs, so on a host as few nodes as possible lead.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping

from shards.map import Group, LeadersOver, Node, ShardMap

Voters = tuple[int, ...]


class LeaderPlaces:
    """The places of nodes. Each has the lowest id of its nodes as its number."""

    def __init__(self, nodes: Iterable[Node], over: LeadersOver) -> None:
        self._of: dict[int, int] = {}
        hosts: dict[str, int] = {}
        for node in sorted(nodes, key=lambda one: one.id):
            self._of[node.id] = hosts.setdefault(node.host, node.id) if over is LeadersOver.HOSTS else node.id

    def of(self, node: int) -> int:
        """The place of ``node``; a node that the map does not have is a place of its own."""
        return self._of.get(node, node)


class LeaderLoad:
    """How many groups each node leads. ``leaders``: one node for each group."""

    def __init__(self, places: LeaderPlaces, leaders: Iterable[int] = ()) -> None:
        self.of = Counter[int]()
        self._places = places
        self._at = Counter[int]()
        for node in leaders:
            self.add(node)

    def add(self, node: int) -> None:
        """``node`` leads one more group."""
        self.of[node] += 1
        self._at[self._places.of(node)] += 1

    def rank(self, node: int) -> tuple[int, int]:
        """The less, the rather ``node`` should lead one more: where least is led, and there who leads most."""
        return self._at[self._places.of(node)], -self.of[node]


class Succession:
    """Who is to lead the groups of a map while nodes are down.

    Leaderships of a place stay together: all its groups go through its nodes in one order.
    """

    def __init__(self, shard_map: ShardMap) -> None:
        self._places = LeaderPlaces(shard_map.nodes, shard_map.leaders_over)
        self._held = Counter(node for group in shard_map.groups for node in group.voters)

    def of(self, group: Group, leader: int) -> Voters:
        """Voters to lead ``group``, which ``leader`` leads now, best first; a later one only if all before are down.

        The preferred leader, the others of its place, those of the leader's place. Nodes that vote in most groups come
        first, then low ids.
        """
        first, of = group.voters[0], self._places.of
        near = [node for node in group.voters if of(node) in (of(first), of(leader))]
        return tuple(sorted(near, key=lambda node: (node != first, of(node) != of(first), -self._held[node], node)))


def balance_leaders(shard_map: ShardMap) -> dict[int, Voters]:
    """Voters, in a new order, of the groups to change so that leaders are spread evenly; the meta group counts.

    As even over the places as the voters allow: the sum of squares is least, and then also the greatest number is least
    and the least is greatest (Harvey, Ladner, Lovász, Tamir 2003, Semi-matchings for bipartite graphs and load
    balancing). Among such orders, one that takes the fewest groups to another place. Within a place few nodes lead:
    those that vote in most of its groups, unless no fewer lead if all groups stay where they are.
    """
    places = LeaderPlaces(shard_map.nodes, shard_map.leaders_over)
    voters = {group.id: group.voters for group in sorted(shard_map.groups, key=lambda group: group.id)}
    options = {group: tuple(dict.fromkeys(map(places.of, nodes))) for group, nodes in voters.items()}
    chosen: dict[int, int] = {}
    for group in voters:
        _add_leader(options, chosen, group)
    leaders: dict[int, int] = {}
    for place in sorted(set(chosen.values())):
        able = {
            group: tuple(node for node in nodes if places.of(node) == place)
            for group, nodes in voters.items()
            if chosen[group] == place
        }
        leaders |= _gathered(able, {group: voters[group][0] for group in able})
    return {group: led_by(leaders[group], old) for group, old in voters.items() if leaders[group] != old[0]}


def led_by(leader: int, voters: Iterable[int]) -> Voters:
    """``voters`` with ``leader`` first."""
    return (leader, *(voter for voter in voters if voter != leader))


def _gathered(able: Mapping[int, Voters], first: Mapping[int, int]) -> dict[int, int]:
    """Leaders of the groups of one place, on few nodes, each out of ``able``; ``first``: those of before."""
    stay = {group: first[group] for group, nodes in able.items() if first[group] in nodes}
    come = {group: nodes for group, nodes in able.items() if group not in stay}
    calm = stay | _cover(come, set(stay.values()))
    fresh = _cover(able, set())
    return calm if len(set(calm.values())) <= len(set(fresh.values())) else fresh


def _cover(able: Mapping[int, Voters], leading: set[int]) -> dict[int, int]:
    """A leader for each group: again and again the node that can lead most of the rest, first those of ``leading``."""
    leaders: dict[int, int] = {}
    while rest := [group for group in able if group not in leaders]:
        counts = Counter(node for group in rest for node in able[group])
        best = min(counts, key=lambda node: (node not in leading, -counts[node], node))
        leaders |= {group: best for group in rest if best in able[group]}
    return leaders


def _add_leader(options: Mapping[int, Voters], leaders: dict[int, int], group: int) -> None:
    """Let ``group`` take part in ``leaders`` (group to place), which is best for its groups before and after.

    One step of successive shortest paths: a leader is added somewhere, and others pass on along a path of places to
    where one more costs least. Each first place that changes costs 1, a worse spread more than all of these.
    """
    hops: dict[tuple[int, int], tuple[int, int]] = {}
    for other, leader in leaders.items():
        first = options[other][0]
        for place in options[other]:
            hop = ((place != first) - (leader != first), other)
            hops[leader, place] = min(hop, hops.get((leader, place), hop))
    cost = {place: int(place != options[group][0]) for place in options[group]}
    via: dict[int, tuple[int | None, int]] = dict.fromkeys(cost, (None, group))
    shorter = True
    while shorter:
        shorter = False
        for (start, end), (change, other) in hops.items():
            if start in cost and (end not in cost or cost[start] + change < cost[end]):
                cost[end], via[end] = cost[start] + change, (start, other)
                shorter = True
    loads = Counter(leaders.values())
    # The sum of squares grows by 2 * load + 1.
    at: int | None = min(cost, key=lambda place: ((2 * loads[place] + 1) * (len(options) + 1) + cost[place], place))
    while at is not None:
        before, passed = via[at]
        leaders[passed] = at
        at = before
