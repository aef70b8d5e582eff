"""What records cost: memory, disk, restarts, snapshots and the writes that they hold up, at several sizes."""

from __future__ import annotations

import asyncio
import json
import re
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import click

import raftkv
from bench import generators, histogram
from bench.footprint import Taken, memory, on_disk, snapshots, written
from bench.keys import make_keys
from bench.load import LoadPlan
from bench.processors import Processors, pids_of
from bench.state import StateCosts
from bench.state import measure as measure_state
from bench.steady import Timed, steady
from bench.workload import Operation
from raftkv.cli.common import complain, run
from raftkv.clock import SystemClock, sleep
from raftkv.errors import RaftKVError
from raftkv.local.status import probe
from raftkv.testing import LocalCluster

_KEY_BYTES = 16
_LOADING = 1_000
"""Writes under way while the store is filled."""

_SNAPSHOTS = 1.8
"""Of each group, about, while writes go on: they take turns, and there is to be time without any."""

_WORKERS = 500
"""Operations under way while it is measured how many a second there can be."""

_LOGGED_BYTES = 50
"""What a write takes in the log beside its key and value, about."""

_SETTLED = 1.0
_QUIET = 6.0
"""Seconds without a snapshot, longer than one takes, after which those that followed from a restart are over; by then
leaders have also found their places."""

_PATIENCE = 600.0
"""Seconds for a start."""


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """``rate``: operations per second while latencies are measured, ``seconds``: for how long; sizes in bytes.

    Rates, and latencies of reads, are measured for half of ``seconds`` each.
    """

    nodes: int = 3
    groups: int = 3
    value_size: int = 128
    rate: float = 500.0
    seconds: float = 30.0


@dataclass(frozen=True, slots=True)
class Latency:
    """Milliseconds."""

    p50: float
    p99: float
    p999: float
    worst: float

    @classmethod
    def of(cls, operations: Sequence[Timed]) -> Latency:
        took = histogram.percentiles(histogram.of(one.took for one in operations), (50, 99, 99.9, 100))
        return cls(*(round(one or 0.0, 2) for one in took.values()))


@dataclass(frozen=True, slots=True)
class Worst:
    """The slowest write of some, in milliseconds, and what was computed meanwhile.

    ``client``: for how long the client did not come to begin it. ``node``: what the node computed that computed most,
    and ``nodes`` all of them; ``others``: everything else on the machine. Where the busiest node computed nearly all of
    the time, it was work of its own; where nodes and others together computed as long as there are processors, they
    waited for each other; else it was the disk.
    """

    took: float = 0.0
    client: float = 0.0
    node: float = 0.0
    nodes: float = 0.0
    others: float = 0.0

    @classmethod
    def of(cls, operations: Sequence[Timed], processors: Processors) -> Worst:
        worst = max(operations, key=lambda one: one.took, default=None)
        if worst is None:
            return cls()
        computed = processors.between(worst.began, worst.began + worst.took)
        found = (worst.took, worst.late, max(computed.processes), sum(computed.processes), computed.others)
        return cls(*(round(one * 1000, 2) for one in found))


@dataclass(frozen=True, slots=True)
class Size:
    """What was measured with so many records. Bytes and seconds; of several nodes, that of the worst.

    ``node_bytes_per_record``: after loading, beyond what the empty node took; ``written_bytes``: all of it after as
    many writes as there can be in a while, which have filled the log; ``restarted_bytes``: after a restart with this
    log. ``written_per_second`` and ``read_per_second``: existing records, as many at a time as wanted; with the
    snapshots that come due meanwhile. ``wal_per_user_byte``: bytes that one node's log took for each byte of keys and
    values. ``disk_per_user_byte``: what its data folder has in the end. ``restart_node``: from the start of a killed
    node's process until it has applied what was committed before. ``restart_cluster``: from the start until all nodes
    have. ``snapshots``: seconds that each took that was taken while it was written at a steady rate. ``calm`` and
    ``held_up``: these writes, while no snapshot was taken anywhere, and those that met one.
    """

    records: int
    state: StateCosts
    node_bytes_per_record: float
    written_bytes: int
    restarted_bytes: int
    loaded_per_second: float
    written_per_second: float
    read_per_second: float
    wal_per_user_byte: float
    disk_per_user_byte: float
    reads: Latency
    restart_node: float
    restart_cluster: float
    snapshots: tuple[float, ...]
    calm: Latency
    held_up: Latency
    worst_calm: Worst
    worst_held_up: Worst
    failed: int


