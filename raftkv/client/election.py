"""Elections: candidates in a queue, the first of which leads, and observers who hear of each change."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterable, Callable, Coroutine, Iterator
from contextlib import aclosing
from typing import TYPE_CHECKING, Any, Final, Generic

from raftkv.client.arguments import check_wait, key_range
from raftkv.client.queue import AsyncTurn, Turn
from raftkv.client.types import Record, WatchEvent
from raftkv.client.watch import AsyncWatch
from raftkv.codecs import V, W
from raftkv.commands.ranges import Content
from raftkv.errors import InvalidArgument

if TYPE_CHECKING:
    from raftkv.client.parts import Parts

_OVER: Final = object()


class AsyncElection(AsyncTurn, Generic[W, V]):
    """One of several candidates leads: made by :meth:`raftkv.AsyncClient.election`.

    As a lock, whose value everybody may read: ``value`` says who leads, or where; its type is that of the client's
    codec. Who only wants to know the leader gives none. ``token`` is higher than that of each earlier leader.

    In ``async with`` it campaigns, and the block is cancelled once it is not sure any more that it leads: LockLost.

    >>> async with kv.election("scheduler", "node-7", ttl=10) as election:
    ...     leader = await kv.election("scheduler").leader()
    ...     print(leader.value, leader.version == election.token)
    b'node-7' True
    """

    def __init__(self, parts: Parts, name: bytes | str, value: W | None, ttl: float) -> None:
        self._candidate = value is not None
        super().__init__(parts, "election", name, b"" if value is None else parts.encode(value), ttl)

    async def campaign(self, *, timeout: float | None = None) -> bool:
        """Wait until it leads, or until others have led for ``timeout`` seconds (0: only try); whether it does.

        >>> election = kv.election("scheduler", "node-7")
        >>> await election.campaign()
        True
        >>> await election.resign()
        """
        return await self._enter(check_wait(timeout))

    async def resign(self, *, timeout: float | None = None) -> None:
        """Let the next one lead. Raises LockLost if it did not lead until now.

        >>> election = kv.election("scheduler", "node-7")
        >>> if await election.campaign(timeout=5):
        ...     await election.resign()
        """
        await self._leave(timeout)

    async def leader(self) -> Record[V] | None:
        """Who leads: a Record whose value is the leader's and whose version is its token; None: nobody does.

        >>> await kv.election("scheduler").leader() is None
        True
        """
        queue = await self.queue(Content.RECORDS)
        first = min(queue, key=lambda one: one.version, default=None)
        if first is None or self._parts.decode is None:
            return first
        return first._replace(value=self._parts.decode(first.key, first.value))

    async def observe(self, *, timeout: float | None = None) -> AsyncGenerator[Record[V] | None, None]:
        """Who leads, now and after each change, None for nobody. One that led for a moment only may be left out.

        An asynchronous iterator that does not end. ``timeout``: seconds that it may be without a group before it raises
        Unavailable.

        >>> async with kv.election("scheduler", "node-7"):
        ...     async for leader in kv.election("scheduler").observe():
        ...         print(leader.value)
        ...         break
        b'node-7'
        """
        parts = self._parts
        budget, keys = parts.budget(timeout), key_range(self._prefix, None, None)
        told: int | None = None
        watch: AsyncWatch[V] = AsyncWatch(parts.engine, self._clock, keys, None, None, True, budget, parts.decode)
        async with watch, aclosing(leaders_of(watch)) as leaders:
            async for leader in leaders:
                token = 0 if leader is None else leader.version
                if token != told:
                    told = token
                    yield leader

    async def _enter(self, timeout: float | None) -> bool:
        if not self._candidate:
            raise InvalidArgument(f"{self._said}: a candidate has a value: kv.election(name, value)")
        return await super()._enter(timeout)


async def leaders_of(watch: AsyncIterable[WatchEvent[V]]) -> AsyncGenerator[Record[V] | None, None]:
    """The first of the queue after each event, once all that is there was told."""
    there: dict[bytes, WatchEvent[V]] = {}
    whole = False
    async for event in watch:
        if event.type in ("initial", "put"):
            there[event.key] = event
        elif event.type == "image":
            there, whole = {}, False
        else:
            there.pop(event.key, None)
        whole = whole or event.type == "whole"
        if whole:
            first = min(there.values(), key=lambda one: one.version, default=None)
            yield None if first is None or first.value is None else Record(first.key, first.value, first.version)


class Election(Turn, Generic[W, V]):
    """As :class:`AsyncElection`, without await; made by :meth:`raftkv.Client.election`.

    Nobody ends a ``with`` block from outside: ask ``lost``, or let ``check()`` raise LockLost. Its end does too.
    """

    def __init__(
        self,
        election: AsyncElection[W, V],
        run: Callable[[Coroutine[Any, Any, Any]], Any],
        start: Callable[[Callable[[], Coroutine[Any, Any, object]]], None],
    ) -> None:
        super().__init__(election, election.campaign, election.resign, run, start)
        self._election = election

    def campaign(self, *, timeout: float | None = None) -> bool:
        """See AsyncElection.campaign."""
        return self._enter(timeout)

    def resign(self, *, timeout: float | None = None) -> None:
        """See AsyncElection.resign."""
        self._leave(timeout)

    def leader(self) -> Record[V] | None:
        """See AsyncElection.leader."""
        leader: Record[V] | None = self._run(self._election.leader())
        return leader

    def observe(self, *, timeout: float | None = None) -> Iterator[Record[V] | None]:
        """See AsyncElection.observe."""
        leaders = self._election.observe(timeout=timeout)
        try:
            while (leader := self._run(_next(leaders))) is not _OVER:
                yield leader
        finally:
            self._start(leaders.aclose)


async def _next(leaders: AsyncGenerator[Record[V] | None, None]) -> Any:
    return await anext(leaders, _OVER)
