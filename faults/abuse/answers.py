"""Answers that are larger than what was asked for: to clients that do not take them, and to one that does."""

from __future__ import annotations

import asyncio
from typing import Final

import raftkv
from faults.abuse.stage import AbuseScenario, Stage
from faults.keys import PREFIX
from raftkv.limits import MAX_VALUE_BYTES

LARGE: Final = f"{PREFIX}large"
_STEADY: Final = 1.0
"""Seconds without more memory after which a node takes no more."""

_LITTLE: Final = 1.0
"""MB that count as nothing: clients beside have pages touched one by one."""

_ASKED: Final = 60.0
_TIMEOUT: Final = 120.0


async def put_large(stage: Stage) -> int:
    """Write the one large value; the node that leads its group."""
    async with raftkv.AsyncClient(stage.cluster.endpoints, timeout=_TIMEOUT) as client:
        await client.put(LARGE, b"L" * MAX_VALUE_BYTES)
        slot = await client.slot_of(LARGE)
    return await stage.settled((await stage.map()).owners[slot])


async def until_steady(stage: Stage) -> None:
    """Wait until the nodes take no more memory."""
    async with asyncio.timeout(_ASKED):
        before, since = 0.0, 0
        while since < 10 * _STEADY:
            if stage.peak <= before + _LITTLE:
                since += 1
            else:
                before, since = stage.peak, 0
            await asyncio.sleep(0.1)


class PipelineGets(AbuseScenario):
    name = "pipeline-gets"
    what = "one Pipeline message of 1,500 gets of 1 MiB to a leader, another to a follower; the answers are not read"

    async def run(self, stage: Stage) -> None:
        leader = await put_large(stage)
        follower = next(node for node in stage.cluster.nodes if node != leader)
        async with stage.watched(), stage.beside():
            for name, node in (("leader", leader), ("follower", follower)):
                asked = {"addresses": [stage.cluster.address(node)], "key": LARGE}
                async with stage.abused("large answers", **asked, operations=self.size(1500, 500)) as abuser:
                    await abuser.until(lambda counts: counts.get("came"), _ASKED)
                    await until_steady(stage)
                    stage.note(f"asked of a {name}", abuser.counts.get("asked", 0), "gets")


class StalledReader(AbuseScenario):
    name = "unary-gets-stalled-reader"
    what = "900 unary gets of 1 MiB by a client that reads nothing more"

    async def run(self, stage: Stage) -> None:
        leader = await put_large(stage)
        async with (
            stage.watched(),
            stage.beside(),
            stage.abused(
                "stalled calls", addresses=[stage.cluster.address(leader)], key=LARGE, calls=self.size(900, 400)
            ) as abuser,
        ):
            await abuser.until(lambda counts: counts.get("bytes"), _ASKED)
            await until_steady(stage)
            stage.note("asked", abuser.counts.get("asked", 0), "gets")


class HonestGather(AbuseScenario):
    name = "honest-gather"
    what = "asyncio.gather of 1,200 gets of 1 MiB by AsyncClient: all are served"

    async def run(self, stage: Stage) -> None:
        await put_large(stage)
        count = self.size(1200, 400)
        async with stage.watched(), raftkv.AsyncClient(stage.cluster.endpoints, timeout=_TIMEOUT) as client:

            async def size() -> int:
                record = await client.get(LARGE)
                return 0 if record is None else len(record.value)

            sizes = await asyncio.gather(*(size() for _ in range(count)), return_exceptions=True)
        stage.note("served", sizes.count(MAX_VALUE_BYTES), "gets", least=count)
        stage.note("memory of all nodes together, at most", stage.peak_of_all, "MB")
