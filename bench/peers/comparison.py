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
                 of keys and values
``beside``       ``fsync``: durable writes of 4 KiB one after the other in the folder of the servers' data
``contestants``  ``name``, ``what``, ``version`` and ``promise``, as :class:`bench.peers.contestants.Promise` names it
``workloads``    ``name``, ``what`` it is, ``workers`` and ``connections``
``rows``         one for each contestant, operation, client and workload
``targets``      ``what`` raftkv is to reach: ``wanted`` and ``found``, its rate by that of the peer; ``reached``
===============  =======================================================================================================

===============  =======================================================================================================
field of a row   content
===============  =======================================================================================================
``contestant``   a name from ``contestants``
``workload``     "shared", "own" or "many", or "" of a tool with a load of its own
``op``           "get", "set" or "echo"
``client``       with its version; ``kind``: "python", "go" or "tool"
``note``         what is special about it, or ""
``promise``      durability and consistency in a few words
``workers``      operations under way at a time; with ``connections``; both 0 of a tool
``problem``      why there are no numbers, or ""; ``absent``: because it is not installed. Then the row ends here
``per_second``   median of the rounds
``latency_ms``   ``p50``, ``p95``, ``p99``: medians of the rounds; ``max``: of all rounds; null if a tool does not tell
``operations``   that succeeded, in all rounds
``errors``       operations that failed, by kind
``said``         what a tool said in words, or ""
``runs``         ``per_second``, ``latency_ms`` and ``errors`` of each round
``raftkv_by``    raftkv's rate by this one, in the same operation and workload; null without raftkv
``of_echo``      this rate by that of the echo, in the same workload; null without an echo
``paced``        whether the tool sets the rate; then there are no ratios
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
from bench.load import LoadPlan
from bench.peers.contestants import ComparisonCase, Contestant
from bench.peers.tools import ToolResult
from bench.progress import ProgressBar
from raftkv.cli.common import describe
from raftkv.errors import RaftKVError

FORMAT: Final = 1
_MOST_ALONE: Final = 50


@dataclass(frozen=True, slots=True)
class ComparisonWorkload:
    """Workers, each with an operation under way, and the connections that they share."""

    name: str
    what: str
    workers: int
    connections: int


WORKLOADS: Final[Mapping[str, ComparisonWorkload]] = {
    one.name: one
    for one in (
        ComparisonWorkload("shared", "50 workers share one connection", 50, 1),
        ComparisonWorkload("own", "50 workers with a connection each", 50, 50),
        ComparisonWorkload("many", "1,000 workers share 10 connections", 1000, 10),
    )
}


def with_workers(workload: ComparisonWorkload, workers: int | None) -> ComparisonWorkload:
    """``workload`` with another number of workers; connections grow along only where each worker has one."""
    if workers is None:
        return workload
    each = workload.connections == workload.workers
    connections = workers if each else workload.connections
    return ComparisonWorkload(
        workload.name, f"{workers:,} workers, {connections:,} connection(s)", workers, connections
    )


@dataclass(frozen=True, slots=True)
class ComparisonOptions:
    """``seconds`` and ``warmup`` of each measurement; ``repeat``: rounds; ``data``: folder under which servers keep
    their data, None = the system's for temporary files.
    """

    seconds: float = 5.0
    warmup: float = 1.0
    repeat: int = 3
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
    _Target("set", "python", ("shared",), 3.0),
    _Target("get", "go", ("shared", "many"), 1.0),
    _Target("set", "go", ("shared", "many"), 1.0),
)
"""raftkv's rate through its Python client, as a multiple of etcd's."""


@dataclass(slots=True)
class _Row:
    contestant: Contestant
    case: ComparisonCase
    workload: ComparisonWorkload
    outcomes: list[ToolResult] = field(default_factory=list)
    problem: str = ""
    absent: bool = False


def rows_of(contestants: Sequence[Contestant], workloads: Sequence[ComparisonWorkload]) -> list[_Row]:
    """Every measurement of a round, in its order; those that cannot be made say why."""
    rows = []
    for contestant in contestants:
        for number, workload in enumerate(workloads):
            for case in contestant.cases:
                if case.way.kind != "tool" or number == 0:
                    absent = contestant.missing() or case.way.missing()
                    rows.append(_Row(contestant, case, workload, problem=absent, absent=bool(absent)))
    return rows


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
    total = sum(1 if row.case.way.paced else options.repeat for row in todo)
    with watcher(total) as progress:
        progress.doing("disk")
        with _folder(options) as folder:
            synced = disk.measure(folder, min(1.0, options.seconds))
        beside = {"fsync": {name: round(value, 3) for name, value in dataclasses.asdict(synced).items()}}
        for number in range(options.repeat):
            for contestant in contestants:
                mine = [row for row in todo if row.contestant is contestant]
                mine = [row for row in mine if not row.problem and not (number and row.case.way.paced)]
                if mine:
                    _round(contestant, mine, options, progress)
            result = _result(contestants, workloads, rows, options, beside)
            keep(result)
    return result


