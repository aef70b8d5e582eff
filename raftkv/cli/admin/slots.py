"""``raftkv-admin slot stats|move``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import click

from raftkv.api.status import ClusterState
from raftkv.cli.admin.common import AdminExit, Precondition, ask, command, complain, emit
from raftkv.cli.admin.jobs import StatsOfSlots
from raftkv.cli.admin.moving import JobOptions, carry_out, job_options
from raftkv.cli.admin.survey import current, slot_stats
from raftkv.cli.admin.text import listed, numbers_of, parse_ranges, size_text
from raftkv.cli.console import Section
from raftkv.client.admin import AdminClient
from shards.map import ShardMap
from shards.planner import Move
from shards.slots import MAX_SLOTS


@click.group("slot")
def slot_command() -> None:
    """Single slots."""


@command(slot_command, "stats")
@click.option("--top", type=click.IntRange(1, MAX_SLOTS), default=20, show_default=True, help="How many to show.")
@click.option(
    "--by",
    type=click.Choice(["bytes", "keys", "operations"]),
    default="bytes",
    show_default=True,
    help="What to sort by.",
)
def stats(top: int, by: str) -> int:
    """Show keys, bytes and operations of the slots that have most, and of each group.

    Operations are those that the group's present leader has served since its process started. Exits with 5 if a group
    could not be asked.

    \b
    Example:
      raftkv-admin slot stats --top 5 --by operations
    """

    async def main(client: AdminClient) -> tuple[ShardMap, StatsOfSlots]:
        state = await current(client)
        return state.map, await slot_stats(client, state.map)

    report = stats_report(*ask(main), top, by)
    emit(report, show_stats)
    if report["missing_groups"]:
        complain(f"no leader answers for the groups {listed(report['missing_groups'])}")
        return AdminExit.UNHEALTHY
    return AdminExit.DONE


def stats_report(shard_map: ShardMap, known: StatsOfSlots, top: int, by: str) -> dict[str, Any]:
    """The ``top`` slots ``by`` keys, bytes or operations, and sums."""
    ordered = sorted(known.values(), key=lambda one: (-int(getattr(one, by)), one.slot))
    groups = []
    for group in shard_map.data_groups():
        mine = [known[slot] for slot in shard_map.slots_of(group.id) if slot in known]
        sums = {name: sum(int(getattr(one, name)) for one in mine) for name in ("keys", "bytes", "operations")}
        groups.append({"group": group.id, "slots": len(shard_map.slots_of(group.id)), **sums})
    missing = {shard_map.owners[slot] for slot in range(shard_map.slots) if slot not in known}
    return {
        "by": by,
        "slots": [
            {
                "slot": one.slot,
                "group": one.group,
                "keys": one.keys,
                "bytes": one.bytes,
                "operations": one.operations,
            }
            for one in ordered[:top]
        ],
        "groups": groups,
        "keys": sum(group["keys"] for group in groups),
        "bytes": sum(group["bytes"] for group in groups),
        "missing_groups": sorted(missing),
    }


def show_stats(report: dict[str, Any]) -> Iterator[Section | str]:
    """The tables of ``slot stats``."""
    rows = [
        (one["slot"], one["group"], one["keys"], size_text(one["bytes"]), one["operations"]) for one in report["slots"]
    ]
    yield Section(f"slots with most {report['by']}", ("slot", "group", "keys", "bytes", "operations"), rows)
    rows = [
        (one["group"], one["slots"], one["keys"], size_text(one["bytes"]), one["operations"])
        for one in report["groups"]
    ]
    yield Section("groups", ("group", "slots", "keys", "bytes", "operations"), rows)
    yield f"{report['keys']:,} keys, {size_text(report['bytes'])}"


@command(slot_command, "move")
@click.argument("slots")
@click.option("--to", "target", type=click.IntRange(min=1), required=True, metavar="GROUP", help="The new owner.")
@job_options
def move(slots: str, target: int, **options: Any) -> int:
    """Move SLOTS, such as 1,5-9, to another group. Slots that it owns already are left alone.

    \b
    Example:
      raftkv-admin slot move 1,5-9 --to 2 --wait
    """
    try:
        chosen = parse_ranges(slots)
    except ValueError as error:
        raise click.UsageError(f"SLOTS: {error}") from None
    return carry_out(
        lambda state: moves_to(state, chosen, target),
        JobOptions(**options),
        nothing=f"group {target} owns these slots already",
    )


def moves_to(state: ClusterState, ranges: Sequence[tuple[int, int]], target: int) -> list[Move]:
    """The moves, one per present owner, that bring the slots of ``ranges`` to ``target``.

    Raises Precondition, and click.UsageError for a slot that the cluster never has.
    """
    last = max(end for _, end in ranges)
    if last >= state.map.slots:
        raise click.UsageError(f"there is no slot {last}: the cluster has 0 to {state.map.slots - 1}")
    if target not in {group.id for group in state.map.data_groups()}:
        raise Precondition(f"there is no data group {target}")
    sources: dict[int, list[int]] = {}
    for slot in numbers_of(ranges):
        if state.map.owners[slot] != target:
            sources.setdefault(state.map.owners[slot], []).append(slot)
    return [Move(tuple(found), source, target) for source, found in sorted(sources.items())]
