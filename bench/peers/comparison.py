"""The course of a comparison, and what its ``result.json`` holds.

Rounds alternate: each contestant in turn gets new servers, is measured, and is ended before the next one starts, so
that no other server takes anything from it, and a machine that becomes slower meanwhile does so for all of them.
Numbers are medians of the rounds. All through Python have the same keys, values, workers and generator process.

``result.json`` is one object. Rates are operations per second, latencies milliseconds, sizes bytes, times seconds.

===============  =======================================================================================================
field            content
===============  =======================================================================================================
``format``       1: the version of what this table says
``machine``      :func:`bench.machine.facts`
``options``      what the command was asked for, as :class:`ComparisonOptions` names it, with the sizes
                 of keys and values, and the ``rounds`` that there were time for
``beside``       ``fsync``: durable writes of 4 KiB one after the other in the folder of the servers' data
``contestants``  ``name``, ``what``, ``version`` and ``promise``, as :class:`bench.peers.contestants.Promise` names it
``workloads``    ``name``, ``what`` it is, ``workers`` and ``connections``
``rows``         one for each contestant, operation, client and workload
``targets``      ``what`` raftkv is to reach: ``wanted`` and ``found``, its rate by that of the peer; ``reached``
===============  =======================================================================================================

===============  =======================================================================================================
field of a row   content
===============  =======================================================================================================
``contestant``   a name from ``contestants``; ``label``: the same for people
``workload``     a name from ``workloads``, or "" of a tool with a load of its own
``op``           "get", "set", "put_many", "txn", "scan" or "watch"
``size``         records of a put_many or a scan, watchers of a watch, or 0
``client``       with its version; ``kind``: "python", "go" or "tool"
``note``         what is special about it, or ""
``promise``      durability and consistency in a few words; ``worth``: where an acknowledged write is, or ""
``workers``      operations under way at a time; with ``connections``; both 0 of a tool
``problem``      why there are no numbers, or ""; ``absent``: because it is not installed. Then the row ends here
``per_second``   median of the rounds; of put_many and scan, of records; of watch, of events
``latency_ms``   ``p50``, ``p95``, ``p99``: medians of the rounds; ``max``: of all rounds; null if a tool does not tell
``operations``   that succeeded, in all rounds
``errors``       operations that failed, by kind
``runs``         ``per_second``, ``latency_ms``, ``errors``, ``others`` and ``stolen`` of each round
``others``       share of the processors that other processes used, ``stolen``: that the host did not give: the worst
                 round's (:mod:`bench.disturbance`)
``raftkv_by``    raftkv's rate by this one, in the same operation, size and workload; null without raftkv
``of_echo``      raftkv's rate by that of the echo of the same messages, operation and workload; null of others
===============  =======================================================================================================
"""

from __future__ import annotations

import contextlib
import dataclasses
import statistics
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from bench import disk
from bench.disturbance import Disturbance, Watch, worst
from bench.load import LoadPlan
from bench.peers.contestants import ComparedOp, ComparisonCase, Contestant
from bench.peers.tools import ToolResult
from bench.progress import ProgressBar
from raftkv.cli.common import describe
from raftkv.clock import SystemClock
from raftkv.errors import RaftKVError

FORMAT: Final = 1
_MOST_ALONE: Final = 50
_TO_START: Final = 6.0
"""Seconds that servers take to start, to be filled and to end, about; a generator takes ``_TO_BEGIN``."""
_TO_BEGIN: Final = 1.2
_LEAST_SECONDS: Final = 0.5
_MOST_SECONDS: Final = 5.0


@dataclass(frozen=True, slots=True)
class ComparisonWorkload:
    """Workers, each with an operation under way, and the connections that they share.

    ``ops``: what they ask; ``call``: the same for people, "" = gets and sets. ``sizes``: records or watchers of an
    operation, each measured by itself.
    """

    name: str
    load: str
    workers: int
    connections: int
    ops: tuple[ComparedOp, ...] = ("get", "set")
    call: str = ""
    sizes: tuple[int, ...] = (0,)

    @property
    def what(self) -> str:
        return f"{self.call}: {self.load}" if self.call else self.load


