"""What ``cluster status`` and ``cluster health`` report, worked out from what the nodes said. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from raftkv.api.status import PeerStatus, ReplicaStatus
from raftkv.cli.admin.survey import Picture
from raftkv.cli.admin.text import counted, listed, map_line, time_text
from raftkv.cli.console import Section
from shards.map import META_GROUP, Group

MAX_LAG: Final = 1000
"""Entries that a replica may be behind before that is a problem: about a second of heavy writing."""

_SILENCE: Final = 2.0
"""Seconds without a word from a node that answers the operator: nodes ping each other twice a second."""


def cluster_report(picture: Picture, max_lag: int = MAX_LAG) -> dict[str, Any]:
    """The cluster as plain data, with its ``problems``. ``max_lag``: entries."""
    state = picture.state
    nodes = [_node(picture, node.id) for node in state.map.nodes]
    groups = [_group(picture, group) for group in state.map.groups]
    problems = [
        *_cluster_problems(picture),
        *_node_problems(picture),
        *_link_problems(picture),
        *_group_problems(groups, picture, max_lag),
    ]
    return {
        "cluster_id": state.map.cluster_id,
        "epoch": state.map.epoch,
        "slots": state.map.slots,
        "leaders_over": str(state.map.leaders_over),
        "meta_answers": state.vouched,
        "healthy": not problems,
        "nodes": nodes,
        "groups": groups,
        "removed": list(state.map.removed),
        "problems": problems,
    }


def _node(picture: Picture, number: int) -> dict[str, Any]:
    state = picture.state
    node = state.map.node(number)
    status = picture.status(number)
    held = state.map.groups_on(number)
    said = picture.said.get(number, "")
    return {
        "id": number,
        "address": node.address,
        "peer_address": node.peer_address,
        "reachable": status is not None,
        "ready": status is not None and status.ready,
        "error": said if isinstance(said, str) else "",
        "version": "" if status is None else status.version,
        "uptime_seconds": None if status is None else round(status.uptime, 1),
        "map_epoch": None if status is None else status.map_epoch,
        "replicas": len(held),
        "leads": [group.id for group in state.map.groups if picture.leader(group.id) == number],
        "draining": number in state.draining,
        "peers": [_peer(peer) for peer in (() if status is None else status.peers)],
    }


def _peer(peer: PeerStatus) -> dict[str, Any]:
    return {
        "node": peer.node,
        "up": peer.up,
        "round_trip_seconds": peer.round_trip,
        "silence_seconds": peer.silence,
    }


def _group(picture: Picture, group: Group) -> dict[str, Any]:
    state = picture.state
    leader = picture.leader(group.id)
    at_leader = None if leader is None else picture.replica(group.id, leader)
    statuses = {node: picture.replica(group.id, node) for node in group.replicas}
    wanted = state.wanted.get(group.id)
    present = [one for one in statuses.values() if one is not None]
    return {
        "id": group.id,
        "meta": group.id == META_GROUP,
        "leader": leader,
        "term": max((one.term for one in present), default=0),
        "commit": None if at_leader is None else at_leader.commit_index,
        "applied": None if at_leader is None else at_leader.applied_index,
        "records": None if at_leader is None else at_leader.records,
        "slots": len(state.map.slots_of(group.id)),
        "voters": list(group.voters),
        "learners": list(group.learners),
        "wanted": None if wanted is None else list(wanted),
        "waiting": state.waiting.get(group.id, ""),
        "effective_voters": None if at_leader is None else sorted(at_leader.voters),
        "replicas": [_replica(picture, group, node, at_leader) for node in group.replicas],
    }


def _replica(picture: Picture, group: Group, node: int, at_leader: ReplicaStatus | None) -> dict[str, Any]:
    found = picture.replica(group.id, node)
    lag = None
    if at_leader is not None and (found is not None or node in at_leader.match):
        holds = at_leader.match.get(node, 0 if found is None else found.last_index)
        lag = max(0, at_leader.commit_index - holds)
    if found is None:
        role = "missing" if picture.status(node) is not None else "unreachable"
    else:
        role = found.role.name.lower()
    return {
        "node": node,
        "role": role,
        "voter": node in group.voters,
        "commit": None if found is None else found.commit_index,
        "applied": None if found is None else found.applied_index,
        "lag": lag,
    }


# Problems


def _problem(kind: str, text: str, group: int | None = None, node: int | None = None) -> dict[str, Any]:
    return {"kind": kind, "group": group, "node": node, "text": text}


def _cluster_problems(picture: Picture) -> Iterator[dict[str, Any]]:
    if not picture.state.vouched:
        yield _problem("meta_unavailable", "the meta group does not answer: what follows is one node's copy of the map")


def _node_problems(picture: Picture) -> Iterator[dict[str, Any]]:
    state = picture.state
    for node in state.map.nodes:
        held = [group.id for group in state.map.groups_on(node.id)]
        said = picture.said.get(node.id, "it was not asked")
        if isinstance(said, str):
            where = f"replicas of groups {listed(held)}" if held else "no replicas"
            yield _problem("node_unreachable", f"node {node.id} ({where}): {said}", node=node.id)
        elif not said.ready:
            lost = [one.group for one in said.replicas if not one.leader]
            why = f"it knows no leader of groups {listed(lost)}" if lost else "it is starting"
            yield _problem("node_not_ready", f"node {node.id} answers but does not serve: {why}", node=node.id)
        if node.id in state.draining:
            left = f"{counted(len(held), 'replica')} left" if held else "no replicas left, it can be removed"
            yield _problem("draining", f"node {node.id} is draining: {left}", node=node.id)
        for problem in () if isinstance(said, str) else said.problems:
            about = node.id if problem.node is None else problem.node
            yield _problem(problem.kind, f"node {node.id}: {problem.text}", problem.group, about)


def _link_problems(picture: Picture) -> Iterator[dict[str, Any]]:
    """Nodes that answer the operator and do not hear each other: cuts that no look at single nodes shows."""
    for number in sorted(picture.alive):
        status = picture.status(number)
        for peer in () if status is None else status.peers:
            if peer.node not in picture.alive:
                continue
            if peer.silence is None:
                text = f"node {number} has no connection from node {peer.node}"
            elif peer.silence >= _SILENCE:
                text = f"node {number} has heard nothing from node {peer.node} for {peer.silence:.1f} s"
            else:
                continue
            yield _problem("link_down", text, node=number)


def _group_problems(groups: list[dict[str, Any]], picture: Picture, max_lag: int) -> Iterator[dict[str, Any]]:
    for group in groups:
        number = group["id"]
        if group["leader"] is None:
            alive = [node for node in group["voters"] if node in picture.alive]
            text = f"group {number} has no leader: {len(alive)} of its {counted(len(group['voters']), 'voter')} answer"
            yield _problem("no_leader", text, number)
        for replica in group["replicas"]:
            node = replica["node"]
            if replica["role"] == "missing":
                text = f"node {node} has no replica of group {number}, although it should"
                yield _problem("replica_missing", text, number, node)
            elif replica["lag"] is not None and replica["lag"] > max_lag and replica["role"] != "unreachable":
                text = f"group {number} on node {node} is {replica['lag']:,} entries behind"
                yield _problem("replica_lagging", text, number, node)
        have = group["effective_voters"] or sorted(group["voters"])
        want = sorted(group["wanted"] or group["voters"])
        if have != want:
            text = f"group {number} has voters {listed(have)}, desired are {listed(want)}"
            why = f": {group['waiting']}" if group["waiting"] else ""
            yield _problem("voters_differ", text + why, number)


# For people


def show_status(report: dict[str, Any]) -> Iterator[Section | str]:
    """The tables of ``cluster status``."""
    yield map_line(report)
    yield Section(
        "",
        ("node", "address", "state", "replicas", "leads", "version", "up"),
        [
            (
                node["id"],
                node["address"],
                node_state(node),
                node["replicas"],
                listed(node["leads"]),
                node["version"] or "-",
                time_text(node["uptime_seconds"]),
            )
            for node in report["nodes"]
        ],
    )
    rows = []
    for group in report["groups"]:
        name = f"{group['id']} (meta)" if group["meta"] else str(group["id"])
        for at, replica in enumerate(group["replicas"]):
            first = at == 0
            rows.append(
                (
                    name if first else "",
                    _shown(group["leader"]) if first else "",
                    group["term"] if first else "",
                    group["slots"] if first else "",
                    replica["node"],
                    replica["role"] if replica["voter"] else f"{replica['role']}, learner",
                    _shown(replica["commit"]),
                    _shown(replica["applied"]),
                    _shown(replica["lag"]),
                )
            )
    columns = ("group", "leader", "term", "slots", "node", "role", "commit", "applied", "lag")
    yield Section("", columns, rows)
    yield from show_health(report)


def node_state(node: dict[str, Any]) -> str:
    """One word or two for a node of the report."""
    word = "unreachable" if not node["reachable"] else "ready" if node["ready"] else "starting"
    return f"{word}, draining" if node["draining"] else word


def show_health(report: dict[str, Any]) -> Iterator[Section | str]:
    """The problems, or that there are none."""
    if report["problems"]:
        rows = [(problem["kind"], problem["text"]) for problem in report["problems"]]
        yield Section("", ("problem", "what it is"), rows)
    else:
        yield f"healthy: {counted(len(report['nodes']), 'node')}, {counted(len(report['groups']), 'group')}"


def _shown(value: object) -> object:
    return "-" if value is None else value
