"""Mixes have their shares, keys their distributions, calls their records; nothing is read that was not written."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Callable, Mapping
from typing import get_args

import pytest

from bench import load
from bench.keys import Distribution, chooser, make_keys, zipfian
from bench.load import LoadPlan, Measured, measure
from bench.report import summarize
from bench.workload import LONGEST_SCAN, MIXES, LoadWorkload, Operation, WrongAnswer
from faults.sim.loop import SimLoop, simulate
from raftkv.errors import Unavailable


class Store:
    """Remembers what it was asked."""

    def __init__(self) -> None:
        self.records: dict[bytes, bytes] = {}
        self.asked: list[tuple[str, bytes]] = []
        self.scanned: list[int] = []
        self.lost = 0
        """Records that a scan leaves out."""
        self.watchers: list[asyncio.Queue[bytes]] = []
        self.watching = 0
        self.service = 0.0
        """Seconds that each answer takes."""

    async def get(self, key: bytes) -> None:
        await asyncio.sleep(self.service)
        assert key in self.records
        self.asked.append(("get", key))

    async def set(self, key: bytes, value: bytes) -> None:
        await asyncio.sleep(self.service)
        self.asked.append(("set" if key in self.records else "insert", key))
        self.records[key] = value
        for watcher in self.watchers:
            watcher.put_nowait(value)

    async def scan(self, key: bytes, records: int) -> int:
        await asyncio.sleep(self.service)
        assert key in self.records
        self.asked.append(("scan", key))
        self.scanned.append(records)
        return 7 if records <= LONGEST_SCAN else records - self.lost

    async def put_many(self, records: Mapping[bytes, bytes]) -> None:
        await asyncio.sleep(self.service)
        self.asked.append(("put_many", b" ".join(records)))
        self.records.update(records)

    async def transact(self, absent: bytes, records: Mapping[bytes, bytes]) -> bool:
        self.asked.append(("txn", b" ".join((absent, *records))))
        if absent in self.records:
            return False
        self.records.update(records)
        return True

    async def watch(self, live: Callable[[], None], told: Callable[[bytes], None]) -> None:
        events: asyncio.Queue[bytes] = asyncio.Queue()
        self.watchers.append(events)
        self.watching += 1
        live()
        try:
            while True:
                # The later it came, the later it hears.
                await asyncio.sleep(0.001 * len(self.watchers))
                told(await events.get())
        finally:
            self.watching -= 1

    async def close(self) -> None:
        pass


def drive(op: Operation, number: int = 4000, keys: int = 1000, part: int = 0, parts: int = 1) -> Store:
    """``number`` operations of ``op`` by one worker."""
    store = Store()
    names = make_keys(keys, 16)
    store.records = dict.fromkeys(names, b"")
    start = LoadWorkload(op, None, names, b"v" * 84, part, parts).worker(store, random.Random(1))

    async def work() -> None:
        for _ in range(number):
            _, answer = start()
            await answer

    asyncio.run(work())
    return store


@pytest.mark.parametrize(
    ("op", "shares"),
    [
        ("get", {"get": 1.0}),
        ("set", {"set": 1.0}),
        ("ycsb-a", {"get": 0.5, "set": 0.5}),
        ("ycsb-b", {"get": 0.95, "set": 0.05}),
        ("ycsb-c", {"get": 1.0}),
        ("ycsb-d", {"get": 0.95, "insert": 0.05}),
        ("ycsb-e", {"scan": 0.95, "insert": 0.05}),
        # Each second operation asks twice.
        ("ycsb-f", {"get": 2 / 3, "set": 1 / 3}),
        ("put_many", {"put_many": 1.0}),
        ("txn", {"txn": 1.0}),
        ("scan", {"scan": 1.0}),
    ],
)
def test_a_mix_asks_what_it_says(op: Operation, shares: dict[str, float]) -> None:
    asked = Counter(kind for kind, _ in drive(op).asked)
    assert set(asked) == set(shares)
    for kind, share in shares.items():
        assert asked[kind] / asked.total() == pytest.approx(share, abs=0.02)


def test_every_operation_has_a_mix_that_adds_up() -> None:
    assert set(MIXES) == set(get_args(Operation))
    for mix in MIXES.values():
        assert sum(mix.shares.values()) == pytest.approx(1.0)


def test_read_modify_write_writes_what_it_read() -> None:
    asked = drive("ycsb-f").asked
    writes = [at for at, (kind, _) in enumerate(asked) if kind == "set"]
    assert writes
    assert all(asked[at - 1] == ("get", asked[at][1]) for at in writes)


def test_processes_insert_different_keys() -> None:
    first, second = (
        {key for kind, key in drive("ycsb-d", part=part, parts=2).asked if kind == "insert"} for part in (0, 1)
    )
    assert len(first) > 100
    assert first.isdisjoint(second)


def test_scans_ask_for_one_to_a_hundred_records() -> None:
    records = drive("ycsb-e").scanned
    assert (min(records), max(records)) == (1, LONGEST_SCAN)
    assert sum(records) / len(records) == pytest.approx(50.5, rel=0.05)


def test_a_batch_is_of_as_many_different_keys_as_it_says() -> None:
    batches = [asked.split() for _, asked in drive("put_many").asked]
    assert {len(set(batch)) for batch in batches} == {100}
    assert {key for batch in batches for key in batch} == set(make_keys(1000, 16))


def test_a_transaction_is_of_keys_of_one_slot_and_fails_if_its_check_does() -> None:
    store = Store()
    start = LoadWorkload("txn", None, [b"7"], b"v").worker(store, random.Random(1))

    async def once() -> None:
        await start()[1]

    asyncio.run(once())
    assert store.asked == [("txn", b"{7}lock {7}a {7}b")]
    assert store.records == {b"{7}a": b"v", b"{7}b": b"v"}
    store.records[b"{7}lock"] = b""
    with pytest.raises(WrongAnswer, match="nobody wrote"):
        asyncio.run(once())


def test_a_scan_of_everything_counts_its_records() -> None:
    store = Store()
    keys = make_keys(1000, 16)
    store.records = dict.fromkeys(keys, b"")
    start = LoadWorkload("scan", None, keys, b"").worker(store, random.Random(1))

    async def once() -> None:
        await start()[1]

    asyncio.run(once())
    assert store.scanned == [1000]
    store.lost = 1
    with pytest.raises(WrongAnswer, match="1000 records gave 999"):
        asyncio.run(once())


async def measured(plan: LoadPlan, store: Store, monkeypatch: pytest.MonkeyPatch, loop: SimLoop) -> Measured:
    async def connect(*_: object) -> Store:
        return store

    monkeypatch.setattr(load, "connect", connect)
    return await measure(plan, loop.time)


def test_a_write_lasts_until_every_watcher_has_its_event(monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store()
    plan = LoadPlan("x", "watch", workers=1, keys=100, key_size=4, value_size=16, seconds=0.2, warmup=0.0, watchers=3)
    found = simulate(lambda loop: measured(plan, store, monkeypatch, loop))
    assert not found.errors
    assert len(found.latencies) > 10
    assert {len(value) for value in store.records.values()} == {16}
    # All began before the first write, and have ended.
    assert (len(store.watchers), store.watching) == (3, 0)
    assert all(watcher.empty() for watcher in store.watchers)


def test_an_event_that_does_not_come_is_a_write_that_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    class Deaf(Store):
        async def watch(self, live: Callable[[], None], told: Callable[[bytes], None]) -> None:
            live()
            await asyncio.Event().wait()

    plan = LoadPlan("x", "watch", workers=2, keys=100, key_size=4, seconds=1.0, warmup=0.0, timeout=3.0)
    found = simulate(lambda loop: measured(plan, Deaf(), monkeypatch, loop))
    assert (len(found.latencies), found.errors) == (0, {"DeadlineExceeded": 2})


def test_a_watch_that_fails_ends_the_measurement(monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken(Store):
        async def watch(self, live: Callable[[], None], told: Callable[[bytes], None]) -> None:
            live()
            await asyncio.sleep(0.1)
            raise Unavailable("it fell behind")

    plan = LoadPlan("x", "watch", workers=2, keys=100, key_size=4, seconds=1.0, warmup=0.0)
    with pytest.raises(Unavailable, match="fell behind"):
        simulate(lambda loop: measured(plan, Broken(), monkeypatch, loop))


def draws(distribution: Distribution, keys: list[bytes], number: int = 100_000) -> Counter[bytes]:
    choose = chooser(distribution, keys)(random.Random(1).random)
    return Counter(choose() for _ in range(number))


def test_zipfian_keys_are_those_of_ycsb() -> None:
    """The r-th most popular of its ranks has a probability of r ** -0.99 / 26.469, wherever it lies."""
    found = draws("zipfian", make_keys(10_000, 16))
    top = [count / found.total() for _, count in found.most_common(20)]
    for rank in (1, 2, 3, 5, 10, 20):
        assert top[rank - 1] == pytest.approx(rank**-0.99 / 26.469, rel=0.1), rank
    popular = [int(key) for key, _ in found.most_common(20)]
    assert max(popular) - min(popular) > 2000
    # Every key has its share of the many ranks that are too rare to count.
    assert len(found) > 9000
    assert zipfian(10_000)[-1] == pytest.approx(1.0)


def test_latest_keys_are_the_youngest_even_when_more_come() -> None:
    keys = make_keys(1000, 16)
    choose = chooser("latest", keys)(random.Random(1).random)
    before = Counter(choose() for _ in range(20_000))
    assert [key for key, _ in before.most_common(3)] == keys[:-4:-1]
    keys.append(b"new")
    assert Counter(choose() for _ in range(20_000)).most_common(1)[0][0] == b"new"


def test_uniform_keys_are_alike() -> None:
    found = draws("uniform", make_keys(100, 4))
    assert len(found) == 100
    assert max(found.values()) < 1.2 * min(found.values())


def test_a_mix_is_measured_by_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store()
    store.service = 0.001

    async def connect(*_: object) -> Store:
        return store

    monkeypatch.setattr(load, "connect", connect)
    plan = LoadPlan("x", "ycsb-e", workers=4, keys=100, seconds=0.2, warmup=0.0)
    summary = summarize(plan, simulate(lambda loop: measure(plan, loop.time)))
    assert sum(one["operations"] for one in summary["kinds"].values()) == summary["operations"] == 800
    assert set(summary["kinds"]) == {"scan", "insert"}
    assert summary["records_per_scan"] == 7
    assert summary["distribution"] == "zipfian"


@pytest.mark.parametrize("op", ["ycsb-e", "put_many", "txn", "scan"])
def test_a_client_that_can_only_get_and_set_is_refused(op: Operation) -> None:
    class Plain:
        async def get(self, key: bytes) -> None: ...

        async def set(self, key: bytes, value: bytes) -> None: ...

        async def close(self) -> None: ...

    workload = LoadWorkload(op, None, make_keys(10, 4), b"")
    with pytest.raises(ValueError, match="can only get and set"):
        workload.worker(Plain(), random.Random(1))