def measure(sizes: Sequence[int], plan: MemoryPlan, say: Callable[[str], None]) -> list[Size]:
    """Each size with a cluster of its own."""
    found = []
    for records in sizes:
        say(f"{records:,} records: the state by itself")
        state = measure_state(records, plan.value_size)
        with LocalCluster(plan.nodes, plan.groups) as cluster:
            found.append(run(_Run(cluster, records, plan, say).measure(state)))
    return found


class _Run:
    def __init__(self, cluster: LocalCluster, records: int, plan: MemoryPlan, say: Callable[[str], None]) -> None:
        self._cluster = cluster
        self._plan = plan
        self._say = say
        self._clock = SystemClock()
        self._keys = make_keys(records, _KEY_BYTES)
        self._value = b"v" * plan.value_size
        self._idle: dict[int, int] = {}

    async def measure(self, state: StateCosts) -> Size:
        cluster, plan, records = self._cluster, self._plan, len(self._keys)
        user_bytes = records * (_KEY_BYTES + plan.value_size)
        self._idle = self._memory()
        async with raftkv.AsyncClient(cluster.endpoints, timeout=30.0) as client:
            self._say("loading")
            took = await self._load(client)
            await sleep(self._clock, _SETTLED)
            loaded = self._bytes()
            wal = max(written(cluster.data_dir(node) / "wal") for node in cluster.nodes) / user_bytes
            self._say("reading")
            reads = await steady(client.get, self._keys, plan.rate, plan.seconds / 2)
        self._say("as many writes, then reads, as it takes")
        written_per_second = await self._per_second("set")
        written_bytes = self._bytes()
        read_per_second = await self._per_second("get")
        self._say("restarting a node, then all")
        restart_node = await self._restart([cluster.nodes[-1]])
        cluster.kill_all()
        self._lower_snapshot_bytes()
        restart_cluster = await self._restart(cluster.nodes)
        await self._settle()
        restarted = self._bytes()
        self._say("writing while snapshots are taken")
        snapshots, writes, processors = await self._write()
        met = [one for one in writes if _meets(one, snapshots)]
        calm = [one for one in writes if not _meets(one, snapshots)]
        return Size(
            records=records,
            state=state,
            node_bytes_per_record=loaded / records,
            written_bytes=written_bytes,
            restarted_bytes=restarted,
            loaded_per_second=records / took,
            written_per_second=written_per_second,
            read_per_second=read_per_second,
            wal_per_user_byte=wal,
            disk_per_user_byte=max(on_disk(cluster.data_dir(node)) for node in cluster.nodes) / user_bytes,
            reads=Latency.of(reads),
            restart_node=restart_node,
            restart_cluster=restart_cluster,
            snapshots=tuple(round(one.ended - one.began, 3) for one in snapshots),
            calm=Latency.of(calm),
            held_up=Latency.of(met),
            worst_calm=Worst.of(calm, processors),
            worst_held_up=Worst.of(met, processors),
            failed=sum(one.failed for one in (*reads, *writes)),
        )

    async def _load(self, client: raftkv.AsyncClient) -> float:
        rest = iter(self._keys)

        async def work() -> None:
            for key in rest:
                await client.put(key, self._value)

        began = self._clock.now()
        async with asyncio.TaskGroup() as group:
            for _ in range(_LOADING):
                group.create_task(work())
        return self._clock.now() - began

    async def _per_second(self, op: Operation) -> float:
        plan, keys = self._plan, len(self._keys)
        load = LoadPlan(
            self._cluster.endpoints,
            op,
            workers=_WORKERS,
            key_size=_KEY_BYTES,
            value_size=plan.value_size,
            keys=keys,
            seconds=plan.seconds / 2,
            fill=False,
        )
        stats = await asyncio.to_thread(generators.measure, load)
        if stats.errors:
            raise RaftKVError(f"{op} failed: {dict(stats.errors)}")
        return float(stats.all_latencies().get_total_count() / stats.seconds)

    def _memory(self) -> dict[int, int]:
        pids = {node: self._cluster.pid(node) for node in self._cluster.nodes}
        return {node: memory(pid) for node, pid in pids.items() if pid is not None}

    def _bytes(self) -> int:
        return max(taken - self._idle[node] for node, taken in self._memory().items())

    async def _restart(self, nodes: Sequence[int]) -> float:
        """Seconds from starting ``nodes``, which are killed before, until they have applied what was committed."""
        cluster = self._cluster
        running = [node for node in cluster.nodes if cluster.pid(node) is not None]
        self._goal = self._applied(running) or self._goal
        for node in nodes:
            cluster.kill(node)
        began = self._clock.now()
        for node in nodes:
            cluster.restart(node, wait=False)
        await asyncio.to_thread(cluster.wait_ready, _PATIENCE)
        while any(self._applied([node]).get(group, 0) < goal for node in nodes for group, goal in self._goal.items()):
            await sleep(self._clock, 0.05)
        return self._clock.now() - began

    _goal: dict[int, int]

    def _applied(self, nodes: Sequence[int]) -> dict[int, int]:
        """Group -> the furthest entry that one of ``nodes`` has applied."""
        furthest: dict[int, int] = {}
        for node in nodes:
            status = probe(self._cluster.address(node))
            for replica in [] if status is None else status.replicas:
                furthest[replica.group] = max(furthest.get(replica.group, 0), replica.applied_index)
        return furthest

    def _lower_snapshot_bytes(self) -> None:
        """So that each group takes some snapshots while :meth:`_write` writes."""
        plan = self._plan
        logged = plan.rate * plan.seconds * (_KEY_BYTES + plan.value_size + _LOGGED_BYTES) / plan.groups
        wanted = {"bytes": str(max(64 * 1024, round(logged / _SNAPSHOTS))), "share": "0.0"}
        for node in self._cluster.nodes:
            path = self._cluster.data_dir(node).parent / "node.toml"
            path.write_text(
                re.sub(
                    r"(?m)(?<=^snapshot_)(\w+) = .*$",
                    lambda found: f"{found[1]} = {wanted[found[1]]}",
                    path.read_text(),
                )
            )

    def _logs(self) -> list[Path]:
        return [self._cluster.data_dir(node).parent / "node.log" for node in self._cluster.nodes]

    async def _settle(self) -> None:
        seen = -1
        while seen != (seen := sum(len(snapshots(path)) for path in self._logs())):
            await sleep(self._clock, _QUIET)

    async def _write(self) -> tuple[list[Taken], list[Timed], Processors]:
        """The snapshots taken during writes, the writes, and what the nodes computed."""
        cluster, plan, clock = self._cluster, self._plan, self._clock
        logs = self._logs()
        ends = [path.stat().st_size for path in logs]
        async with raftkv.AsyncClient(cluster.endpoints, timeout=30.0) as client:
            # Connected beforehand.
            await client.get(self._keys[0])
            began = perf_counter()
            with Processors(pids_of(cluster)) as processors:
                writes = await steady(lambda key: client.put(key, self._value), self._keys, plan.rate, plan.seconds)
            ended = perf_counter()
        # The last ones tell of themselves when they are over.
        await self._settle()
        ahead = clock.wall() - perf_counter()
        found = [one for path, end in zip(logs, ends, strict=True) for one in snapshots(path, end)]
        found = [Taken(one.group, one.began - ahead, one.ended - ahead) for one in found]
        found = [one for one in found if one.began < ended and began < one.ended]
        if not found:
            raise RaftKVError("no snapshot was taken while it was written: write for longer, or faster")
        return found, writes, processors


