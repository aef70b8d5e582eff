"""Links that are slow but whole: who leads behind them goes on to serve."""

from __future__ import annotations

import asyncio
from typing import ClassVar

from faults.abuse.delays import SlowLinks
from faults.abuse.stage import Scenario, Stage

_GAP = 2.0


class _SlowLinks(Scenario):
    slow_links = True
    delay: ClassVar[tuple[float, float]]
    """Seconds that a way takes, from and to."""

    async def run(self, stage: Stage) -> None:
        links: SlowLinks = stage.extra["links"]
        tags = await stage.tags()
        group = next(iter(tags))
        leader = await stage.leader(group)
        ways = [pair for pair in links.dial if leader in pair]
        follower = next(node for node in stage.cluster.nodes if node != leader)
        keys = [tags[group]] * 8
        async with (
            stage.watched(),
            stage.beside(tags=keys, p99=None, period=0.0) as client,
            stage.beside(
                tags=keys, p99=None, period=0.0, name="through another", through=stage.cluster.address(follower)
            ) as other,
        ):
            terms = stage.logged("leading in term")
            links.slow(ways, *self.delay)
            await asyncio.sleep(self.size(30, 6))
            changes = stage.logged("leading in term") - terms
            links.slow([], 0.0, 0.0)
            # What waits now may wait no longer.
            await asyncio.sleep(1.0)
            gap = max(one.counts.get("gap", 0.0) for one in (client, other))
        most = None if changes else _GAP
        stage.note("longest time of a writer without an acknowledgement", gap, "s", most=most, timed=True)
        stage.note("leaders that were elected", changes)


class SlowLinkJitter(_SlowLinks):
    name = "slow-link-jitter"
    what = "all links of a leader take 100 to 300 ms one way"
    delay = (0.1, 0.3)


class SlowLinkConstant(_SlowLinks):
    name = "slow-link-constant"
    what = "all links of a leader take 250 ms one way"
    delay = (0.25, 0.25)