_CALLS: Final = (
    ComparisonWorkload("put_many", "10 workers share one connection", 10, 1, ("put_many",), "put_many", (100,)),
    ComparisonWorkload(
        "txn", "50 workers share one connection", 50, 1, ("txn",), "Transactions that check one key and put two"
    ),
    ComparisonWorkload(
        "watch",
        "10 writers, one connection",
        10,
        1,
        ("watch",),
        "Writes until all watchers have the event",
        (1, 10, 100),
    ),
    ComparisonWorkload("scan", "one worker", 1, 1, ("scan",), "Scans in key order", (10_000, 100_000, 1_000_000)),
)
WORKLOADS: Final[Mapping[str, ComparisonWorkload]] = {
    one.name: one
    for one in (
        ComparisonWorkload("shared", "50 workers share one connection", 50, 1),
        ComparisonWorkload("own", "50 workers with a connection each", 50, 50),
        ComparisonWorkload("many", "1,000 workers share 10 connections", 1000, 10),
        *_CALLS,
    )
}
CALLS: Final = tuple(one.name for one in _CALLS)
"""Workloads of a client's other calls."""


def with_workers(workload: ComparisonWorkload, workers: int | None) -> ComparisonWorkload:
    """``workload`` with another number of workers; connections grow along only where each worker has one."""
    if workers is None:
        return workload
    each = workload.connections == workload.workers
    connections = workers if each else workload.connections
    load = f"{workers:,} workers, {connections:,} connection(s)"
    return dataclasses.replace(workload, load=load, workers=workers, connections=connections)


@dataclass(frozen=True, slots=True)
class ComparisonOptions:
    """``seconds`` and ``warmup`` of each measurement; ``repeat``: rounds, as many as end within ``minutes``, and one at
    least; ``data``: folder under which servers keep their data, None = the system's for temporary files.
    """

    seconds: float = 5.0
    warmup: float = 0.5
    repeat: int = 3
    minutes: float = 9.0
    keys: int = 10_000
    seed: int = 1
    data: Path | None = None


@dataclass(frozen=True, slots=True)
class _Target:
    op: str
    kind: str
    workloads: tuple[str, ...]
    factor: float


_TARGETS: Final = (
    _Target("get", "go", ("shared",), 8.0),
    _Target("set", "go", ("shared",), 3.0),
)
"""The default cluster's rate through raftkv's Python client, as a multiple of etcd's."""
_DEFAULT: Final = "raftkv-groups"


@dataclass(slots=True)
class _Row:
    contestant: Contestant
    case: ComparisonCase
    workload: ComparisonWorkload
    size: int = 0
    outcomes: list[ToolResult] = field(default_factory=list)
    disturbances: list[Disturbance] = field(default_factory=list)
    problem: str = ""
    absent: bool = False


def rows_of(contestants: Sequence[Contestant], workloads: Sequence[ComparisonWorkload]) -> list[_Row]:
    """Every measurement of a round, in its order; those that cannot be made say why."""
    firsts = {op: workload for workload in reversed(workloads) for op in workload.ops}
    rows = []
    for contestant in contestants:
        for workload in workloads:
            for size in workload.sizes:
                for case in contestant.cases:
                    once = case.once or case.way.kind == "tool"
                    if case.op in workload.ops and not (once and firsts[case.op] is not workload):
                        absent = contestant.missing() or case.way.missing()
                        rows.append(_Row(contestant, case, workload, size, problem=absent, absent=bool(absent)))
    return rows


def fitting_seconds(
    contestants: Sequence[Contestant], workloads: Sequence[ComparisonWorkload], options: ComparisonOptions
) -> float:
    """So many of each measurement that all rounds end within the minutes of ``options``, about."""
    measured = [row for row in rows_of(contestants, workloads) if not row.problem]
    servers = len({row.contestant.name for row in measured})
    for_one = (options.minutes * 60 / options.repeat - _TO_START * servers) / max(1, len(measured))
    return round(min(_MOST_SECONDS, max(_LEAST_SECONDS, for_one - options.warmup - _TO_BEGIN)), 1)


