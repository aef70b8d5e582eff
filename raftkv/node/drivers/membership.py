"""Brings groups to the voters that the meta group wants, one server at a time, while this node leads the meta group.

A newcomer gets the log as a learner and becomes a voter once it has nearly all of it; only then does another member
leave. Each step is decided by the group's own leader, who refuses what would cost it its majority; this driver asks
again until it may be done.
"""

from __future__ import annotations

import asyncio
import logging
import random
from typing import Any, Final

from raftkv.clock import Clock, sleep
from raftkv.commands.members import ChangeMembers, Members, Transfer
from raftkv.commands.results import MembersReport
from raftkv.node.drivers.internal_client import Ask, Failed, Leading, meta_command
from raftkv.store.meta_state import MetaState
from shards.map import Group

log = logging.getLogger(__name__)

_RETRY: Final = 0.3
_AFTER_MISTAKE: Final = 2.0
"""Seconds before a group is looked at again when a step was not possible, and after an unexpected error."""


class MembershipDriver:
    """``leading`` gives the meta group's state while this node leads it, else None. ``ask`` executes an operation."""

    def __init__(self, leading: Leading, ask: Ask, clock: Clock, rng: random.Random) -> None:
        self._leading = leading
        self._ask = ask
        self._clock = clock
        self._rng = rng
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self.waiting: dict[int, str] = {}
        """Why a group has not got its voters yet, for people."""

    def run(self) -> None:
        """Take up what is wanted. Called about ten times a second."""
        state = self._leading()
        wanted = {} if state is None else state.wanted
        for group in wanted:
            task = self._tasks.get(group)
            if task is None or task.done():
                self._tasks[group] = asyncio.get_running_loop().create_task(self._settle(group))
        for group in [group for group, task in self._tasks.items() if task.done() and group not in wanted]:
            del self._tasks[group]
            self.waiting.pop(group, None)

    def close(self) -> None:
        """Stop; the next leader goes on."""
        for task in self._tasks.values():
            task.cancel()

    async def _settle(self, number: int) -> None:
        while (state := self._leading()) is not None and number in state.wanted:
            assert state.map is not None
            try:
                await self._step(state, state.map.group(number), state.wanted[number])
                self.waiting.pop(number, None)
            except Failed as failure:
                if self.waiting.get(number) != str(failure):
                    self.waiting[number] = str(failure)
                    log.info("group %d does not have its desired voters yet: %s", number, failure)
                await sleep(self._clock, _RETRY)
            except Exception:
                # A mistake of ours must not stop the other groups, nor be repeated in a tight loop.
                log.exception("the members of group %d cannot be changed", number)
                await sleep(self._clock, _AFTER_MISTAKE)

    async def _step(self, state: MetaState, group: Group, wanted: tuple[int, ...]) -> None:
        """One change, or one step towards it. Raises Failed if it cannot be done now."""
        members = await self._members(group.id)
        have = members.voters
        if set(have) != set(group.voters):
            await self._tell("voters", group.id, members.index, list(have))
            return
        missing = [node for node in wanted if node not in have]
        leaving = [node for node in have if node not in wanted]
        unwanted = [node for node in group.learners if node not in have and node not in wanted]
        if missing:
            if missing[0] in group.learners:
                await self._change(group.id, (*have, missing[0]))
            else:
                await self._tell("learn", group.id, missing[0])
        elif leaving:
            # The dead first: each of them weakens the group. The leader last: it must hand over before.
            leaving.sort(key=lambda node: (node in members.contact, node == members.leader))
            if leaving[0] == members.leader:
                await self._hand_over(group.id, wanted, members)
            else:
                await self._change(group.id, tuple(node for node in have if node != leaving[0]))
        elif unwanted:
            # Somebody may still be about to make it a voter: it becomes one, and leaves as a voter does.
            await self._change(group.id, (*have, unwanted[0]))
        else:
            await self._tell("voters", group.id, members.index, list(have))

    async def _members(self, group: int) -> MembersReport:
        report = (await self._ask(Members(group))).answer
        assert isinstance(report, MembersReport)
        return report

    async def _change(self, group: int, voters: tuple[int, ...]) -> None:
        await self._ask(ChangeMembers(group, tuple(sorted(voters))))
        log.info("group %d has the voters %s", group, ", ".join(str(node) for node in sorted(voters)))

    async def _hand_over(self, group: int, wanted: tuple[int, ...], members: MembersReport) -> None:
        heirs = [node for node in wanted if node in members.contact and node in members.voters]
        if not heirs:
            raise Failed(f"no remaining member of group {group} can be reached")
        await self._ask(Transfer(group, heirs[0]))
        await sleep(self._clock, _RETRY)

    async def _tell(self, verb: str, *arguments: Any) -> None:
        await self._ask(meta_command(self._rng, verb, *arguments))
