"""How cost grows: rates, latencies and processor time per operation along one thing at a time.

All else stays as it is by default: three nodes, one group, 50 workers on one connection, 10,000 records of 16 and 128
bytes. The processor time of an operation is what the nodes, and the generator, used while it was measured, by the
operations that succeeded: it says what more cores would do where a rate of processes that share two says little.

``result.json`` is one object. Rates are operations per second, latencies milliseconds, times seconds.

==================  ====================================================================================================
field               content
==================  ====================================================================================================
``format``          1: the version of what this table says
``machine``         :func:`bench.machine.facts`
``options``         what the command was asked for, as :class:`GrowOptions` names it
``curves``          a list: ``name``, ``what`` it is, ``axis``; ``points``; ``left_out``: values not measured, and why
==================  ====================================================================================================

==================  ====================================================================================================
field of a point    content
==================  ====================================================================================================
``value``           along the axis; ``op``: "get" or "set"
``nodes``           with ``groups``, ``leaders`` (spread over hosts or nodes), ``workers``, ``clients``, ``keys`` and
                    ``value_size``
``per_second``      operations that succeeded
``latency_ms``      ``p50``, ``p95``, ``p99`` and ``max``
``nodes_us``        microseconds of processor time of all nodes for each operation; ``busiest_us``: of the node that
                    used most; ``client_us``: of the generator
``node_bytes``      memory of the node that has most, afterwards
``errors``          operations that failed, by kind
``others``          share of the processors that other processes used; ``stolen``: that the host did not give
==================  ====================================================================================================
"""

from __future__ import annotations

import contextlib
import dataclasses
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

from bench import generators
from bench.clusters import cluster
from bench.disturbance import Disturbance, Watch
from bench.footprint import memory, written
from bench.load import LoadPlan
from bench.processors import Computed, Nodes, Processors, per_operation, pids_of
from bench.progress import ProgressBar
from bench.report import LoadStats, summary_of
from bench.scenarios import BenchShape
from bench.workload import Operation
from raftkv.clock import SystemClock
from raftkv.errors import RaftKVError
from shards.map import LeadersOver

FORMAT: Final = 1
_PERIOD: Final = 0.02
"""Seconds between two samples of processor time."""
_RECORD_BYTES: Final = 1000
"""Memory that a record takes in all nodes and in the generator besides its value, thrice, at most."""
_LOG_SHARE: Final = {"snapshot_bytes": 64 * 1024 * 1024, "snapshot_share": 0.0}
_MIB: Final = 1024 * 1024
_OPS: Final[tuple[Operation, ...]] = ("get", "set")
_WRITERS: Final = 500
"""Workers that fill a log."""
_VALUES_TOGETHER: Final = 64 * _MIB


@dataclass(frozen=True, slots=True)
class GrowPoint:
    """What is measured for one value of an axis. ``log``: bytes that each node's log is to hold before."""

    plan: LoadPlan
    shape: BenchShape
    log: int = 0


@dataclass(frozen=True, slots=True)
class Curve:
    """``values`` along ``axis``, and the few ``quick`` ones that only show that it works."""

    name: str
    what: str
    axis: str
    values: Sequence[int]
    quick: Sequence[int]
    point: Callable[[int], GrowPoint]


def _plan(**changes: Any) -> LoadPlan:
    return LoadPlan("", "get", **changes)


_SHAPE: Final = BenchShape(groups=1)


