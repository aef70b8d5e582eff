"""One measurement: workers that ask a store, and how long each operation took.

Closed loop (``rate`` 0): each worker has one operation under way and starts the next when it has its answer; the rate
is what comes of it. That finds what a store can do, and its latencies are those of that many callers who wait.

Open loop (``rate`` over 0): operations arrive at that rate and their latencies count from when they should have begun,
as :mod:`bench.arrivals` explains. That finds how long a caller waits at a load that the store does not choose.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import random
from array import array
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from time import perf_counter, process_time

import grpc

from bench.arrivals import Arrivals, Spacing
from bench.audience import Audience, watching
from bench.keys import Distribution, make_keys
from bench.targets import Api, Target, connect
from bench.workload import MIXES, LoadWorkload, Operation
from raftkv.errors import RaftKVError

__all__ = ["LoadPlan", "Measured", "Operation", "make_keys", "measure", "prepared", "undisturbed"]

_CONNECTING = 20
"""Clients that connect at a time."""

_GRACE = 5.0
"""Seconds after the end of an open loop in which operations that have arrived may still begin."""


@dataclass(frozen=True, slots=True)
class LoadPlan:
    """What to measure. Sizes in bytes, times in seconds. ``endpoints``: addresses or, for a pipeline, a URL.

    ``rate``: operations that arrive per second, 0 = a closed loop. ``distribution``: None = what the operation has by
    itself. ``fill``: write all keys beforehand; None = if the operation reads. ``part`` of ``parts``: number of this
    process among those that measure together; each has a plan of its own, with its share of workers and rate.
    ``batch``: records of a put_many; ``watchers``: who have to have the event of a write.
    """

    endpoints: str
    op: Operation
    api: Api = "pipeline"
    workers: int = 50
    clients: int = 1
    key_size: int = 16
    value_size: int = 128
    keys: int = 10_000
    seconds: float = 10.0
    warmup: float = 1.0
    timeout: float = 5.0
    seed: int = 1
    rate: float = 0.0
    spacing: Spacing = "poisson"
    distribution: Distribution | None = None
    fill: bool | None = None
    part: int = 0
    parts: int = 1
    batch: int = 100
    watchers: int = 1

    @property
    def units(self) -> int:
        """Records that one operation writes or reads, or its events, where these are what counts; else 1."""
        return {"put_many": self.batch, "scan": self.keys, "watch": self.watchers}.get(self.op, 1)


@dataclass(frozen=True, slots=True)
class Measured:
    """Latencies in seconds of the operations that succeeded, time that the measurement took, failures by kind.

    ``by_kind``: the same latencies for each kind of operation of a mix. ``waited``: operations of an open loop that
    found all workers busy. ``scanned``: ``scans`` and the ``records`` that they read. ``began``: when, by the clock;
    ``computed``: seconds of processor time of this process since then.
    """

    latencies: array[float]
    seconds: float
    errors: Counter[str]
    by_kind: dict[str, array[float]] = field(default_factory=dict)
    waited: int = 0
    scanned: Counter[str] = field(default_factory=Counter)
    began: float = 0.0
    computed: float = 0.0


async def measure(plan: LoadPlan, clock: Callable[[], float] = perf_counter) -> Measured:
    """Run the plan, by the seconds of ``clock``.

    Raises the first error of filling the store; errors while measuring are counted.
    """
    async with prepared(plan, clock) as begin:
        return await begin()


@contextlib.asynccontextmanager
async def prepared(
    plan: LoadPlan, clock: Callable[[], float] = perf_counter
) -> AsyncIterator[Callable[[], Awaitable[Measured]]]:
    """Clients that are connected and a store that is filled: a function that begins the measurement.

    Raises ValueError for a plan that cannot be.
    """
    keys = make_keys(plan.keys, plan.key_size)
    value = random.Random(plan.seed).randbytes(plan.value_size)
    targets: list[Target] = []
    try:
        for first in range(0, plan.clients, _CONNECTING):
            numbers = range(first, min(first + _CONNECTING, plan.clients))
            connecting = (connect(plan.api, plan.endpoints, plan.timeout, number) for number in numbers)
            found = await asyncio.gather(*connecting, return_exceptions=True)
            targets += [one for one in found if not isinstance(one, BaseException)]
            for one in found:
                if isinstance(one, BaseException):
                    raise one
        fill = MIXES[plan.op].reads if plan.fill is None else plan.fill
        if fill:
            await _fill(targets[0], keys, value)
        async with contextlib.AsyncExitStack() as stack:
            audience = None
            if plan.op == "watch":
                watched = watching(targets, plan.watchers, value, plan.timeout)
                audience = await stack.enter_async_context(watched)
            yield lambda: _run(plan, targets, keys, value, clock, audience)
    finally:
        for target in targets:
            await target.close()


async def _fill(target: Target, keys: Sequence[bytes], value: bytes, in_flight: int = 200) -> None:
    rest = iter(keys)

    async def work() -> None:
        for key in rest:
            await target.set(key, value)

    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(in_flight):
                group.create_task(work())
    except ExceptionGroup as several:
        raise several.exceptions[0] from None


async def _run(
    plan: LoadPlan,
    targets: Sequence[Target],
    keys: list[bytes],
    value: bytes,
    clock: Callable[[], float],
    audience: Audience | None,
) -> Measured:
    workload = LoadWorkload(plan.op, plan.distribution, keys, value, plan.part, plan.parts, plan.batch, audience)
    seed = (plan.seed * plan.parts + plan.part) * 1_000_003
    rngs = [random.Random(seed + number) for number in range(plan.workers)]
    starts = [workload.worker(targets[number % len(targets)], rng) for number, rng in enumerate(rngs)]
    errors: Counter[str] = Counter()

    async def ask(begin: float, end: float) -> None:
        start_one = starts.pop()
        start = clock()
        while start < end:
            try:
                record, answer = start_one()
                await answer
            except (RaftKVError, grpc.RpcError) as error:
                if start >= begin:
                    errors[_kind(error)] += 1
                # A refused connection fails at once: do not spin on it.
                await asyncio.sleep(0.01)
                start = clock()
                continue
            now = clock()
            if start >= begin:
                record(now - start)
            start = now

    async def serve(arrivals: Arrivals, begin: float, end: float) -> None:
        start_one = starts.pop()
        give_up = end + _GRACE
        while clock() < give_up and (intended := await arrivals.take()) is not None:
            try:
                record, answer = start_one()
                await answer
            except (RaftKVError, grpc.RpcError) as error:
                if intended >= begin:
                    errors[_kind(error)] += 1
                continue
            if intended >= begin:
                record(clock() - intended)

    with undisturbed():
        first = clock()
        begin = first + plan.warmup
        end = begin + plan.seconds
        drawn = (plan.rate, plan.spacing, first, begin, end, random.Random(seed - 1), clock)
        arrivals = Arrivals(*drawn) if plan.rate else None
        computed = _Computed(plan.warmup)
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(plan.workers):
                    group.create_task(ask(begin, end) if arrivals is None else serve(arrivals, begin, end))
        finally:
            used = computed.end()
            if arrivals is not None:
                arrivals.close()
    # The last operation of an open loop may end before its time is over: nothing has arrived since.
    seconds = max(clock(), end) - begin
    if arrivals is not None and (left := arrivals.left()):
        errors["NotBegun"] += left
    latencies = array("d")
    for some in workload.latencies.values():
        latencies.extend(some)
    by_kind = {str(kind): some for kind, some in workload.latencies.items()}
    waited = arrivals.waited if arrivals else 0
    return Measured(latencies, seconds, errors, by_kind, waited, workload.scanned, begin, used)


class _Computed:
    """Processor time of this process from a moment ``delay`` seconds from now on."""

    def __init__(self, delay: float) -> None:
        self._from = process_time()
        self._timer = asyncio.get_running_loop().call_later(delay, self._begin)

    def _begin(self) -> None:
        self._from = process_time()

    def end(self) -> float:
        """Seconds."""
        self._timer.cancel()
        return process_time() - self._from


@contextlib.contextmanager
def undisturbed() -> Iterator[None]:
    """No collection of garbage: looking through keys and latencies would stall the workers, not what is measured.

    What the operations leave in cycles is collected afterwards.
    """
    gc.collect()
    gc.freeze()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
        gc.unfreeze()


def _kind(error: Exception) -> str:
    if isinstance(error, grpc.aio.AioRpcError):
        return error.code().name
    return type(error).__name__