def _round(contestant: Contestant, rows: Sequence[_Row], options: ComparisonOptions, progress: ProgressBar) -> None:
    """Measure ``rows`` on servers of their own."""
    progress.doing(f"{contestant.name}: its servers start")
    try:
        with _folder(options) as folder, contestant.start(folder) as running:
            filled = False
            for row in rows:
                name = f"{contestant.name} {row.case.op}, {row.case.way.name()}"
                progress.doing(name)
                try:
                    plan = _plan(row, options, running.endpoints, not filled)
                    found = row.case.way.measure(plan)
                except RaftKVError as error:
                    row.problem = describe(error)
                    progress.found(f"{name}: {row.problem}")
                    continue
                filled = filled or row.case.way.kind != "tool"
                row.outcomes.append(found)
                progress.found(f"{name}, {plan.workers} workers: {found.per_second:,.0f}/s")
    except RaftKVError as error:
        for row in rows:
            row.problem = row.problem or describe(error)


def _plan(row: _Row, options: ComparisonOptions, endpoints: str, fill: bool) -> LoadPlan:
    workers, connections = _load(row)
    return LoadPlan(
        endpoints,
        "set" if row.case.op == "set" else "get",
        workers=workers,
        clients=connections,
        keys=options.keys,
        seconds=options.seconds,
        warmup=options.warmup,
        seed=options.seed,
        fill=fill,
    )


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
) -> dict[str, Any]:
    default = LoadPlan("", "get")
    told = [_told(row) for row in rows]
    _set_ratios(told, workloads[0].name)
    sizes = {"key_size": default.key_size, "value_size": default.value_size}
    return {
        "format": FORMAT,
        "options": {
            **dataclasses.asdict(options),
            "data": None if options.data is None else str(options.data),
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
        ],
        "workloads": [dataclasses.asdict(one) for one in workloads],
        "rows": told,
        "targets": _targets(told),
    }


def _told(row: _Row) -> dict[str, Any]:
    way, tool = row.case.way, row.case.way.kind == "tool"
    workers, connections = (0, 0) if tool else _load(row)
    told: dict[str, Any] = {
        "contestant": row.contestant.name,
        "workload": "" if tool else row.workload.name,
        "op": row.case.op,
        "client": way.name(),
        "kind": way.kind,
        "note": row.case.note,
        "promise": row.case.promise or row.contestant.promise.brief,
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
        "said": row.outcomes[-1].said,
        "runs": [
            {"per_second": one.per_second, "latency_ms": one.latency_ms, "errors": one.errors} for one in row.outcomes
        ],
        "raftkv_by": None,
        "of_echo": None,
        "paced": way.paced,
    }


def _of(
    summary: Callable[[list[float]], float], latencies: Sequence[Mapping[str, float | None]], name: str
) -> float | None:
    known = [value for one in latencies if (value := one[name]) is not None]
    return round(summary(known), 3) if known else None


def _set_ratios(rows: Sequence[dict[str, Any]], first: str) -> None:
    measured = [row for row in rows if "per_second" in row]
    base = {(row["op"], row["workload"]): row["per_second"] for row in measured if row["contestant"] == "raftkv"}
    echoed = {row["workload"]: row["per_second"] for row in measured if row["op"] == "echo"}
    for row in measured:
        if row["paced"]:
            continue
        row["raftkv_by"] = _ratio(base.get((row["op"], row["workload"] or first)), row["per_second"])
        row["of_echo"] = _ratio(row["per_second"], echoed.get(row["workload"] or first))


def _ratio(rate: float | None, by: float | None) -> float | None:
    return round(rate / by, 3) if rate is not None and by else None


def _targets(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Those of the workloads that were measured."""
    found = []
    for target in _TARGETS:
        for row in rows:
            if (
                (row["contestant"], row["op"], row["kind"], row["note"]) == ("etcd", target.op, target.kind, "")
                and row["workload"] in target.workloads
                and row.get("raftkv_by") is not None
            ):
                load = f"{row['workers']:,} workers on {row['connections']} connection(s)"
                wanted = f"at least {target.factor:g} times" if target.factor > 1 else "ahead of"
                by = row["raftkv_by"]
                found.append(
                    {
                        "what": f"{target.op.upper()} {wanted} etcd's through {row['client']}, {load}",
                        "wanted": target.factor,
                        "found": by,
                        "reached": by >= target.factor if target.factor > 1 else by > 1,
                    }
                )
    return found
