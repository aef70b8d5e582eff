"""All scenarios by name, and how one of them is performed."""

from __future__ import annotations

import asyncio
from contextlib import ExitStack
from pathlib import Path
from typing import Final

from faults.abuse import answers, clocks, floods, full, links, node, peers, questions, sockets, values
from faults.abuse.delays import SlowLinks
from faults.abuse.stage import AbuseScenario, Found, Stage
from faults.disks import SickDisk, library
from raftkv.clock import SystemClock
from raftkv.errors import RaftKVError
from raftkv.testing import LocalCluster

SCENARIOS: Final[dict[str, type[AbuseScenario]]] = {
    one.name: one
    for one in (
        answers.PipelineGets,
        answers.StalledReader,
        answers.HonestGather,
        values.LargeValues,
        floods.FloodingStreams,
        floods.ManyConnections,
        floods.DeadGroup,
        sockets.IdleSocketsOfClients,
        sockets.IdleSocketsOfPeers,
        sockets.IdleConnections,
        sockets.RapidResets,
        sockets.MalformedProtobuf,
        clocks.SessionsAhead,
        clocks.ClientAhead,
        clocks.NodeBehind,
        questions.Checks,
        questions.Questions,
        peers.BigForward,
        peers.EmptyMaps,
        links.SlowLinkJitter,
        links.SlowLinkConstant,
        full.DiskFullLeader,
    )
}

_LONGEST: Final = 600.0
"""Seconds of one scenario; only one that hangs takes as long."""


def perform(kind: type[AbuseScenario], *, short: bool = False, product: Path | None = None) -> Found:
    """Perform a scenario on a cluster of its own. ``product``: the checkout that its nodes run, None = this one.

    What goes wrong is in what is found, and so is what it was that broke it off. Raises NoSickDisks if it needs such.
    """
    found = Found(kind.name, kind.what)
    clock = SystemClock()
    began = clock.now()
    environment = node.environment(product, kind.descriptors, kind.wall)
    if kind.sick_disks:
        environment["LD_PRELOAD"] = str(library())
    with ExitStack() as stack:
        proxies = stack.enter_context(SlowLinks(range(1, kind.nodes + 1))) if kind.slow_links else None
        cluster = LocalCluster(
            kind.nodes,
            kind.groups,
            slots=kind.slots,
            dial=proxies.dial if proxies else None,
            main=node.MAIN,
            environment=environment,
        )
        stack.callback(cluster.close)
        stage = Stage(cluster, found)
        if proxies is not None:
            proxies.lead_to({one: cluster.peer_address(one) for one in cluster.nodes})
            stage.extra["links"] = proxies
        if kind.sick_disks:
            disks = stage.extra["disks"] = {one: SickDisk(cluster.data_dir(one).parent) for one in cluster.nodes}
            for disk in disks.values():
                stack.callback(disk.close)
        try:
            cluster.start()
            asyncio.run(_run(kind(short), stage))
        except* (RaftKVError, TimeoutError, OSError) as problems:
            found.problem = "; ".join(f"{type(one).__name__}: {one}" for one in problems.exceptions)
    found.seconds = round(clock.now() - began, 1)
    return found


async def _run(scenario: AbuseScenario, stage: Stage) -> None:
    async with asyncio.timeout(_LONGEST):
        try:
            if not scenario.short:
                # A cluster as it is in use: its leaders have found their places.
                for group in (await stage.map()).groups:
                    await stage.settled(group.id)
            await scenario.run(stage)
        finally:
            await stage.conclude(scenario)
