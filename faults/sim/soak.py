"""Many seeds over all cores, and what they came to together."""

from __future__ import annotations

import multiprocessing
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass, field
from itertools import islice
from typing import Final

from faults.check.story import timeline
from faults.planted.catalogue import find
from faults.sim.run import Report, run
from faults.sim.storm import KINDS, Storm

_PER_PROCESS: Final = 200
"""Runs before a process is replaced, so that no memory adds up."""

_AHEAD: Final = 4
_SAID: Final = 8
"""Problems of one run that are kept; the rest usually follows from them."""


@dataclass(frozen=True, slots=True)
class RunSummary:
    """One run, without its history. Times in virtual seconds."""

    seed: int
    nodes: int
    problems: tuple[str, ...]
    seconds: float
    converged: float
    worst_gap: float
    counts: Counter[str]
    timeline: tuple[str, ...] = ()
    """Of the first key whose history cannot be explained."""

    @classmethod
    def of(cls, report: Report) -> RunSummary:
        """What is worth keeping of a run."""
        storm = report.storm
        return cls(
            storm.seed,
            storm.nodes,
            tuple(report.problems[:_SAID]),
            report.seconds,
            report.converged,
            report.worst_gap,
            report.counts,
            tuple(next((timeline(report.history.of(key), one) for key, one in report.violations.items()), ())),
        )


@dataclass(slots=True)
class Total:
    """What the runs add up to."""

    runs: int = 0
    seconds: float = 0.0
    slowest: float = 0.0
    """Longest time to convergence."""
    worst_gap: float = 0.0
    gentle: int = 0
    nodes: Counter[int] = field(default_factory=Counter)
    counts: Counter[str] = field(default_factory=Counter)
    failed: list[RunSummary] = field(default_factory=list)

    def add(self, one: RunSummary) -> None:
        """Take one more run into account."""
        self.runs += 1
        self.seconds += one.seconds
        self.slowest = max(self.slowest, one.converged)
        self.worst_gap = max(self.worst_gap, one.worst_gap)
        self.gentle += one.worst_gap > 0
        self.nodes[one.nodes] += 1
        self.counts.update(one.counts)
        if one.problems:
            self.failed.append(one)

    def rows(self) -> Iterator[tuple[str, str]]:
        """What to show in a table."""
        counts = self.counts
        sizes = ", ".join(f"{count} with {nodes} nodes" for nodes, count in sorted(self.nodes.items()))
        yield "storms", f"{self.runs:,} ({sizes})"
        yield "virtual time", f"{self.seconds / 3600:.1f} hours"
        told = [f"{counts[f'operations {outcome}']:,} {outcome}" for outcome in ("ok", "refused", "unknown")]
        yield "operations", ", ".join(told)
        yield "keys checked", f"{counts['checked keys']:,} in {counts['model steps']:,} steps"
        for name in ("leaderships", "snapshots installed", "states compared", "WALs read after a crash"):
            yield name, f"{counts[name]:,}"
        for name in ("moves committed", "moves cancelled", "slots moved", "voters changed"):
            if counts[name]:
                yield name, f"{counts[name]:,}"
        yield "longest time to convergence", f"{self.slowest:.1f} s"
        if self.gentle:
            yield "longest time without a write", f"{self.worst_gap:.2f} s, in {self.gentle} gentle storms"
        yield "failed", str(len(self.failed))

    def faults(self) -> Iterator[tuple[str, int, int]]:
        """Kind, how often it was injected, how often it took effect."""
        for kind in KINDS:
            if self.counts[f"injected {kind}"]:
                yield kind, self.counts[f"injected {kind}"], self.counts[f"effective {kind}"]
        for name, count in sorted(self.counts.items()):
            if name.startswith("network "):
                yield name, count, count


def run_seed(seed: int, planted: str = "") -> RunSummary:
    """One seed, as the product is or with a fault planted in it."""
    if not planted:
        return RunSummary.of(run(Storm.draw(seed)))
    fault = find(planted)
    with fault.in_place():
        return RunSummary.of(run(fault.storm(seed)))


def soak(seeds: Iterable[int], jobs: int, each: Callable[[RunSummary], None], planted: str = "") -> Total:
    """Run all seeds, ``jobs`` at a time; ``each`` hears of every one as it ends."""
    total, waiting, left = Total(), set[Future[RunSummary]](), iter(seeds)
    with pool(jobs) as workers:
        while True:
            waiting |= {workers.submit(run_seed, seed, planted) for seed in islice(left, jobs * _AHEAD - len(waiting))}
            if not waiting:
                return total
            ended, waiting = wait(waiting, return_when=FIRST_COMPLETED)
            for one in ended:
                total.add(one.result())
                each(one.result())


def cores() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0))


def pool(jobs: int) -> ProcessPoolExecutor:
    """Processes for runs."""
    # Not forked: gRPC is loaded here and its threads would not come along.
    context = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(jobs, mp_context=context, max_tasks_per_child=_PER_PROCESS)