def measure(
    contestants: Sequence[Contestant],
    workloads: Sequence[ComparisonWorkload],
    options: ComparisonOptions,
    watcher: Callable[[int], ProgressBar] = ProgressBar,
    keep: Callable[[dict[str, Any]], None] = lambda _: None,
) -> dict[str, Any]:
    """Measure all in turn, ``repeat`` times: the result but for ``machine``, which ``keep`` gets after each round.

    A measurement that fails is a row with a ``problem``, and the others go on.
    """
    rows = rows_of(contestants, workloads)
    todo = [row for row in rows if not row.problem]
    clock = SystemClock()
    began = clock.now()
    with watcher(len(todo) * options.repeat) as progress:
        progress.doing("disk")
        with _folder(options) as folder:
            synced = disk.measure(folder, min(1.0, options.seconds))
        beside = {"fsync": {name: round(value, 3) for name, value in dataclasses.asdict(synced).items()}}
        for number in range(1, options.repeat + 1):
            for contestant in contestants:
                mine = [row for row in todo if row.contestant is contestant and not row.problem]
                if mine:
                    _round(contestant, mine, options, progress)
            result = _result(contestants, workloads, rows, options, beside, number)
            keep(result)
            if (clock.now() - began) * (number + 1) / number > options.minutes * 60:
                break
    return result


def _round(contestant: Contestant, rows: Sequence[_Row], options: ComparisonOptions, progress: ProgressBar) -> None:
    """Measure ``rows`` on servers of their own."""
    progress.doing(f"{contestant.name}: its servers start")
    try:
        with _folder(options) as folder, contestant.start(folder) as running:
            filled = False
            for row in rows:
                name = f"{contestant.name} {row.case.op}{f' {row.size:,}' if row.size else ''}, {row.case.way.name()}"
                progress.doing(name)
                try:
                    plan = _plan(row, options, running.endpoints, not filled)
                    watch = Watch()
                    found = row.case.way.measure(plan)
                    row.disturbances.append(watch.so_far())
                except RaftKVError as error:
                    row.problem = describe(error)
                    progress.found(f"{name}: {row.problem}")
                    continue
                filled = filled or (bool(plan.fill) and row.case.way.kind != "tool")
                row.outcomes.append(found)
                progress.found(f"{name}, {plan.workers} workers: {found.per_second:,.0f}/s")
    except RaftKVError as error:
        for row in rows:
            row.problem = row.problem or describe(error)


def _plan(row: _Row, options: ComparisonOptions, endpoints: str, fill: bool) -> LoadPlan:
    """``fill``: nothing was written yet."""
    workers, connections = _load(row)
    op = row.case.op
    plan = LoadPlan(
        endpoints,
        op,
        workers=workers,
        clients=connections,
        keys=options.keys,
        seconds=options.seconds,
        warmup=options.warmup,
        seed=options.seed,
        fill=fill and op in ("get", "set"),
    )
    if op == "put_many":
        return dataclasses.replace(plan, batch=row.size)
    if op == "watch":
        return dataclasses.replace(plan, watchers=row.size)
    if op == "scan":
        # A scan may take longer than it is measured for, and would not count if it began before.
        return dataclasses.replace(plan, keys=row.size, fill=True, warmup=0.0)
    return plan


def _load(row: _Row) -> tuple[int, int]:
    """Workers and connections."""
    workers, connections = row.workload.workers, row.workload.connections
    return workers, max(connections, min(workers, _MOST_ALONE)) if row.case.way.alone else connections


@contextlib.contextmanager
def _folder(options: ComparisonOptions) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="raftkv-compare-", dir=options.data) as folder:
        yield Path(folder)


def _result(
    contestants: Sequence[Contestant],
    workloads: Sequence[ComparisonWorkload],
    rows: Sequence[_Row],
    options: ComparisonOptions,
    beside: dict[str, Any],
    rounds: int,
) -> dict[str, Any]:
    default = LoadPlan("", "get")
    told = [_told(row) for row in rows]
    _set_ratios(rows, told)
    sizes = {"key_size": default.key_size, "value_size": default.value_size}
    return {
        "format": FORMAT,
        "options": {
            **dataclasses.asdict(options),
            "data": None if options.data is None else str(options.data),
            "rounds": rounds,
            **sizes,
        },
        "beside": beside,
        "contestants": [
            {
                "name": one.name,
                "what": one.what,
                "version": one.version(),
                "promise": dataclasses.asdict(one.promise),
            }
            for one in contestants
            if any(row.contestant is one for row in rows)
        ],
        "workloads": [
            {"name": one.name, "what": one.what, "workers": one.workers, "connections": one.connections}
            for one in workloads
        ],
        "rows": told,
        "targets": _targets(told),
    }


