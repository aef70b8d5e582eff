"""Clients that abuse a node while others work: floods, connections that say nothing, answers that nobody reads.

What they do is that of ``python -m faults abuse`` (:mod:`faults.abuse.acts`), in a process of its own. They go past the
proxies, and write keys that no workload and no last look knows.
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final

from faults.driver import Effect, host
from faults.keys import PREFIX
from faults.nemesis.fault import Fault, Maker
from faults.nemesis.nodes import leading
from faults.process.world import World
from raftkv.errors import RaftKVError
from raftkv.limits import MAX_VALUE_BYTES

_BEGUN: Final = 20.0
"""Seconds for the process of the abuser to start."""

_HOLD: Final = (3.0, 6.0)
_STREAMS: Final = 8
_A_MESSAGE: Final = 500
_SOCKETS: Final = 150
_GETS: Final = 300
_LARGE: Final = f"{PREFIX}large"
_TIMEOUT: Final = 10.0


def _abuse(
    what: str,
    act: str,
    shown: Callable[[Mapping[str, Any], World, int, int], str],
    prepare: Callable[[World], Awaitable[None]] | None = None,
    *,
    of_keys: bool = True,
    speaks: bool = True,
    **arguments: Any,
) -> Maker[World]:
    """``shown``: what the abuser's counts prove of that node, which had so many descriptors before. ``speaks``: it
    makes calls, with a client's certificate if the cluster wants one."""

    def make(world: World, rng: random.Random) -> Fault | None:
        found = leading(world, rng, of_keys=of_keys)
        if found is None:
            return None
        group, node = found
        before = world.descriptors(node)

        async def inject() -> Effect:
            if prepare is not None:
                await prepare(world)
            tls = {"tls": files} if speaks and (files := world.tls_files()) else {}
            child = await world.abuse(act, addresses=[world.cluster.address(node)], **tls, **arguments)
            await child.until(bool, _BEGUN)
            return Effect(lambda: shown(child.counts, world, node, before), child.end)

        return Fault(what.format(host(node)), (node,), group, rng.uniform(*_HOLD), inject)

    return make


def _flooded(counts: Mapping[str, Any], _world: World, _node: int, _before: int) -> str:
    answered = counts.get("answered", 0)
    enough = answered >= _STREAMS * _A_MESSAGE
    return f"{answered} operations of the flood were answered: {counts.get('codes')}" if enough else ""


def _held(counts: Mapping[str, Any], world: World, node: int, before: int) -> str:
    held, closed = world.descriptors(node) - before, counts.get("closed", 0)
    # Its own descriptors come and go meanwhile.
    enough = held + closed >= _SOCKETS * 0.9
    return f"n{node} holds {held} more descriptors and has closed {closed} connections" if enough else ""


def _unread(counts: Mapping[str, Any], _world: World, _node: int, _before: int) -> str:
    asked, came = counts.get("asked", 0), counts.get("came", 0)
    return f"{asked} values of 1 MiB were asked for, {came} were read" if 0 < came < asked else ""


async def _store_large(world: World) -> None:
    # Without the value nothing proves anything, and the run says so.
    async with world.client("", _TIMEOUT) as client:
        with contextlib.suppress(RaftKVError):
            await client.put(_LARGE, b"L" * MAX_VALUE_BYTES)


flood: Final = _abuse(
    f"{_STREAMS} streams flood {{}} with writes",
    "flood",
    _flooded,
    streams=_STREAMS,
    operations=_A_MESSAGE,
    timeout=3.0,
)
idle_sockets: Final = _abuse(
    f"{_SOCKETS} connections to {{}} say nothing",
    "idle sockets",
    _held,
    of_keys=False,
    speaks=False,
    connections=_SOCKETS,
)
large_answers: Final = _abuse(
    f"{{}} is asked for {_GETS} values of 1 MiB that are not read",
    "large answers",
    _unread,
    _store_large,
    key=_LARGE,
    operations=_GETS,
)
