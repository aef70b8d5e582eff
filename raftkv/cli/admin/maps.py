"""``raftkv-admin map show``."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import click

from raftkv.api.status import ClusterState
from raftkv.cli.admin.common import ask, command, emit
from raftkv.cli.admin.survey import current
from raftkv.cli.admin.text import listed, map_line, ranges_text, shortened
from raftkv.cli.common import argument_bytes, field
from raftkv.cli.console import Section
from raftkv.client.arguments import encode_key
from shards.slots import slot_of


@click.group("map")
def map_command() -> None:
    """The shard map."""


@command(map_command, "show")
@click.option("--key", help="Show the slot and group of this key.")
@click.option("--slot", type=click.IntRange(min=0), help="Show the group of this slot.")
def show(key: str | None, slot: int | None) -> None:
    """Show which group owns which slots and which nodes hold it; or of one key or slot alone.

    \b
    Example:
      raftkv-admin map show --key user:1
    """
    if key is not None and slot is not None:
        raise click.UsageError("--key and --slot are mutually exclusive")
    name = None if key is None else encode_key(argument_bytes(key))
    state = ask(current)
    if name is not None:
        emit({**field("key", name), **slot_report(state, slot_of(name, state.map.slots))}, show_slot)
    elif slot is not None:
        if slot >= state.map.slots:
            raise click.UsageError(f"there is no slot {slot}: the cluster has 0 to {state.map.slots - 1}")
        emit(slot_report(state, slot), show_slot)
    else:
        emit({**map_report(state), "meta_answers": state.vouched}, show_map)


def slot_report(state: ClusterState, slot: int) -> dict[str, Any]:
    """Where ``slot`` lies."""
    group = state.map.group(state.map.group_of(slot))
    address = {node.id: node.address for node in state.map.nodes}
    leader = state.leaders.get(group.id)
    return {
        "slot": slot,
        "group": group.id,
        "leader": leader,
        "nodes": [{"id": node, "address": address[node]} for node in group.voters],
        "epoch": state.map.epoch,
        "meta_answers": state.vouched,
    }


def show_slot(report: dict[str, Any]) -> Iterator[Section | str]:
    """One line, and the nodes."""
    yield f"slot {report['slot']}, group {report['group']}"
    rows = [
        (node["id"], node["address"], "leader" if node["id"] == report["leader"] else "follower")
        for node in report["nodes"]
    ]
    yield Section("", ("node", "address", "role"), rows)


def map_report(state: ClusterState) -> dict[str, Any]:
    """The whole map."""
    shard_map = state.map
    return {
        "cluster_id": shard_map.cluster_id,
        "epoch": shard_map.epoch,
        "slots": shard_map.slots,
        "nodes": [
            {"id": node.id, "address": node.address, "peer_address": node.peer_address} for node in shard_map.nodes
        ],
        "groups": [
            {
                "id": group.id,
                "leader": state.leaders.get(group.id),
                "voters": list(group.voters),
                "learners": list(group.learners),
                "slots": ranges_text(shard_map.slots_of(group.id)),
                "slot_count": len(shard_map.slots_of(group.id)),
            }
            for group in shard_map.groups
        ],
        "removed": list(shard_map.removed),
        "leaders_over": str(shard_map.leaders_over),
    }


def show_map(report: dict[str, Any]) -> Iterator[Section | str]:
    """The tables of ``map show``."""
    yield map_line(report)
    rows: list[tuple[object, ...]] = [(node["id"], node["address"], node["peer_address"]) for node in report["nodes"]]
    yield Section("", ("node", "address", "peer address"), rows)
    rows = [
        (
            "0 (meta)" if group["id"] == 0 else str(group["id"]),
            group["leader"] or "-",
            listed(group["voters"]) + (f" + {listed(group['learners'])}" if group["learners"] else ""),
            group["slot_count"],
            shortened(group["slots"]) or "-",
        )
        for group in report["groups"]
    ]
    yield Section("", ("group", "leader", "voters + learners", "slots", "which"), rows)
