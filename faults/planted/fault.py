"""What a planted fault is, and how it is put in the place of what the product does."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any
from unittest import mock

from faults.sim import profiles
from faults.sim.storm import Storm
from raftkv.peer.links import Links
from raftkv.raft.group import RaftGroup
from raftkv.raft.messages import check

Patch = tuple[Any, str, Any]
"""Where, the public name that is replaced, and what takes its place."""


@dataclass(frozen=True, slots=True)
class PlantedFault:
    """``guards``: the hazard of docs/adapter.md, or the promise. ``safeguard``: what is switched off. ``noticed_as``:
    the checks that may notice it, as problems begin. ``faults``: what its storms consist of, and the usual seconds
    between two of a kind. ``profile``: what else makes it likely to matter. ``trouble``:
    patches that do no harm while the safeguard holds, so that they are in place in both runs. ``first``: the seed with
    which a search begins, one that has noticed the fault; any other may do, as the product changes.
    """

    name: str
    guards: str
    safeguard: str
    noticed_as: tuple[str, ...]
    patches: tuple[Patch, ...]
    faults: Mapping[str, float]
    profile: Callable[[Storm], Storm] = profiles.busy
    trouble: tuple[Patch, ...] = ()
    first: int = 1

    def storm(self, seed: int) -> Storm:
        """The storm of ``seed`` in this fault's profile; leaders on several nodes give most faults more to meet."""
        storm = replace(Storm.draw(seed), faults=dict(self.faults), gentle=False, wild=False)
        return self.profile(replace(storm, settings=replace(storm.settings, one_machine=False)))

    @contextlib.contextmanager
    def in_place(self, *, planted: bool = True) -> Iterator[None]:
        """The product with the fault in it, or only with the trouble that it should bear."""
        with contextlib.ExitStack() as stack:
            for target, name, value in (*self.trouble, *(self.patches if planted else ())):
                stack.enter_context(mock.patch.object(target, name, value))
            yield

    def row(self) -> tuple[str, str, str, str]:
        """Of the table in docs/simulation.md."""
        return self.name, self.guards, self.safeguard, ", ".join(self.noticed_as)

    def notices(self, problem: str) -> bool:
        """Whether ``problem`` is what this fault should show as."""
        return kind_of(problem) in self.noticed_as


def kind_of(problem: str) -> str:
    """Which check speaks: how its problems begin."""
    kind = problem.split(":", maxsplit=1)[0]
    return "history" if kind.startswith("history of") else "exception" if " at " in kind else kind


_receive = RaftGroup.receive
_send = Links.send

MessageIn = Callable[[RaftGroup, int, list[Any]], tuple[int, list[Any]]]
"""From a replica, a peer and its message to the peer and the message that the replica gets instead. Fields follow the
group and the type, in the order of :class:`raftkv.raft.messages.Type`."""


def messages_in(change: MessageIn) -> Patch:
    """Replicas get other messages than those that came."""

    def receive(group: RaftGroup, peer: int, message: list[Any]) -> bool:
        if check(message):
            peer, message = change(group, peer, message)
        return _receive(group, peer, message)

    return RaftGroup, "receive", receive


def messages_out(change: Callable[[Links, list[Any]], list[Any]]) -> Patch:
    """Other messages leave a node than its replicas have said."""

    def send(links: Links, node: int, message: list[Any]) -> None:
        _send(links, node, change(links, message) if isinstance(message[0], int) else message)

    return Links, "send", send
