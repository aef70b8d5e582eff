"""A load writes each record, ends with the last value of a key, and resumes where an interrupted one had come."""

from __future__ import annotations

import asyncio
import json
import os
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from raftkv.cli.loading import Loader, ProgressFile, Resumption, resume
from raftkv.cli.records import Item
from raftkv.client.types import Record
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

    async def get(self, key: bytes) -> Record | None:
        value = self.values.get(key)
        expires_at = None if self.ttls.get(key) is None else 1e9
        return None if value is None else Record(key, value, 1, expires_at)

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
    assert saved[-1] == 500


def test_a_failed_load_saves_only_what_is_written_without_a_gap_and_a_second_one_completes_it() -> None:
    store, saved = Store(fail_at=300), list[int]()
    everything = items(500, keys=500)
    load = loader(store, saved)
    with pytest.raises(Unavailable):
        asyncio.run(load.run(iter(everything)))
    assert saved[-1] == load.done
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
    assert saved[-1] == load.done
    assert 0 < load.done <= store.puts


def test_expiry_times_become_the_time_left_and_expired_records_are_left_out() -> None:
    store = Store()
    load = loader(store, [])
    asyncio.run(load.run(iter([Item(1, b"old", b"", 999.0), Item(2, b"new", b"", 1030.0), Item(3, b"for ever", b"")])))
    assert store.ttls == {b"new": 30.0, b"for ever": None}
    assert (load.written, load.expired, load.done) == (2, 1, 3)


def test_progress_counts_for_the_same_input_options_and_cluster_only(tmp_path: Path) -> None:
    about = {"content": "1", "value column": "value", "cluster": "c"}
    mine = ProgressFile(tmp_path / "a.jsonl", about)
    assert (mine.read(), mine.other()) == (None, "")
    mine.write(41)
    assert (mine.read(), mine.other()) == (41, "")
    for name in about:
        other = ProgressFile(tmp_path / "a.jsonl", {**about, name: "another"})
        assert (other.read(), other.other()) == (None, name)
    both = ProgressFile(tmp_path / "a.jsonl", {"content": "2", "value column": "value", "cluster": "d"})
    assert both.other() == "content and cluster"
    mine.remove()
    assert not mine.path.exists()


@pytest.mark.parametrize("content", ["", "{damaged", "[]", "3", '{"done": -1, "cluster": ""}', "a user's notes\n"])
def test_a_progress_file_that_is_none_is_left_alone(tmp_path: Path, content: str) -> None:
    mine = ProgressFile(tmp_path / "a.jsonl", {"cluster": "c"})
    mine.path.write_text(content)
    mine.write(3)
    assert "is not a progress file" in mine.problem
    assert mine.read() is None
    mine.remove()
    assert mine.path.read_text() == content


def test_a_progress_file_that_is_a_pipe_is_neither_read_nor_replaced(tmp_path: Path) -> None:
    mine = ProgressFile(tmp_path / "a.jsonl", {"cluster": "c"})
    os.mkfifo(mine.path)
    assert mine.read() is None
    mine.write(3)
    mine.remove()
    assert "is not a progress file" in mine.problem
    assert mine.path.is_fifo()


def test_a_folder_that_cannot_be_written_costs_the_progress_only(tmp_path: Path) -> None:
    progress = ProgressFile(tmp_path / "missing" / "a.jsonl", {"cluster": "c"})
    progress.write(3)
    assert "No such file" in progress.problem
    assert progress.read() is None
    progress.remove()


def test_progress_is_saved_while_loading() -> None:
    clock, saved = StoppedClock(), list[int]()
    store = Store()

    def tick(done: int) -> None:
        clock.time += 0.01

    load = Loader(store, clock, saved.append, tick, 8)
    asyncio.run(load.run(iter(items(500, keys=500))))
    # The first of all, so that even a load that is killed at once leaves a trace; then each second.
    assert saved[0] < 20
    assert 6 <= len(saved) <= 7
    assert saved == sorted(saved)


