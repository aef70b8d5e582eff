"""What a fault is, how one is performed, and how two of them are performed at once."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeVar

from faults.driver import Driver, Effect

D = TypeVar("D", bound=Driver)

Hold = Callable[[random.Random], float]
"""Draws the seconds that a fault lasts."""


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault. ``how``: for people. ``targets``: nodes. ``group``: the one that it aims at. ``hold``: in seconds."""

    how: str
    targets: tuple[int, ...]
    group: int | None
    hold: float
    inject: Callable[[], Awaitable[Effect | None]]


Maker = Callable[[D, random.Random], Fault | None]
"""Looks at the cluster as it is; None if there is nothing to do it to now."""


def length(rng: random.Random, low: float, high: float) -> float:
    """Seconds between the two; short ones are as frequent as long ones."""
    return float(low * (high / low) ** rng.random())


def between(low: float, high: float) -> Hold:
    return lambda rng: rng.uniform(low, high)


def spread(low: float, high: float) -> Hold:
    return lambda rng: length(rng, low, high)


async def perform(
    fault: Fault,
    now: Callable[[], float],
    look: float,
    *,
    longer: float = 0.0,
    seen: Callable[[str], None] | None = None,
) -> str | None:
    """Inject a fault, wait, undo it. What proves it, nothing if nothing does, None if it could not be injected.

    ``look``: seconds between looks for a proof. ``longer``: seconds for which it is kept up if there is none yet.
    """
    effect = await fault.inject()
    if effect is None:
        return None
    began, proof = now(), ""
    while True:
        if not proof and (proof := await effect.shown()) and seen is not None:
            seen(proof)
        left = began + fault.hold + (0.0 if proof else longer) - now()
        if left <= 0.0:
            break
        await asyncio.sleep(min(look, left))
    await effect.end()
    return proof


def together(one: Fault, other: Fault) -> Fault:
    """Both at once: the second begins when the first is in place. They count when both are proved."""

    async def inject() -> Effect | None:
        effects = [effect for fault in (one, other) if (effect := await fault.inject()) is not None]
        if not effects:
            return None
        proofs: dict[int, str] = {}

        async def proof() -> str:
            for number, effect in enumerate(effects):
                if not proofs.get(number):
                    proofs[number] = await effect.shown()
            return "; ".join(proofs.values()) if all(proofs.values()) else ""

        async def undo() -> None:
            for effect in reversed(effects):
                await effect.end()

        return Effect(proof, undo)

    targets = tuple(sorted({*one.targets, *other.targets}))
    return Fault(f"{one.how}; {other.how}", targets, one.group, max(one.hold, other.hold), inject)
