"""What ``python -m bench run`` measures: named series of plans, each on clusters of a given shape."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal, TypeAlias

from bench.load import LoadPlan
from bench.workload import Operation
from shards.map import LeadersOver

Reads: TypeAlias = Literal["lease", "quorum"]


@dataclass(frozen=True, slots=True)
class BenchShape:
    """A cluster: nodes, shard groups, how it confirms linearizable reads, and over what its leaders are spread.

    ``delay_ms``: how long what a node sends to another one is on its way, besides what the machine takes.
    """

    nodes: int = 3
    groups: int = 3
    reads: Reads = "lease"
    leaders: LeadersOver = LeadersOver.HOSTS
    delay_ms: int = 0


@dataclass(frozen=True, slots=True)
class Case:
    """One measurement. ``endpoints`` of the plan are those of a cluster of ``shape``, filled with the plan's keys.

    ``fraction``: an open loop at that share of what the closed loop of the same operation, earlier in the scenario,
    reached; 0 = the plan's own rate. ``processes``: None = as many as the command was asked for.
    """

    label: str
    plan: LoadPlan
    shape: BenchShape = BenchShape()
    fraction: float = 0.0
    processes: int | None = None


@dataclass(frozen=True, slots=True)
class Scenario:
    """``axis``: the field of a result by which its cases differ, to be drawn as a line; "" = they are drawn apart."""

    name: str
    what: str
    cases: tuple[Case, ...]
    axis: str = ""


_OPS: Final[tuple[Operation, ...]] = ("get", "set")


def _plan(op: Operation, **changes: Any) -> LoadPlan:
    return LoadPlan("", op, **changes)


def _along(axis: str, values: Iterable[int], **others: Any) -> tuple[Case, ...]:
    """Gets and sets with each of ``values`` as the plan's field ``axis``."""
    return tuple(
        Case(f"{op} {axis.replace('_', ' ')} {value:,}", _plan(op, **{axis: value}, **others))
        for value in values
        for op in _OPS
    )


def _ycsb(letter: str, what: str, keys: int = 10_000) -> Scenario:
    op: Operation = f"ycsb-{letter}"  # type: ignore[assignment]
    return Scenario(
        op, f"YCSB {letter.upper()}: {what}; records of 1,000 bytes", (Case(op, _plan(op, value_size=1000, keys=keys)),)
    )


_ALL: Final = (
    Scenario("get", "linearizable reads: 50 workers share one client", (Case("get", _plan("get")),)),
    Scenario("set", "durable writes: 50 workers share one client", (Case("set", _plan("set")),)),
    Scenario(
        "connections",
        "50 workers share one client, share ten, have one each",
        _along("clients", (1, 10, 50)),
        "clients",
    ),
    Scenario(
        "unary",
        "one RPC for each operation in place of the client's stream, a connection to each node",
        tuple(Case(f"{op} unary", _plan(op, api="unary", clients=3)) for op in _OPS),
    ),
    Scenario(
        "quorum",
        "reads that a majority confirms beside those by lease",
        (
            Case("get by lease", _plan("get"), BenchShape(reads="lease")),
            Case("get by quorum", _plan("get"), BenchShape(reads="quorum")),
        ),
    ),
    Scenario(
        "groups",
        "1, 3, 6 and 12 shard groups",
        tuple(
            Case(f"{op} groups {groups}", _plan(op), BenchShape(groups=groups))
            for groups in (1, 3, 6, 12)
            for op in _OPS
        ),
        "groups",
    ),
    Scenario(
        "far",
        "writes of nodes that are 0 to 200 ms from each other, one group; 50 workers, and enough to hide the way",
        tuple(
            Case(
                f"set at {delay} ms, {workers:,} workers",
                _plan("set", workers=workers, clients=clients, timeout=30.0),
                BenchShape(groups=1, delay_ms=delay),
            )
            for workers, clients in ((50, 10), (8000, 10))
            for delay in (0, 10, 25, 50, 100, 200)
        ),
    ),
    Scenario("key-size", "keys of 16 to 1,024 bytes", _along("key_size", (16, 64, 256, 1024)), "key_size"),
    Scenario(
        "value-size",
        "values of 16 bytes to 64 KiB, 1,000 keys",
        _along("value_size", (16, 128, 1024, 8192, 65536), keys=1000),
        "value_size",
    ),
    Scenario("keys", "10 thousand to a million records", _along("keys", (10_000, 100_000, 1_000_000)), "keys"),
    Scenario("workers", "1 to 1,000 workers share one client", _along("workers", (1, 10, 50, 200, 1000)), "workers"),
    Scenario(
        "skew",
        "uniform and zipfian keys",
        tuple(
            Case(f"{op} {distribution}", _plan(op, distribution=distribution))
            for distribution in ("uniform", "zipfian")
            for op in _OPS
        ),
    ),
    Scenario(
        "processes",
        "100 workers in one and in two generator processes",
        tuple(
            Case(f"{op} processes {number}", _plan(op, workers=100), processes=number)
            for number in (1, 2)
            for op in _OPS
        ),
        "processes",
    ),
    *(
        Scenario(
            f"open-loop-{op}",
            f"{op}s that arrive by themselves, at 10 to 95% of what 50 workers reach in a closed loop",
            (
                Case(f"{op} closed loop", _plan(op)),
                *(
                    Case(f"{op} at {percent}%", _plan(op, workers=1000), fraction=percent / 100)
                    for percent in (10, 25, 50, 75, 90, 95)
                ),
            ),
            "rate",
        )
        for op in _OPS
    ),
    _ycsb("a", "half reads, half updates, zipfian keys"),
    _ycsb("b", "95% reads, 5% updates, zipfian keys"),
    _ycsb("c", "reads of zipfian keys"),
    _ycsb("d", "95% reads of the latest records, 5% inserts"),
    _ycsb(
        "e",
        "95% scans of up to 100 records, 5% inserts, zipfian keys",
        100_000,
    ),
    _ycsb("f", "half reads, half reads that are followed by a write of the same key, zipfian keys"),
)
SCENARIOS: Final[Mapping[str, Scenario]] = {scenario.name: scenario for scenario in _ALL}
