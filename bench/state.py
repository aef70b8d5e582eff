"""A group's state by itself, without Raft, disk or network: what a record costs, and what an entry takes to apply."""

from __future__ import annotations

import gc
import json
import os
import random
import subprocess
import sys
from collections import deque
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from time import perf_counter

from bench.footprint import memory
from raftkv.commands.base import Command
from raftkv.commands.group import Genesis
from raftkv.commands.records import Put
from raftkv.commands.registry import decode_entry, encode_entry
from raftkv.store.records import Store
from shards.slots import slot_of

_SLOTS = 1024
_OPS = 50
"""Writes of one entry: what gathers under load."""

_ENTRIES = 2_000
"""Entries whose application is timed, at the end."""


_READS = 100_000


@dataclass(frozen=True, slots=True)
class StateCosts:
    """``bytes_per_record``: memory, keys and values included. ``applied_per_second``: writes applied to existing
    records. ``read_us``: microseconds of one read. ``snapshot_seconds``: to make all its chunks. ``slice_ms``: the
    longest that one chunk took; between chunks the loop goes on."""

    bytes_per_record: float
    applied_per_second: float
    read_us: float
    snapshot_seconds: float
    slice_ms: float


def _entry(keys: list[bytes], seq: int, value: bytes) -> list[Command]:
    puts = [
        Put(slot_of(key, _SLOTS), key, value, client=b"bench".ljust(16), seq=seq + at, first=seq)
        for at, key in enumerate(keys)
    ]
    # Through the codec, as from a client or the log: no object is shared with another record.
    return decode_entry(encode_entry(0, puts))[1]


def measure_here(records: int, value_size: int) -> StateCosts:
    """Fill a store in this process."""
    store, rng = Store(), random.Random(1)
    store.apply(1, [Genesis(tuple(range(_SLOTS)))])
    gc.collect()
    before = memory(os.getpid())
    for first in range(0, records, _OPS):
        keys = [b"%016d" % number for number in range(first, min(records, first + _OPS))]
        store.apply(first + 2, _entry(keys, first + 1, rng.randbytes(value_size)))
    gc.collect()
    taken = memory(os.getpid()) - before
    picked = iter(lambda: b"%016d" % int(rng.random() * records), b"")
    entries = [_entry(list(islice(picked, _OPS)), records + at * _OPS + 1, b"x" * value_size) for at in range(_ENTRIES)]
    began = perf_counter()
    for at, entry in enumerate(entries):
        store.apply(records + at + 2, entry)
    applied = _ENTRIES * _OPS / (perf_counter() - began)
    reads = [(slot_of(key, _SLOTS), key) for key in islice(picked, _READS)]
    began = perf_counter()
    deque((store.read(slot, key) for slot, key in reads), maxlen=0)
    read_us = (perf_counter() - began) / len(reads) * 1e6
    slices = []
    began = perf_counter()
    snapshot = store.snapshot()
    for _ in snapshot.chunks():
        now = perf_counter()
        slices.append(now - began)
        began = now
    snapshot.close()
    return StateCosts(taken / records, applied, read_us, sum(slices), max(slices) * 1000)


def measure(records: int, value_size: int) -> StateCosts:
    """As :func:`measure_here`, in a process of its own, so that no memory of an earlier measurement is used again."""
    command = [sys.executable, "-m", "bench.state", str(records), str(value_size)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, cwd=Path(__file__).resolve().parents[1])
    return StateCosts(**json.loads(done.stdout))


if __name__ == "__main__":
    print(json.dumps(asdict(measure_here(int(sys.argv[1]), int(sys.argv[2])))))
