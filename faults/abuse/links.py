"""Links that are slow but whole: who leads behind them goes on to serve."""

from __future__ import annotations

import asyncio
from typing import ClassVar

from faults.abuse.delays import SlowLinks
from faults.abuse.stage import AbuseScenario, Stage

_GAP = 2.0


class _SlowLinks(AbuseScenario):
    slow_links = True
    delay: ClassVar[tuple[float, float]]
    """Seconds that a way takes, from and to."""

    async def run(self, stage: Stage) -> None:
        links: SlowLinks = stage.extra["links"]
        tags = await stage.tags()
        group = next(iter(tags))
        leader = await stage.settled(group)
        follower = next(node for node in stage.cluster.nodes if node != leader)
        keys = [tags[group]] * 8
        terms = stage.logged("leading in term")
        links.slow([pair for pair in links.dial if leader in pair], *self.delay)
        async with (
            stage.watched(),
            stage.beside(tags=keys, p99=None, period=0.0) as direct,
            stage.beside(
                tags=keys, p99=None, period=0.0, name="through another", through=stage.cluster.address(follower)
            ) as other,
        ):
            await asyncio.sleep(self.size(30, 6))
            gap = max(one.counts.get("gap", 0.0) for one in (direct, other))
            changes = stage.logged("leading in term") - terms
            links.slow([], 0.0, 0.0)
        most = None if changes else _GAP
        stage.note("longest time of a writer without an answer", gap, "s", most=most, timed=True)
        stage.note("leaders that were elected", changes)
        stage.note("pieces that were delayed", links.delayed, least=1)


class SlowLinkJitter(_SlowLinks):
    name = "slow-link-jitter"
    what = "all links of a leader take 100 to 300 ms one way"
    delay = (0.1, 0.3)


class SlowLinkConstant(_SlowLinks):
    name = "slow-link-constant"
    what = "all links of a leader take 250 ms one way"
    delay = (0.25, 0.25)
