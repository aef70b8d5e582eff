"""What a worker does next: one kind of operation, or one of the mixes of YCSB.

The mixes are those of YCSB's core workloads A to F (Cooper et al., "Benchmarking Cloud Serving Systems with YCSB", SoCC
2010, and the files ``workloads/workload[a-f]`` of its sources), with records of one value in place of ten fields:

======  ===========================================  ============
mix     operations                                   keys
======  ===========================================  ============
ycsb-a  50% read, 50% update                         zipfian
ycsb-b  95% read, 5% update                          zipfian
ycsb-c  100% read                                    zipfian
ycsb-d  95% read, 5% insert                          latest
ycsb-e  95% scan of 1 to 100 records, 5% insert      zipfian
ycsb-f  50% read, 50% read, then write (one of F's)  zipfian
======  ===========================================  ============

A scan of E reads the records from a key on, over all slots.

Calls of a client on several records:

========  =========================================================================
call      one operation
========  =========================================================================
put_many  writes a batch of records
txn       checks that one key of a slot has no record and writes two others of it
scan      reads all records in the order of their keys
watch     writes a record and waits until all watchers have its event
========  =========================================================================
"""

from __future__ import annotations

import random
from array import array
from bisect import bisect
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from itertools import accumulate, count
from typing import Final, Literal, TypeAlias, get_args

from bench.audience import Audience
from bench.keys import Distribution, chooser, make_key
from bench.targets import Caller, Target
from raftkv.errors import RaftKVError

Operation: TypeAlias = Literal[
    "get", "set", "ycsb-a", "ycsb-b", "ycsb-c", "ycsb-d", "ycsb-e", "ycsb-f", "put_many", "txn", "scan", "watch"
]
OPERATIONS: Final[tuple[str, ...]] = get_args(Operation)
Kind: TypeAlias = Literal[
    "get", "set", "read", "update", "insert", "scan", "read_modify_write", "put_many", "txn", "read_all", "tell"
]
Start: TypeAlias = Callable[[], tuple[Callable[[float], None], Awaitable[object]]]
"""Begins an operation: where to record how long it took, and what to wait for."""

LONGEST_SCAN: Final = 100
_WRITES: Final[frozenset[Kind]] = frozenset(("set", "put_many", "txn", "tell"))
_CALLS: Final[frozenset[Kind]] = frozenset(("scan", "put_many", "txn", "read_all", "tell"))
"""Kinds that need a :class:`bench.targets.Caller`."""


class WrongAnswer(RaftKVError):
    """A store answered what cannot be."""


@dataclass(frozen=True, slots=True)
class Mix:
    """Kinds of operations, the share of each, and the keys that they meet unless told otherwise."""

    shares: dict[Kind, float]
    distribution: Distribution = "zipfian"

    @property
    def reads(self) -> bool:
        """Whether records must be there beforehand."""
        return not set(self.shares) <= _WRITES

    @property
    def calls(self) -> bool:
        """Whether it takes more of a client than a get and a set."""
        return not _CALLS.isdisjoint(self.shares)


MIXES: Final[dict[Operation, Mix]] = {
    "get": Mix({"get": 1.0}, "uniform"),
    "set": Mix({"set": 1.0}, "uniform"),
    "ycsb-a": Mix({"read": 0.5, "update": 0.5}),
    "ycsb-b": Mix({"read": 0.95, "update": 0.05}),
    "ycsb-c": Mix({"read": 1.0}),
    "ycsb-d": Mix({"read": 0.95, "insert": 0.05}, "latest"),
    "ycsb-e": Mix({"scan": 0.95, "insert": 0.05}),
    "ycsb-f": Mix({"read": 0.5, "read_modify_write": 0.5}),
    "put_many": Mix({"put_many": 1.0}, "uniform"),
    "txn": Mix({"txn": 1.0}, "uniform"),
    "scan": Mix({"read_all": 1.0}, "uniform"),
    "watch": Mix({"tell": 1.0}, "uniform"),
}


