"""A node's stats as Prometheus metrics, made when they are scraped: nothing is counted here."""

from __future__ import annotations

import platform
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, InfoMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from raftkv.api.failures import known_code
from raftkv.api.status import Role
from raftkv.frontend.counters import KINDS, Counters, Durations
from raftkv.frontend.port import MonitoredNode, NodeStats, ReplicaStats

Row = tuple[Sequence[str], float]


def registry(node: MonitoredNode, counters: Counters) -> CollectorRegistry:
    """Everything that ``/metrics`` shows: the node's stats, and those of its process where the system tells them."""
    found = CollectorRegistry(auto_describe=False)
    found.register(NodeCollector(node, counters))
    ProcessCollector(registry=found)
    return found


class NodeCollector(Collector):
    """Asks the node for its stats; only in the thread of the node's loop."""

    def __init__(self, node: MonitoredNode, counters: Counters) -> None:
        self._node = node
        self._counters = counters

    def collect(self) -> Iterator[Metric]:
        stats = self._node.stats()
        yield from _node(stats)
        yield from _log(stats)
        yield from _operations(stats, self._counters)
        yield from _moves(stats)
        yield from _peers(stats)
        yield from _replicas(stats.replicas)


def _gauge(name: str, text: str, rows: Sequence[Row], labels: Sequence[str] = ()) -> Metric:
    return _filled(GaugeMetricFamily(f"raftkv_{name}", text, labels=labels), rows)


def _counter(name: str, text: str, rows: Sequence[Row], labels: Sequence[str] = ()) -> Metric:
    return _filled(CounterMetricFamily(f"raftkv_{name}", text, labels=labels), rows)


def _filled(family: GaugeMetricFamily | CounterMetricFamily, rows: Sequence[Row]) -> Metric:
    for values, number in rows:
        family.add_metric(values, number)
    return family


def _one(number: float) -> list[Row]:
    return [((), number)]


def _histogram(name: str, text: str, durations: Durations) -> Metric:
    buckets, below = [], 0
    ends = [*map(str, durations.bounds), "+Inf"]
    for end, count in zip(ends, durations.counts, strict=True):
        below += count
        buckets.append((end, float(below)))
    family = HistogramMetricFamily(f"raftkv_{name}", text)
    family.add_metric((), buckets, durations.total)
    return family


def _info(name: str, text: str, values: Mapping[str, str]) -> Metric:
    return InfoMetricFamily(f"raftkv_{name}", text, value=dict(values))


def _node(stats: NodeStats) -> Iterator[Metric]:
    status = stats.status
    yield _info("build", "What the node runs.", {"version": status.version, "python": platform.python_version()})
    yield _info("node", "Which node it is.", {"node": str(status.node), "cluster_id": status.cluster_id})
    yield _gauge("ready", "1 if the node knows the map and a leader of each of its groups.", _one(status.ready))
    yield _gauge("uptime_seconds", "Time since the node started.", _one(status.uptime))
    yield _gauge("map_epoch", "Epoch of the shard map in use, 0 = none.", _one(status.map_epoch))
    kinds = Counter(problem.kind for problem in status.problems)
    found: list[Row] = [((kind,), count) for kind, count in sorted(kinds.items())]
    yield _gauge("problems", "What the node finds wrong; docs/admin.md lists the kinds.", found, ("kind",))
    yield _gauge("disk_full", "1 if the disk is nearly full: the node gives leaderships away.", _one(stats.disk_full))
    if stats.disk_free >= 0:
        yield _gauge(
            "disk_free_bytes", "Space left for the data folder, sampled ten times a second.", _one(stats.disk_free)
        )
    yield _gauge("memory_bytes", "Memory of the process, sampled every second.", _one(stats.memory))
    yield _gauge("memory_limit_bytes", "Memory from which on new data is refused, 0 = none.", _one(stats.memory_limit))
    yield _gauge("memory_full", "1 if new data is refused because of it.", _one(stats.memory_full))


def _log(stats: NodeStats) -> Iterator[Metric]:
    yield _gauge("wal_bytes", "Size of the write-ahead log on disk.", _one(stats.wal_bytes))
    yield _gauge("wal_segments", "Files of the write-ahead log.", _one(stats.wal_segments))
    yield _gauge("wal_waiting_records", "Records not on stable storage yet.", _one(stats.wal_waiting))
    yield _gauge("wal_writing_seconds", "Time since the present write and sync began, 0 = none.", _one(stats.writing))
    yield _histogram("wal_write_seconds", "Time of one write and sync of the write-ahead log.", stats.writes)


