"""``raftkv-admin check consistency``."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

import click

from raftkv.api.status import Digests
from raftkv.cli.admin.common import AdminExit, Precondition, ask, command, complain, emit
from raftkv.cli.admin.text import counted, listed
from raftkv.cli.admin.watch import progress_bar, wait_timeout_option
from raftkv.cli.console import Section
from raftkv.client.admin import AdminClient
from raftkv.clock import Clock, SystemClock, sleep
from raftkv.errors import RaftKVError
from shards.map import META_GROUP, Group, ShardMap

_INTERVAL: Final = 0.1
_PATIENCE: Final = 60.0
_SILENCE: Final = 5.0
"""Seconds for which a node may not answer before it counts as away."""

Answers = Mapping[int, Digests | str]
"""Node -> its digests, or why it has none."""


@click.group("check")
def check_command() -> None:
    """Check for damage."""


@command(check_command, "consistency")
@click.option("--group", "groups", type=click.IntRange(min=1), multiple=True, help="Only this group; may be repeated.")
@wait_timeout_option(_PATIENCE, "Longest time for the replicas of a group to compute their digests.")
def consistency(groups: tuple[int, ...], wait_timeout: float) -> int:
    """Compare the replicas of each shard group, slot by slot, as of one entry of its log.

    The cluster keeps serving meanwhile. Exits with 5, and names group, slot and nodes, if replicas differ; with 6 if
    not all of them could be compared.

    \b
    Example:
      raftkv-admin check consistency --group 1
    """

    async def main(client: AdminClient) -> dict[str, Any]:
        state = await client.state()
        wanted = chosen(state.map, groups)
        done = 0
        with progress_bar("comparing replicas") as bar:

            async def one(group: Group) -> dict[str, Any]:
                nonlocal done
                result = await _check(client, state.map, group, wait_timeout)
                done += 1
                bar.show(done, len(wanted))
                return result

            # All at once: what takes time is that the nodes do a little of it now and then, beside their work.
            found = await asyncio.gather(*(one(group) for group in wanted))
        return {
            "epoch": state.map.epoch,
            "consistent": not any(one["differences"] for one in found),
            "complete": not any(one["missing"] for one in found),
            "groups": found,
        }

    report = ask(main)
    emit(report, show_check)
    if not report["consistent"]:
        return AdminExit.UNHEALTHY
    if not report["complete"]:
        complain("not all replicas could be compared: run the check again when all replicas are healthy")
        return AdminExit.PARTIAL
    return AdminExit.DONE


def chosen(shard_map: ShardMap, groups: Sequence[int]) -> list[Group]:
    """The data groups of these ids, all of them if there are none. Raises Precondition for an unknown one."""
    known = {group.id: group for group in shard_map.groups if group.id != META_GROUP}
    for group in groups:
        if group not in known:
            raise Precondition(f"there is no data group {group}")
    return [known[group] for group in sorted(set(groups) or known)]


async def _check(client: AdminClient, shard_map: ShardMap, group: Group, patience: float) -> dict[str, Any]:
    try:
        check = await client.start_check(group.id)
    except RaftKVError as error:
        return compared(group.id, dict.fromkeys(group.replicas, f"the check could not be started: {error}"))
    clock = SystemClock()
    end = clock.now() + patience
    answers = await asyncio.gather(
        *(_digests(client, shard_map.node(node).address, group.id, check, end, clock) for node in group.replicas)
    )
    return compared(group.id, dict(zip(group.replicas, answers, strict=True)))


async def _digests(
    client: AdminClient, address: str, group: int, check: int, end: float, clock: Clock
) -> Digests | str:
    heard = clock.now()
    while True:
        try:
            answer = await client.digests(address, group, check)
            if answer is not None:
                return answer
            heard = clock.now()
            reason = "it has not computed its digests in time, or took over a snapshot meanwhile"
        except RaftKVError as error:
            reason = str(error)
        if clock.now() >= end or clock.now() - heard > _SILENCE:
            return reason
        await sleep(clock, _INTERVAL)


def compared(group: int, digests: Answers) -> dict[str, Any]:
    """What of a group's replicas differs.

    A difference has the slot (None: all that is not in a slot), the digests of each node, and the nodes that are in the
    minority; all of them if there is no majority.
    """
    done = {node: answer for node, answer in digests.items() if not isinstance(answer, str)}
    missing = [{"node": node, "reason": answer} for node, answer in digests.items() if isinstance(answer, str)]
    slots = sorted({slot for answer in done.values() for slot in answer.slots})
    differences = []
    for slot in (*slots, None):
        of_nodes = {node: answer.rest if slot is None else answer.slots.get(slot) for node, answer in done.items()}
        counts = Counter(of_nodes.values()).most_common(2)
        if len(counts) < 2:
            continue
        usual = counts[0][0] if 2 * counts[0][1] > len(of_nodes) else ()
        differences.append(
            {
                "slot": slot,
                "nodes": [node for node, digest in of_nodes.items() if digest != usual],
                "digests": {str(node): None if one is None else one.hex() for node, one in of_nodes.items()},
            }
        )
    return {
        "group": group,
        "compared": sorted(done),
        "slots": len(slots),
        "differences": differences,
        "missing": missing,
    }


def show_check(report: dict[str, Any]) -> Iterator[Section | str]:
    """The tables of ``check consistency``."""
    rows: list[tuple[object, ...]] = []
    for one in report["groups"]:
        verdict = counted(len(one["differences"]), "difference") if one["differences"] else "equal"
        rows.append(
            (one["group"], listed(one["compared"]), one["slots"], verdict if one["compared"] else "not compared")
        )
    yield Section("", ("group", "nodes compared", "slots", "replicas"), rows)
    rows = [
        (one["group"], "no slot" if two["slot"] is None else two["slot"], listed(two["nodes"]))
        for one in report["groups"]
        for two in one["differences"]
    ]
    if rows:
        yield Section("differences", ("group", "slot", "nodes that differ"), rows)
    rows = [(one["group"], two["node"], two["reason"]) for one in report["groups"] for two in one["missing"]]
    if rows:
        yield Section("not compared", ("group", "node", "why"), rows)
