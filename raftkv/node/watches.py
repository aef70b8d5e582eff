"""The watches of this node's clients: when each is to look at its place in the history, and when it ends."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing
from functools import partial
from typing import TYPE_CHECKING, Final

from raftkv.clock import Clock, sleep
from raftkv.commands.bounds import Mode
from raftkv.commands.results import CursorAnswer, Result
from raftkv.commands.watching import Cursor
from raftkv.errors import Code
from raftkv.frontend.port import Caller, Submit, answer_to
from raftkv.limits import WATCH_HEARTBEAT
from raftkv.store.steps import Recent, Steps
from raftkv.store.watching import Part, Watch, WatchAsk
from shards.slots import slot_bits, slots_in

if TYPE_CHECKING:
    from raftkv.commands.base import Command
    from raftkv.node.replicas import Replica
    from raftkv.store.history import History
    from shards.map import ShardMap

_ARRIVAL: Final = 1.0
"""Seconds for a replica to have what the group's leader had when the watch was opened."""
_LOOK: Final = 0.02
_WAKE_ALL: Final = 4096
"""Events of one turn beyond which it is not looked whom they concern."""

_SILENT = Result(Code.UNAVAILABLE, detail="this replica hears no leader of the group")


class _Follower:
    """One watch. ``due``: it is time to tell that it lives."""

    def __init__(self, watch: Watch) -> None:
        self.watch = watch
        self.due = False
        self.wake: asyncio.Future[None] | None = None

    def notify(self) -> None:
        if self.wake is not None and not self.wake.done():
            self.wake.set_result(None)


class _Alike:
    """The watches of a group that want the same keys. Those that stand alike are told the same, taken once. All tell at
    the same time that they live, so that they go on to stand alike."""

    def __init__(self, recent: Recent, clock: Clock) -> None:
        self.followers: dict[_Follower, None] = {}
        self._recent = recent
        self._steps = Steps(recent)
        self._clock = clock
        self._rest()

    def take(self, watch: Watch) -> Part:
        return watch.take() if len(self.followers) == 1 else self._steps.take(watch)

    def heartbeat(self, watch: Watch) -> Part:
        return watch.heartbeat() if len(self.followers) == 1 else self._steps.heartbeat(watch)

    def remove(self, one: _Follower) -> None:
        del self.followers[one]
        if len(self.followers) == 1:
            self._steps = Steps(self._recent)
        elif not self.followers:
            self._timer.cancel()

    def _rest(self) -> None:
        self._timer = self._clock.call_later(WATCH_HEARTBEAT, self._ring)

    def _ring(self) -> None:
        for one in self.followers:
            one.due = True
            one.notify()
        self._rest()


class _Followed:
    """A group with watches, by the keys that they want. ``history``, ``changes``, ``end``: of its store when these were
    told last."""

    def __init__(self, replica: Replica) -> None:
        self.replica = replica
        self.wanted: dict[tuple[bytes | None, bytes], _Alike] = {}
        self.note()

    def note(self) -> None:
        store = self.replica.store
        self.history, self.changes, self.end = store.history, store.slot_changes, store.history.end


