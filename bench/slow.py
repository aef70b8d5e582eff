"""Does a slow follower slow the leader? Rates, latencies and memory while one node lags, stands still, catches up."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

import click

from bench import generators
from bench.footprint import memory
from bench.load import LoadPlan
from bench.report import summary_of
from bench.workload import Operation
from raftkv.api.status import ReplicaStatus
from raftkv.cli.common import complain
from raftkv.clock import SystemClock
from raftkv.local.node import LocalError
from raftkv.local.status import probe
from raftkv.testing import LocalCluster

_GROUP: Final = 1
_GROUPS: Final = (0, _GROUP)
_KEYS: Final = 10_000
_WORKERS: Final = 50
_STOPPED, _RUNS = 0.18, 0.02
"""Seconds: a slow node runs for a tenth of the time."""

_NEAR: Final = 10
"""Entries behind the leader: as good as caught up."""

_PATIENCE: Final = 120.0


@dataclass(frozen=True, slots=True)
class SlowPhase:
    """Operations per second and milliseconds. ``leader_bytes``: its memory at the end, and the entries that the
    follower was ``behind``."""

    name: str
    writes: float
    write_p50: float
    write_p99: float
    reads: float
    read_p50: float
    read_p99: float
    leader_bytes: int
    behind: int


def measure(cluster: LocalCluster, seconds: float, say: Callable[[str], None]) -> tuple[list[SlowPhase], float]:
    """The phases, of ``seconds`` for writes and ``seconds`` for reads each, and how long the follower then took to have
    what it missed. ``cluster`` has one group.

    Raises LocalError if there is no follower that leads nothing, or it does not catch up.
    """
    leaders = {cluster.leader(group) for group in _GROUPS}
    followers = [node for node in cluster.nodes if node not in leaders]
    if not followers:
        raise LocalError("every node leads a group: a cluster of three nodes or more is needed")
    slow = followers[0]
    run = _Run(cluster, slow, seconds)
    phases = []

    def go_through(name: str) -> None:
        say(name)
        phases.append(run.phase(name))

    go_through("all well")
    with _slowed(cluster, slow):
        go_through("one slow")
    cluster.pause(slow)
    try:
        go_through("one stands still")
    finally:
        cluster.resume(slow)
    go_through("it catches up")
    return phases, run.catch_up()


@contextlib.contextmanager
def _slowed(cluster: LocalCluster, node: int) -> Iterator[None]:
    over = threading.Event()

    def slow() -> None:
        while not over.wait(_RUNS):
            cluster.pause(node)
            over.wait(_STOPPED)
            cluster.resume(node)

    thread = threading.Thread(target=slow, name="slow", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


class _Run:
    def __init__(self, cluster: LocalCluster, slow: int, seconds: float) -> None:
        self._cluster, self._slow, self._seconds = cluster, slow, seconds

    def phase(self, name: str) -> SlowPhase:
        writes, reads = self._load("set"), self._load("get")
        leader = self._cluster.leader(_GROUP)
        pid = self._cluster.pid(leader)
        return SlowPhase(
            name,
            *(writes["per_second"], writes["latency_ms"]["p50"], writes["latency_ms"]["p99"]),
            *(reads["per_second"], reads["latency_ms"]["p50"], reads["latency_ms"]["p99"]),
            0 if pid is None else memory(pid),
            self._behind(),
        )

    def _load(self, op: Operation) -> dict[str, Any]:
        plan = LoadPlan(self._cluster.endpoints, op, workers=_WORKERS, keys=_KEYS, seconds=self._seconds)
        summary = summary_of(plan, generators.measure(plan))
        if summary["errors"]:
            raise LocalError(f"{op} failed: {summary['errors']}")
        return summary

    def _behind(self) -> int:
        """Entries that the leader has committed and the follower is not known to hold."""
        status = probe(self._cluster.address(self._cluster.leader(_GROUP)))
        mine = [one for one in ([] if status is None else status.replicas) if one.group == _GROUP]
        return lag(mine[0], self._slow) if mine else 0

    def catch_up(self) -> float:
        """Seconds until the follower has all but the last entries."""
        clock, wait = SystemClock(), threading.Event()
        began = clock.now()
        while self._behind() > _NEAR:
            if clock.now() > began + _PATIENCE:
                raise LocalError(f"node {self._slow} does not catch up")
            wait.wait(0.05)
        return clock.now() - began


def lag(leader: ReplicaStatus, follower: int) -> int:
    """Committed entries that ``follower`` is not known to hold."""
    return max(0, leader.commit_index - leader.match.get(follower, 0))


def as_text(phases: Sequence[SlowPhase], caught_up: float) -> str:
    """A table: a line for each phase."""
    lines = [
        f"{'':18}{'writes/s':>10}{'p50':>8}{'p99':>8}{'reads/s':>10}{'p50':>8}{'p99':>8}{'leader':>10}{'behind':>10}"
    ]
    for one in phases:
        rates = f"{one.writes:>10,.0f}{one.write_p50:>8.2f}{one.write_p99:>8.2f}"
        rates += f"{one.reads:>10,.0f}{one.read_p50:>8.2f}{one.read_p99:>8.2f}"
        lines.append(f"{one.name:18}{rates}{one.leader_bytes / 1e6:>7.0f} MB{one.behind:>10,}")
    lines.append(f"milliseconds; {caught_up:.1f} s after the end it had what it missed")
    return "\n".join(lines)


@click.command("slow-follower")
@click.option("--nodes", type=click.IntRange(3, 9), default=3)
@click.option("--seconds", type=click.FloatRange(min=0.5), default=8.0, help="Of writes, and of reads, per phase.")
@click.option("-o", "--output", type=click.Choice(["text", "json"]), default="text")
def command(nodes: int, seconds: float, output: str) -> None:
    """Measure a group while one follower runs a tenth of the time, stands still, and catches up.

    \b
    Example:
      python -m bench slow-follower --seconds 4
    """
    with LocalCluster(nodes, 1) as cluster:
        phases, caught_up = measure(cluster, seconds, complain)
    found = {"phases": [asdict(one) for one in phases], "caught_up_seconds": caught_up}
    click.echo(json.dumps(found) if output == "json" else as_text(phases, caught_up))
