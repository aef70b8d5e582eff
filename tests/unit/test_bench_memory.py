"""What `bench memory` tells is what was there: sizes, snapshots, waiting from the intended start."""

from __future__ import annotations

import asyncio
import json
import mmap
import os
import threading
from dataclasses import asdict
from pathlib import Path
from time import perf_counter

import pytest
from click.testing import CliRunner

from bench.footprint import memory, on_disk, snapshots, written
from bench.memory import Latency, Size, Worst, _meets, as_json, as_text, command
from bench.processors import Processors, used
from bench.state import StateCosts, measure_here
from bench.steady import Timed, steady
from faults.sim.loop import SimLoop, simulate
from raftkv.errors import Unavailable
from tests.waiting import until


def test_a_stall_shows_in_every_operation_that_it_held_up() -> None:
    """Latencies count from the intended start, also of what could not be started meanwhile."""
    asked = 0

    async def scenario(loop: SimLoop) -> list[Timed]:
        free = asyncio.Event()
        loop.call_later(0.3, free.set)

        async def operation(_: bytes) -> None:
            nonlocal asked
            asked += 1
            await free.wait()

        return await steady(operation, [b"k"], 500, 0.3, clock=loop.time)

    done = simulate(scenario)
    assert len(done) == asked == pytest.approx(150, abs=1)
    # The first one was to start after a tenth of a second.
    assert sum(one.took > 0.1 for one in done) == pytest.approx(50, abs=1)
    assert max(one.took for one in done) == pytest.approx(0.2, abs=0.001)
    assert min(one.took for one in done) < 0.001
    first, last = min(one.began for one in done), max(one.began for one in done)
    assert last - first == pytest.approx(0.3, abs=0.005)
    assert all(one.late <= one.took for one in done)


def test_failures_are_kept_apart() -> None:
    async def operation(_: bytes) -> None:
        raise Unavailable("always")

    done = simulate(lambda loop: steady(operation, [b"k"], 100, 0.05, clock=loop.time))
    assert {one.failed for one in done} == {True}
    assert len(done) == pytest.approx(5, abs=1)


def test_snapshots_are_read_from_the_log_of_a_node(tmp_path: Path) -> None:
    log = tmp_path / "node.log"
    where = "node 1 raftkv.raft.snapshots"
    log.write_text(
        f"2026-01-02 03:04:05,250 I {where}: group 2: snapshot of entry 17 took 1.250 s\n"
        "2026-01-02 03:04:06,000 I node 1 raftkv.raft.group: group 2: leading in term 3\n"
    )
    start = log.stat().st_size
    with log.open("a") as file:
        file.write(f"2026-01-02 03:04:07,000 I {where}: group 3: snapshot of entry 1 took 0.500 s\n")
    first, second = snapshots(log)
    assert (first.group, second.group) == (2, 3)
    assert first.ended - first.began == pytest.approx(1.25)
    assert second.ended - first.ended == pytest.approx(1.75)
    assert snapshots(log, start) == [second]
    assert _meets(Timed(first.began - 1, 1.1), [first])
    assert _meets(Timed(first.ended - 0.1, 1.0), [first])
    assert not _meets(Timed(first.began - 1, 0.9), [first])
    assert not _meets(Timed(first.ended + 0.1, 1.0), [first])


def test_bytes_written_to_a_log_count_those_of_segments_that_are_gone(tmp_path: Path) -> None:
    (tmp_path / "wal-000000000002.log").write_bytes(b"a" * 4_000_000)
    (tmp_path / "wal-000000000003.log").write_bytes(b"b" * 1_000_001 + b"\0" * 2_999_999)
    (tmp_path / "wal-000000000004.spare").write_bytes(b"\0" * 4_000_000)
    assert written(tmp_path) == 2 * 4_000_000 + 1_000_001
    assert on_disk(tmp_path) == 12_000_000


def test_memory_of_a_process() -> None:
    before = memory(os.getpid())
    # Not from the heap, which may have room from earlier tests.
    with mmap.mmap(-1, 20_000_000) as held:
        held.write(b"x" * len(held))
        assert memory(os.getpid()) - before > 0.9 * len(held)


def test_the_state_by_itself() -> None:
    state = measure_here(2_000, 128)
    assert state.applied_per_second > 0
    assert state.read_us > 0
    assert 0 < state.slice_ms <= state.snapshot_seconds * 1000


def test_latencies_are_milliseconds() -> None:
    found = Latency.of([Timed(0.0, number / 1000) for number in range(1, 1001)])
    assert asdict(found) == pytest.approx({"p50": 500, "p99": 990, "p999": 999, "worst": 1000}, rel=0.002)
    assert Latency.of([]) == Latency(0, 0, 0, 0)


def sampled(processors: Processors) -> float:
    """A moment between two samples."""
    until(lambda: processors._times)
    now = perf_counter()
    until(lambda: processors._times[-1] > now)
    return now


def test_what_a_process_computed_while_a_write_waited() -> None:
    """Work of its own shows as such, waiting does not."""
    with Processors([os.getpid()]) as processors:
        # It is both the process that is watched and the one that watches.
        began = sampled(processors)
        before = used(os.getpid())
        while used(os.getpid()) < before + 0.1:
            pass
        worked = sampled(processors)
        idle = sampled(processors)
        threading.Event().wait(0.1)
        waited = sampled(processors)
    busy = Worst.of([Timed(began, worked - began, 0.001), Timed(began, 0.0)], processors)
    assert busy.took == pytest.approx((worked - began) * 1000, abs=0.01)
    assert busy.node == busy.nodes >= 100
    assert busy.client == 1.0
    assert Worst.of([Timed(idle, waited - idle)], processors).node < 70
    assert Worst.of([], processors) == Worst()


def size(records: int) -> Size:
    state = StateCosts(370.0, 200_000.0, 1.5, 1.0, 0.5)
    calm, held_up = Latency(1, 2, 3, 4), Latency(5, 6, 7, 8)
    return Size(
        *(records, state, 500.0, 500_000, 480_000, 30_000.0, 28_000.0, 90_000.0, 1.3, 1.2, calm, 3.0, 8.0, (0.5, 0.7)),
        *(calm, held_up, Worst(), Worst(40.0, 1.0, 20.0, 60.0), 0),
    )


def test_a_column_for_each_size() -> None:
    text = as_text([size(10_000), size(1_000_000)])
    assert text.splitlines()[0].split() == ["records", "10,000", "1,000,000"]
    assert len({len(line) for line in text.splitlines()}) == 1
    assert json.loads(json.dumps(as_json([size(1)])))[0]["held_up"]["worst"] == 8


@pytest.mark.parametrize("records", ["", "many", "10,0"])
def test_sizes_that_are_none_are_refused(records: str) -> None:
    assert CliRunner().invoke(command, ["--records", records]).exit_code == 2
