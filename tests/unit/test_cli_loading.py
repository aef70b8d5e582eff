"""A load writes each record, ends with the last value of a key, and resumes where an interrupted one had come."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from raftkv.cli.loading import Loader, ProgressFile, fingerprint
from raftkv.cli.records import Item
from raftkv.clock import Timer
from raftkv.errors import Unavailable


class StoppedClock:
    """Time that moves only when told."""

    def __init__(self) -> None:
        self.time = 0.0

    def now(self) -> float:
        return self.time

    def wall(self) -> float:
        return 1000.0 + self.time

    def call_later(self, delay: float, callback: Callable[[], None]) -> Timer:
        raise AssertionError("loading needs no timers")


class Store:
    """Takes writes in a shuffled order and may fail from one number of writes on."""

    def __init__(self, fail_at: int | None = None) -> None:
        self.values: dict[bytes, bytes] = {}
        self.ttls: dict[bytes, float | None] = {}
        self.puts = 0
        self.now = 0
        self.most = 0
        self._fail_at = fail_at
        self._rng = random.Random(7)

    async def put(self, key: bytes, value: bytes, *, ttl: float | None = None) -> object:
        self.now += 1
        self.most = max(self.most, self.now)
        try:
            for _ in range(self._rng.randrange(8)):
                await asyncio.sleep(0)
            self.puts += 1
            if self._fail_at is not None and self.puts >= self._fail_at:
                raise Unavailable("the nodes are gone")
            self.values[key] = value
            self.ttls[key] = ttl
        finally:
            self.now -= 1
        return None


def items(count: int, keys: int) -> list[Item]:
    return [Item(i + 1, f"k{i % keys}".encode(), str(i).encode()) for i in range(count)]


def loader(store: Store, saved: list[int], in_flight: int = 16) -> Loader:
    return Loader(store, StoppedClock(), saved.append, lambda done: None, in_flight)


def test_all_records_are_written_with_many_in_flight_and_the_last_value_of_a_key_stays() -> None:
    store, saved = Store(), list[int]()
    load = loader(store, saved)
    asyncio.run(load.run(iter(items(500, keys=23))))
    assert (load.done, load.written, store.puts, store.most) == (500, 500, 500, 16)
    assert store.values == {item.key: item.value for item in items(500, keys=23)}
    assert saved == [500]


def test_a_failed_load_saves_only_what_is_written_without_a_gap_and_a_second_one_completes_it() -> None:
    store, saved = Store(fail_at=300), list[int]()
    everything = items(500, keys=500)
    load = loader(store, saved)
    with pytest.raises(Unavailable):
        asyncio.run(load.run(iter(everything)))
    assert saved == [load.done]
    assert 280 <= load.done < 300
    assert load.written == 299
    assert all(item.key in store.values for item in everything[: load.done])

    again = loader(store, saved)
    store._fail_at = None
    asyncio.run(again.run(iter(everything), skip=load.done))
    assert (again.done, again.written) == (500, 500 - load.done)
    assert store.values == {item.key: item.value for item in everything}


def test_a_cancelled_load_saves_its_progress() -> None:
    store, saved = Store(), list[int]()
    load = loader(store, saved)

    async def main() -> None:
        task = asyncio.create_task(load.run(iter(items(5000, keys=10))))
        while store.puts < 100:
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())
    assert saved == [load.done]
    assert 0 < load.done <= store.puts


def test_expiry_times_become_the_time_left_and_expired_records_are_left_out() -> None:
    store = Store()
    load = loader(store, [])
    asyncio.run(load.run(iter([Item(1, b"old", b"", 999.0), Item(2, b"new", b"", 1030.0), Item(3, b"for ever", b"")])))
    assert store.ttls == {b"new": 30.0, b"for ever": None}
    assert (load.written, load.expired, load.done) == (2, 1, 3)


def test_progress_counts_for_the_same_file_and_cluster_only(tmp_path: Path) -> None:
    source = tmp_path / "a.jsonl"
    source.write_text("one\n")
    mine = ProgressFile(source, fingerprint(source), "cluster")
    assert mine.read() == 0
    mine.write(41)
    assert mine.read() == 41
    assert ProgressFile(source, fingerprint(source), "another").read() == 0
    source.write_text("two\n")
    assert ProgressFile(source, fingerprint(source), "cluster").read() == 0
    mine.path.write_text("{damaged")
    assert mine.read() == 0
    mine.remove()
    assert not mine.path.exists()


def test_a_folder_that_cannot_be_written_costs_the_progress_only(tmp_path: Path) -> None:
    progress = ProgressFile(tmp_path / "missing" / "a.jsonl", "file", "cluster")
    progress.write(3)
    assert "No such file" in progress.problem
    assert progress.read() == 0
    progress.remove()


def test_progress_is_saved_while_loading() -> None:
    clock, saved = StoppedClock(), list[int]()
    store = Store()

    def tick(done: int) -> None:
        clock.time += 0.01

    load = Loader(store, clock, saved.append, tick, 8)
    asyncio.run(load.run(iter(items(500, keys=500))))
    assert 5 <= len(saved) <= 6
    assert saved == sorted(saved)
