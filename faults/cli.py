"""``python -m faults``: storms from seeds, many of them, the faults that they must notice, and reports of runs."""

from __future__ import annotations

import math
import shlex
import sys
from pathlib import Path
from typing import Final

import click
from rich.progress import MofNCompleteColumn, Progress, TimeElapsedColumn, TimeRemainingColumn

from faults.check.story import timeline
from faults.checking import check_file
from faults.planted.catalogue import PLANTED, find
from faults.planted.fault import PlantedFault, kind_of
from faults.planted.search import MOST, search_all
from faults.process.planted import OF_NODES
from faults.report.journal import JournalError
from faults.sim.nemesis import EFFECTS
from faults.sim.run import Report, run
from faults.sim.soak import RunSummary, Total, cores, soak
from faults.sim.storm import MOVING, TRANSACTING, Storm
from faults.verdict import FASTEST
from raftkv.cli.console import Section, display, make_progress

FIXED: Final = (*range(1, 61), *range(MOVING + 1, MOVING + 21), *range(TRANSACTING + 1, TRANSACTING + 7))
"""Seeds of ``make sim`` and of the test suite."""

_SHOWN_LINES: Final = 400

_JOBS = click.option("--jobs", type=click.IntRange(1, 256), default=cores, show_default="all cores")


def _finite(_: click.Context, parameter: click.Parameter, value: float) -> float:
    if not math.isfinite(value):
        raise click.BadParameter(f"{value} is not a number", param=parameter)
    return value


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def main() -> None:
    """The chaos suite of raftkv."""


@main.command()
@click.option("--seed", type=click.IntRange(0), help="Run this one and print its log.")
@click.option("--mutant", type=click.Choice([one.name for one in PLANTED]), help="Plant this fault.")
@click.option("--full", is_flag=True, help="Print the whole log.")
@_JOBS
def sim(seed: int | None, mutant: str | None, full: bool, jobs: int) -> None:
    """Run the fixed seeds, or one, on a simulated cluster.

    Exit code 1 if a promise was broken.

    \b
    Example:
      python -m faults sim --seed 17
    """
    if seed is None:
        _finish(_soak(list(FIXED), jobs, mutant or ""), mutant or "")
        return
    if mutant is None:
        report = run(Storm.draw(seed))
    else:
        chosen = find(mutant)
        with chosen.in_place():
            report = run(chosen.storm(seed))
    _tell(report, full)
    sys.exit(0 if report.passed else 1)


@main.command("soak")
@click.option("-n", "--count", type=click.IntRange(1), default=1000, show_default=True, help="Number of seeds.")
@click.option("--first", type=click.IntRange(0), default=1, show_default=True, help="First seed.")
@_JOBS
def soak_command(count: int, first: int, jobs: int) -> None:
    """Run many seeds on simulated clusters, on all cores.

    Exit code 1, with the seeds, if a promise was broken.

    \b
    Example:
      python -m faults soak --count 100
    """
    _finish(_soak(list(range(first, first + count)), jobs, ""), "")


@main.command()
@click.option("--most", type=click.IntRange(1), default=MOST, show_default=True, help="Seeds for each fault.")
@click.option("--markdown", is_flag=True, help="Only print the table of docs/simulation.md.")
@click.option("--only", type=click.Choice([one.name for one in PLANTED]), multiple=True, help="Only these faults.")
@_JOBS
def mutants(most: int, markdown: bool, only: tuple[str, ...], jobs: int) -> None:
    """Plant each fault and search for a storm that notices it.

    Exit code 1 if one is not noticed.

    \b
    Example:
      python -m faults mutants --only "no fsync"
    """
    chosen = [fault for fault in PLANTED if not only or fault.name in only]
    if markdown:
        columns = ("planted fault", "guards", "safeguard that is off", "noticed as")
        for row in (columns, ("---",) * len(columns), *map(PlantedFault.row, chosen)):
            click.echo(f"| {' | '.join(row)} |")
        return
    rows = []
    with _progress() as progress:
        task = progress.add_task("planted faults", total=len(chosen))
        for one in search_all([fault.name for fault in chosen], most, jobs):
            seed = str(one.seed) if one.seed else f"none of {one.tried}"
            rows.append((one.name, seed, str(one.tried), kind_of(one.problem)))
            progress.console.print(f"{one.name}: {seed} {one.problem}")
            progress.advance(task)
    display([Section("", ("planted fault", "seed", "storms", "noticed as"), sorted(rows))], frames=True)
    sys.exit(1 if any(seed.startswith("none") for _, seed, _, _ in rows) else 0)


@main.command()
@click.argument("history", type=click.Path(path_type=Path))
@click.option(
    "--fastest-clock",
    type=click.FloatRange(1.0, 100.0),
    default=FASTEST,
    show_default=True,
    help="Seconds that a node's clock may show in one second of the history's; times to live are judged by it.",
)
@click.option("--full", is_flag=True, help="Print all problems.")
def check(history: Path, fastest_clock: float, full: bool) -> None:
    """Check the HISTORY of a run: a history.jsonl, or the folder of a run.

    Exit code 1 if a promise was broken or a key could not be decided, 2 if it is not a history.

    \b
    Example:
      python -m faults check chaos/DATE-seed-1
    """
    sys.exit(check_file(history, fastest_clock=fastest_clock, full=full))


