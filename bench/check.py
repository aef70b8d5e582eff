"""Has it become slower? Ratios to what this machine does at this moment, compared with those of a baseline.

Everything is measured in alternating rounds, so that what else the machine does strikes both sides of a ratio.
"""

from __future__ import annotations

import contextlib
import json
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from bench import disk, echo, generators
from bench.load import LoadPlan
from bench.workload import Operation
from raftkv.cli.common import complain
from raftkv.errors import RaftKVError
from raftkv.testing import LocalCluster

BASELINE = Path(__file__).with_name("baseline.json")

TOLERANCE = 0.35
"""How far below the baseline a ratio may fall, as a share of it. On a shared machine with two cores, medians of
unchanged code differ by up to a fifth between runs."""

_WORKERS = 50
_SECONDS = 2.0
_WARMUP = 0.5

Round = Mapping[str, float]
"""Rates per second that were measured one after the other."""

RATIOS = {
    "get_to_echo": ("get", "echo", "GET, of what bare gRPC does with the same messages"),
    "set_to_disk": ("set", "disk", "SET, for each small write that the disk makes durable"),
    "three_groups_to_one": ("set", "set_one_group", "SET with three groups, of that with one"),
    "quorum_to_lease": ("get_quorum", "get", "GET by quorum, of that by lease"),
}
"""Ratio -> (what is measured, what it is compared with, for people)."""


class MeasurementFailed(RaftKVError):
    """Operations failed, so their rate means nothing."""


def rate(cluster: LocalCluster, op: Operation, seconds: float) -> float:
    """Operations per second of a closed loop. Raises MeasurementFailed."""
    found = generators.measure(LoadPlan(cluster.endpoints, op, workers=_WORKERS, seconds=seconds, warmup=_WARMUP))
    if found.errors:
        raise MeasurementFailed(f"{op}: {dict(found.errors)}")
    return float(found.all_latencies().get_total_count() / found.seconds)


def measure_rounds(rounds: int, say: Callable[[str], None], seconds: float = _SECONDS) -> list[Round]:
    """All rates, ``rounds`` times; ``seconds`` for each."""
    found: list[Round] = []
    with contextlib.ExitStack() as stack:
        three = stack.enter_context(LocalCluster(3, 3))
        one = stack.enter_context(LocalCluster(3, 1))
        quorum = stack.enter_context(LocalCluster(3, 3, node={"reads": "quorum"}))
        for number in range(rounds):
            say(f"round {number + 1} of {rounds}")
            found.append(
                {
                    "echo": echo.measure(
                        LoadPlan("", "get", workers=_WORKERS, seconds=seconds / 2, warmup=_WARMUP / 2)
                    ),
                    "get": rate(three, "get", seconds),
                    "get_quorum": rate(quorum, "get", seconds),
                    "set": rate(three, "set", seconds),
                    "set_one_group": rate(one, "set", seconds),
                    "disk": disk.measure(three.folder, seconds / 2).per_second,
                }
            )
    return found


def ratios(rounds: Sequence[Round]) -> dict[str, float]:
    """The median of each ratio over the rounds."""
    return {
        name: round(statistics.median(one[what] / one[of] for one in rounds), 3)
        for name, (what, of, _) in RATIOS.items()
    }


def worse(found: Mapping[str, float], baseline: Mapping[str, float]) -> list[str]:
    """The ratios that fell further below ``baseline`` than TOLERANCE allows; one that it lacks has nothing to fall."""
    return [name for name in found if name in baseline and found[name] < baseline[name] * (1 - TOLERANCE)]


def as_text(found: Mapping[str, float], baseline: Mapping[str, float], fallen: Iterable[str]) -> str:
    """A table for people."""
    fallen = set(fallen)
    lines = [f"{'ratio':22}{'now':>9}{'baseline':>10}{'at least':>10}"]
    for name, value in found.items():
        known = baseline.get(name)
        known_text = f"{'-':>10}{'-':>10}" if known is None else f"{known:>10.3f}{known * (1 - TOLERANCE):>10.3f}"
        verdict = "SLOWER" if name in fallen else "ok"
        lines.append(f"{name:22}{value:>9.3f}{known_text}  {verdict:8}{RATIOS[name][2]}")
    return "\n".join(lines)


@click.command("check")
@click.option("--rounds", type=click.IntRange(1, 100), default=3, help="Alternating rounds; the medians are compared.")
@click.option("--update", is_flag=True, help="Write the result as the new baseline.")
@click.option("--baseline", type=click.Path(path_type=Path, dir_okay=False), default=BASELINE, show_default=False)
@click.option("-o", "--output", type=click.Choice(["text", "json"]), default="text")
def command(rounds: int, update: bool, baseline: Path, output: str) -> None:
    """Measure ratios (to a bare echo, to the disk, groups, reads) and compare them with the committed baseline.

    Exit code 1 if one fell by more than the tolerance.

    \b
    Example:
      python -m bench check --rounds 1
    """
    known: dict[str, float] = {}
    if not update:
        try:
            known = json.loads(baseline.read_text(encoding="utf-8"))
        except (OSError, ValueError) as problem:
            raise click.ClickException(f"{baseline}: no baseline: {problem}; write one with --update") from None
    measured = measure_rounds(rounds, complain)
    found = ratios(measured)
    fallen = worse(found, known)
    if output == "json":
        said: dict[str, Any] = {"ratios": found, "baseline": known, "worse": fallen, "rounds": measured}
        click.echo(json.dumps(said))
    else:
        click.echo(as_text(found, known, fallen))
    if update:
        baseline.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
        complain(f"{baseline} written")
    if fallen:
        complain(f"slower than the baseline by more than {TOLERANCE:.0%}: {', '.join(fallen)}")
        raise SystemExit(1)
