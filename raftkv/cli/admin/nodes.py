"""``raftkv-admin node list|add|balance|drain|undrain|remove|replace``."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from typing import Any

import click

from raftkv.cli.admin import placing
from raftkv.cli.admin.common import ask, command, complain, confirm, emit, settings
from raftkv.cli.admin.health import cluster_report, node_state
from raftkv.cli.admin.survey import survey
from raftkv.cli.admin.text import listed
from raftkv.cli.admin.watch import wait_options, wait_timeout_option
from raftkv.cli.console import Section
from raftkv.cli.parameters import NODE
from raftkv.client.admin import AdminClient
from raftkv.v1 import admin_pb2

_NODE = click.argument("node", type=NODE)


@click.group("node")
def node_command() -> None:
    """Nodes, and the replicas on them."""


@command(node_command, "list")
def list_nodes() -> None:
    """Show all nodes: addresses, state, replicas, groups that they lead.

    \b
    Example:
      raftkv-admin node list
    """
    report = cluster_report(ask(survey))
    emit({key: report[key] for key in ("epoch", "nodes", "removed")}, show_nodes)


def show_nodes(report: dict[str, Any]) -> Iterator[Section | str]:
    """The table of ``node list``."""
    rows = [
        (
            node["id"],
            node["address"],
            node["peer_address"],
            node_state(node),
            node["replicas"],
            listed(node["leads"]),
            node["version"] or "-",
        )
        for node in report["nodes"]
    ]
    yield Section("", ("node", "address", "peer address", "state", "replicas", "leads", "version"), rows)
    if report["removed"]:
        yield f"removed: {listed(report['removed'])}"


@command(node_command, "add")
@click.argument("nodes", type=NODE, nargs=-1, metavar="[NODE]...")
@wait_options(default=False)
def add(nodes: tuple[int, ...], wait: bool, wait_timeout: float) -> None:
    """Bring replicas to nodes that have joined. Without NODE: let one join, and show the command.

    A node joins by itself: `raftkv serve --join` on its machine makes it a member without replicas. After that, this
    command gives it its share of the replicas of all groups, and of the meta group if that is to grow.

    \b
    Example:
      raftkv-admin node add 4 --wait
    """
    if not nodes:
        target = settings().target
        token = ask(lambda client: client.add_join_token())
        proof = "--secret-file FILE" if target.tls is None else "--tls-ca FILE --tls-cert FILE --tls-key FILE"
        place = f"--data-dir DIR --address HOST:PORT {proof}"
        # "=", since a token may begin with a hyphen.
        line = f"raftkv serve --join {shlex.quote(target.endpoints)} {place} --token={token}"
        emit({"command": line, "token": token}, lambda _: [line])
        complain(
            "run this on the new machine, within an hour; the token lets one node join. When it serves, "
            "`raftkv-admin node add ITS-ID` brings replicas to it"
        )
        return
    _spread(nodes, wait, wait_timeout)


@command(node_command, "balance")
@wait_options(default=False)
def balance(wait: bool, wait_timeout: float) -> None:
    """Spread the replicas evenly over all nodes that answer and are not drained.

    \b
    Example:
      raftkv-admin node balance --wait
    """
    _spread((), wait, wait_timeout)


def _spread(nodes: tuple[int, ...], wait: bool, wait_timeout: float) -> None:
    async def main(client: AdminClient) -> placing.DesiredVoters:
        desired = await placing.change(
            client, lambda picture: placing.spreading(picture, nodes), placing.voters_request
        )
        if wait:
            await placing.settled(
                client, f"bringing replicas to {listed(nodes)}" if nodes else "replicas", wait_timeout
            )
        return desired

    desired = ask(main, placing.GOES_ON)
    emit(desired_report(desired), lambda report: show_desired(report, "the replicas are spread evenly already"))
    if desired and not wait:
        complain(placing.GOES_ON)


def desired_report(desired: Mapping[int, tuple[int, ...]], **more: Any) -> dict[str, Any]:
    """Voters that groups are to have."""
    groups = [{"group": group, "voters": list(voters)} for group, voters in sorted(desired.items())]
    return {**more, "groups": groups}


def show_desired(report: dict[str, Any], nothing: str) -> Iterator[Section | str]:
    """The table of the wanted voters, or ``nothing``."""
    rows = [(one["group"], listed(one["voters"])) for one in report["groups"]]
    if rows:
        yield Section("", ("group", "voters"), rows)
    else:
        yield nothing


@command(node_command, "drain", confirms=True)
@_NODE
@wait_options(default=False)
def drain(node: int, wait: bool, wait_timeout: float) -> None:
    """Bring all replicas of NODE to other nodes; it gets no new ones. Then it can be removed.

    Exits with 4, and changes nothing, if too few other nodes answer or a group has lost its majority.

    \b
    Example:
      raftkv-admin node drain 2 --wait
    """
    confirm(f"Move all replicas away from node {node}?")

    async def main(client: AdminClient) -> placing.DesiredVoters:
        desired = await placing.change(
            client,
            lambda picture: placing.draining(picture, node),
            lambda state, desired: placing.drain_request(state, node, desired),
            even_without=True,
        )
        if wait:
            await placing.left(client, node, wait_timeout)
        return desired

    desired = ask(main, placing.GOES_ON)
    done = f"no replicas are left on node {node}" if wait else f"node {node} is drained already, or has no replicas"
    emit(desired_report(desired, node=node), lambda report: show_desired(report, done))
    if wait:
        complain(f"node {node} has no replicas any more: `raftkv-admin node remove {node}` removes it")
    elif desired:
        complain(placing.GOES_ON)


@command(node_command, "undrain")
@_NODE
def undrain(node: int) -> None:
    """Let a node that was drained have replicas again; what has not left it stays.

    \b
    Example:
      raftkv-admin node undrain 2
    """
    ask(lambda client: client.change(admin_pb2.ChangeRequest(undrain_node=node)))
    emit({"node": node}, lambda _: [f"node {node} may have replicas again"])


@command(node_command, "remove", confirms=True)
@_NODE
def remove(node: int) -> None:
    """Remove NODE for good: its id never comes back, and its process ends. It must hold no replicas.

    Exits with 4 if it does, and says whether it can be drained.

    \b
    Example:
      raftkv-admin node remove 2
    """
    confirm(f"Remove node {node} for good?")

    async def main(client: AdminClient) -> bool:
        picture = await survey(client, await client.state())
        if node in picture.state.map.removed:
            return False
        placing.check_removable(picture, node)
        await client.change(admin_pb2.ChangeRequest(remove_node=node))
        return True

    changed = ask(main)
    text = f"node {node} is removed" if changed else f"node {node} was removed before"
    emit({"node": node, "removed_now": changed}, lambda _: [text])


@command(node_command, "replace", confirms=True)
@click.argument("old", type=NODE)
@click.argument("new", type=NODE)
@wait_timeout_option()
def replace(old: int, new: int, wait_timeout: float) -> None:
    """Put NEW, a node that has joined, in the place of OLD in all its groups, then remove OLD for good.

    OLD may be dead, as long as each of its groups has a majority. If it is interrupted, the same command resumes.

    \b
    Example:
      raftkv-admin node replace 3 5
    """
    confirm(f"Replace node {old} by node {new} and remove node {old} for good?")
    again = f"to resume: raftkv-admin node replace {old} {new}"

    async def main(client: AdminClient) -> placing.DesiredVoters | None:
        state = await client.state()
        if old in state.map.removed and any(node.id == new for node in state.map.nodes):
            return None
        desired = await placing.change(
            client,
            lambda picture: placing.replacing(picture, old, new),
            lambda state, desired: placing.drain_request(state, old, desired),
            even_without=True,
        )
        await placing.left(client, old, wait_timeout)
        picture = await survey(client, await client.state())
        placing.check_removable(picture, old)
        await client.change(admin_pb2.ChangeRequest(remove_node=old))
        return desired

    desired = ask(main, f"the change continues in the cluster, and {again}")
    if desired is None:
        emit(
            desired_report({}, old=old, new=new, removed_now=False),
            lambda _: [f"node {old} was replaced and removed before"],
        )
        return
    emit(
        desired_report(desired, old=old, new=new, removed_now=True),
        lambda _: [f"node {new} has taken the place of node {old}, which is removed"],
    )