def _operations(stats: NodeStats, counters: Counters) -> Iterator[Metric]:
    taken: list[Row] = [((name,), counters.taken[kind]) for kind, name in KINDS.items()]
    yield _counter("operations_total", "Operations that clients have asked of this node.", taken, ("kind",))
    failed: dict[tuple[str, str], int] = {}
    for (kind, code), count in counters.failed.items():
        key = (KINDS[kind], known_code(code).name.lower())
        failed[key] = failed.get(key, 0) + count
    text = "Those of them whose answer was not ok; condition_failed is one, too."
    yield _counter("operations_failed_total", text, list(failed.items()), ("kind", "outcome"))
    text = "Time from message to answer, of unary calls and of a sample of those in pipelines."
    yield _histogram("operation_seconds", text, counters.latency)
    text = "Operations without a response yet, those of other nodes and of the node itself included."
    yield _gauge("operations_outstanding", text, _one(stats.outstanding))
    yield _gauge("operations_outstanding_bytes", "Their size.", _one(stats.outstanding_bytes))


def _moves(stats: NodeStats) -> Iterator[Metric]:
    rows: list[Row] = [(("committed",), stats.moves_committed), (("cancelled",), stats.moves_cancelled)]
    yield _counter("slot_moves_total", "Slot moves that this node has completed.", rows, ("outcome",))
    yield _histogram("slot_freeze_seconds", "For how long slots had no service at the end of a move.", stats.freezes)


def _peers(stats: NodeStats) -> Iterator[Metric]:
    up: list[Row] = [((str(peer.node),), peer.up) for peer in stats.status.peers]
    yield _gauge("peer_up", "1 if this node's link to the other one is up.", up, ("peer",))
    made: list[Row] = [((str(peer),), count) for peer, count in stats.connections.items()]
    yield _counter("peer_connections_total", "How often that link has come up.", made, ("peer",))
    skews: list[Row] = [((str(peer),), skew) for peer, skew in stats.skews.items()]
    text = "By how much the other node's wall clock is ahead of this node's, to half a round trip."
    yield _gauge("clock_skew_seconds", text, skews, ("peer",))


def _replicas(replicas: Sequence[ReplicaStats]) -> Iterator[Metric]:
    def per_group(number: Callable[[ReplicaStats], float]) -> list[Row]:
        return [((str(one.status.group),), number(one)) for one in replicas]

    group = ("group",)
    roles: list[Row] = [
        ((str(one.status.group), role.name.lower()), one.status.role == role) for one in replicas for role in Role
    ]
    yield _gauge("raft_role", "1 for the role of the replica.", roles, ("group", "role"))
    known: list[Row] = [((str(one.status.group),), one.status.leader > 0) for one in replicas if one.member]
    yield _gauge("raft_leader_known", "1 if a leader is known, of groups that the node belongs to.", known, group)
    for name, text, number in (
        ("raft_term", "Term of the replica.", lambda one: one.status.term),
        ("raft_last_index", "Last entry of the log.", lambda one: one.status.last_index),
        ("raft_commit_index", "Last entry known to be committed.", lambda one: one.status.commit_index),
        ("raft_applied_index", "Last entry applied.", lambda one: one.status.applied_index),
        ("raft_snapshot_index", "Last entry that the newest snapshot covers.", lambda one: one.status.snapshot_index),
        ("group_records", "Records held.", lambda one: one.status.records),
        ("group_record_bytes", "Size of the keys and values held.", lambda one: one.record_bytes),
        ("group_sessions", "Sessions of clients held.", lambda one: one.sessions),
        ("group_slots", "Slots held, those being imported included.", lambda one: one.slots),
    ):
        yield _gauge(name, text, per_group(number), group)
    won = per_group(lambda one: one.elections_won)
    yield _counter("raft_elections_won_total", "How often the replica became the leader.", won, group)
    installed = per_group(lambda one: one.snapshots_installed)
    yield _counter("raft_snapshots_installed_total", "Snapshots installed from a leader.", installed, group)
    yield from _followers([one for one in replicas if one.status.role is Role.LEADER])


def _followers(led: Sequence[ReplicaStats]) -> Iterator[Metric]:
    labels = ("group", "peer")
    lag: list[Row] = [
        ((str(one.status.group), str(peer)), max(0, one.status.last_index - index))
        for one in led
        for peer, index in one.status.match.items()
    ]
    yield _gauge(
        "raft_match_lag_entries", "On the leader: entries that a member is not known to hold yet.", lag, labels
    )
    lost: list[Row] = [
        ((str(one.status.group), str(peer)), peer in one.data_loss) for one in led for peer in one.status.match
    ]
    text = "On the leader: 1 if a member has lost entries that it had acknowledged."
    yield _gauge("raft_data_loss", text, lost, labels)
