"""What can be done to a cluster, simulated or real, and what shows that it was done: the port of nemeses and runs.

A host is a node (``n3``) or a client (``c1``). A way leads from one host to another: what the first says to the second.
Whatever shows that something took effect is a text for people, empty as long as nothing shows it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, Protocol, TypeVar

from raftkv import AsyncClient

T = TypeVar("T")
Way = tuple[str, str]

How = Literal["black hole", "reset", "lost answers"]
"""Of a cut: bytes vanish and connections stay; connections break too; they break when answers were lost on them."""

CUTS: Final[tuple[How, ...]] = ("black hole", "reset")


def host(node: int) -> str:
    """A node as an end of ways."""
    return f"n{node}"


def node_at(end: str) -> int:
    """The node at that end of a way, 0 if it is a client."""
    return int(end[1:]) if end[0] == "n" else 0


def names(nodes: Iterable[int]) -> str:
    return ", ".join(map(host, nodes))


@dataclass(frozen=True, slots=True)
class Effect:
    """Something that was done. ``proof``: what shows that it took effect. ``undo``: end it."""

    proof: Callable[[], str | Awaitable[str]]
    undo: Callable[[], Awaitable[object] | None] = lambda: None

    async def shown(self) -> str:
        """The proof as it is now."""
        said = self.proof()
        return said if isinstance(said, str) else await said

    async def end(self) -> None:
        """Undo it."""
        ending = self.undo()
        if ending is not None:
            await ending


class Driver(Protocol):
    """A cluster and its clients. What cannot be done just now returns None in the place of an effect."""

    @property
    def clients(self) -> Sequence[str]:
        """Names of those that can be cut off."""

    # -- who is there

    @property
    def nodes(self) -> list[int]:
        """Members that faults may meet, whether they run or not."""

    @property
    def alive(self) -> list[int]:
        """Those of them whose processes exist, paused or not."""

    def leaders(self) -> Mapping[int, int]:
        """Group -> the node that leads it, as far as anybody knows."""

    def voters(self, group: int) -> Sequence[int]: ...

    async def unsettled(self) -> str:
        """Why the cluster is not whole with all replicas of each group equal, as it is now; or nothing."""

    # -- processes

    async def kill(self, nodes: Sequence[int]) -> Effect | None:
        """kill -9, until they are started again."""

    async def stop(self, node: int) -> Effect | None:
        """SIGTERM, until it is started again. Returns when it has ended."""

    async def pause(self, nodes: Sequence[int]) -> Effect | None:
        """SIGSTOP."""

    async def wipe(self, node: int) -> None:
        """kill -9, and its disk is gone."""

    # -- links and disks

    async def cut(self, ways: Sequence[Way], how: How) -> Effect | None:
        """Nothing comes through on these ways."""

    async def slow_disk(self, node: int, seconds: float) -> Effect | None:
        """What is to be durable takes so much longer."""

    async def fill_disk(self, node: int) -> Effect | None:
        """No room is left, or nearly none."""

    async def heal(self) -> None:
        """Undo everything; whoever may run runs."""

    # -- clients

    def client(self, name: str, timeout: float) -> AsyncClient:
        """A client at a host of that name. ``timeout`` in seconds."""

    def spawn(self, name: str, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Let a client work."""
