"""``raftkv up|down|status``: a cluster of node processes on this machine, in the background."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from raftkv.addresses import parse_address
from raftkv.cli.common import DEFAULT_ENDPOINTS, Exit, complain, output_option, print_json
from raftkv.cli.local import (
    MAX_LOCAL_NODES,
    READY_TIMEOUT,
    STOP_TIMEOUT,
    LocalError,
    LocalProcesses,
    Shape,
    check_ports,
    folder_lock,
    new_shape,
    places_from,
)
from raftkv.node.config import DEFAULT_GROUPS, DEFAULT_REPLICAS

_DATA = click.option(
    "--data-dir",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("./data"),
    show_default=True,
    metavar="DIR",
    help="Folder of the cluster: configuration, logs, data.",
)


@click.command()
@click.option("--nodes", type=click.IntRange(1, MAX_LOCAL_NODES), help="Number of nodes.  [default: 3]")
@click.option("--groups", type=click.IntRange(1, 256), help="Number of shard groups.  [default: 3]")
@click.option("--replicas", type=click.IntRange(1, 9), help="Replicas of each group.  [default: 3, or fewer nodes]")
@click.option("--port", type=click.IntRange(1, 65535), help="First port for clients.  [default: 7401]")
@click.option(
    "--timeout",
    type=click.FloatRange(min=0, min_open=True),
    default=READY_TIMEOUT,
    show_default=True,
    metavar="SECONDS",
    help="Longest time until all nodes serve.",
)
@_DATA
@output_option
def up(
    nodes: int | None,
    groups: int | None,
    replicas: int | None,
    port: int | None,
    timeout: float,
    data_dir: Path,
    output: str,
) -> None:
    """Start a local cluster, or what is missing of it, and wait until it serves.

    Node i listens for clients at port PORT+i-1 and for the other nodes 100 above it. The data folder remembers number
    of nodes, groups, replicas and ports from the first start on; they cannot be changed by starting it again.
    """
    # Wrong usage is told before the folder is made.
    shape = None if LocalProcesses.open(data_dir) else _new_shape(nodes, groups, replicas, port)
    with folder_lock(data_dir):
        cluster = LocalProcesses.open(data_dir)
        if cluster is None:
            shape = shape or _new_shape(nodes, groups, replicas, port)
            # Before the folder remembers ports that this cluster can never have.
            check_ports(shape.places)
            cluster = LocalProcesses.create(data_dir, shape)
        else:
            _same_shape(cluster.shape, data_dir, nodes, groups, replicas, port)
        started = cluster.start_missing()
        if output == "text":
            ids = ", ".join(str(node.id) for node in started)
            click.echo(f"started node{'s' * (len(started) > 1)} {ids}" if started else "all nodes run already")
        cluster.wait_ready(timeout)
    status = cluster.status()
    if output == "json":
        print_json({**status, "started": [node.id for node in started]})
        return
    _show(status)
    command = _command()
    which = "" if cluster.endpoints == DEFAULT_ENDPOINTS else f" --endpoints {cluster.endpoints}"
    click.echo(f"\nendpoints  {cluster.endpoints}")
    click.echo(f"data       {cluster.folder}")
    click.echo(f"logs       {cluster.folder}/node-*/node.log")
    click.echo(f"\ntry        {command} put hello world{which}\n           {command} get hello{which}")
    click.echo(f"stop it    {command} down --data-dir {data_dir}")


def _command() -> str:
    """How to call this program from where the user stands: by its path unless it is on the search path."""
    if shutil.which("raftkv") is not None:
        return "raftkv"
    script = Path(sys.executable).parent / "raftkv"
    if not script.exists():
        return f"{sys.executable} -m raftkv.cli.main"
    return str(script.relative_to(Path.cwd())) if script.is_relative_to(Path.cwd()) else str(script)


def _new_shape(nodes: int | None, groups: int | None, replicas: int | None, port: int | None) -> Shape:
    count = 3 if nodes is None else nodes
    most = min(DEFAULT_REPLICAS, count) if replicas is None else replicas
    if most > count:
        raise click.UsageError(f"{most} replicas of a group need as many nodes, and there are {count}")
    places = places_from(7401 if port is None else port, count)
    return new_shape(places, DEFAULT_GROUPS if groups is None else groups, most)


def _same_shape(
    shape: Shape, data_dir: Path, nodes: int | None, groups: int | None, replicas: int | None, port: int | None
) -> None:
    first = parse_address(shape.places[0].address).port
    given = {"nodes": nodes, "groups": groups, "replicas": replicas, "port": port}
    kept = {"nodes": len(shape.places), "groups": shape.groups, "replicas": shape.replicas, "port": first}
    for name, value in given.items():
        if value is not None and value != kept[name]:
            raise LocalError(
                f"{data_dir} holds a cluster made with --{name} {kept[name]}, not {value}: leave the option out, or "
                "take another --data-dir for another cluster"
            )


@click.command()
@_DATA
@click.option(
    "--timeout",
    type=click.FloatRange(min=0),
    default=STOP_TIMEOUT,
    show_default=True,
    metavar="SECONDS",
    help="Time to end in order; a node that needs longer is killed, which loses nothing acknowledged.",
)
def down(data_dir: Path, timeout: float) -> None:
    """Stop a local cluster. Its data stay, and `raftkv up` finds them again."""
    cluster = _open(data_dir)
    with folder_lock(data_dir):
        ended = cluster.stop(timeout)
    for node, by_itself in ended.items():
        if not by_itself:
            complain(f"node {node} did not end within {timeout:g} s and was killed")
    click.echo(f"stopped {len(ended)} node{'s' * (len(ended) != 1)}" if ended else "no node was running")


@click.command()
@_DATA
@output_option
def status(data_dir: Path, output: str) -> int:
    """Show nodes and groups of a local cluster. Exits with 3 if no node answers."""
    seen = _open(data_dir).status()
    if output == "json":
        print_json(seen)
    else:
        _show(seen)
    return Exit.DONE if any(node["state"] in {"ready", "starting"} for node in seen["nodes"]) else Exit.UNREACHABLE


def _open(data_dir: Path) -> LocalProcesses:
    cluster = LocalProcesses.open(data_dir)
    if cluster is None:
        raise LocalError(f"there is no cluster in {data_dir}: `raftkv up --data-dir {data_dir}` makes one")
    return cluster


def _show(seen: dict[str, Any]) -> None:
    # Addresses and logs must stay whole when the output is not a terminal.
    console = Console(soft_wrap=True)
    nodes = Table("node", "pid", "address", "state", box=None, pad_edge=False)
    for node in seen["nodes"]:
        nodes.add_row(str(node["id"]), str(node["pid"] or "-"), node["address"], node["state"])
    console.print(nodes)
    if not seen["groups"]:
        return
    groups = Table("group", "leader", "term", "replicas", "commit", "applied", box=None, pad_edge=False)
    for group in seen["groups"]:
        name = "0 (meta)" if group["id"] == 0 else str(group["id"])
        replicas = " ".join(str(node) for node in group["replicas"])
        numbers = [str(group[column]) for column in ("term", "commit", "applied")]
        groups.add_row(name, str(group["leader"] or "-"), numbers[0], replicas, *numbers[1:])
    console.print()
    console.print(groups)
