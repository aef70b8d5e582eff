"""The commands of ``python -m bench``."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import click

from bench.echo import measure as measure_echo
from bench.failover import measure as measure_failover
from bench.load import Operation, Plan, measure
from bench.rebalance import measure as measure_rebalance
from bench.report import as_text, summarize
from bench.targets import Api
from raftkv.cli.common import DEFAULT_ENDPOINTS, complain, describe, exit_code, run
from raftkv.errors import RaftKVError
from raftkv.testing import LocalCluster


@click.group(context_settings={"help_option_names": ["-h", "--help"], "show_default": True})
def bench() -> None:
    """Measure a raftkv cluster."""


@bench.command()
@click.option("--endpoints", envvar="RAFTKV_ENDPOINTS", default=DEFAULT_ENDPOINTS, metavar="HOST:PORT,...")
@click.option("--cluster", type=click.IntRange(1, 9), help="Start a cluster of so many nodes for this measurement.")
@click.option("--groups", type=click.IntRange(1, 256), default=3, help="Shard groups of that cluster.")
@click.option("--reads", type=click.Choice(["lease", "quorum"]), default="lease", help="How that cluster reads.")
@click.option("--op", type=click.Choice(["get", "set"]), default="set")
@click.option("--api", type=click.Choice(["pipeline", "unary"]), default="pipeline")
@click.option("--workers", type=click.IntRange(1, 10_000), default=50, help="Operations under way at a time.")
@click.option("--clients", type=click.IntRange(1, 1_000), default=1, help="Connections that the workers share.")
@click.option("--key-size", type=click.IntRange(1, 8 * 1024), default=16, help="Bytes.")
@click.option("--value-size", type=click.IntRange(0, 1024 * 1024), default=128, help="Bytes.")
@click.option("--keys", type=click.IntRange(1, 10_000_000), default=10_000, help="Different keys.")
@click.option("--seconds", type=click.FloatRange(min=0, min_open=True), default=10.0)
@click.option("--warmup", type=click.FloatRange(min=0), default=1.0, help="Seconds before the measurement.")
@click.option("-o", "--output", type=click.Choice(["text", "json"]), default="text")
def load(
    endpoints: str,
    cluster: int | None,
    groups: int,
    reads: str,
    op: Operation,
    api: Api,
    workers: int,
    clients: int,
    key_size: int,
    value_size: int,
    keys: int,
    seconds: float,
    warmup: float,
    output: str,
) -> None:
    """Keep WORKERS operations under way for SECONDS and print rate and latencies."""
    with contextlib.ExitStack() as stack:
        if cluster is not None:
            local = stack.enter_context(LocalCluster(cluster, groups, node={"reads": reads}))
            endpoints = local.endpoints
        plan = Plan(endpoints, op, api, workers, clients, key_size, value_size, keys, seconds, warmup)
        try:
            summary: dict[str, Any] = summarize(plan, run(measure(plan)))
        except ValueError as error:
            raise click.UsageError(str(error)) from None
        if cluster is not None:
            summary.update(cluster=cluster, groups=groups, reads=reads)
    click.echo(json.dumps(summary) if output == "json" else as_text(summary))


def main() -> None:
    """Exit with the codes of the command ``raftkv``."""
    try:
        bench(prog_name="python -m bench")
    except RaftKVError as error:
        complain(describe(error))
        raise SystemExit(exit_code(error)) from None


@bench.command()
@click.option("--kills", type=click.IntRange(1, 1_000), default=20)
@click.option("--nodes", type=click.IntRange(3, 9), default=3)
@click.option("--groups", type=click.IntRange(1, 256), default=3, help="Shard groups of the cluster.")
@click.option("-o", "--output", type=click.Choice(["text", "json"]), default="text")
def failover(kills: int, nodes: int, groups: int, output: str) -> None:
    """Kill a group's leader KILLS times; print the time until the group acknowledges a write again."""
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
@click.option("--workers", type=click.IntRange(1, 10_000), default=50, help="Operations under way at a time.")
@click.option("--calm", type=click.FloatRange(min=0.1), default=10.0, help="Seconds before, between and after.")
def rebalance(nodes: int, groups: int, records: int, workers: int, calm: float) -> None:
    """Let a cluster grow to twice its nodes and groups and shrink again under load; check every answer.

    Exit code 1 if an operation failed, a record was lost or a history cannot be explained.
    """
    with LocalCluster(nodes, groups) as cluster:
        found = run(measure_rebalance(cluster, records, workers, calm, complain))
    for name, value in found.rows():
        click.echo(f"{name:26} {value}")
    if found.violations or found.lost or set(found.outcomes) != {"ok"}:
        raise SystemExit(1)


@bench.command()
@click.option("--batch", type=click.IntRange(1, 10_000), default=50, help="Operations that a message stands for.")
@click.option("--bytes", "size", type=click.IntRange(1, 1024 * 1024), default=160, help="Bytes of an operation.")
@click.option("--seconds", type=click.FloatRange(min=0, min_open=True), default=3.0)
@click.option("-o", "--output", type=click.Choice(["text", "json"]), default="text")
def echo(batch: int, size: int, seconds: float, output: str) -> None:
    """Measure a bare gRPC stream echo: the ceiling of the front end on this machine at this moment."""
    rate = measure_echo(batch * size, seconds)
    if output == "json":
        click.echo(json.dumps({"round_trips_per_second": rate, "per_second": rate * batch, "batch": batch}))
    else:
        click.echo(f"echo, {batch} operations a message: {rate:,.0f} round trips/s = {rate * batch:,.0f} operations/s")
