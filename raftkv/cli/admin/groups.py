"""``raftkv-admin group list|add|drain|remove``."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import click

from raftkv.api.status import ClusterState
from raftkv.cli.admin.common import AdminExit, Precondition, ask, command, complain, confirm, emit
from raftkv.cli.admin.jobs import StatsOfSlots, known, known_size
from raftkv.cli.admin.moving import JobOptions, carry_out, job_options
from raftkv.cli.admin.survey import current, slot_stats, survey
from raftkv.cli.admin.text import listed
from raftkv.cli.admin.watch import Seen, until, wait_options
from raftkv.cli.console import Section
from raftkv.cli.parameters import GROUP, LaterDefault
from raftkv.client.admin import AdminClient
from raftkv.v1 import admin_pb2
from shards.map import META_GROUP, ShardMap
from shards.planner import Move, place_group, plan_slots


@click.group("group")
def group_command() -> None:
    """Shard groups."""


@command(group_command, "list")
def list_groups() -> None:
    """Show all groups: leader, members, slots, keys, bytes.

    \b
    Example:
      raftkv-admin group list
    """

    async def main(client: AdminClient) -> tuple[ClusterState, StatsOfSlots]:
        state = await current(client)
        return state, await slot_stats(client, state.map)

    emit(groups_report(*ask(main)), show_groups)


def groups_report(state: ClusterState, found: StatsOfSlots) -> dict[str, Any]:
    """All groups; keys and bytes are None if the group's leader could not be asked."""
    rows = []
    for group in state.map.groups:
        slots = state.map.slots_of(group.id)
        asked = group.id != META_GROUP and all(slot in found for slot in slots)
        wanted = state.wanted.get(group.id)
        rows.append(
            {
                "id": group.id,
                "meta": group.id == META_GROUP,
                "leader": state.leaders.get(group.id),
                "voters": list(group.voters),
                "learners": list(group.learners),
                "wanted": None if wanted is None else list(wanted),
                "slots": len(slots),
                "keys": sum(found[slot].keys for slot in slots) if asked else None,
                "bytes": sum(found[slot].bytes for slot in slots) if asked else None,
            }
        )
    return {"epoch": state.map.epoch, "meta_answers": state.vouched, "groups": rows}


def show_groups(report: dict[str, Any]) -> Iterator[Section | str]:
    """The table of ``group list``."""
    rows = [
        (
            f"{group['id']} (meta)" if group["meta"] else str(group["id"]),
            group["leader"] or "-",
            listed(group["voters"]),
            listed(group["learners"]),
            listed(group["wanted"] or ()),
            group["slots"],
            known(group["keys"]),
            "-" if group["bytes"] is None else known_size(group["bytes"]),
        )
        for group in report["groups"]
    ]
    yield Section("", ("group", "leader", "voters", "learners", "wanted", "slots", "keys", "bytes"), rows)


@command(group_command, "add")
@click.option("--count", type=click.IntRange(1, 256), default=1, show_default=True, help="How many new groups.")
@click.option(
    "--replicas",
    cls=LaterDefault,
    shown="as the other groups have",
    type=click.IntRange(1, 9),
    help="Replicas of each group.",
)
@wait_options(default=True)
def add(count: int, replicas: int | None, wait: bool, wait_timeout: float) -> None:
    """Make new groups, without slots, on the nodes that have the fewest replicas.

    `raftkv-admin rebalance apply` gives them their share of the slots.

    \b
    Example:
      raftkv-admin group add --count 2
    """
    made: list[dict[str, Any]] = []

    async def main(client: AdminClient) -> None:
        for _ in range(count):
            picture = await survey(client, await client.state())
            state = picture.state
            fit = [node.id for node in state.map.nodes if node.id in picture.alive - state.draining]
            voters = place_group(state.map, usual_replicas(state.map) if replicas is None else replicas, fit)
            request = admin_pb2.ChangeRequest(add_group=admin_pb2.AddGroup(voters=voters))
            made.append({"id": await client.change(request), "voters": list(voters)})
        if wait:
            await until(client, look, title="new groups", timeout=wait_timeout)

    def look(state: ClusterState) -> Seen:
        led = sum(group["id"] in state.leaders for group in made)
        return Seen(led, count, f"{led} of {count} have a leader", over=led == count)

    try:
        ask(main, "the new groups are kept")
    finally:
        if made:
            emit({"groups": made}, show_made)
    complain("`raftkv-admin rebalance apply` gives them slots")


def show_made(report: dict[str, Any]) -> Iterator[Section | str]:
    """The table of ``group add``."""
    rows = [(group["id"], listed(group["voters"])) for group in report["groups"]]
    yield Section("", ("new group", "voters"), rows)


def usual_replicas(shard_map: ShardMap) -> int:
    """Voters of the data group that has most: what the operator chose, were it not for changes under way."""
    return max(len(group.voters) for group in shard_map.data_groups())


@command(group_command, "drain", confirms=True)
@click.argument("group", type=GROUP)
@job_options
def drain(group: int, **options: Any) -> int:
    """Move all slots of GROUP to the other groups, evenly; then it can be removed.

    \b
    Example:
      raftkv-admin group drain 3 --wait
    """
    confirm(f"Move all slots away from group {group}?")
    return carry_out(
        lambda state: emptying(state, group),
        JobOptions(**options),
        weights={group: 0},
        nothing=f"group {group} owns no slots",
    )


def emptying(state: ClusterState, group: int) -> list[Move]:
    """The moves that take all slots from ``group`` and leave the others where they are. Raises Precondition."""
    groups = [one.id for one in state.map.data_groups()]
    if group not in groups:
        raise Precondition(f"there is no data group {group}")
    if len(groups) == 1:
        raise Precondition(f"group {group} is the only one: `raftkv-admin group add` makes another")
    return [move for move in plan_slots(state.map, {group: 0}) if move.source == group]


@command(group_command, "remove", confirms=True)
@click.argument("group", type=GROUP)
def remove(group: int) -> int:
    """Remove GROUP, which owns no slots: its replicas and their logs go.

    \b
    Example:
      raftkv-admin group remove 3
    """
    confirm(f"Remove group {group}?")
    ask(lambda client: client.change(admin_pb2.ChangeRequest(remove_group=group)))
    emit({"group": group}, lambda _: [f"group {group} is removed"])
    return AdminExit.DONE
