"""Housekeeping of a group, proposed by its leader; and the check of its replicas."""

from __future__ import annotations

from typing import TYPE_CHECKING

from raftkv.commands.base import Command, GroupCommand, Sender
from raftkv.commands.bounds import Id, SlotNumber
from raftkv.commands.results import DONE, Result

if TYPE_CHECKING:
    from raftkv.store.meta import MetaStore
    from raftkv.store.records import Store


class Tick(Command, frozen=True, tag=10):
    """Time passes: what has expired is removed."""

    def apply(self, store: Store) -> Result:
        return DONE

    def apply_meta(self, meta: MetaStore) -> Result:
        return DONE


class Genesis(Command, frozen=True, tag=11):
    """The first slots of a data group."""

    slots: tuple[SlotNumber, ...]

    def apply(self, store: Store) -> Result:
        return store.begin(self.slots)


class Check(GroupCommand, frozen=True, tag=45):
    """Every replica computes its digest as of this entry. ``check``: names it."""

    check: Id

    @property
    def sender(self) -> Sender:
        return Sender.OPERATOR

    def apply(self, store: Store) -> Result:
        return store.check(self.check)