def _meets(one: Timed, taken: Sequence[Taken]) -> bool:
    return any(one.began < snapshot.ended and snapshot.began < one.began + one.took for snapshot in taken)


def as_json(sizes: Sequence[Size]) -> list[dict[str, Any]]:
    """Plain values."""
    return [asdict(size) for size in sizes]


def as_text(sizes: Sequence[Size]) -> str:
    """A table: a line for each figure, a column for each size."""
    rows: list[tuple[str, Callable[[Size], str]]] = [
        ("records", lambda s: f"{s.records:,}"),
        ("state alone, bytes/record", lambda s: f"{s.state.bytes_per_record:.0f}"),
        ("node, bytes/record", lambda s: f"{s.node_bytes_per_record:.0f}"),
        ("node with a full log", lambda s: f"{s.written_bytes / 1e6:.0f} MB"),
        ("node restarted", lambda s: f"{s.restarted_bytes / 1e6:.0f} MB"),
        ("loaded/s", lambda s: f"{s.loaded_per_second:,.0f}"),
        ("written/s", lambda s: f"{s.written_per_second:,.0f}"),
        ("read/s", lambda s: f"{s.read_per_second:,.0f}"),
        ("applied/s, state alone", lambda s: f"{s.state.applied_per_second:,.0f}"),
        ("read, state alone", lambda s: f"{s.state.read_us:.2f} us"),
        ("read p50", lambda s: f"{s.reads.p50:.2f} ms"),
        ("read p99", lambda s: f"{s.reads.p99:.2f} ms"),
        ("log, bytes/user byte", lambda s: f"{s.wal_per_user_byte:.2f}"),
        ("disk, bytes/user byte", lambda s: f"{s.disk_per_user_byte:.2f}"),
        ("restart of a node", lambda s: f"{s.restart_node:.1f} s"),
        ("restart of all nodes", lambda s: f"{s.restart_cluster:.1f} s"),
        ("snapshots under load", lambda s: f"{len(s.snapshots)}"),
        ("a snapshot takes", lambda s: f"{statistics.median(s.snapshots):.2f} s"),
        ("a snapshot's longest slice", lambda s: f"{s.state.slice_ms:.1f} ms"),
        ("write p50, calm", lambda s: f"{s.calm.p50:.2f} ms"),
        ("write p50, snapshot", lambda s: f"{s.held_up.p50:.2f} ms"),
        ("write p99.9, calm", lambda s: f"{s.calm.p999:.1f} ms"),
        ("write p99.9, snapshot", lambda s: f"{s.held_up.p999:.1f} ms"),
        *_worst("calm", lambda s: s.worst_calm),
        *_worst("snapshot", lambda s: s.worst_held_up),
        ("failed operations", lambda s: f"{s.failed}"),
    ]
    return "\n".join(f"{name:30}" + "".join(f"{value(size):>14}" for size in sizes) for name, value in rows)


