"""``raftkv-admin leader transfer|balance``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any, Final

import click

from raftkv.api.status import ClusterState
from raftkv.cli.admin.common import AdminExit, Partial, Precondition, ask, command, complain, emit
from raftkv.cli.admin.placing import DesiredVoters, check_answers, leaders_request, voters_request
from raftkv.cli.admin.survey import survey
from raftkv.cli.admin.text import listed
from raftkv.cli.console import Section
from raftkv.cli.parameters import NODE
from raftkv.client.admin import AdminClient
from raftkv.clock import SystemClock, sleep
from raftkv.errors import RaftKVError
from shards.leaders import balance_leaders
from shards.map import META_GROUP, LeadersOver

_PATIENCE: Final = 15.0
"""Seconds until a leadership that was handed over must have arrived: leaders that have just been elected hesitate."""

_INTERVAL: Final = 0.2
_AGAIN: Final = 2.0
"""Seconds before a leader is asked once more to hand over."""


@click.group("leader")
def leader_command() -> None:
    """Who leads which group."""


@command(leader_command, "transfer")
@click.argument("group", type=click.IntRange(min=0))
@click.argument("node", type=NODE)
def transfer(group: int, node: int) -> None:
    """Make NODE, a voter of GROUP, its leader, and its preferred leader from now on. Group 0 is the meta group.

    Exits with 4, and changes nothing, if NODE does not answer or is not a voter.

    \b
    Example:
      raftkv-admin leader transfer 1 2
    """

    async def main(client: AdminClient) -> int | None:
        state = await client.state()
        before = state.leaders.get(group)
        order = led_by(state, group, node)
        check_answers(await survey(client, state), node)
        await prefer(client, state, {group: order})
        missing = await hand_over(client, {group: node})
        if missing:
            raise Partial(f"group {group} is not led by node {node} yet: {missing[group]}")
        return before

    before = ask(main, f"node {node} stays the preferred leader of group {group}")
    report = {"group": group, "leader": node, "before": before}
    emit(report, lambda _: [f"node {node} leads group {group}"])


def led_by(state: ClusterState, group: int, node: int) -> tuple[int, ...]:
    """The voters of ``group`` with ``node`` first. Raises Precondition if it is none of them, or they change."""
    if group not in {one.id for one in state.map.groups}:
        raise Precondition(f"there is no group {group}")
    voters = state.map.group(group).voters
    if node not in voters:
        raise Precondition(f"node {node} is not a voter of group {group}, whose voters are {listed(voters)}")
    if group in state.wanted:
        raise Precondition(f"the voters of group {group} are being changed: wait until that is done")
    return (node, *(voter for voter in voters if voter != node))


async def prefer(client: AdminClient, state: ClusterState, order: DesiredVoters) -> None:
    """Note the preferred leaders, the first of each group's voters, where they are other ones."""
    changed = {group: voters for group, voters in order.items() if state.map.group(group).voters != voters}
    if changed:
        await client.change(voters_request(state, changed))


async def hand_over(client: AdminClient, wanted: Mapping[int, int]) -> dict[int, str]:
    """Ask leaders to hand over, and wait until they have; groups (with reasons) that ``wanted`` does not hold for."""
    clock = SystemClock()
    end = clock.now() + _PATIENCE
    reasons: dict[int, str] = {}
    due = clock.now()
    while True:
        leaders: Mapping[int, int] = {}
        try:
            leaders = (await client.known()).leaders
        except RaftKVError:
            pass
        missing = {group: node for group, node in wanted.items() if leaders.get(group) != node}
        if not missing or clock.now() >= end:
            return {group: reasons.get(group, "no reason is known") for group in missing}
        if clock.now() >= due:
            due = clock.now() + _AGAIN
            for group, node in missing.items():
                try:
                    await client.transfer(group, node)
                    reasons.pop(group, None)
                except RaftKVError as error:
                    reasons[group] = str(error)
        await sleep(clock, _INTERVAL)


@command(leader_command, "balance")
@click.option(
    "--over",
    type=click.Choice([str(over) for over in LeadersOver]),
    show_default="as before",
    help="From now on: hosts, on each of which as few nodes as possible lead, or nodes.",
)
def balance(over: str | None) -> int:
    """Spread the leaderships evenly, with few changes, over hosts or over nodes.

    Exits with 6 if a group does not have its desired leader after that; the same command resumes.

    \b
    Example:
      raftkv-admin leader balance --over nodes
    """

    async def main(client: AdminClient) -> dict[str, Any]:
        state = await client.state()
        chosen = state.map.leaders_over if over is None else LeadersOver(over)
        plan = balance_leaders(replace(state.map, leaders_over=chosen))
        order = {group: voters for group, voters in plan.items() if group not in state.wanted}
        if order or chosen != state.map.leaders_over:
            await client.change(leaders_request(state, chosen, order))
        wanted = {
            group.id: order.get(group.id, group.voters)[0] for group in state.map.groups if group.id not in state.wanted
        }
        picture = await survey(client, state)
        # No group waits for a node that cannot lead now; the preference is kept.
        missing = {
            group: f"node {node} does not answer: {picture.said.get(node)}"
            for group, node in wanted.items()
            if node not in picture.alive
        }
        missing |= await hand_over(client, {group: node for group, node in wanted.items() if group not in missing})
        return {"over": str(chosen), **balance_report(state, wanted, (await client.known()).leaders, missing)}

    report = ask(main, "leaderships are still being transferred to the preferred nodes")
    emit(report, show_balance)
    if report["missing"]:
        complain(f"groups not led by their desired leader: {listed(one['group'] for one in report['missing'])}")
        return AdminExit.PARTIAL
    return AdminExit.DONE


def balance_report(
    state: ClusterState, wanted: Mapping[int, int], now: Mapping[int, int], missing: Mapping[int, str]
) -> dict[str, Any]:
    """Leaders before and after."""
    nodes = [node.id for node in state.map.nodes]
    return {
        "groups": [
            {
                "group": group.id,
                "before": state.leaders.get(group.id),
                "wanted": wanted.get(group.id),
                "leader": now.get(group.id),
            }
            for group in state.map.groups
        ],
        "nodes": [
            {"node": node, "leads": [group for group, leader in now.items() if leader == node]} for node in nodes
        ],
        "missing": [{"group": group, "reason": reason} for group, reason in missing.items()],
    }


def show_balance(report: dict[str, Any]) -> Iterator[Section | str]:
    """The tables of ``leader balance``."""
    yield f"leaders are spread over {report['over']}"
    rows: list[tuple[object, ...]] = [
        (
            "0 (meta)" if one["group"] == META_GROUP else str(one["group"]),
            one["before"] or "-",
            one["leader"] or "-",
            one["wanted"] or "-",
        )
        for one in report["groups"]
    ]
    yield Section("", ("group", "leader before", "now", "wanted"), rows)
    rows = [(one["node"], len(one["leads"]), listed(one["leads"])) for one in report["nodes"]]
    yield Section("", ("node", "leads", "groups"), rows)