class Watches:
    """Over the replicas in ``data``. ``submit`` executes reads, wherever their leader is. ``refusal``: why a caller may
    not ask for one. ``leader_of``: who is believed to lead a group."""

    def __init__(
        self,
        data: Mapping[int, Replica],
        submit: Submit,
        refusal: Callable[[Caller, Command], Result | None],
        leader_of: Callable[[int], int],
        clock: Clock,
    ) -> None:
        self._data = data
        self._submit = submit
        self._refusal = refusal
        self._leader_of = leader_of
        self._clock = clock
        self._recent = Recent()
        self._groups: dict[int, _Followed] = {}

    async def watch(
        self, ask: WatchAsk, shard_map: ShardMap | None, timeout: float, caller: Caller
    ) -> AsyncGenerator[Part | Result, None]:
        """See :meth:`raftkv.frontend.port.NodePort.watch`."""
        if shard_map is None:
            yield Result(Code.UNAVAILABLE, detail="the cluster is not formed yet")
            return
        first = min(ask.places)
        group = shard_map.owners[first]
        replica = self._data.get(group)
        if replica is None:
            leader = self._leader_of(group)
            yield Result(Code.NOT_LEADER, hint=leader, detail=f"this node has no replica of group {group}")
            return
        bits = slot_bits(ask.places, shard_map.slots)
        cursor = Cursor(first, bits, ask.prefix if ask.key is None else ask.key, mode=Mode.QUORUM)
        read = await answer_to(self._submit, cursor, timeout, caller)
        if read.code not in (Code.OK, Code.MOVED, Code.SLOT_MOVING):
            yield read
            return
        numbers = dict(_numbers(read))
        for slot, after in ask.places.items():
            if after is not None and slot in numbers and after > numbers[slot]:
                detail = f"slot {slot} is at number {numbers[slot]}: the cursor {after} is of another history"
                yield Result(Code.INVALID_ARGUMENT, detail=detail)
                return
        watch = Watch(replica.store, ask, numbers)
        late = self._clock.now() + _ARRIVAL
        while not watch.ready() and self._clock.now() < late:
            await sleep(self._clock, _LOOK)
        part = watch.open()
        try:
            yield part
            if not part.compacted and part.opened:
                refusal = partial(self._refusal, caller, cursor)
                wanted = ask.key, ask.prefix
                async with aclosing(self._follow(group, replica, watch, wanted, refusal)) as parts:
                    async for following in parts:
                        yield following
        finally:
            watch.close()

    async def _follow(
        self,
        group: int,
        replica: Replica,
        watch: Watch,
        wanted: tuple[bytes | None, bytes],
        refusal: Callable[[], Result | None],
    ) -> AsyncGenerator[Part | Result, None]:
        one = _Follower(watch)
        followed = self._groups.get(group)
        if followed is None or followed.replica is not replica:
            followed = self._groups[group] = _Followed(replica)
        alike = followed.wanted.get(wanted)
        if alike is None:
            alike = followed.wanted[wanted] = _Alike(self._recent, self._clock)
        alike.followers[one] = None
        loop = asyncio.get_running_loop()
        try:
            while True:
                one.wake = loop.create_future()
                while part := alike.take(watch):
                    if (refused := refusal()) is not None:
                        yield refused
                        return
                    yield part
                    if part.compacted:
                        return
                    if not watch.slots and not watch.behind:
                        return
                if watch.behind:
                    await asyncio.sleep(0)
                    continue
                if one.due:
                    refused = refusal()
                    if self._data.get(group) is not replica or not replica.group.hears_leader():
                        refused = _SILENT
                    if refused is not None:
                        yield refused
                        return
                    one.due = False
                    yield alike.heartbeat(watch)
                else:
                    await one.wake
        finally:
            alike.remove(one)
            if not alike.followers:
                del followed.wanted[wanted]
            if not followed.wanted and self._groups.get(group) is followed:
                del self._groups[group]

    def on_turn(self) -> None:
        """Entries may have been applied: who may want to know is woken."""
        for group in self._groups.values():
            history, changes, end = group.history, group.changes, group.end
            group.note()
            if history is not group.history or changes != group.changes:
                touched = None
            elif end == group.end:
                continue
            else:
                touched = _touched(history, end)
            for one in (one for alike in group.wanted.values() for one in alike.followers):
                if touched is None or not touched.isdisjoint(one.watch.slots):
                    one.notify()
                else:
                    one.watch.skip(end, group.end)


def _touched(history: History, place: int) -> set[int] | None:
    """Whose events stand from ``place`` on; None: too many to look."""
    if history.end - place > _WAKE_ALL or place < history.first:
        return None
    found: set[int] = set()
    while place < history.end:
        items, place = history.read(place, _WAKE_ALL)
        found.update(items[::3])
    return found


def _numbers(read: Result) -> list[tuple[int, int]]:
    """(slot, number) of those that the answer has."""
    answer = read.answer
    if not isinstance(answer, CursorAnswer):
        return []
    return list(zip(slots_in(answer.slots), answer.numbers, strict=True))
