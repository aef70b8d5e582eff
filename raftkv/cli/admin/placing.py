"""Which nodes are to hold which groups: plans for node commands, asked of the cluster and awaited.

What is wanted already counts as if it were so: a command that is given again, or while another one is under way, asks
only for what is missing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Final

from raftkv.api.messages import leaders_over_value
from raftkv.api.status import ClusterState
from raftkv.cli.admin.common import Precondition
from raftkv.cli.admin.survey import Picture, check_quorums, survey
from raftkv.cli.admin.text import counted, listed
from raftkv.cli.admin.watch import Seen, until
from raftkv.client.admin import AdminClient
from raftkv.errors import ConditionFailed
from raftkv.v1 import admin_pb2
from shards.leaders import Voters
from shards.map import META_GROUP, LeadersOver, ShardMap
from shards.planner import PlanError, balance_nodes, drain_node, meta_members, replace_node

DesiredVoters = Mapping[int, Voters]
"""Group -> voters that it is to have."""

GOES_ON: Final = "replicas move in the cluster: `raftkv-admin cluster health` shows what is still to come"
_ATTEMPTS: Final = 5


def intended(state: ClusterState) -> ShardMap:
    """The map as it will be once every group has the voters that are wanted."""
    groups = []
    for group in state.map.groups:
        voters = state.wanted.get(group.id, group.voters)
        groups.append(replace(group, voters=voters, learners=tuple(n for n in group.learners if n not in voters)))
    return replace(state.map, groups=tuple(groups))


def _fit(picture: Picture) -> list[int]:
    """Nodes that may get replicas: they answer and are not drained."""
    return sorted(picture.alive - picture.state.draining)


def _check_fit(picture: Picture, nodes: Iterable[int]) -> None:
    for node in nodes:
        check_member(picture.state.map, node)
        if node in picture.state.draining:
            raise Precondition(f"node {node} is drained: `raftkv-admin node undrain {node}` ends that")
        check_answers(picture, node)


def check_answers(picture: Picture, node: int) -> None:
    """Raises Precondition that says why ``node`` cannot be asked."""
    if node not in picture.alive:
        raise Precondition(f"node {node} does not answer: {picture.said.get(node)}")


def check_member(shard_map: ShardMap, node: int) -> None:
    """Raises Precondition if ``node`` is not a member of the cluster."""
    if node in shard_map.removed:
        raise Precondition(f"node {node} has been removed from the cluster")
    if all(one.id != node for one in shard_map.nodes):
        raise Precondition(f"there is no node {node}")


# Plans


def spreading(picture: Picture, nodes: Iterable[int] = ()) -> DesiredVoters:
    """Voters with which the replicas are spread evenly over the nodes that are fit. ``nodes`` must be among these."""
    _check_fit(picture, nodes)
    fit = _fit(picture)
    shard_map = intended(picture.state)
    desired = balance_nodes(shard_map, fit)
    meta = shard_map.group(META_GROUP).voters
    members = meta_members(shard_map, fit)
    if members != meta:
        desired[META_GROUP] = members
    return desired


def draining(picture: Picture, node: int) -> DesiredVoters:
    """Voters, without ``node``, of every group that is to have it. Raises Precondition if too few nodes are left."""
    check_member(picture.state.map, node)
    others = [one for one in _fit(picture) if one != node]
    shard_map = intended(picture.state)
    try:
        return drain_node(shard_map, node, others)
    except PlanError as error:
        away = sorted(set(picture.said) - picture.alive - {node})
        drained = sorted(picture.state.draining - {node})
        reasons = [f"{counted(len(others), 'node')} would be left: {listed(others)}"]
        reasons += [f"no answer from {listed(away)}"] if away else []
        reasons += [f"drained: {listed(drained)}"] if drained else []
        raise Precondition(f"{error} ({'; '.join(reasons)}): add a node first") from None


def replacing(picture: Picture, old: int, new: int) -> DesiredVoters:
    """Voters with ``new`` in the place of ``old``. Raises Precondition or PlanError."""
    check_member(picture.state.map, old)
    _check_fit(picture, [new])
    try:
        return replace_node(intended(picture.state), old, new)
    except PlanError as error:
        raise Precondition(
            f"{error}; `raftkv-admin node drain {old}` finds other places for them, if there are any"
        ) from None


def check_removable(picture: Picture, node: int) -> None:
    """Raises Precondition that says what to do if ``node`` holds replicas or is to get some."""
    state = picture.state
    check_member(state.map, node)
    held = [group.id for group in state.map.groups_on(node)]
    if held:
        advice = f"`raftkv-admin node drain {node}` moves them away"
        try:
            check_quorums(picture, draining(picture, node))
        except Precondition as error:
            advice = f"and it cannot be drained: {error}"
        raise Precondition(f"node {node} still holds replicas of the groups {listed(held)}; {advice}")
    coming = [group for group, voters in state.wanted.items() if node in voters]
    if coming:
        raise Precondition(f"node {node} is about to get replicas of the groups {listed(coming)}")


# Asking


def voters_request(state: ClusterState, desired: DesiredVoters) -> admin_pb2.ChangeRequest:
    """The change that gives groups other voters."""
    change = admin_pb2.ChangeVoters(epoch=state.map.epoch, groups=_wanted(desired))
    return admin_pb2.ChangeRequest(change_voters=change)


def leaders_request(state: ClusterState, over: LeadersOver, desired: DesiredVoters) -> admin_pb2.ChangeRequest:
    """The change that gives groups other preferred leaders, spread over ``over`` from now on."""
    spread = admin_pb2.SpreadLeaders(epoch=state.map.epoch, over=leaders_over_value(over), groups=_wanted(desired))
    return admin_pb2.ChangeRequest(spread_leaders=spread)


def drain_request(state: ClusterState, node: int, desired: DesiredVoters) -> admin_pb2.ChangeRequest:
    """The change that gives groups other voters and keeps new replicas away from ``node``."""
    change = admin_pb2.DrainNode(epoch=state.map.epoch, node=node, groups=_wanted(desired))
    return admin_pb2.ChangeRequest(drain_node=change)


def _wanted(desired: DesiredVoters) -> list[admin_pb2.WantedVoters]:
    return [admin_pb2.WantedVoters(group=group, voters=voters) for group, voters in sorted(desired.items())]


async def change(
    client: AdminClient,
    plan: Callable[[Picture], DesiredVoters],
    request: Callable[[ClusterState, DesiredVoters], admin_pb2.ChangeRequest],
    *,
    even_without: bool = False,
) -> DesiredVoters:
    """Plan and ask for it, again if the map has changed meanwhile; what was asked for.

    ``even_without``: also if no group is to change. Raises Precondition, PlanError or ConditionFailed if it cannot be.
    """
    for _ in range(_ATTEMPTS):
        picture = await survey(client, await client.state())
        desired = plan(picture)
        if not desired and not even_without:
            return desired
        check_quorums(picture, desired)
        try:
            await client.change(request(picture.state, desired))
        except ConditionFailed:
            if (await client.state()).map.epoch == picture.state.map.epoch:
                raise
        else:
            return desired
    raise Precondition("the map keeps changing, so no plan stays valid: try again later")


async def settled(client: AdminClient, title: str, timeout: float) -> None:
    """Wait until every group has the voters that are wanted. Raises Partial."""
    most = 0

    def look(state: ClusterState) -> Seen:
        nonlocal most
        open_ = len(state.wanted)
        most = max(most, open_)
        return Seen(most - open_, most, _waiting(state) or f"{counted(open_, 'group')} left", over=not open_)

    await until(client, look, title=title, timeout=timeout)


async def left(client: AdminClient, node: int, timeout: float) -> None:
    """Wait until ``node`` holds no replica and is to get none. Raises Partial."""
    most = 0

    def look(state: ClusterState) -> Seen:
        nonlocal most
        held = len(state.map.groups_on(node)) if any(one.id == node for one in state.map.nodes) else 0
        coming = any(node in voters for voters in state.wanted.values())
        most = max(most, held)
        return Seen(most - held, most, _waiting(state) or f"{counted(held, 'replica')} left", not held and not coming)

    await until(client, look, title=f"moving replicas away from node {node}", timeout=timeout)


def _waiting(state: ClusterState) -> str:
    """Why the first group that waits does so."""
    return next((f"group {group}: {why}" for group, why in state.waiting.items()), "")
