"""Membership of a group, answered by its leader; nothing of it stands in the log as a command."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from raftkv.commands.base import GroupCommand, GroupRead, Sender
from raftkv.commands.bounds import Count, Id


class Members(GroupRead, frozen=True, tag=50):
    """Who votes: a :class:`raftkv.commands.results.MembersReport`."""


class ChangeMembers(GroupCommand, frozen=True, tag=51):
    """Have these voters: one more than now, or one less."""

    voters: Annotated[tuple[Id, ...], Meta(min_length=1)]


class Transfer(GroupCommand, frozen=True, tag=52):
    """Have ``node`` lead the group."""

    node: Count

    @property
    def sender(self) -> Sender:
        return Sender.OPERATOR
