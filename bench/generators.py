"""Generator processes: children that measure side by side and send their histograms.

A measurement runs in processes of its own, one or more, so that it starts with a fresh heap and what watches it takes
nothing from it. Each child connects and, being the first, fills the store; when all are ready they begin together.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
import subprocess
import sys
from typing import Final, NoReturn

import grpc

from bench.audience import MARK_BYTES
from bench.load import LoadPlan, prepared
from bench.report import LoadStats, stats_of, together
from bench.workload import MIXES
from raftkv.cli.common import Exit, complain, describe, exit_code, run
from raftkv.errors import RaftKVError, Unavailable

_READY: Final = "ready"
_GO: Final = "go\n"


class GeneratorFailed(RaftKVError):
    """A generator process ended without a result."""


def check(plan: LoadPlan) -> None:
    """Raises ValueError if ``plan``, which is that of ``parts`` processes together, cannot be."""
    processes = plan.parts
    digits = len(str(plan.keys - 1))
    if digits > plan.key_size:
        raise ValueError(f"there are no {plan.keys} decimal keys of {plan.key_size} bytes")
    if processes > plan.workers:
        raise ValueError(f"{processes} processes share {plan.workers} workers: each needs one")
    if 1 < plan.clients < processes:
        raise ValueError(f"{processes} processes share {plan.clients} clients: each needs one")
    if plan.op == "put_many" and plan.batch > plan.keys:
        raise ValueError(f"a batch of {plan.batch} records needs as many keys: there are {plan.keys}")
    if plan.op == "watch" and (plan.value_size < MARK_BYTES or processes > 1):
        raise ValueError(f"a watch needs values of {MARK_BYTES} bytes, and one process")
    if MIXES[plan.op].calls and plan.api != "pipeline":
        raise ValueError(f"{plan.op} needs more calls than the API {plan.api} has")


def shares(plan: LoadPlan) -> list[LoadPlan]:
    """A plan for each process: workers, clients and rate are shared out, and the first fills the store.

    One client in all is one in each process: they cannot share it.
    """
    processes = plan.parts
    return [
        dataclasses.replace(
            plan,
            workers=_share(plan.workers, part, processes),
            clients=max(1, _share(plan.clients, part, processes)),
            rate=plan.rate / processes,
            fill=plan.fill if part == 0 else False,
            part=part,
        )
        for part in range(processes)
    ]


def _share(number: int, part: int, parts: int) -> int:
    return number * (part + 1) // parts - number * part // parts


def measure(plan: LoadPlan) -> LoadStats:
    """Run ``plan`` in as many children as its ``parts``. The slowest of them says how long it took.

    Raises ValueError for a plan that cannot be, Unavailable if a child finds no cluster, GeneratorFailed.
    """
    check(plan)
    children: list[subprocess.Popen[str]] = []
    try:
        for share in shares(plan):
            child = subprocess.Popen(
                [sys.executable, "-m", "bench.generators"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            children.append(child)
            _say(child, json.dumps(dataclasses.asdict(share)) + "\n")
        for child in children:
            assert child.stdout is not None
            if child.stdout.readline().strip() != _READY:
                _fail(child)
        for child in children:
            _say(child, _GO)
        several = [_result(child) for child in children]
        return together(several, max(one.seconds for one in several))
    finally:
        for child in children:
            with child:
                child.kill()


def _say(child: subprocess.Popen[str], text: str) -> None:
    assert child.stdin is not None
    try:
        child.stdin.write(text)
        child.stdin.flush()
    except BrokenPipeError:
        _fail(child)


def _result(child: subprocess.Popen[str]) -> LoadStats:
    out, said = child.communicate()
    if child.returncode != 0:
        _fail(child, said)
    return LoadStats.unpacked(json.loads(out))


def _fail(child: subprocess.Popen[str], said: str | None = None) -> NoReturn:
    if said is None:
        _, said = child.communicate()
    text = said.strip().removeprefix("raftkv: ")[-2000:] or "it said nothing"
    if child.returncode == Exit.UNREACHABLE:
        raise Unavailable(text)
    raise GeneratorFailed(f"a generator process ended with {child.returncode}: {text}")


async def _generate(plan: LoadPlan) -> LoadStats | None:
    async with prepared(plan) as begin:
        print(_READY, flush=True)
        # In a thread: the clients' connections live on until the others are ready.
        if await asyncio.to_thread(sys.stdin.readline) != _GO:
            return None
        return stats_of(plan, await begin())


def main() -> None:
    """What a child does: a plan on its standard input, and its stats on its standard output."""
    plan = LoadPlan(**json.loads(sys.stdin.readline()))
    try:
        found = run(_generate(plan))
    except RaftKVError as error:
        complain(describe(error))
        raise SystemExit(exit_code(error)) from None
    except grpc.aio.AioRpcError as error:
        complain(f"{error.code().name}: {error.details()}")
        raise SystemExit(Exit.UNREACHABLE) from None
    if found is not None:
        print(json.dumps(found.packed()))


if __name__ == "__main__":
    main()