class LoadWorkload:
    """The operations of all workers of one process.

    ``part`` of ``parts``: number of this process, so that no two of them insert the same key. A key that was inserted
    is read only once that was acknowledged, and by this process only. ``batch``: records of a put_many; ``audience``:
    who watches.
    """

    def __init__(
        self,
        op: Operation,
        distribution: Distribution | None,
        keys: list[bytes],
        value: bytes,
        part: int = 0,
        parts: int = 1,
        batch: int = 100,
        audience: Audience | None = None,
    ) -> None:
        mix = MIXES[op]
        self._keys, self._value, self._batch, self._audience = keys, value, batch, audience
        self._numbers = count(len(keys) + part, parts)
        self._key_size = len(keys[0])
        # Latest keys are chosen from a list that grows, others from the keys that were filled in.
        chosen = distribution or mix.distribution
        self._chooser = chooser(chosen, keys if chosen == "latest" else tuple(keys))
        self._bounds = list(accumulate(mix.shares.values()))[:-1]
        self.latencies: dict[Kind, array[float]] = {kind: array("d") for kind in mix.shares}
        """Seconds of the operations that succeeded."""
        self.scanned: Counter[str] = Counter()
        """``scans`` that succeeded and the ``records`` that they gave."""

    def worker(self, target: Target, rng: random.Random) -> Start:
        """What one worker calls. Raises ValueError if ``target`` cannot do it."""
        draw, bounds = rng.random, self._bounds
        starts = [self._start(kind, target, draw) for kind in self.latencies]
        if len(starts) == 1:
            return starts[0]

        def start() -> tuple[Callable[[float], None], Awaitable[object]]:
            return starts[bisect(bounds, draw())]()

        return start

    def _start(self, kind: Kind, target: Target, draw: Callable[[], float]) -> Start:
        record, choose = self.latencies[kind].append, self._chooser(draw)
        get, put, value = target.get, target.set, self._value
        if kind in ("get", "read"):
            return lambda: (record, get(choose()))
        if kind in ("set", "update"):
            return lambda: (record, put(choose(), value))
        if kind == "insert":
            return lambda: (record, self._insert(target))
        if kind == "read_modify_write":
            return lambda: (record, self._modify(target, choose()))
        if kind == "tell":
            assert self._audience is not None
            tell = self._audience.tell
            return lambda: (record, tell(target, choose()))
        if not isinstance(target, Caller):
            raise ValueError("this client can only get and set")  # noqa: TRY004 - the plan is wrong, not the code
        if kind == "put_many":
            return lambda: (record, target.put_many(self._several(draw)))
        if kind == "txn":
            return lambda: (record, self._transact(target, choose()))
        if kind == "read_all":
            return lambda: (record, self._read_all(target))
        return lambda: (record, self._scan(target, choose(), 1 + int(draw() * LONGEST_SCAN)))

    async def _insert(self, target: Target) -> None:
        key = make_key(next(self._numbers), self._key_size)
        await target.set(key, self._value)
        self._keys.append(key)

    async def _modify(self, target: Target, key: bytes) -> None:
        await target.get(key)
        await target.set(key, self._value)

    async def _scan(self, target: Caller, key: bytes, records: int) -> None:
        found = await target.scan(key, records)
        self.scanned["scans"] += 1
        self.scanned["records"] += found

    def _several(self, draw: Callable[[], float]) -> dict[bytes, bytes]:
        """A batch of records, whose keys follow each other and lie in any slots."""
        first = int(draw() * (len(self._keys) - self._batch + 1))
        return dict.fromkeys(self._keys[first : first + self._batch], self._value)

    async def _transact(self, target: Caller, key: bytes) -> None:
        slot = b"{" + key + b"}"
        if not await target.transact(slot + b"lock", {slot + b"a": self._value, slot + b"b": self._value}):
            raise WrongAnswer("a record was found that nobody wrote")

    async def _read_all(self, target: Caller) -> None:
        found = await target.scan(self._keys[0], len(self._keys))
        if found != len(self._keys):
            raise WrongAnswer(f"a scan of {len(self._keys)} records gave {found}")
