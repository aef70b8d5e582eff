"""Commands of the meta group."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Final

from msgspec import Meta

from raftkv.commands.base import Command, GroupCommand, GroupRead, Sender
from raftkv.commands.results import Result
from raftkv.commands.rights import Right

if TYPE_CHECKING:
    from raftkv.store.meta import MetaStore


OPERATORS_VERBS: Final = frozenset(
    {
        "plan",
        "cancel",
        "pause",
        "tune",
        "add group",
        "remove group",
        "want",
        "spread leaders",
        "add join token",
        "add node",
        "drain",
        "undrain",
        "remove node",
    }
)
"""What operators change; the other verbs are steps that nodes take."""


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

    @property
    def sender(self) -> Sender:
        return Sender.OPERATOR if self.verb in OPERATORS_VERBS else Sender.NODE

    @property
    def needs(self) -> Right | None:
        # Who joins is no user: it has a token for that.
        return None if self.verb == "add node" else Right.ADMIN

    def size(self) -> int:
        return len(self.arguments)

    def apply_meta(self, meta: MetaStore) -> Result:
        return meta.change(self)


class ConfirmMap(GroupRead, frozen=True, tag=23):
    """Whether the map with this digest is in effect: a :class:`raftkv.commands.results.MapReport`."""

    digest: Annotated[bytes, Meta(max_length=16)]


class ReadCluster(GroupRead, frozen=True, tag=22):
    """The whole state: a :class:`raftkv.commands.results.ClusterReport`."""

    @property
    def sender(self) -> Sender:
        return Sender.OPERATOR

    @property
    def needs(self) -> Right | None:
        return Right.NONE