class World:
    """A load that was interrupted: its progress, and the store with what it had written."""

    def __init__(self, folder: Path, everything: list[Item], done: int) -> None:
        self.everything = everything
        self.done = done
        self.store = Store()
        self.progress = ProgressFile(folder / "a.jsonl", {"cluster": "c"})
        self.told: list[str] = []
        asyncio.run(loader(self.store, [], 1).run(iter(everything[:done])))
        self.progress.write(done)

    def resume(self) -> Resumption:
        async def main() -> Resumption:
            every = iter(self.everything)
            return await resume(
                self.progress, every, self.store, StoppedClock(), lambda done: None, self.told.append, 16
            )

        return asyncio.run(main())

    def go_on(self) -> Loader:
        load = loader(self.store, [])
        asyncio.run(load.run(iter(self.everything), self.resume().skip))
        assert self.store.values == {item.key: item.value for item in self.everything}
        return load


def test_what_is_still_there_is_skipped(tmp_path: Path) -> None:
    world = World(tmp_path, items(500, keys=500), 200)
    assert world.resume() == Resumption(200, True)
    assert "resuming after the 200 records" in world.told[0]
    load = world.go_on()
    assert (load.written, load.skipped) == (300, 200)


def test_keys_that_come_twice_count_with_their_last_value(tmp_path: Path) -> None:
    world = World(tmp_path, items(500, keys=23), 200)
    assert world.resume() == Resumption(200, True)


@pytest.mark.parametrize("harm", ["emptied", "one lost", "an older one", "mortal"])
def test_a_load_begins_anew_if_the_cluster_lost_what_was_written(tmp_path: Path, harm: str) -> None:
    """Though its id is the same: emptied, or restored from an older backup."""
    world = World(tmp_path, items(5000, keys=5000), 3000)
    if harm == "emptied":
        world.store.values.clear()
    elif harm == "one lost":
        del world.store.values[b"k1234"]
    elif harm == "an older one":
        world.store.values[b"k2999"] = b"of last year"
    else:
        world.store.ttls[b"k0"] = 5.0
    load = world.go_on()
    assert (load.written, load.skipped) == (5000, 0)
    assert "not all of the 3,000 records that were written before are still there unchanged" in world.told[0]


def test_records_with_a_time_to_live_are_written_again(tmp_path: Path) -> None:
    """They may have expired; and what follows for the same key must follow again."""
    everything = [Item(1, b"a", b"1", 1030.0), Item(2, b"b", b"2"), Item(3, b"a", b"3"), Item(4, b"c", b"4", 999.0)]
    world = World(tmp_path, [*everything, Item(5, b"d", b"5")], 4)
    assert world.resume() == Resumption(4, True)
    load = loader(world.store, [])
    asyncio.run(load.run(iter(world.everything), 4))
    assert (load.written, load.skipped, load.expired, load.done) == (3, 1, 1, 5)
    assert world.store.values == {b"a": b"3", b"b": b"2", b"d": b"5"}


def test_a_load_of_other_content_begins_anew_and_says_why(tmp_path: Path) -> None:
    world = World(tmp_path, items(50, keys=50), 20)
    raw = json.loads(world.progress.path.read_text())
    world.progress.path.write_text(json.dumps({**raw, "cluster": "another"}))
    assert world.resume() == Resumption(0, False)
    assert "a.jsonl.progress is of another cluster: starting over" in world.told[0]


def test_a_load_that_was_killed_before_it_saved_anything_knows_what_it_wrote(tmp_path: Path) -> None:
    world = World(tmp_path, items(50, keys=50), 20)
    world.progress.write(0)
    assert world.resume() == Resumption(0, True)
    world.store.values.clear()
    assert world.resume() == Resumption(0, False)


def test_a_reader_that_fails_ends_the_load_and_keeps_the_progress(tmp_path: Path) -> None:
    world = World(tmp_path, items(50, keys=50), 20)

    async def failing(key: bytes) -> Record | None:
        raise Unavailable("gone")

    world.store.get = failing  # type: ignore[method-assign]
    with pytest.raises(Unavailable):
        world.resume()
    assert world.progress.read() == 20
