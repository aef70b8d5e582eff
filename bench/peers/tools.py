"""Peers without Python: etcd through its own Go client, and the tools that come with each peer."""

from __future__ import annotations

import csv
import dataclasses
import json
import subprocess
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from bench import histogram
from bench.load import LoadPlan
from bench.peers.programs import GO_CLIENT
from bench.peers.servers import PeerError, environment
from bench.report import LoadStats, summary_of
from raftkv.addresses import parse_address

_SLACK: Final = 60.0
"""Seconds that a tool may take to start, to fill the store and to end, besides those that it measures."""
BENCHMARK_CONNECTIONS: Final = 50
_TRIAL: Final = 5_000
_TRIAL_SECONDS: Final = 0.5
"""redis-benchmark counts requests, not time: trials of so many messages and of so many seconds say what to ask for."""


@dataclasses.dataclass(frozen=True, slots=True)
class ToolResult:
    """What a measurement found: rate per second, latencies of operations in milliseconds, failures by kind."""

    per_second: float
    latency_ms: dict[str, float | None]
    operations: int
    errors: dict[str, int] = dataclasses.field(default_factory=dict)


def of_stats(plan: LoadPlan, stats: LoadStats) -> ToolResult:
    """Its rate is of the plan's units."""
    found = summary_of(plan, stats)
    rate = found["operations"] * plan.units / stats.seconds if stats.seconds > 0 else 0.0
    return ToolResult(round(rate, 1), found["latency_ms"], found["operations"], found["errors"])


# --- etcd's Go client


def measure_go(plan: LoadPlan, serializable: bool) -> ToolResult:
    """``plan`` through etcd's Go client. Raises PeerError."""
    said = _run(
        [
            str(GO_CLIENT.path()),
            f"-endpoints={plan.endpoints}",
            f"-op={plan.op}",
            f"-serializable={str(serializable).lower()}",
            f"-fill={str(bool(plan.fill)).lower()}",
            f"-workers={plan.workers}",
            f"-connections={plan.clients}",
            f"-keys={plan.keys}",
            f"-key-size={plan.key_size}",
            f"-value-size={plan.value_size}",
            f"-batch={plan.batch}",
            f"-watchers={plan.watchers}",
            f"-seconds={plan.seconds}s",
            f"-warmup={plan.warmup}s",
            f"-timeout={plan.timeout}s",
            f"-seed={plan.seed}",
        ],
        plan.seconds + plan.warmup,
    )
    return of_stats(plan, parse_go(plan, said))


def parse_go(plan: LoadPlan, said: str) -> LoadStats:
    """What the Go program printed. Raises PeerError for anything else."""
    try:
        found = json.loads(said)
        took = {int(microseconds): int(count) for microseconds, count in found["took_us"].items()}
        longest = max(took, default=0) / 1e6
        errors = Counter({str(code): int(count) for code, count in found["errors"].items()})
        return LoadStats(
            {str(plan.op): histogram.of_counts(took)}, {str(plan.op): longest}, float(found["seconds"]), errors
        )
    except (ValueError, KeyError, TypeError, AttributeError):
        raise PeerError(f"the Go program printed no result but: {_last(said)}") from None


# --- redis-benchmark


def measure_benchmark(plan: LoadPlan, pipeline: int) -> ToolResult:
    """``redis-benchmark`` with ``pipeline`` commands a message for about the plan's seconds. Raises PeerError.

    Its keys are "key:" and twelve digits: 16 bytes. They are written first, all but a few of them.
    """

    def run(op: str, requests: int, depth: int) -> ToolResult:
        host, port = parse_address(plan.endpoints)
        asked = {"-h": host, "-p": port, "-t": op, "-c": BENCHMARK_CONNECTIONS, "-P": depth, "-d": plan.value_size}
        asked |= {"-r": plan.keys, "-n": requests, "--precision": 3}
        command = ["redis-benchmark", "--csv", *(str(one) for pair in asked.items() for one in pair)]
        return parse_benchmark(_run(command, plan.seconds), requests)

    run("set", 5 * plan.keys, 50)
    requests = _TRIAL * pipeline
    for seconds in (_TRIAL_SECONDS, plan.seconds):
        requests = max(_TRIAL, int(run(plan.op, requests, pipeline).per_second * seconds))
    return run(plan.op, requests, pipeline)


def parse_benchmark(said: str, requests: int) -> ToolResult:
    """The CSV of one test of ``redis-benchmark`` that made ``requests``. Raises PeerError for anything else."""
    lines = said.splitlines()
    at = next((at for at, line in enumerate(lines) if line.startswith('"test"')), len(lines))
    rows = list(csv.DictReader(lines[at:]))
    try:
        (row,) = rows
        found = {name: round(float(row[f"{name}_latency_ms"]), 3) for name in ("p50", "p95", "p99", "max")}
        return ToolResult(round(float(row["rps"]), 1), dict(found), requests)
    except (ValueError, KeyError, TypeError):
        raise PeerError(f"redis-benchmark printed no result but: {_last(said)}") from None


def _run(command: Sequence[str], seconds: float) -> str:
    """The output of a tool that works for ``seconds``. Raises PeerError."""
    name = Path(command[0]).name
    options: dict[str, Any] = {"stdin": subprocess.DEVNULL, "capture_output": True, "text": True, "env": environment()}
    try:
        # Ended by run() if it takes too long or if this is interrupted.
        done = subprocess.run(command, timeout=4 * seconds + _SLACK, check=False, start_new_session=True, **options)
    except subprocess.TimeoutExpired:
        raise PeerError(f"{name} did not end in time") from None
    except OSError as error:
        raise PeerError(f"{name} cannot be run: {error}") from None
    if done.returncode != 0:
        raise PeerError(f"{name} ended with {done.returncode}: {_last(done.stderr or done.stdout)}")
    return str(done.stdout)


def _last(text: str) -> str:
    lines = text.strip().splitlines()
    return lines[-1][-500:] if lines else "nothing"