@main.command("run")
@click.option("--scenario", "scenarios", multiple=True, help="Scenario to run; may be repeated. See list.")
@click.option("--all", "everything", is_flag=True, help="Run all scenarios in turn.")
@click.option("--seed", type=click.IntRange(0), default=1, show_default=True, help="Seed of faults and operations.")
@click.option(
    "--time",
    "seconds",
    type=click.FloatRange(1, 24 * 3600),
    callback=_finite,
    default=120.0,
    show_default=True,
    help="Seconds for which each scenario injects faults.",
)
@click.option("--nodes", type=click.IntRange(3, 15), default=5, show_default=True, help="Nodes of the cluster.")
@click.option("--operations", type=click.IntRange(1), default=200_000, show_default=True, help="Maximum per run.")
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), help="New folder for the results.")
@click.option("--planted", type=click.Choice(OF_NODES), help="Run nodes with this fault planted: the run should fail.")
@click.option("--secure", is_flag=True, help="With TLS: nodes and clients have certificates.")
def run_command(
    scenarios: tuple[str, ...],
    everything: bool,
    seed: int,
    seconds: float,
    nodes: int,
    operations: int,
    out: Path | None,
    planted: str | None,
    secure: bool,
) -> None:
    """Run scenarios against a cluster of processes on this machine, every link of it through Toxiproxy.

    The folder gets the history, what happened to the cluster, the nodes' logs, and a report as a page. Exit code 1 if a
    promise was broken, 2 if nothing could be run.

    \b
    Example:
      python -m faults run --scenario kills --time 60
    """
    from faults.process.command import ChaosOptions, execute

    sys.exit(execute(ChaosOptions(scenarios, everything, seed, seconds, nodes, operations, out, planted or "", secure)))


@main.command("list")
def list_command() -> None:
    """Show the scenarios and the faults of each.

    \b
    Example:
      python -m faults list
    """
    from faults.process.command import show_scenarios

    show_scenarios()


@main.command()
@click.argument("names", nargs=-1, metavar="[NAME]...")
@click.option("--list", "listing", is_flag=True, help="Print the scenarios and exit.")
@click.option("--short", is_flag=True, help="A few seconds of each scenario.")
@click.option("-o", "--output", type=click.Choice(["text", "json"]), default="text", show_default=True)
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), help="File for the results, as JSON.")
@click.option(
    "--product",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Run the nodes of another checkout.",
)
@click.option(
    "--table",
    "files",
    nargs=2,
    type=click.Path(path_type=Path),
    metavar="BEFORE AFTER",
    help="Only print two such files as a table for docs/operations.md.",
)
def abuse(
    names: tuple[str, ...],
    listing: bool,
    short: bool,
    output: str,
    out: Path | None,
    product: Path | None,
    files: tuple[Path, Path] | None,
) -> None:
    """Abuse clusters on this machine in all scenarios, or those of a NAME, and report the effect on other clients.

    Each gets its own cluster; all traffic is bounded and goes to loopback addresses. Exit code 1 if a bound was
    not kept, 2 if there is no such NAME.

    \b
    Example:
      python -m faults abuse --short dead-group
    """
    from faults.abuse import command

    if listing:
        command.show_scenarios()
    elif files is not None:
        for line in command.table(*(command.load(path) for path in files)):
            click.echo(line)
    else:
        sys.exit(command.execute(command.AbuseOptions(names, short, output, out, product)))


@main.command()
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
def report(folder: Path) -> None:
    """Write the HTML report of the run in FOLDER, or of all runs in its folders, and print its path.

    \b
    Example:
      python -m faults report chaos/DATE-seed-1
    """
    from faults.report.writing import write_report

    try:
        click.echo(write_report(folder))
    except JournalError as problem:
        raise click.ClickException(str(problem)) from None


def _progress() -> Progress:
    return make_progress(MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())


def _soak(seeds: list[int], jobs: int, mutant: str) -> Total:
    with _progress() as progress:
        task = progress.add_task("storms", total=len(seeds))

        def each(one: RunSummary) -> None:
            progress.advance(task)
            if one.problems:
                progress.console.print(f"seed {one.seed}: {one.problems[0]}")

        return soak(seeds, jobs, each, mutant)


def _finish(total: Total, mutant: str) -> None:
    rows = [
        (kind, f"{injected:,}", f"{effective:,}", EFFECTS.get(kind, "it happened to bytes on the way"))
        for kind, injected, effective in total.faults()
    ]
    kinds = Section("", ("fault", "injected", "took effect", "which means"), rows)
    display([Section("", ("", ""), list(total.rows())), kinds], frames=True)
    for one in sorted(total.failed, key=lambda summary: summary.seed):
        click.echo(f"\nseed {one.seed} failed; repeat it with: {_command(one.seed, mutant)}")
        for line in (*one.problems, *one.timeline):
            click.echo(f"  {line}")
    if total.failed:
        sys.exit(1)


def _command(seed: int, mutant: str) -> str:
    if mutant:
        return f".venv/bin/python -m faults sim --seed {seed} --mutant {shlex.quote(mutant)}"
    return f"make sim SEED={seed}"


def _tell(report: Report, full: bool) -> None:
    lines = report.trace
    if not full and len(lines) > _SHOWN_LINES:
        click.echo(f"({len(lines) - _SHOWN_LINES} earlier lines are left out; --full shows them)")
        lines = lines[-_SHOWN_LINES:]
    for line in lines:
        click.echo(line)
    for key, finding in report.violations.items():
        click.echo(f"\nhistory of {key}: {finding.verdict}")
        for line in timeline(report.history.of(key), finding):
            click.echo(line)
    counts = report.counts
    done = ", ".join(f"{counts[f'operations {outcome}']} {outcome}" for outcome in ("ok", "refused", "unknown"))
    click.echo(
        f"\nseed {report.storm.seed}: {report.seconds:.1f} virtual s, operations {done}; trace {report.digest[:16]}"
    )
    for problem in report.problems:
        click.echo(f"PROBLEM {problem}")
    click.echo("passed" if report.passed else "FAILED")
