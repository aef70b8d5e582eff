"""Who is compared: servers, ways to ask them, and what each promises."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Final, Literal, Protocol, TypeAlias

import uvloop

import raftkv
from bench import echo, generators
from bench.clusters import cluster
from bench.load import LoadPlan
from bench.peers import servers, tools
from bench.peers.programs import ETCD, GO_CLIENT, VALKEY
from bench.peers.tools import ToolResult
from bench.scenarios import BenchShape
from bench.targets import Api
from shards.map import LeadersOver

ComparedOp: TypeAlias = Literal["get", "set", "put_many", "txn", "scan", "watch"]


class Servers(Protocol):
    """A contestant that runs: where clients reach it at this moment."""

    @property
    def endpoints(self) -> str: ...


WORTHS: Final = ("memory", "one disk", "a majority's disks")
"""What an acknowledged write may be worth, the least first; "" = there is no store."""


@dataclass(frozen=True, slots=True)
class Promise:
    """What an answer is worth.

    ``worth``: where an acknowledged write is, of :data:`WORTHS`; ``brief``: durability and consistency in a few words.
    ``write``: the first in full; ``consistency`` of the answers. The others: what is lost of
    acknowledged writes when the ``process`` that took them is killed, when its ``machine`` loses power, and when the
    ``majority`` does at the same time, disks being unharmed.
    """

    worth: str
    brief: str
    write: str
    consistency: str
    process: str
    machine: str
    majority: str


@dataclass(frozen=True, slots=True)
class Way:
    """How a contestant is asked: the ``name`` of the client or tool, and what measures a plan with it.

    A ``tool`` has a load of its own: it runs beside the first workload only. ``missing``: how to get what is not
    installed, or "". ``alone``: each worker has a connection, as its commands block it, but no more than 50. ``form``:
    of raftkv's own messages, so that the ceiling for it is the echo of the same form; "" = others.
    """

    kind: Literal["python", "go", "tool"]
    name: Callable[[], str]
    measure: Callable[[LoadPlan], ToolResult]
    missing: Callable[[], str] = lambda: ""
    alone: bool = False
    form: Literal["", "stream", "unary"] = ""


@dataclass(frozen=True, slots=True)
class ComparisonCase:
    """One row, or one for each size of a workload. ``note``: what is special about it.

    ``promise``: in a few words, "" = that of its contestant; ``once``: beside the first workload only.
    """

    op: ComparedOp
    way: Way
    note: str = ""
    promise: str = ""
    once: bool = False


@dataclass(frozen=True, slots=True)
class Contestant:
    """``label``: its name in pictures; ``start``: its servers, with their data in an empty folder; ``missing``: as that
    of a :class:`Way`."""

    name: str
    label: str
    what: str
    promise: Promise
    start: Callable[[Path], contextlib.AbstractContextManager[Servers]]
    cases: tuple[ComparisonCase, ...]
    missing: Callable[[], str] = lambda: ""
    version: Callable[[], str] = lambda: ""


def _through(api: Api, package: str, alone: bool = False) -> Way:
    """A Python client in the generator process that measures raftkv."""

    def measure(plan: LoadPlan) -> ToolResult:
        chosen = dataclasses.replace(plan, api=api)
        return tools.of_stats(chosen, generators.measure(chosen))

    def name() -> str:
        installed = _installed(package)
        return f"{package} {installed}" if installed else package

    def missing() -> str:
        return "" if _installed(package) else f"not found: pip install {package}"

    return Way("python", name, measure, missing, alone=alone)


def _installed(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


# --- raftkv


def _own(form: Literal["stream", "unary"]) -> Way:
    api: Api = "pipeline" if form == "stream" else "unary"

    def measure(plan: LoadPlan) -> ToolResult:
        chosen = dataclasses.replace(plan, api=api)
        return tools.of_stats(chosen, generators.measure(chosen))

    name = f"raftkv {raftkv.__version__}" if form == "stream" else "gRPC stubs"
    return Way("python", lambda: name, measure, form=form)


_STRICT: Final = "majority's disks, linearizable"
_ON_DISKS: Final = "on the disks of a majority"
_LINEARIZABLE: Final = "linearizable"
_NOTHING: Final = "nothing"
_BOTH: Final = (ComparisonCase("get", _own("stream")), ComparisonCase("set", _own("stream")))
_CALLS: Final = (
    ComparisonCase("put_many", _own("stream"), promise=f"{_STRICT}; each record by itself, once"),
    ComparisonCase("txn", _own("stream"), promise=f"{_STRICT}; all or nothing, in one slot, once"),
    ComparisonCase("scan", _own("stream"), promise="each page linearizable, of its own moment"),
    ComparisonCase("watch", _own("stream"), promise="each slot's writes once, in order, without a gap"),
)
_UNARY: Final = (ComparisonCase("get", _own("unary"), once=True), ComparisonCase("set", _own("unary"), once=True))


@dataclass(frozen=True, slots=True)
class _Leader:
    endpoints: str


@contextlib.contextmanager
def _through_leader(shape: BenchShape, folder: Path) -> Iterator[Servers]:
    """Only the leader's address is told."""
    with cluster(shape, folder) as made:
        yield _Leader(made.address(made.leader(1)))