def _worst(name: str, of: Callable[[Size], Worst]) -> list[tuple[str, Callable[[Size], str]]]:
    return [
        (f"write worst, {name}", lambda s: f"{of(s).took:.1f} ms"),
        ("  client late", lambda s: f"{of(s).client:.1f} ms"),
        ("  busiest node computed", lambda s: f"{of(s).node:.1f} ms"),
        ("  all nodes computed", lambda s: f"{of(s).nodes:.1f} ms"),
        ("  others computed", lambda s: f"{of(s).others:.0f} ms"),
    ]


def _numbers(_context: click.Context, _option: click.Parameter, value: str) -> list[int]:
    try:
        sizes = [int(part) for part in value.split(",")]
    except ValueError:
        raise click.BadParameter("numbers, separated by commas") from None
    if min(sizes) < 1:
        raise click.BadParameter("at least 1 record")
    return sizes


@click.command("memory")
@click.option(
    "--records",
    callback=_numbers,
    default="10000,100000,1000000",
    metavar="N,...",
    help="Records, one measurement each.",
)
@click.option("--value-size", type=click.IntRange(0, 1024 * 1024), default=128, help="Bytes.")
@click.option("--nodes", type=click.IntRange(1, 9), default=3)
@click.option("--groups", type=click.IntRange(1, 256), default=3, help="Shard groups of the cluster.")
@click.option("--rate", type=click.FloatRange(min=1), default=500.0, help="Operations per second.")
@click.option("--seconds", type=click.FloatRange(min=1), default=30.0, help="Length of the writes beside snapshots.")
@click.option("-o", "--output", type=click.Choice(["text", "json"]), default="text")
def command(
    records: list[int], value_size: int, nodes: int, groups: int, rate: float, seconds: float, output: str
) -> None:
    """Fill clusters with RECORDS each; print memory, disk, restarts, snapshots and the writes that these hold up.

    \b
    Example:
      python -m bench memory --records 10000,100000
    """
    plan = MemoryPlan(nodes, groups, value_size, rate, seconds)
    sizes = measure(records, plan, complain)
    click.echo(json.dumps(as_json(sizes)) if output == "json" else as_text(sizes))
