"""Commands of the meta group."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar

from msgspec import Meta

from raftkv.commands.base import Command, GroupCommand, GroupRead
from raftkv.commands.results import Result
from raftkv.commands.rights import Right

if TYPE_CHECKING:
    from raftkv.store.meta import MetaStore


class FormCluster(Command, frozen=True, tag=20):
    """The first shard map, encoded."""

    map: bytes

    def apply_meta(self, meta: MetaStore) -> Result:
        return meta.form(self.map)


class ChangeCluster(GroupCommand, frozen=True, tag=21):
    """Change the cluster, as :mod:`raftkv.store.meta_commands` has it; ``arguments``: of the verb, encoded.

    ``token``: a repeated one gets the first answer again.
    """

    token: Annotated[bytes, Meta(min_length=16, max_length=16)]
    verb: Annotated[str, Meta(min_length=1, max_length=40)]
    arguments: bytes

    def size(self) -> int:
        return len(self.arguments)

    def apply_meta(self, meta: MetaStore) -> Result:
        return meta.change(self)


class ReadCluster(GroupRead, frozen=True, tag=22):
    """The whole state: a :class:`raftkv.commands.results.ClusterReport`."""

    needs: ClassVar[Right | None] = Right.NONE