def _values(size: int) -> GrowPoint:
    return GrowPoint(_plan(value_size=size, keys=max(50, min(10_000, _VALUES_TOGETHER // size))), _SHAPE)


_ALL: Final = (
    Curve(
        "records",
        "ten thousand to ten million records",
        "records",
        (10_000, 100_000, 1_000_000, 10_000_000),
        (100, 1000),
        lambda value: GrowPoint(_plan(keys=value), _SHAPE),
    ),
    Curve(
        "groups",
        "1 to 64 groups on three nodes, all leaders on one of them",
        "shard groups",
        (1, 2, 4, 8, 16, 32, 64),
        (1, 4),
        lambda value: GrowPoint(_plan(), BenchShape(groups=value)),
    ),
    Curve(
        "nodes",
        "three to nine nodes, three groups for each, leaders spread over the nodes",
        "nodes",
        (3, 5, 7, 9),
        (3, 4),
        lambda value: GrowPoint(_plan(), BenchShape(value, 3 * value, leaders=LeadersOver.NODES)),
    ),
    Curve(
        "connections",
        "1,000 workers share 1 to 1,000 connections",
        "connections",
        (1, 10, 100, 1000),
        (1, 20),
        lambda value: GrowPoint(_plan(workers=1000, clients=value), _SHAPE),
    ),
    Curve(
        "values",
        "values of 16 bytes to 1 MiB",
        "bytes of a value",
        (16, 128, 1024, 8192, 65_536, 1_048_576),
        (16, 4096),
        _values,
    ),
    Curve(
        "log",
        "a log that is empty at first, to one of 60 MiB, almost due for a snapshot",
        "MiB of log",
        (0, 20, 40, 60),
        (0, 1),
        lambda value: GrowPoint(_plan(), _SHAPE, value * _MIB),
    ),
)
CURVES: Final[Mapping[str, Curve]] = {one.name: one for one in _ALL}


@dataclass(frozen=True, slots=True)
class GrowOptions:
    """``seconds`` and ``warmup`` of each measurement; ``minutes``: of each curve, beyond which no value is begun;
    ``data``: folder under which clusters keep their data, None = the system's for temporary files.
    """

    seconds: float = 3.0
    warmup: float = 0.5
    minutes: float = 6.0
    quick: bool = False
    seed: int = 1
    data: Path | None = None


class Grown(Nodes, Protocol):
    """What is needed of a cluster."""

    @property
    def endpoints(self) -> str: ...

    def data_dir(self, node: int) -> Path: ...


class Start(Protocol):
    """See :func:`bench.clusters.cluster`."""

    def __call__(
        self, shape: BenchShape, folder: Path, raft: Mapping[str, Any] | None = None
    ) -> contextlib.AbstractContextManager[Grown]: ...


Measure = Callable[[LoadPlan], LoadStats]


def measure(
    curve: Curve,
    options: GrowOptions,
    watcher: ProgressBar,
    run: Measure = generators.measure,
    start: Start = cluster,
    room: Callable[[], int] | None = None,
) -> dict[str, Any]:
    """One curve, as ``result.json`` has it. ``room``: bytes of memory that are free, None = as the system says.

    Errors of clusters and generators are those of the value that they meet, which is left out.
    """
    clock = SystemClock()
    began = clock.now()
    points: list[dict[str, Any]] = []
    left_out: list[dict[str, Any]] = []
    took = 0.0
    for value in curve.quick if options.quick else curve.values:
        point = curve.point(value)
        watcher.doing(f"{curve.name}: {value:,}")
        grows = value / max(1, points[-1]["value"]) if points and curve.name == "records" else 1.0
        reason = _too_large(point.plan, room or _free)
        if not reason and points and clock.now() - began + took * grows > options.minutes * 60:
            reason = f"it would take longer than {options.minutes:g} minutes"
        if not reason:
            since = clock.now()
            try:
                points += _at(value, point, options, run, start)
            except RaftKVError as error:
                reason = str(error)
            took = clock.now() - since
        if reason:
            left_out.append({"value": value, "why": reason})
        watcher.found(f"{curve.name} {value:,}: {reason or _told(points[-2:])}")
    return {"name": curve.name, "what": curve.what, "axis": curve.axis, "points": points, "left_out": left_out}


def _told(points: Iterable[dict[str, Any]]) -> str:
    return ", ".join(f"{one['op']} {one['per_second']:,.0f}/s, {one['nodes_us']:.1f} us" for one in points)


def _at(value: int, point: GrowPoint, options: GrowOptions, run: Measure, start: Start) -> Iterator[dict[str, Any]]:
    """Gets, then sets, on a new cluster with its records."""
    with _folder(options) as folder, start(point.shape, folder, _LOG_SHARE if point.log else None) as made:
        plan = dataclasses.replace(
            point.plan,
            endpoints=made.endpoints,
            seconds=options.seconds,
            warmup=options.warmup,
            seed=options.seed,
            fill=False,
        )
        pids = pids_of(made)
        # By itself: nodes are busy with it for a while.
        _check(run(dataclasses.replace(plan, fill=True, clients=1, seconds=min(0.2, options.seconds), warmup=0.0)))
        while point.log and max(written(made.data_dir(node) / "wal") for node in made.nodes) < point.log:
            _check(run(dataclasses.replace(plan, op="set", workers=_WRITERS, seconds=1.0, warmup=0.0)))
        for op in _OPS:
            chosen = dataclasses.replace(plan, op=op)
            watch = Watch()
            with Processors(pids, _PERIOD) as processors:
                stats = run(chosen)
            computed = processors.between(stats.began, stats.began + stats.seconds)
            bytes_of_nodes = max((memory(pid) for pid in pids), default=0)
            yield _point(value, point.shape, chosen, stats, computed, bytes_of_nodes, watch.so_far())


def _check(stats: LoadStats) -> None:
    """Raises RaftKVError if operations failed."""
    if stats.errors:
        raise RaftKVError(f"operations failed: {dict(stats.errors)}")


def _point(
    value: int,
    shape: BenchShape,
    plan: LoadPlan,
    stats: LoadStats,
    computed: Computed,
    bytes_of_nodes: int,
    disturbance: Disturbance,
) -> dict[str, Any]:
    summary = summary_of(plan, stats)
    return {
        "value": value,
        "op": plan.op,
        "nodes": shape.nodes,
        "groups": shape.groups,
        "leaders": str(shape.leaders),
        **{name: getattr(plan, name) for name in ("workers", "clients", "keys", "value_size")},
        **{name: summary[name] for name in ("per_second", "latency_ms", "errors")},
        **per_operation(computed, stats.computed, summary["operations"]),
        "node_bytes": bytes_of_nodes,
        **disturbance.told(),
    }


def _too_large(plan: LoadPlan, room: Callable[[], int]) -> str:
    needed = plan.keys * (_RECORD_BYTES + 3 * plan.value_size)
    free = room()
    if needed <= free:
        return ""
    return f"it may need {needed / 2**30:.1f} GiB of memory, and {free / 2**30:.1f} are free"


def _free() -> int:
    for line in Path("/proc/meminfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return 0


@contextlib.contextmanager
def _folder(options: GrowOptions) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="raftkv-grow-", dir=options.data) as folder:
        yield Path(folder)
