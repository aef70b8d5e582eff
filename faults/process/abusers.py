"""Clients that abuse a node while others work: floods, connections that say nothing, answers that nobody reads.

What they do is that of ``python -m faults abuse`` (:mod:`faults.abuse.acts`), in a process of its own. They go past the
proxies, and write keys that no workload and no last look knows.
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable, Mapping
from typing import Any, Final

from faults.abuse.child import Child
from faults.abuse.wire import PREFIX
from faults.process.fault import Fault, some_group
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
    kind: str,
    how: str,
    found: tuple[int, int],
    world: World,
    rng: random.Random,
    act: str,
    shown: Callable[[Mapping[str, Any]], str],
    **arguments: Any,
) -> Fault:
    """``shown``: what the abuser's counts prove, nothing as long as they prove nothing."""
    group, node = found
    children: list[Child] = []

    async def inject() -> None:
        child = await world.abuse(act, addresses=[world.cluster.address(node)], **arguments)
        children.append(child)
        await child.until(bool, _BEGUN)

    async def heal() -> None:
        for child in children:
            await child.end()

    async def proof() -> str:
        return shown(children[-1].counts) if children else ""

    return Fault(kind, how, (node,), group, inject, heal, proof, rng.uniform(*_HOLD))


def flood(world: World, rng: random.Random) -> Fault | None:
    """Streams write to a leader as fast as they are let."""
    found = some_group(world, rng, of_keys=True)
    if found is None:
        return None

    def shown(counts: Mapping[str, Any]) -> str:
        answered = counts.get("answered", 0)
        enough = answered >= _STREAMS * _A_MESSAGE
        return f"{answered} operations of the flood were answered: {counts.get('codes')}" if enough else ""

    how = f"{_STREAMS} streams flood n{found[1]} with writes"
    return _abuse("flood", how, found, world, rng, "flood", shown, streams=_STREAMS, operations=_A_MESSAGE, timeout=3.0)


def idle_sockets(world: World, rng: random.Random) -> Fault | None:
    """Many connections to a leader that say nothing."""
    found = some_group(world, rng)
    if found is None:
        return None
    before = world.descriptors(found[1])

    def shown(counts: Mapping[str, Any]) -> str:
        held, closed = world.descriptors(found[1]) - before, counts.get("closed", 0)
        # Its own descriptors come and go meanwhile.
        enough = held + closed >= _SOCKETS * 0.9
        return f"n{found[1]} holds {held} more descriptors and has closed {closed} connections" if enough else ""

    how = f"{_SOCKETS} connections to n{found[1]} say nothing"
    return _abuse("idle sockets", how, found, world, rng, "idle sockets", shown, connections=_SOCKETS)


def large_answers(world: World, rng: random.Random) -> Fault | None:
    """A client asks a leader for much and reads only the first of it."""
    found = some_group(world, rng, of_keys=True)
    if found is None:
        return None

    def shown(counts: Mapping[str, Any]) -> str:
        asked, came = counts.get("asked", 0), counts.get("came", 0)
        return f"{asked} values of 1 MiB were asked for, {came} were read" if 0 < came < asked else ""

    how = f"n{found[1]} is asked for {_GETS} values of 1 MiB that are not read"
    fault = _abuse("large answers", how, found, world, rng, "large answers", shown, key=_LARGE, operations=_GETS)
    ask = fault.inject

    async def inject() -> None:
        # Without the value nothing proves anything, and the run says so.
        async with world.client("", _TIMEOUT) as client:
            with contextlib.suppress(RaftKVError):
                await client.put(_LARGE, b"L" * MAX_VALUE_BYTES)
        await ask()

    fault.inject = inject
    return fault
