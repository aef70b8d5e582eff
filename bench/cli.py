"""The commands of ``python -m bench``."""

from __future__ import annotations

import json

import click

from bench.check import command as check_command
from bench.echo import measure as measure_echo
from bench.failover import measure as measure_failover
from bench.memory import command as memory_command
from bench.peers.command import compare_command
from bench.rebalance import measure as measure_rebalance
from bench.running import load_command, run_command
from bench.slow import command as slow_command
from raftkv.cli.common import complain, describe, exit_code, run
from raftkv.errors import RaftKVError
from raftkv.testing import LocalCluster


@click.group(context_settings={"help_option_names": ["-h", "--help"], "show_default": True})
def bench() -> None:
    """Measure a raftkv cluster."""


def main() -> None:
    """Exit with the codes of the command ``raftkv``."""
    try:
        bench(prog_name="python -m bench")
    except RaftKVError as error:
        complain(describe(error))
        raise SystemExit(exit_code(error)) from None


bench.add_command(load_command)
bench.add_command(run_command)
bench.add_command(check_command)
bench.add_command(memory_command)
bench.add_command(slow_command)
bench.add_command(compare_command)


@bench.command()
@click.option("--kills", type=click.IntRange(1, 1_000), default=20)
@click.option("--nodes", type=click.IntRange(3, 9), default=3)
@click.option("--groups", type=click.IntRange(1, 256), default=3, help="Shard groups of the cluster.")
@click.option("-o", "--output", type=click.Choice(["text", "json"]), default="text")
def failover(kills: int, nodes: int, groups: int, output: str) -> None:
    """Kill a group's leader KILLS times; print the time until the group acknowledges a write again.

    \b
    Example:
      python -m bench failover --kills 5
    """
    with LocalCluster(nodes, groups) as cluster:
        found = run(measure_failover(cluster, kills))
    if output == "json":
        click.echo(json.dumps({"seconds": found.seconds, "median": found.median, "max": found.worst}))
    else:
        click.echo(f"{kills} kills: median {found.median:.3f} s, worst {found.worst:.3f} s")


@bench.command()
@click.option("--nodes", type=click.IntRange(3, 9), default=3, help="Nodes before it grows.")
@click.option("--groups", type=click.IntRange(1, 64), default=3, help="Groups before it grows.")
@click.option("--records", type=click.IntRange(1, 10_000_000), default=200_000)
@click.option("--workers", type=click.IntRange(1, 10_000), default=50, help="Operations in flight.")
@click.option("--calm", type=click.FloatRange(min=0.1), default=10.0, help="Seconds before, between and after.")
def rebalance(nodes: int, groups: int, records: int, workers: int, calm: float) -> None:
    """Let a cluster grow to twice its nodes and groups and shrink again under load; check every answer.

    Exit code 1 if an operation failed, a record was lost or a history cannot be explained.

    \b
    Example:
      python -m bench rebalance --records 20000 --calm 3
    """
    with LocalCluster(nodes, groups) as cluster:
        found = run(measure_rebalance(cluster, records, workers, calm, complain))
    for name, value in found.rows():
        click.echo(f"{name:26} {value}")
    if found.violations or found.lost or set(found.outcomes) != {"ok"}:
        raise SystemExit(1)


@bench.command()
@click.option("--batch", type=click.IntRange(1, 10_000), default=50, help="Operations per message.")
@click.option("--bytes", "size", type=click.IntRange(1, 1024 * 1024), default=160, help="Bytes per operation.")
@click.option("--connections", type=click.IntRange(1, 1000), default=1, help="Each with one message in flight.")
@click.option("--seconds", type=click.FloatRange(min=0, min_open=True), default=3.0)
@click.option("-o", "--output", type=click.Choice(["text", "json"]), default="text")
def echo(batch: int, size: int, connections: int, seconds: float, output: str) -> None:
    """Measure a bare gRPC stream echo: the ceiling of the front end on this machine at this moment.

    \b
    Example:
      python -m bench echo --batch 50
    """
    rate = measure_echo(batch * size, seconds, connections)
    if output == "json":
        click.echo(
            json.dumps(
                {"round_trips_per_second": rate, "per_second": rate * batch, "batch": batch, "connections": connections}
            )
        )
    else:
        click.echo(f"echo, {batch} operations a message: {rate:,.0f} round trips/s = {rate * batch:,.0f} operations/s")
