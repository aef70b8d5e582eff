"""A closed loop: each worker has one operation under way and starts the next when it has its answer."""

from __future__ import annotations

import asyncio
import random
from array import array
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Literal, TypeAlias

import grpc

from bench.targets import Api, Target, connect
from raftkv.errors import RaftKVError

Operation: TypeAlias = Literal["get", "set"]


@dataclass(frozen=True, slots=True)
class Plan:
    """What to measure. Sizes in bytes, times in seconds."""

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


@dataclass(frozen=True, slots=True)
class Measured:
    """Latencies in seconds of the operations that succeeded, time that the measurement took, failures by kind."""

    latencies: array[float]
    seconds: float
    errors: Counter[str]


def make_keys(count: int, size: int) -> list[bytes]:
    """``count`` different keys of ``size`` bytes. Raises ValueError if there are not so many."""
    if len(str(count - 1)) > size:
        raise ValueError(f"there are no {count} decimal keys of {size} bytes")
    return [str(i).zfill(size).encode() for i in range(count)]


async def measure(plan: Plan) -> Measured:
    """Run the plan. Raises the first error of filling the store; errors while measuring are counted."""
    keys = make_keys(plan.keys, plan.key_size)
    value = random.Random(plan.seed).randbytes(plan.value_size)
    targets: list[Target] = []
    try:
        for number in range(plan.clients):
            targets.append(await connect(plan.api, plan.endpoints, plan.timeout, number))
        if plan.op == "get":
            await _fill(targets[0], keys, value)
        return await _run(plan, targets, keys, value)
    finally:
        for target in targets:
            await target.close()


async def _fill(target: Target, keys: Sequence[bytes], value: bytes, in_flight: int = 200) -> None:
    rest = iter(keys)

    async def work() -> None:
        for key in rest:
            await target.set(key, value)

    async with asyncio.TaskGroup() as group:
        for _ in range(in_flight):
            group.create_task(work())


async def _run(plan: Plan, targets: Sequence[Target], keys: Sequence[bytes], value: bytes) -> Measured:
    begin = perf_counter() + plan.warmup
    end = begin + plan.seconds
    latencies: array[float] = array("d")
    errors: Counter[str] = Counter()

    async def work(number: int) -> None:
        rng = random.Random(plan.seed * 1_000_003 + number)
        target = targets[number % len(targets)]
        getting = plan.op == "get"
        count = len(keys)
        start = perf_counter()
        while start < end:
            key = keys[int(rng.random() * count)]
            try:
                if getting:
                    await target.get(key)
                else:
                    await target.set(key, value)
            except (RaftKVError, grpc.RpcError) as error:
                if start >= begin:
                    errors[_kind(error)] += 1
                # A refused connection fails at once: do not spin on it.
                await asyncio.sleep(0.01)
                start = perf_counter()
                continue
            now = perf_counter()
            if start >= begin:
                latencies.append(now - start)
            start = now

    async with asyncio.TaskGroup() as group:
        for number in range(plan.workers):
            group.create_task(work(number))
    return Measured(latencies, perf_counter() - begin, errors)


def _kind(error: Exception) -> str:
    if isinstance(error, grpc.aio.AioRpcError):
        return error.code().name
    return type(error).__name__
