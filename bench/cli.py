"""The commands of ``python -m bench``."""

from __future__ import annotations

import json

import click

from bench.check import command as check_command
from bench.echo import measure as measure_echo
from bench.failover import measure as measure_failover
from bench.growth import command as grow_command
from bench.load import LoadPlan
from bench.memory import command as memory_command
from bench.peers.command import compare_command
from bench.rebalance import measure as measure_rebalance
from bench.running import load_command, run_command
from bench.slow import command as slow_command
from bench.targets import Api
from bench.workload import Operation
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
bench.add_command(grow_command)


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
@click.option("--op", type=click.Choice(["get", "set"]), default="get")
@click.option("--api", type=click.Choice(["pipeline", "unary"]), default="pipeline")
@click.option("--workers", type=click.IntRange(1, 10_000), default=50, help="Operations in flight.")
@click.option("--clients", type=click.IntRange(1, 1000), default=1, help="Connections that the workers share.")
@click.option("--value-size", type=click.IntRange(0, 1024 * 1024), default=128, help="Bytes.")
@click.option("--seconds", type=click.FloatRange(min=0, min_open=True), default=3.0)
@click.option("-o", "--output", type=click.Choice(["text", "json"]), default="text")
def echo(op: Operation, api: Api, workers: int, clients: int, value_size: int, seconds: float, output: str) -> None:
    """Measure the same messages over bare gRPC, whose handlers do nothing: the ceiling of the front end at this moment.

    \b
    Example:
      python -m bench echo --op set --workers 50
    """
    if clients > workers:
        raise click.UsageError(f"{clients} connections share {workers} workers: each needs one")
    plan = LoadPlan("", op, api, workers, clients, value_size=value_size, seconds=seconds, warmup=min(0.5, seconds))
    found = measure_echo(plan)
    if output == "json":
        click.echo(json.dumps({"op": op, "api": api, "workers": workers, "clients": clients, "per_second": found}))
    else:
        click.echo(f"echo of {op}s, {api}, {workers} workers, {clients} connection(s): {found:,.0f} operations/s")