def _told(row: _Row) -> dict[str, Any]:
    way, tool = row.case.way, row.case.way.kind == "tool"
    workers, connections = (0, 0) if tool else _load(row)
    told: dict[str, Any] = {
        "contestant": row.contestant.name,
        "label": row.contestant.label,
        "workload": "" if tool else row.workload.name,
        "op": row.case.op,
        "size": row.size,
        "client": way.name(),
        "kind": way.kind,
        "note": row.case.note,
        "promise": row.case.promise or row.contestant.promise.brief,
        "worth": row.contestant.promise.worth,
        "workers": workers,
        "connections": connections,
        "problem": row.problem,
        "absent": row.absent,
    }
    if row.problem or not row.outcomes:
        return told
    latencies = [one.latency_ms for one in row.outcomes]
    errors: dict[str, int] = {}
    for one in row.outcomes:
        for kind, count in one.errors.items():
            errors[kind] = errors.get(kind, 0) + count
    return {
        **told,
        "per_second": statistics.median(one.per_second for one in row.outcomes),
        "latency_ms": {
            **{name: _of(statistics.median, latencies, name) for name in ("p50", "p95", "p99")},
            "max": _of(max, latencies, "max"),
        },
        "operations": sum(one.operations for one in row.outcomes),
        "errors": errors,
        **worst(row.disturbances).told(),
        "runs": [
            {
                "per_second": one.per_second,
                "latency_ms": one.latency_ms,
                "errors": one.errors,
                **disturbance.told(),
            }
            for one, disturbance in zip(row.outcomes, row.disturbances, strict=True)
        ],
        "raftkv_by": None,
        "of_echo": None,
    }


def _of(
    summary: Callable[[list[float]], float], latencies: Sequence[Mapping[str, float | None]], name: str
) -> float | None:
    known = [value for one in latencies if (value := one[name]) is not None]
    return round(summary(known), 3) if known else None


def _set_ratios(rows: Sequence[_Row], told: Sequence[dict[str, Any]]) -> None:
    measured = [(row, one) for row, one in zip(rows, told, strict=True) if "per_second" in one]
    base: dict[tuple[str, int, str], float] = {}
    echoed: dict[tuple[str, str, str], float] = {}
    for row, one in measured:
        if one["contestant"] == "raftkv":
            base[one["op"], one["size"], one["workload"]] = one["per_second"]
        elif one["contestant"] == "echo":
            echoed[one["op"], one["workload"], row.case.way.form] = one["per_second"]
    for row, one in measured:
        workload = row.workload.name
        one["raftkv_by"] = _ratio(base.get((one["op"], one["size"], workload)), one["per_second"])
        one["of_echo"] = _ratio(one["per_second"], echoed.get((one["op"], workload, row.case.way.form)))


def _ratio(rate: float | None, by: float | None) -> float | None:
    return round(rate / by, 3) if rate is not None and by else None


def _targets(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Those of the workloads that were measured."""
    rates = {
        (row["op"], row["workload"]): row["per_second"]
        for row in rows
        if row["contestant"] == _DEFAULT and "per_second" in row
    }
    found = []
    for target in _TARGETS:
        for row in rows:
            if (
                (row["contestant"], row["op"], row["kind"], row["note"]) == ("etcd", target.op, target.kind, "")
                and row["workload"] in target.workloads
                and (by := _ratio(rates.get((row["op"], row["workload"])), row.get("per_second"))) is not None
            ):
                load = f"{row['workers']:,} workers on {row['connections']} connection(s)"
                found.append(
                    {
                        "what": f"{target.op.upper()} of three groups at least {target.factor:g} times etcd's through "
                        f"{row['client']}, {load}",
                        "wanted": target.factor,
                        "found": by,
                        "reached": by >= target.factor,
                    }
                )
    return found
