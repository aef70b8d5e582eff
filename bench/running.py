"""``python -m bench run`` and ``load``."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import signal
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click

from bench import folders, generators, results, series
from bench.arrivals import SPACINGS, Spacing
from bench.folders import data_option, out_option
from bench.keys import DISTRIBUTIONS, Distribution
from bench.load import LoadPlan
from bench.machine import facts
from bench.processors import Processors, per_operation, pids_of
from bench.progress import ProgressBar
from bench.report import as_text, summary_of
from bench.scenarios import SCENARIOS, Reads, Scenario
from bench.targets import Api
from bench.workload import MIXES, OPERATIONS, Operation
from raftkv.cli.common import endpoints_option
from raftkv.cli.console import Section, console, display, print_table
from raftkv.testing import LocalCluster


@click.command("load")
@endpoints_option
@click.option("--cluster", type=click.IntRange(1, 9), help="Start a cluster of so many nodes for this measurement.")
@click.option("--groups", type=click.IntRange(1, 256), default=3, help="Shard groups of that cluster.")
@click.option("--reads", type=click.Choice(["lease", "quorum"]), default="lease", help="How that cluster serves reads.")
@click.option("--secure", is_flag=True, help="That cluster has TLS and users, and clients certificates.")
@click.option("--op", type=click.Choice(OPERATIONS), default="set", help="One kind of operation, or a mix of YCSB.")
@click.option("--api", type=click.Choice(["pipeline", "unary"]), default="pipeline")
@click.option("--workers", type=click.IntRange(1, 10_000), default=50, help="Maximum operations in flight.")
@click.option("--clients", type=click.IntRange(1, 1_000), default=1, help="Connections that the workers share.")
@click.option("--processes", type=click.IntRange(1, 64), default=1, help="Generators that share workers and clients.")
@click.option("--rate", type=click.FloatRange(min=0), default=0.0, help="Arrivals per second; 0 = a closed loop.")
@click.option("--spacing", type=click.Choice(SPACINGS), default="poisson", help="Distribution of arrivals.")
@click.option("--key-size", type=click.IntRange(1, 8 * 1024), default=16, help="Bytes.")
@click.option("--value-size", type=click.IntRange(0, 1024 * 1024), default=128, help="Bytes.")
@click.option("--keys", type=click.IntRange(1, 10_000_000), default=10_000, help="Number of distinct keys.")
@click.option("--batch", type=click.IntRange(1, 4096), default=100, help="Records of a put_many.")
@click.option("--watchers", type=click.IntRange(1, 1_000), default=1, help="Who get each event of a watch.")
@click.option(
    "--distribution", type=click.Choice(DISTRIBUTIONS), show_default="uniform, or that of the mix", help="Of keys."
)
@click.option("--seconds", type=click.FloatRange(min=0, min_open=True), default=10.0)
@click.option("--warmup", type=click.FloatRange(min=0), default=1.0, help="Seconds before the measurement.")
@click.option("--seed", type=click.IntRange(0), default=1, help="Seed of keys, arrivals and values.")
@click.option("-o", "--output", type=click.Choice(["text", "json"]), default="text")
def load_command(
    endpoints: str,
    cluster: int | None,
    groups: int,
    reads: Reads,
    secure: bool,
    op: Operation,
    api: Api,
    workers: int,
    clients: int,
    processes: int,
    rate: float,
    spacing: Spacing,
    key_size: int,
    value_size: int,
    keys: int,
    batch: int,
    watchers: int,
    distribution: Distribution | None,
    seconds: float,
    warmup: float,
    seed: int,
    output: str,
) -> None:
    """One measurement: keep WORKERS operations in flight for SECONDS, or let RATE arrive; print rate and latencies.

    Of a cluster that it starts, also the processor time of the client, of all nodes, and of the one that used most, for
    each operation.

    \b
    Example:
      python -m bench load --cluster 3 --op get --seconds 5
    """
    if secure and (cluster is None or api != "pipeline" or MIXES[op].calls):
        raise click.UsageError("--secure goes with --cluster, pipelines, and operations on one record")
    plan = LoadPlan(
        endpoints,
        op,
        api,
        workers,
        clients,
        key_size,
        value_size,
        keys,
        seconds,
        warmup,
        seed=seed,
        rate=rate,
        spacing=spacing,
        distribution=distribution,
        parts=processes,
        batch=batch,
        watchers=watchers,
    )
    with contextlib.ExitStack() as stack:
        try:
            generators.check(plan)
        except ValueError as error:
            raise click.UsageError(str(error)) from None
        if cluster is not None:
            local = stack.enter_context(
                LocalCluster(cluster, groups, node={"reads": reads}, secure=secure, users=secure)
            )
            plan = dataclasses.replace(plan, endpoints=local.url if secure else local.endpoints)
            summary = _costs(plan, pids_of(local))
            summary.update(cluster=cluster, groups=groups, reads=reads, secure=secure)
        else:
            summary = summary_of(plan, generators.measure(plan))
    click.echo(json.dumps(summary) if output == "json" else as_text(summary))


def _costs(plan: LoadPlan, nodes: Sequence[int]) -> dict[str, Any]:
    """The measurement, with the processor time of node processes."""
    with Processors(nodes) as processors:
        stats = generators.measure(plan)
    summary = summary_of(plan, stats)
    computed = processors.between(stats.began, stats.began + stats.seconds)
    return {**summary, **per_operation(computed, stats.computed, summary["operations"])}


@click.command("run")
@click.argument("scenario", nargs=-1)
@click.option("--list", "listing", is_flag=True, help="Print the scenarios and exit.")
@click.option("--seconds", type=click.FloatRange(min=0, min_open=True), default=10.0, help="Per measurement.")
@click.option("--warmup", type=click.FloatRange(min=0), default=2.0, help="Seconds before each measurement.")
@click.option("--repeat", type=click.IntRange(1, 100), default=1, help="Rounds; numbers are medians of them.")
@click.option("--processes", type=click.IntRange(1, 64), default=1, help="Generators that share workers and clients.")
@click.option("--nodes", type=click.IntRange(1, 9), default=3, help="Nodes of the clusters.")
@click.option("--seed", type=click.IntRange(0), default=1, help="Seed of keys, arrivals and values.")
@data_option
@out_option("result.json, report.html, report.md and the plots")
@click.option(
    "-o",
    "--output",
    type=click.Choice(["text", "markdown", "json"]),
    default="text",
    help="json prints result.json.",
)
def run_command(
    scenario: tuple[str, ...],
    listing: bool,
    seconds: float,
    warmup: float,
    repeat: int,
    processes: int,
    nodes: int,
    seed: int,
    data: Path | None,
    out: Path | None,
    output: str,
) -> None:
    """Measure each SCENARIO on clusters of its own; write result.json, report.html, report.md and plots.

    Exit code 1 if an operation failed.

    \b
    Example:
      python -m bench run get set --repeat 3
    """
    if listing:
        _list()
        return
    chosen = _chosen(scenario)
    options = series.Options(seconds, warmup, repeat, processes, seed, nodes, data)
    for one in chosen:
        try:
            series.check(one, options)
        except ValueError as error:
            raise click.UsageError(str(error)) from None
    started = datetime.now(UTC)
    folder = folders.chosen(out, started)
    # Ends as with Ctrl-C: the processes of clusters and generators are ended too.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    result = {"format": results.FORMAT, "machine": facts(), "options": results.options(options), "scenarios": []}
    found: list[dict[str, Any]] = result["scenarios"]  # type: ignore[assignment]
    with ProgressBar(sum(len(one.cases) for one in chosen) * repeat) as watcher:
        for one in chosen:
            found.append(series.measure(one, options, watcher))
            # What was measured is kept, whatever becomes of the rest.
            results.write(folder, result)
    if output == "json":
        click.echo(json.dumps(result))
    elif output == "markdown":
        click.echo(results.markdown(result), nl=False)
    else:
        where = console()
        for measured in found:
            print_table(where, results.table(measured))
        click.echo(f"report: {folder / results.PAGE}")
    if any(row["errors"] for one in found for row in one["rows"]):
        raise SystemExit(1)


def _chosen(names: tuple[str, ...]) -> list[Scenario]:
    if not names:
        raise click.UsageError("name a scenario, or several; --list prints them")
    unknown = [name for name in names if name not in SCENARIOS]
    if unknown:
        raise click.UsageError(f"there is no scenario {', '.join(unknown)}; --list prints those that there are")
    return [SCENARIOS[name] for name in dict.fromkeys(names)]


def _list() -> None:
    found = [(one.name, len(one.cases), one.what) for one in SCENARIOS.values()]
    display([Section("", ("scenario", "measurements", "what it is"), found)], frames=True)
