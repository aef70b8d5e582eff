"""`bench memory` measures a real cluster."""

from __future__ import annotations

from bench.memory import MemoryPlan, measure


def test_what_a_thousand_records_cost() -> None:
    said: list[str] = []
    (size,) = measure([1_000], MemoryPlan(groups=1, rate=500.0, seconds=2.0), said.append)
    assert size.records == 1_000
    assert size.failed == 0
    assert size.snapshots
    assert size.wal_per_user_byte > 1
    assert size.disk_per_user_byte > size.wal_per_user_byte
    assert size.restart_node > 0
    assert size.restart_cluster > 0
    assert size.reads.p50 <= size.reads.p99 <= size.reads.worst
    # Where a machine is slow, a snapshot takes as long as all the writes.
    assert max(size.calm.worst, size.held_up.worst) > 0
    assert said[0].startswith("1,000 records")