def _raftkv(
    name: str,
    label: str,
    what: str,
    shape: BenchShape,
    cases: tuple[ComparisonCase, ...] = _BOTH,
    start: Callable[[BenchShape, Path], contextlib.AbstractContextManager[Servers]] = cluster,
) -> Contestant:
    by = {"lease": "reads by the leader's lease", "quorum": "a majority confirms each read"}[shape.reads]
    promise = Promise(WORTHS[2], _STRICT, _ON_DISKS, f"{_LINEARIZABLE}; {by}", _NOTHING, _NOTHING, _NOTHING)
    return Contestant(
        name, label, what, promise, lambda folder: start(shape, folder), cases, version=lambda: raftkv.__version__
    )


# --- etcd


def _go(serializable: bool = False) -> Way:
    return Way(
        "go",
        lambda: f"Go client {GO_CLIENT.version()}",
        lambda plan: tools.measure_go(plan, serializable),
        GO_CLIENT.missing,
    )


_SERIALIZABLE: Final = ("serializable", "may be stale: one node answers with what it has")
_ETCD: Final = Contestant(
    "etcd",
    "etcd",
    "three nodes, every write synced; the leader is asked",
    Promise(
        WORTHS[2],
        _STRICT,
        _ON_DISKS,
        f"{_LINEARIZABLE}; a majority confirms reads, many at a time",
        _NOTHING,
        _NOTHING,
        _NOTHING,
    ),
    servers.etcd,
    (
        ComparisonCase("get", _through("etcd", "etcd3aio")),
        ComparisonCase("set", _through("etcd", "etcd3aio")),
        ComparisonCase("get", _go()),
        ComparisonCase("get", _go(serializable=True), *_SERIALIZABLE),
        ComparisonCase("set", _go()),
        ComparisonCase("put_many", _go(), promise=f"{_STRICT}; all or nothing"),
        ComparisonCase("txn", _go(), promise=f"{_STRICT}; all or nothing, of any keys"),
        ComparisonCase("scan", _go(), promise="linearizable, all pages of one moment"),
        ComparisonCase("watch", _go(), promise="all writes once, in order, without a gap"),
    ),
    ETCD.missing,
    ETCD.version,
)


# --- Valkey


def _benchmark(pipeline: int) -> Way:
    return Way(
        "tool",
        lambda: "redis-benchmark",
        lambda plan: tools.measure_benchmark(plan, pipeline),
        lambda: servers.absent({"redis-benchmark": "redis-tools"}),
    )


_BENCHMARKS: Final = tuple(
    ComparisonCase(op, _benchmark(pipeline), f"-c {tools.BENCHMARK_CONNECTIONS} -P {pipeline}")
    for pipeline in (1, 50)
    for op in ("get", "set")
)


