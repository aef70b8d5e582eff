"""Somebody who moves slots, makes groups, changes their members and changes his mind, while everything else happens.

He asks any node that runs, as the operator's tool does, and looks at nothing but the answers.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final

from faults.sim.cluster import SimCluster
from raftkv.commands.base import Command
from raftkv.commands.meta import ReadCluster
from raftkv.commands.results import ClusterReport, Result
from raftkv.errors import Code
from raftkv.node.asking import meta_command
from raftkv.store.codec import unpack
from raftkv.store.meta_state import MetaState
from shards.map import META_GROUP, Group

_TIMEOUT: Final = 4.0
_MOST_GROUPS: Final = 5
_USUAL: Final = {
    "plan": 6,
    "cancel": 1,
    "pause": 1,
    "tune": 1,
    "add group": 1,
    "remove group": 1,
    "prefer": 1,
    "members": 4,
}
"""How often he does what, in comparison."""

_UNSEEN: Final = Result(Code.UNKNOWN, detail="the node that was asked is gone")


class Operator:
    """``pause``: usual seconds between two things he does. ``members``: whether he changes those of groups too.

    ``deeds``: how often he does what, where that is not as usual.
    """

    def __init__(
        self,
        cluster: SimCluster,
        rng: random.Random,
        pause: float,
        *,
        members: bool,
        replicas: int,
        deeds: Mapping[str, int] | None = None,
    ) -> None:
        self.counts: Counter[str] = Counter()
        self._cluster = cluster
        self._rng = rng
        self._pause = pause
        self._replicas = replicas
        known: dict[str, Callable[[MetaState], Awaitable[None]]] = {
            "plan": self._plan,
            "cancel": self._cancel,
            "pause": self._pause_job,
            "tune": self._tune,
            "add group": self._add_group,
            "remove group": self._remove_group,
            "prefer": self._prefer,
            "members": self._change_members,
        }
        weights = {**_USUAL, "members": _USUAL["members"] if members else 0, **(deeds or {})}
        self._deeds = [deed for name, deed in known.items() for _ in range(weights[name])]

    async def work(self) -> None:
        """Until he is cancelled."""
        while True:
            await asyncio.sleep(self._rng.expovariate(1.0 / self._pause))
            state = await self.look()
            if state is not None and state.map is not None:
                await self._rng.choice(self._deeds)(state)

    async def look(self) -> MetaState | None:
        """What the meta group knows, None if nobody tells."""
        report = (await self._ask(ReadCluster(META_GROUP))).answer
        return MetaState.from_wire(unpack(report.state)) if isinstance(report, ClusterReport) else None

    async def settle(self) -> None:
        """He lets go of what he has not got yet: jobs go on by themselves, groups keep the voters they have."""
        # What he asked for last may still be on its way.
        await asyncio.sleep(_TIMEOUT)
        while True:
            state = await self.look()
            if state is not None and state.map is not None:
                if state.job is not None and state.job.paused and not await self._tell("pause", False):
                    continue
                wishes = [[group, state.map.group(group).voters] for group in state.wanted]
                if not wishes or await self._tell("want", state.map.epoch, wishes):
                    return
            await asyncio.sleep(0.2)

    async def _tell(self, verb: str, *arguments: Any) -> bool:
        self.counts[f"asked {verb}"] += 1
        result = await self._ask(meta_command(self._rng, verb, *arguments))
        self._cluster.trace.note(f"operator {verb} {arguments!r:.200}: {Code(result.code).name} {result.detail}")
        if result.code == Code.OK:
            self.counts[f"done {verb}"] += 1
        return result.code == Code.OK

    async def _ask(self, op: Command) -> Result:
        running = [one for one in self._cluster.nodes.values() if one.node is not None and one.state == "running"]
        if not running:
            return _UNSEEN
        node = self._rng.choice(running)
        answer: asyncio.Future[Result] = asyncio.get_running_loop().create_future()

        def reply(_: int, result: Result) -> None:
            if not answer.done():
                answer.set_result(result)

        assert node.node is not None
        node.process.run(node.node.submit, [op], _TIMEOUT, reply)
        done, _ = await asyncio.wait([answer], timeout=2 * _TIMEOUT)
        return answer.result() if done else _UNSEEN

    # -- what he does

    async def _plan(self, state: MetaState) -> None:
        assert state.map is not None
        rng, shard_map = self._rng, state.map
        groups = [group.id for group in shard_map.data_groups()]
        sources = [group for group in groups if shard_map.slots_of(group)]
        if len(groups) < 2:
            await self._add_group(state)
            return
        source = rng.choice(sources)
        target = rng.choice([group for group in groups if group != source])
        owned = list(shard_map.slots_of(source))
        rng.shuffle(owned)
        # Sometimes all of them, so that a group can go.
        chosen = owned if rng.random() < 0.3 else owned[: rng.randint(1, len(owned))]
        each = rng.choice((1, 4, 16, 64))
        plan = [[chosen[at : at + each], source, target] for at in range(0, len(chosen), each)]
        if rng.random() < 0.3 and len(plan) > 2:
            plan = plan[: rng.randint(1, 3)]
        await self._tell("plan", shard_map.epoch, plan, rng.choice((1, 2, 4)), rng.choice((0, 0, 0, 50_000)))

    async def _cancel(self, _: MetaState) -> None:
        await self._tell("cancel")

    async def _pause_job(self, state: MetaState) -> None:
        await self._tell("pause", state.job is None or not state.job.paused)

    async def _tune(self, _: MetaState) -> None:
        await self._tell("tune", self._rng.choice((1, 3, 8)), self._rng.choice((0, 100_000)))

    def _free(self, state: MetaState, taken: tuple[int, ...]) -> list[int]:
        assert state.map is not None
        return [node.id for node in state.map.nodes if node.id not in taken]

    async def _add_group(self, state: MetaState) -> None:
        assert state.map is not None
        if len(state.map.groups) <= _MOST_GROUPS:
            voters = self._free(state, ())
            self._rng.shuffle(voters)
            await self._tell("add group", voters[: self._replicas])

    async def _remove_group(self, state: MetaState) -> None:
        assert state.map is not None
        empty = [group.id for group in state.map.data_groups() if not state.map.slots_of(group.id)]
        if empty:
            await self._tell("remove group", self._rng.choice(empty))

    async def _prefer(self, state: MetaState) -> None:
        group = self._some_group(state)
        voters = list(group.voters)
        self._rng.shuffle(voters)
        if group.id not in state.wanted and state.map is not None:
            await self._tell("want", state.map.epoch, [[group.id, voters]])

    async def _change_members(self, state: MetaState) -> None:
        """Another node in the place of a member, one more, or one fewer."""
        assert state.map is not None
        group, rng = self._some_group(state), self._rng
        voters, others = list(group.voters), self._free(state, group.voters)
        what = rng.choice(("replace", "replace", "more", "fewer"))
        if what == "fewer" and len(voters) > self._replicas:
            voters.remove(rng.choice(voters))
        elif others and what == "more" and len(voters) <= self._replicas:
            voters.append(rng.choice(others))
        elif others:
            voters[rng.randrange(len(voters))] = rng.choice(others)
        if set(voters) != set(group.voters):
            await self._tell("want", state.map.epoch, [[group.id, voters]])

    def _some_group(self, state: MetaState) -> Group:
        assert state.map is not None
        return self._rng.choice(state.map.groups)
