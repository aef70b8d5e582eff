"""Questions that cost much to answer, asked all the time."""

from __future__ import annotations

import asyncio
from typing import ClassVar, Final

from faults.abuse.stage import PROMPT, AbuseScenario, Stage
from faults.abuse.wire import fill
from faults.keys import PREFIX
from raftkv.errors import RaftKVError

_TAG: Final = "many"
_GROUP: Final = 1


class Checks(AbuseScenario):
    name = "checks"
    what = "StartCheck four times a second on a slot of 200,000 keys"
    memory = None

    async def run(self, stage: Stage) -> None:
        count = self.size(200_000, 20_000)
        tags = await stage.tags()
        leader = stage.cluster.address(await stage.settled(_GROUP))
        keys = (f"{PREFIX}{{{tags[_GROUP]}}}/{number}" for number in range(count))
        codes = await fill(leader, keys, b"c" * 20)
        if codes["OK"] < count:
            raise RaftKVError(f"the slot could not be filled: {dict(codes)}")
        stood = stage.logged("this node stalled")
        asked = {"address": leader, "group": _GROUP, "workers": 1, "period": 0.25}
        async with (
            stage.watched(),
            stage.beside(),
            stage.abused("questions", asked="StartCheck", **asked) as abuser,
        ):
            await abuser.until(lambda counts: counts.get("answered"), 30.0)
            await asyncio.sleep(self.size(15, 3))
            stage.note("keys of the slot", count)
            stage.note("checks that were started", abuser.counts.get("answered", 0))
            stage.note("checks that were refused", abuser.counts.get("failed", 0))
        stage.note("lines that a node stood still", stage.logged("this node stalled") - stood, most=0, timed=True)


class Questions(AbuseScenario):
    name = "questions"
    what = "GetMap, GetState, GetSlots and ReadSnapshot by 8 askers each, one after the other; 16,384 slots"
    slots = 16_384
    kinds: ClassVar[tuple[str, ...]] = ("GetMap", "GetState", "GetSlots", "ReadSnapshot")

    async def run(self, stage: Stage) -> None:
        leader = stage.cluster.address(await stage.settled(_GROUP))
        keys = (f"{PREFIX}question/{number}" for number in range(self.size(50_000, 5_000)))
        await fill(leader, keys, b"q" * 100)
        async with stage.watched():
            for kind in self.kinds:
                asked = {"address": leader, "group": _GROUP, "workers": 8}
                async with (
                    stage.beside(name=kind, p99=PROMPT),
                    stage.abused("questions", asked=kind, **asked) as abuser,
                ):
                    await abuser.until(lambda counts: counts.get("answered"), 30.0)
                    await asyncio.sleep(self.size(5, 1))
                    stage.note(f"{kind}: answered", abuser.counts.get("answered", 0))
