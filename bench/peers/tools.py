"""Peers without Python: etcd through its own Go client, and the tools that come with each peer."""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import json
import os
import re
import shutil
import subprocess
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from bench import histogram
from bench.load import LoadPlan
from bench.peers.servers import PeerError, environment
from bench.report import LoadStats, summary_of
from raftkv.addresses import parse_address

_ROOT: Final = Path(__file__).resolve().parents[2]
_SOURCES: Final = Path(__file__).with_name("go")
_CACHE: Final = _ROOT / ".cache" / "bench"
_GO: Final = _ROOT / ".cache" / "go" / "go" / "bin" / "go"
"""The one that Toxiproxy was built with where the machine has none."""
_BUILD_TIMEOUT: Final = 600.0
_SLACK: Final = 60.0
"""Seconds that a tool may take to start, to fill the store and to end, besides those that it measures."""
REDIS_CONNECTIONS: Final = 50
_REDIS_TRIAL: Final = 5_000
_REDIS_SECONDS: Final = 0.5
"""redis-benchmark counts requests, not time: trials of so many messages and of so many seconds say what to ask for."""
CHECK_LOAD: Final = "m"
CHECK_RATE: Final = 1000
"""Writes per second that ``etcdctl check perf`` makes at most with that load; the next writes 4 GB in its minute."""
_CHECK_SECONDS: Final = 60.0


@dataclasses.dataclass(frozen=True, slots=True)
class ToolResult:
    """What a measurement found: rate in operations per second, latencies in milliseconds, failures by kind.

    ``said``: a tool's own words.
    """

    per_second: float
    latency_ms: dict[str, float | None]
    operations: int
    errors: dict[str, int] = dataclasses.field(default_factory=dict)
    said: str = ""


def of_stats(plan: LoadPlan, stats: LoadStats) -> ToolResult:
    found = summary_of(plan, stats)
    return ToolResult(found["per_second"], found["latency_ms"], found["operations"], found["errors"])


# --- etcd's Go client


def go_client_missing() -> str:
    """Builds the program of ``bench/peers/go`` unless that was done; why it cannot be, or ""."""
    if go_program().exists():
        return ""
    go = shutil.which("go") or (str(_GO) if os.access(_GO, os.X_OK) else None)
    if go is None:
        return "not built: there is no Go; apt-get install golang-go"
    _CACHE.mkdir(parents=True, exist_ok=True)
    # Of this process only, until it is whole.
    made = go_program().with_suffix(f".{os.getpid()}")
    try:
        done = subprocess.run(
            [go, "build", "-trimpath", "-buildvcs=false", "-o", str(made), "."],
            cwd=_SOURCES,
            capture_output=True,
            text=True,
            timeout=_BUILD_TIMEOUT,
            check=False,
        )
        if done.returncode != 0:
            return f"not built: {_last(done.stderr)}"
        made.rename(go_program())
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"not built: {error}"
    finally:
        made.unlink(missing_ok=True)
    return ""


def go_program() -> Path:
    """Named by its sources, so that one that is there is the right one."""
    sources = hashlib.sha256()
    for name in ("main.go", "go.mod", "go.sum"):
        sources.update((_SOURCES / name).read_bytes())
    return _CACHE / f"etcd-go-client-{sources.hexdigest()[:12]}"


def go_client_version() -> str:
    found = re.search(r"go\.etcd\.io/etcd/client/v3 v(\S+)", (_SOURCES / "go.mod").read_text(encoding="utf-8"))
    assert found is not None
    return found[1]


def measure_go(plan: LoadPlan, serializable: bool) -> ToolResult:
    """``plan`` through etcd's Go client. Raises PeerError."""
    said = _run(
        [
            str(go_program()),
            f"-endpoints={plan.endpoints}",
            f"-op={plan.op}",
            f"-serializable={str(serializable).lower()}",
            f"-fill={str(bool(plan.fill)).lower()}",
            f"-workers={plan.workers}",
            f"-connections={plan.clients}",
            f"-keys={plan.keys}",
            f"-key-size={plan.key_size}",
            f"-value-size={plan.value_size}",
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


def measure_redis(plan: LoadPlan, pipeline: int) -> ToolResult:
    """``redis-benchmark`` with ``pipeline`` commands a message for about the plan's seconds. Raises PeerError.

    Its keys are "key:" and twelve digits: 16 bytes. They are written first, all but a few of them.
    """

    def run(op: str, requests: int, depth: int) -> ToolResult:
        host, port = parse_address(plan.endpoints)
        asked = {"-h": host, "-p": port, "-t": op, "-c": REDIS_CONNECTIONS, "-P": depth, "-d": plan.value_size}
        asked |= {"-r": plan.keys, "-n": requests, "--precision": 3}
        command = ["redis-benchmark", "--csv", *(str(one) for pair in asked.items() for one in pair)]
        return parse_redis(_run(command, plan.seconds), requests)

    run("set", 5 * plan.keys, 50)
    requests = _REDIS_TRIAL * pipeline
    for seconds in (_REDIS_SECONDS, plan.seconds):
        requests = max(_REDIS_TRIAL, int(run(plan.op, requests, pipeline).per_second * seconds))
    return run(plan.op, requests, pipeline)


def parse_redis(said: str, requests: int) -> ToolResult:
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


# --- etcdctl check perf


def measure_check(endpoints: str) -> ToolResult:
    """``etcdctl check perf``: for a minute, 200 clients write 1,024 bytes each at its own rate. Raises PeerError."""
    command = ["etcdctl", f"--endpoints={endpoints}", "check", "perf", f"--load={CHECK_LOAD}"]
    # Its exit code says whether the machine is as fast as etcd wishes, which is an answer too.
    return parse_check(_run(command, _CHECK_SECONDS, answers=(0, 1)))


def parse_check(said: str) -> ToolResult:
    """What ``etcdctl check perf`` printed. Raises PeerError for anything else."""
    verdicts = re.findall(r"^(?:(?:PASS|FAIL): |Slowest request |Stddev ).*", said, re.MULTILINE)
    errors = {text: int(count) for text, count in re.findall(r"^FAIL: ERROR\((.*)\) -> (\d+)", said, re.MULTILINE)}
    rate = re.search(r"[Tt]hroughput(?: is)?(?: too low:)? (\d+) writes/s", said)
    slowest = re.search(r"[Ss]lowest request took(?: too long:)? (\d+\.\d+)s", said)
    if rate is None:
        raise PeerError(f"etcdctl check perf printed no result but: {_last(said)}")
    latency: dict[str, float | None] = {"p50": None, "p95": None, "p99": None}
    latency["max"] = float(slowest[1]) * 1000 if slowest else None
    return ToolResult(float(rate[1]), latency, int(float(rate[1]) * _CHECK_SECONDS), errors, "; ".join(verdicts))


def version_of(command: Sequence[str]) -> str:
    """The first number with dots that ``command`` prints; "" if there is none."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_SLACK, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    found = re.search(r"\d+\.\d+\.\d+", done.stdout)
    return found[0] if found else ""


def _run(command: Sequence[str], seconds: float, answers: Sequence[int] = (0,)) -> str:
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
    if done.returncode not in answers:
        raise PeerError(f"{name} ended with {done.returncode}: {_last(done.stderr or done.stdout)}")
    return str(done.stdout)


def _last(text: str) -> str:
    lines = text.strip().splitlines()
    return lines[-1][-500:] if lines else "nothing"
