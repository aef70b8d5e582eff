"""``raftkv up|down|status``: a cluster of node processes on this machine, in the background."""

from __future__ import annotations

import shlex
import shutil
import sys
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

import click

from raftkv.addresses import parse_address
from raftkv.cli import contexts
from raftkv.cli.common import DEFAULT_ENDPOINTS, Exit, complain, output_option, print_json
from raftkv.cli.console import Section, display
from raftkv.cli.parameters import Duration, FilePath, LaterDefault, duration_text
from raftkv.local.cluster import FIRST_USER, READY_TIMEOUT, LocalProcesses, folder_lock
from raftkv.local.node import STOP_TIMEOUT, LocalError, check_ports
from raftkv.local.shape import MAX_LOCAL_NODES, Shape, new_shape, places_from
from raftkv.node.config import DEFAULT_GROUPS, DEFAULT_REPLICAS

_CONTEXT = "local"
_DATA = click.option(
    "--data-dir",
    type=FilePath(folder=True),
    default=Path("./data"),
    show_default=True,
    metavar="DIR",
    help="Folder of the cluster: configuration, logs, data.",
)


@click.command()
@click.option("--nodes", cls=LaterDefault, shown="3", type=click.IntRange(1, MAX_LOCAL_NODES), help="Number of nodes.")
@click.option("--groups", cls=LaterDefault, shown="3", type=click.IntRange(1, 256), help="Number of shard groups.")
@click.option(
    "--replicas",
    cls=LaterDefault,
    shown="3, or as many as nodes",
    type=click.IntRange(1, 9),
    help="Replicas of each group.",
)
@click.option("--port", cls=LaterDefault, shown="7401", type=click.IntRange(1, 65535), help="First port for clients.")
@click.option(
    "--timeout",
    type=Duration(),
    default=duration_text(READY_TIMEOUT),
    show_default=True,
    help="Longest time until all nodes serve.",
)
@click.option(
    "--secure",
    is_flag=True,
    help="Encrypt everything, and serve users only: make a CA, certificates for all nodes and for a client, a first "
    "user, and a context with them.",
)
@_DATA
@output_option
def up(
    nodes: int | None,
    groups: int | None,
    replicas: int | None,
    port: int | None,
    timeout: float,
    secure: bool,
    data_dir: Path,
    output: str,
) -> None:
    """Start a local cluster, or its stopped nodes, and wait until it serves.

    Node i listens for clients at port PORT+i-1 and for the other nodes 100 above it. The data folder remembers number
    of nodes, groups, replicas, ports and --secure from the first start on; they cannot be changed by starting it again.

    \b
    Example:
      raftkv up --nodes 5 --groups 4
    """
    # Wrong usage is told before the folder is made.
    shape = None if LocalProcesses.open(data_dir) else _new_shape(nodes, groups, replicas, port)
    with folder_lock(data_dir):
        cluster = LocalProcesses.open(data_dir)
        if cluster is None:
            shape = shape or _new_shape(nodes, groups, replicas, port)
            # Before the folder remembers ports that this cluster can never have.
            check_ports(shape.places)
            cluster = LocalProcesses.create(data_dir, shape, secure=secure)
        else:
            _same_shape(cluster.shape, data_dir, nodes, groups, replicas, port)
            if secure and cluster.tls is None:
                raise LocalError(
                    f"{data_dir} holds a cluster made without --secure: use another --data-dir for another cluster"
                )
        started = cluster.start_missing()
        if output == "table":
            ids = ", ".join(str(node.id) for node in started)
            click.echo(f"started node{'s' * (len(started) > 1)} {ids}" if started else "all nodes run already")
        cluster.wait_ready(timeout)
        if cluster.tls is not None:
            cluster.bootstrap()
    name = _name(cluster)
    status = cluster.status()
    if output == "json":
        print_json({**status, "started": [node.id for node in started]})
        return
    _show(status)
    command = _command()
    which = "" if cluster.endpoints == DEFAULT_ENDPOINTS else f" --endpoints {shlex.quote(cluster.endpoints)}"
    if name:
        which = f" --context {name}"
    click.echo(f"\nendpoints  {cluster.endpoints}")
    click.echo(f"data       {cluster.folder}")
    click.echo(f"logs       {cluster.folder}/node-*/node.log")
    if name:
        click.echo(f"context    {name}, with the certificate and the token of the user {FIRST_USER}")
    click.echo(f"\ntry        {command} put hello world{which}\n           {command} get hello{which}")
    click.echo(f"stop it    {command} down --data-dir {shlex.quote(str(data_dir))}")


def _name(cluster: LocalProcesses) -> str:
    """The context of a cluster with certificates, which is made if need be; "" for others."""
    if cluster.tls is None:
        return ""
    tls, known = cluster.tls, contexts.load()
    here = contexts.Context(cluster.endpoints, str(tls.ca), str(tls.cert), str(tls.key), token=cluster.token)
    # What was named before stays: it may be another cluster, with a token that is nowhere else.
    numbered = (f"{_CONTEXT}-{number}" if number > 1 else _CONTEXT for number in count(1))
    name = next(one for one in numbered if one not in known.named or known.named[one].ca == here.ca)
    contexts.save(contexts.Contexts({**known.named, name: here}, known.current or name))
    return name


def _command() -> str:
    """How to call this program in a shell from where the user stands: by its path unless it is on the search path."""
    if shutil.which("raftkv") is not None:
        return "raftkv"
    script = Path(sys.executable).parent / "raftkv"
    if not script.exists():
        return f"{shlex.quote(sys.executable)} -m raftkv"
    return shlex.quote(str(script.relative_to(Path.cwd()) if script.is_relative_to(Path.cwd()) else script))


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
                "use another --data-dir for another cluster"
            )


@click.command()
@_DATA
@click.option(
    "--timeout",
    type=Duration(least=0),
    default=duration_text(STOP_TIMEOUT),
    show_default=True,
    help="Time to shut down gracefully; a node that needs longer is killed, which loses nothing acknowledged.",
)
def down(data_dir: Path, timeout: float) -> None:
    """Stop a local cluster gracefully. Its data is kept, and `raftkv up` uses it again.

    \b
    Example:
      raftkv down --timeout 1m
    """
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
    """Show nodes and groups of a local cluster. Exits with 3 if no node answers.

    \b
    Example:
      raftkv status -o json
    """
    seen = _open(data_dir).status()
    if output == "json":
        print_json(seen)
    else:
        _show(seen)
    return Exit.DONE if any(node["state"] in {"ready", "starting"} for node in seen["nodes"]) else Exit.UNREACHABLE


def _open(data_dir: Path) -> LocalProcesses:
    cluster = LocalProcesses.open(data_dir)
    if cluster is None:
        raise LocalError(
            f"there is no cluster in {data_dir}: `raftkv up --data-dir {shlex.quote(str(data_dir))}` makes one"
        )
    return cluster


def _show(seen: dict[str, Any]) -> None:
    display(_sections(seen))


def _sections(seen: dict[str, Any]) -> Iterator[Section]:
    nodes = [(node["id"], node["pid"] or "-", node["address"], node["state"]) for node in seen["nodes"]]
    yield Section("", ("node", "pid", "address", "state"), nodes)
    groups = [
        (
            "0 (meta)" if group["id"] == 0 else str(group["id"]),
            group["leader"] or "-",
            group["term"],
            ", ".join(str(node) for node in group["replicas"]),
            group["commit"],
            group["applied"],
        )
        for group in seen["groups"]
    ]
    if groups:
        yield Section("", ("group", "leader", "term", "replicas", "commit", "applied"), groups)