def _valkey(
    name: str, label: str, what: str, promise: Promise, fsync: str, cases: tuple[ComparisonCase, ...]
) -> Contestant:
    return Contestant(
        name, label, what, promise, lambda folder: servers.valkey(folder, fsync), cases, VALKEY.missing, VALKEY.version
    )


# --- the ceiling


def _echoed(form: Literal["stream", "unary"]) -> Way:
    """As many operations under way, on as many connections, as in the workload."""

    def measure(plan: LoadPlan) -> ToolResult:
        chosen = dataclasses.replace(plan, api="unary" if form == "unary" else "pipeline")
        rate = uvloop.run(echo.rate(chosen))
        nothing: dict[str, float | None] = dict.fromkeys(("p50", "p95", "p99", "max"))
        return ToolResult(round(rate, 1), nothing, int(rate * plan.seconds))

    return Way("python", lambda: f"grpcio {_installed('grpcio')}, {form}", measure, form=form)


_ALL: Final = (
    _raftkv("raftkv", "raftkv, 1 group", "three nodes, 1 group", BenchShape(groups=1), _BOTH + _CALLS),
    _raftkv(
        "raftkv-quorum",
        "raftkv, quorum reads",
        "the same with reads by quorum",
        BenchShape(groups=1, reads="quorum"),
        (ComparisonCase("get", _own("stream")),),
    ),
    _raftkv(
        "raftkv-unary",
        "raftkv, unary",
        "the same as raftkv, its leader asked by an RPC for each operation",
        BenchShape(groups=1),
        _UNARY,
        _through_leader,
    ),
    _raftkv(
        "raftkv-groups",
        "raftkv, 3 groups",
        "three nodes, 3 groups, all leaders on one node: the default on one machine",
        BenchShape(),
        _BOTH + _CALLS,
    ),
    _raftkv(
        "raftkv-spread",
        "raftkv, 3 groups spread",
        "three nodes, 3 groups, leaders spread over the nodes",
        BenchShape(leaders=LeadersOver.NODES),
    ),
    _ETCD,
    _valkey(
        "valkey",
        "Valkey",
        "a primary and two replicas, appendfsync everysec, no WAIT",
        Promise(
            WORTHS[0],
            "memory, then disk in 1 s; no consistency after a failover",
            "in the primary's memory, given to its system to be written",
            "the primary's latest write; none after a failover",
            "nothing if it comes back, 2 s if its disk was slow; after a failover, what the replica had not",
            "1 to 2 s, or what the replica that takes over had not",
            "1 to 2 s",
        ),
        "everysec",
        (
            ComparisonCase("get", _through("valkey", "valkey-glide")),
            ComparisonCase("set", _through("valkey", "valkey-glide")),
            *_BENCHMARKS,
        ),
    ),
    _valkey(
        "valkey-wait",
        "Valkey, always",
        "a primary and two replicas, appendfsync always, each write followed by WAIT 1",
        Promise(
            WORTHS[1],
            "primary's disk, a replica's memory; no consistency after a failover",
            "on the primary's disk, in the memory of one replica",
            "the primary's latest write, acknowledged or not; none after a failover",
            "nothing if it comes back, or if the replica that has most takes over",
            "nothing if it comes back, or if the replica that has most takes over",
            "nothing if the primary comes back as primary",
        ),
        "always",
        (
            ComparisonCase("get", _through("valkey", "valkey-glide")),
            ComparisonCase("set", _through("valkey-wait", "valkey-glide", alone=True), "WAIT 1, up to 50 connections"),
        ),
    ),
    Contestant(
        "echo",
        "ceiling",
        "the ceiling of raftkv's front end: the same messages, decoded and encoded by handlers that do nothing",
        Promise("", "nothing", "nowhere", "none", "all", "all", "all"),
        lambda _: echo.serving(LoadPlan("", "get").value_size),
        tuple(
            ComparisonCase(op, _echoed(form), once=form == "unary")
            for form in ("stream", "unary")
            for op in ("get", "set")
        ),
        version=lambda: _installed("grpcio"),
    ),
)
CONTESTANTS: Final[Mapping[str, Contestant]] = {one.name: one for one in _ALL}
