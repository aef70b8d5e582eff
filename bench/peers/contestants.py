"""Who is compared: servers, ways to ask them, and what each promises."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Final, Literal, Protocol

import raftkv
from bench import echo, generators
from bench.load import LoadPlan
from bench.peers import servers, tools
from bench.peers.tools import ToolResult
from bench.scenarios import Reads
from bench.targets import Api
from raftkv.testing import LocalCluster


class Servers(Protocol):
    """A contestant that runs: where clients reach it at this moment."""

    @property
    def endpoints(self) -> str: ...


@dataclass(frozen=True, slots=True)
class Promise:
    """What an answer is worth.

    ``brief``: durability and consistency in a few words. ``write``: where a write is when it is acknowledged;
    ``consistency`` of the answers. The others: what is lost of
    acknowledged writes when the ``process`` that took them is killed, when its ``machine`` loses power, and when the
    ``majority`` does at the same time, disks being unharmed.
    """

    brief: str
    write: str
    consistency: str
    process: str
    machine: str
    majority: str


@dataclass(frozen=True, slots=True)
class Way:
    """How a contestant is asked: the ``name`` of the client or tool, and what measures a plan with it.

    A ``tool`` has a load of its own: it runs beside the first workload only. ``paced``: at a rate of its own too, which
    is compared with nothing, and in the first round only, as it takes its time.
    ``missing``: how to get what is not installed, or "". ``alone``: each worker has a connection, as its commands block
    it, but no more than 50.
    """

    kind: Literal["python", "go", "tool"]
    name: Callable[[], str]
    measure: Callable[[LoadPlan], ToolResult]
    missing: Callable[[], str] = lambda: ""
    paced: bool = False
    alone: bool = False


@dataclass(frozen=True, slots=True)
class ComparisonCase:
    """One row. ``note``: what is special about it; ``promise``: in a few words, "" = that of its contestant."""

    op: Literal["get", "set", "echo"]
    way: Way
    note: str = ""
    promise: str = ""


@dataclass(frozen=True, slots=True)
class Contestant:
    """``start``: its servers, with their data in an empty folder; ``missing``: as that of a :class:`Way`."""

    name: str
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

_OWN: Final = Way(
    "python",
    lambda: f"raftkv {raftkv.__version__}",
    lambda plan: tools.of_stats(plan, generators.measure(plan)),
)
_STRICT: Final = "majority's disks, linearizable"
_ON_DISKS: Final = "on the disks of a majority"
_LINEARIZABLE: Final = "linearizable"
_NOTHING: Final = "nothing"


def _raftkv(name: str, what: str, groups: int, reads: Reads, *cases: ComparisonCase) -> Contestant:
    by = {"lease": "reads by the leader's lease", "quorum": "a majority confirms each read"}[reads]
    return Contestant(
        name,
        what,
        Promise(_STRICT, _ON_DISKS, f"{_LINEARIZABLE}; {by}", _NOTHING, _NOTHING, _NOTHING),
        lambda folder: LocalCluster(3, groups, folder=folder, node={"reads": reads}),
        cases,
        version=lambda: raftkv.__version__,
    )


# --- etcd


def _go(serializable: bool = False) -> Way:
    return Way(
        "go",
        lambda: f"Go client {tools.go_client_version()}",
        lambda plan: tools.measure_go(plan, serializable),
        tools.go_client_missing,
    )


_CHECK: Final = Way(
    "tool",
    lambda: "etcdctl check perf",
    lambda plan: tools.measure_check(plan.endpoints),
    lambda: servers.absent({"etcdctl": "etcd-client"}),
    paced=True,
)
_SERIALIZABLE: Final = ("serializable", "may be stale: one node answers with what it has")
_ETCD: Final = Contestant(
    "etcd",
    "three nodes, every write synced; the leader is asked",
    Promise(
        _STRICT, _ON_DISKS, f"{_LINEARIZABLE}; a majority confirms reads, many at a time", _NOTHING, _NOTHING, _NOTHING
    ),
    servers.etcd,
    (
        ComparisonCase("get", _through("etcd", "etcd3aio")),
        ComparisonCase("get", _through("etcd-serializable", "etcd3aio"), *_SERIALIZABLE),
        ComparisonCase("set", _through("etcd", "etcd3aio")),
        ComparisonCase("get", _go()),
        ComparisonCase("get", _go(serializable=True), *_SERIALIZABLE),
        ComparisonCase("set", _go()),
        ComparisonCase(
            "set", _CHECK, f"load {tools.CHECK_LOAD}: at most {tools.CHECK_RATE:,}/s by its own rule, 1,024 bytes"
        ),
    ),
    lambda: servers.absent({"etcd": "etcd-server"}),
    lambda: tools.version_of(["etcd", "--version"]),
)


# --- Redis


def _benchmark(pipeline: int) -> Way:
    return Way(
        "tool",
        lambda: "redis-benchmark",
        lambda plan: tools.measure_redis(plan, pipeline),
        lambda: servers.absent({"redis-benchmark": "redis-tools"}),
    )


def _benchmarks(promise: str = "") -> tuple[ComparisonCase, ...]:
    """``promise``: of its writes, which never WAIT."""
    return tuple(
        ComparisonCase(
            op, _benchmark(pipeline), f"-c {tools.REDIS_CONNECTIONS} -P {pipeline}", promise if op == "set" else ""
        )
        for pipeline in (1, 50)
        for op in ("get", "set")
    )


def _redis(name: str, what: str, promise: Promise, fsync: str, cases: tuple[ComparisonCase, ...]) -> Contestant:
    return Contestant(
        name,
        what,
        promise,
        lambda folder: servers.redis(folder, fsync),
        cases,
        lambda: servers.absent({"redis-server": "redis-server", "redis-cli": "redis-tools"}),
        lambda: tools.version_of(["redis-server", "--version"]),
    )


# --- the ceiling


class _Nobody:
    endpoints = ""


def _echoed(plan: LoadPlan) -> ToolResult:
    """As many operations under way as in the workload, those of a connection in one message."""
    batch = plan.workers // plan.clients
    trips = echo.measure(batch * (plan.key_size + plan.value_size + echo.FRAME_BYTES), plan.seconds, plan.clients)
    nothing: dict[str, float | None] = dict.fromkeys(("p50", "p95", "p99", "max"))
    return ToolResult(round(trips * batch, 1), nothing, int(trips * batch * plan.seconds))


_ALL: Final = (
    _raftkv("raftkv", "three nodes, 1 group", 1, "lease", ComparisonCase("get", _OWN), ComparisonCase("set", _OWN)),
    _raftkv("raftkv-quorum", "the same with reads by quorum", 1, "quorum", ComparisonCase("get", _OWN)),
    _raftkv(
        "raftkv-groups", "three nodes, 3 groups", 3, "lease", ComparisonCase("get", _OWN), ComparisonCase("set", _OWN)
    ),
    _ETCD,
    _redis(
        "redis",
        "a primary and two replicas, appendfsync everysec, no WAIT",
        Promise(
            "memory, then disk in 1 s; no consistency after a failover",
            "in the primary's memory, given to its system to be written",
            "the primary's latest write; none after a failover",
            "nothing if it comes back, 2 s if its disk was slow; after a failover, what the replica had not",
            "1 to 2 s, or what the replica that takes over had not",
            "1 to 2 s",
        ),
        "everysec",
        (
            ComparisonCase("get", _through("redis", "valkey-glide")),
            ComparisonCase("set", _through("redis", "valkey-glide")),
            *_benchmarks(),
        ),
    ),
    _redis(
        "redis-wait",
        "a primary and two replicas, appendfsync always, each write followed by WAIT 1",
        Promise(
            "primary's disk, a replica's memory; no consistency after a failover",
            "on the primary's disk, in the memory of one replica",
            "the primary's latest write, acknowledged or not; none after a failover",
            "nothing if it comes back, or if the replica that has most takes over",
            "nothing if it comes back, or if the replica that has most takes over",
            "nothing if the primary comes back as primary",
        ),
        "always",
        (
            ComparisonCase("get", _through("redis", "valkey-glide")),
            ComparisonCase("set", _through("redis-wait", "valkey-glide", alone=True), "WAIT 1, up to 50 connections"),
            *_benchmarks("no WAIT: primary's disk; no consistency after a failover"),
        ),
    ),
    Contestant(
        "echo",
        "the ceiling of the front end: a bare gRPC stream on each connection, no store",
        Promise("nothing", "nowhere", "none", "all", "all", "all"),
        lambda _: contextlib.nullcontext(_Nobody()),
        (
            ComparisonCase(
                "echo",
                Way("python", lambda: f"grpcio {_installed('grpcio')}", _echoed),
                "what a connection has under way is one message",
            ),
        ),
        version=lambda: _installed("grpcio"),
    ),
)
CONTESTANTS: Final[Mapping[str, Contestant]] = {one.name: one for one in _ALL}
