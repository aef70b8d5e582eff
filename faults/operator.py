"""Somebody who moves slots, makes groups, changes their members and changes his mind, while everything else happens.

Written once for simulated and real clusters: he looks at nothing but the answers of an :class:`Admin`.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal, Protocol

from shards.map import Group, ShardMap

_MOST_GROUPS: Final = 5
_AGAIN: Final = 0.2
_AT_ONCE: Final = (1, 3, 8)
"""Moves of a plan that are under way at a time."""
USUAL: Final[Mapping[str, int]] = {
    "plan": 6,
    "cancel": 1,
    "pause": 1,
    "tune": 1,
    "add group": 1,
    "remove group": 1,
    "prefer": 1,
    "members": 0,
    "transfer": 0,
}
"""How often he does what, in comparison."""

USUAL_MEMBERS: Final = 4
"""How often he changes members, where he does so at all."""


class JobView(Protocol):
    """A plan that is carried out."""

    @property
    def paused(self) -> bool: ...
    @property
    def open(self) -> bool: ...


class MetaView(Protocol):
    """What the meta group knows."""

    @property
    def map(self) -> ShardMap | None: ...
    @property
    def wanted(self) -> Mapping[int, tuple[int, ...]]: ...
    @property
    def job(self) -> JobView | None: ...


@dataclass(frozen=True, slots=True)
class AdminAnswer:
    """``detail``: what was done, or why not, for people."""

    outcome: Literal["done", "refused", "unknown"]
    detail: str = ""


class Admin(Protocol):
    """What he asks the cluster for. ``timeout``: seconds after which nothing that he asked for is still on its way."""

    timeout: float

    async def look(self) -> MetaView | None:
        """None if nobody tells."""

    async def tell(self, verb: str, *arguments: Any) -> AdminAnswer:
        """A command of the meta group."""

    async def transfer(self, group: int, node: int) -> AdminAnswer:
        """``node`` shall lead ``group``."""


class Operator:
    """``pause``: usual seconds between two things he does. ``replicas``: usual number of a group's voters.

    ``actions``: how often he does what, where that is not as usual. ``most_slots``: that one plan moves. ``note``:
    called with what he has asked for, and the answer.
    """

    def __init__(
        self,
        admin: Admin,
        rng: random.Random,
        pause: float,
        *,
        replicas: int = 3,
        actions: Mapping[str, int] | None = None,
        most_slots: int | None = None,
        note: Callable[[str, AdminAnswer], None] = lambda *_: None,
    ) -> None:
        self.counts: Counter[str] = Counter()
        self._admin = admin
        self._rng = rng
        self._pause = pause
        self._replicas = replicas
        self._most_slots = most_slots
        self._note = note
        known: dict[str, Callable[[ShardMap, MetaView], Awaitable[None]]] = {
            "plan": self._plan,
            "cancel": self._cancel,
            "pause": self._pause_job,
            "tune": self._tune,
            "add group": self._add_group,
            "remove group": self._remove_group,
            "prefer": self._prefer,
            "members": self._change_members,
            "transfer": self._transfer,
        }
        weights = {**USUAL, **(actions or {})}
        self._actions = [action for name, action in known.items() for _ in range(weights[name])]

    async def work(self, over: Callable[[], bool] = lambda: False) -> None:
        """Until ``over``, or he is cancelled."""
        while not over():
            await asyncio.sleep(min(self._rng.expovariate(1.0 / self._pause), 2.0 * self._pause))
            state = await self._admin.look()
            if state is not None and state.map is not None:
                await self._rng.choice(self._actions)(state.map, state)

    async def settle(self) -> None:
        """He lets go of what he has not got yet: jobs go on by themselves, at full speed, groups keep their voters."""
        # What he asked for last may still be on its way.
        await asyncio.sleep(self._admin.timeout)
        while True:
            state = await self._admin.look()
            if state is not None and state.map is not None:
                if state.job is not None and state.job.open:
                    # A plan of hundreds of moves, one at a time, takes longer than anybody waits for it.
                    if not await self.tell("tune", max(_AT_ONCE), 0):
                        continue
                    if state.job.paused and not await self.tell("pause", False):
                        continue
                desired = [[group, state.map.group(group).voters] for group in state.wanted]
                if not desired or await self.tell("want", state.map.epoch, desired):
                    return
            await asyncio.sleep(_AGAIN)

    async def tell(self, verb: str, *arguments: Any) -> bool:
        """Whether the meta group has done it."""
        return self._noted(verb, await self._admin.tell(verb, *arguments))

    def _noted(self, what: str, answer: AdminAnswer) -> bool:
        done = answer.outcome == "done"
        self.counts[f"asked {what}"] += 1
        self.counts[f"done {what}"] += done
        self._note(what, answer)
        return done

    # -- what he does

    async def _plan(self, shard_map: ShardMap, state: MetaView) -> None:
        rng = self._rng
        groups = [group.id for group in shard_map.data_groups()]
        sources = [group for group in groups if shard_map.slots_of(group)]
        if len(groups) < 2:
            await self._add_group(shard_map, state)
            return
        source = rng.choice(sources)
        target = rng.choice([group for group in groups if group != source])
        owned = list(shard_map.slots_of(source))
        rng.shuffle(owned)
        owned = owned[: self._most_slots]
        # Sometimes all of them, so that a group can go.
        chosen = owned if rng.random() < 0.3 else owned[: rng.randint(1, len(owned))]
        each = rng.choice((1, 4, 16, 64))
        plan = [[chosen[at : at + each], source, target] for at in range(0, len(chosen), each)]
        if rng.random() < 0.3 and len(plan) > 2:
            plan = plan[: rng.randint(1, 3)]
        await self.tell("plan", shard_map.epoch, plan, rng.choice((1, 2, 4)), rng.choice((0, 0, 0, 50_000)))

    async def _cancel(self, _map: ShardMap, _: MetaView) -> None:
        await self.tell("cancel")

    async def _pause_job(self, _map: ShardMap, state: MetaView) -> None:
        await self.tell("pause", state.job is None or not state.job.paused)

    async def _tune(self, _map: ShardMap, _: MetaView) -> None:
        await self.tell("tune", self._rng.choice(_AT_ONCE), self._rng.choice((0, 100_000)))

    async def _add_group(self, shard_map: ShardMap, _: MetaView) -> None:
        if len(shard_map.groups) <= _MOST_GROUPS:
            voters = [node.id for node in shard_map.nodes]
            self._rng.shuffle(voters)
            await self.tell("add group", voters[: self._replicas])

    async def _remove_group(self, shard_map: ShardMap, _: MetaView) -> None:
        empty = [group.id for group in shard_map.data_groups() if not shard_map.slots_of(group.id)]
        if empty:
            await self.tell("remove group", self._rng.choice(empty))

    async def _prefer(self, shard_map: ShardMap, state: MetaView) -> None:
        group = self._some_group(shard_map)
        voters = list(group.voters)
        self._rng.shuffle(voters)
        if group.id not in state.wanted:
            await self.tell("want", shard_map.epoch, [[group.id, voters]])

    async def _change_members(self, shard_map: ShardMap, _: MetaView) -> None:
        """Another node in the place of a member, one more, or one fewer."""
        group, rng = self._some_group(shard_map), self._rng
        voters, others = list(group.voters), [node.id for node in shard_map.nodes if node.id not in group.voters]
        what = rng.choice(("replace", "replace", "more", "fewer"))
        if what == "fewer" and len(voters) > self._replicas:
            voters.remove(rng.choice(voters))
        elif others and what == "more" and len(voters) <= self._replicas:
            voters.append(rng.choice(others))
        elif others:
            voters[rng.randrange(len(voters))] = rng.choice(others)
        if set(voters) != set(group.voters):
            await self.tell("want", shard_map.epoch, [[group.id, voters]])

    async def _transfer(self, shard_map: ShardMap, _: MetaView) -> None:
        group = self._some_group(shard_map)
        self._noted("transfer", await self._admin.transfer(group.id, self._rng.choice(group.voters)))

    def _some_group(self, shard_map: ShardMap) -> Group:
        return self._rng.choice(shard_map.groups)
