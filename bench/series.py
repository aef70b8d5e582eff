"""The course of a scenario: clusters, rounds, medians, and what the machine itself can do beside it.

All cases are measured once, then all of them again, as often as was asked for, so that a machine that becomes slower
meanwhile does so for all of them; numbers are medians of the rounds. A cluster is kept for the next case if that wants
the same shape and the same records and nothing was inserted; otherwise it gets a new one, which is filled with the
case's keys first, so that writes replace records and the store does not grow.
"""

from __future__ import annotations

import contextlib
import dataclasses
import statistics
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol, Self, TypeAlias

from bench import disk, echo, generators, histogram
from bench.clusters import cluster
from bench.disturbance import Disturbance, Watch, worst
from bench.load import LoadPlan
from bench.progress import ProgressBar
from bench.report import PERCENTILES, LoadStats, as_text, summary_of, together
from bench.scenarios import BenchShape, Case, Scenario
from bench.workload import MIXES, Operation

_ECHOED: Final = 50
"""Operations of the echo that are under way: those of the default number of workers."""


@dataclass(frozen=True, slots=True)
class Options:
    """What holds for all scenarios of a run. ``seconds`` and ``warmup`` of each measurement; ``repeat``: rounds;
    ``data``: folder under which clusters keep their data, None = the system's for temporary files.
    """

    seconds: float = 10.0
    warmup: float = 2.0
    repeat: int = 1
    processes: int = 1
    seed: int = 1
    nodes: int = 3
    data: Path | None = None


class Running(Protocol):
    """What a scenario needs of a cluster that runs."""

    @property
    def endpoints(self) -> str: ...


Measure: TypeAlias = Callable[[LoadPlan], LoadStats]
Start: TypeAlias = Callable[[BenchShape, Path], contextlib.AbstractContextManager[Running]]


def check(scenario: Scenario, options: Options) -> None:
    """Raises ValueError if a case of ``scenario`` cannot be measured with ``options``."""
    for case in scenario.cases:
        try:
            generators.check(_plan_of(case, options))
        except ValueError as error:
            raise ValueError(f"{scenario.name}, {case.label}: {error}") from None


def measure(
    scenario: Scenario,
    options: Options,
    watcher: ProgressBar,
    run: Measure = generators.measure,
    start: Start = cluster,
) -> dict[str, Any]:
    """Measure every case of ``scenario``; the result as documented in :mod:`bench.results`.

    Raises ValueError for a case that cannot be measured; errors of clusters and generators as they are.
    """
    check(scenario, options)
    several: list[list[LoadStats]] = [[] for _ in scenario.cases]
    disturbed: list[list[Disturbance]] = [[] for _ in scenario.cases]
    plans: list[LoadPlan] = [case.plan for case in scenario.cases]
    reached: dict[Operation, float] = {}
    watcher.doing("disk and echo")
    beside = _beside(scenario, options)
    with _Clusters(options, start) as clusters:
        for _ in range(options.repeat):
            for at, case in enumerate(scenario.cases):
                watcher.doing(f"{scenario.name}: {case.label}")
                shape = dataclasses.replace(case.shape, nodes=options.nodes)
                endpoints, new = clusters.endpoints(shape, case.plan)
                rate = case.fraction * reached[case.plan.op] if case.fraction else case.plan.rate
                plan = dataclasses.replace(_plan_of(case, options), endpoints=endpoints, rate=round(rate, 1), fill=new)
                watch = Watch()
                stats = run(plan)
                disturbed[at].append(watch.so_far())
                summary = summary_of(plan, stats)
                # That of the first round, so that all rounds are at the same rates.
                if not case.fraction:
                    reached.setdefault(plan.op, summary["per_second"])
                several[at].append(stats)
                plans[at] = plan
                watcher.found(f"{case.label}: {as_text(summary)}")
    rows = [_row(*one, options) for one in zip(scenario.cases, plans, several, disturbed, strict=True)]
    return {"name": scenario.name, "what": scenario.what, "axis": scenario.axis, "beside": beside, "rows": rows}


def _plan_of(case: Case, options: Options) -> LoadPlan:
    return dataclasses.replace(
        case.plan,
        seconds=options.seconds,
        warmup=options.warmup,
        seed=options.seed,
        parts=case.processes or options.processes,
    )


class _Clusters:
    """At most one cluster runs at a time."""

    def __init__(self, options: Options, start: Start) -> None:
        self._options, self._start = options, start
        self._stack = contextlib.ExitStack()
        self._holds: tuple[object, ...] = ()
        self._endpoints = ""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def endpoints(self, shape: BenchShape, plan: LoadPlan) -> tuple[str, bool]:
        """Those of a cluster of ``shape`` that holds the records of ``plan`` or is new, and whether it is."""
        wanted = (shape, plan.keys, plan.key_size, plan.value_size)
        new = wanted != self._holds
        if new:
            self._stack.close()
            self._holds = ()
            folder = self._stack.enter_context(_folder(self._options))
            self._endpoints = self._stack.enter_context(self._start(shape, folder)).endpoints
        # A mix that inserts leaves more than it found.
        self._holds = () if "insert" in MIXES[plan.op].shares else wanted
        return self._endpoints, new


@contextlib.contextmanager
def _folder(options: Options) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="raftkv-bench-", dir=options.data) as folder:
        yield Path(folder)


def _beside(scenario: Scenario, options: Options) -> dict[str, Any]:
    """What disk and gRPC alone can do at this moment, while no cluster runs."""
    seconds = min(1.0, options.seconds)
    first = scenario.cases[0].plan
    plan = LoadPlan(
        "",
        "get",
        workers=_ECHOED,
        key_size=first.key_size,
        value_size=first.value_size,
        seconds=seconds,
        warmup=seconds / 4,
    )
    with _folder(options) as folder:
        synced = disk.measure(folder, seconds)
    return {
        "fsync": {
            "per_second": round(synced.per_second, 1),
            "p50_ms": round(synced.p50_ms, 3),
            "p99_ms": round(synced.p99_ms, 3),
        },
        "echo": {"per_second": round(echo.measure(plan), 1)},
    }


def _row(
    case: Case, plan: LoadPlan, several: Sequence[LoadStats], disturbed: Sequence[Disturbance], options: Options
) -> dict[str, Any]:
    runs = [summary_of(plan, one) for one in several]
    total = together(several, sum(one.seconds for one in several))
    everything = total.all_latencies()
    row = summary_of(plan, total)
    row["per_second"] = statistics.median(one["per_second"] for one in runs)
    for name in (f"p{one:g}" for one in PERCENTILES):
        found = [one["latency_ms"][name] for one in runs if one["latency_ms"][name] is not None]
        row["latency_ms"][name] = round(statistics.median(found), 3) if found else None
    return {
        "label": case.label,
        "nodes": options.nodes,
        "groups": case.shape.groups,
        "reads": case.shape.reads,
        "delay_ms": case.shape.delay_ms,
        **row,
        **worst(disturbed).told(),
        "runs": [
            {**{name: one[name] for name in ("per_second", "latency_ms", "errors")}, **disturbance.told()}
            for one, disturbance in zip(runs, disturbed, strict=True)
        ],
        "percentiles": [[round(at, 5), round(value, 3)] for at, value in histogram.curve(everything)],
        "histogram": histogram.encoded(everything),
    }
