"""Commands of the meta group about users and their roles."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from msgspec import Meta

from raftkv import limits
from raftkv.commands.base import GroupCommand, GroupRead, Sender
from raftkv.commands.bounds import Count
from raftkv.commands.results import Result
from raftkv.commands.rights import ALL, MAX_ROLES_OF_USER, Digest, Name, Password, Right

if TYPE_CHECKING:
    from raftkv.store.meta import MetaStore
    from raftkv.store.users import Users

_Prefix = Annotated[bytes, Meta(max_length=limits.MAX_KEY_BYTES)]
_Rights = Annotated[int, Meta(ge=1, le=int(ALL))]


class UserCommand(GroupCommand, frozen=True):
    """Another state of users and roles. ``token``: a repeated one gets the first answer again."""

    token: Annotated[bytes, Meta(min_length=16, max_length=16)]

    @property
    def sender(self) -> Sender:
        return Sender.OPERATOR

    def change(self, users: Users) -> Users:
        """What it makes of ``users``. Raises ConditionFailed with the reason if it must not be done."""
        raise NotImplementedError

    def apply_meta(self, meta: MetaStore) -> Result:
        return meta.change_users(self)


class Bootstrap(UserCommand, frozen=True, tag=80):
    """The first user, who may do everything. From then on nobody is served who is not a user."""

    user: Name
    digest: Digest

    @property
    def needs(self) -> Right | None:
        return None

    def change(self, users: Users) -> Users:
        return users.with_first(self.user, self.digest)


class AddUser(UserCommand, frozen=True, tag=81):
    """``digest``: SHA-256 of the user's token."""

    user: Name
    digest: Digest
    roles: Annotated[tuple[Name, ...], Meta(max_length=MAX_ROLES_OF_USER)]

    def change(self, users: Users) -> Users:
        return users.with_user(self.user, self.digest, self.roles)


class RemoveUser(UserCommand, frozen=True, tag=82):
    """The user's token and password are worth nothing from then on."""

    user: Name

    def change(self, users: Users) -> Users:
        return users.without_user(self.user)


class SetToken(UserCommand, frozen=True, tag=83):
    """Another token in the place of the user's; ``digest``: its SHA-256."""

    user: Name
    digest: Digest

    def change(self, users: Users) -> Users:
        return users.with_token(self.user, self.digest)


class SetPassword(UserCommand, frozen=True, tag=84):
    """``password``: salt and scrypt's result; None: the user has none any more."""

    user: Name
    password: Password | None

    def change(self, users: Users) -> Users:
        return users.with_password(self.user, self.password or b"")


class AssignRole(UserCommand, frozen=True, tag=85):
    """A further role of a user, or one less."""

    user: Name
    role: Name
    assigned: bool

    def change(self, users: Users) -> Users:
        return users.with_role_of(self.user, self.role, assigned=self.assigned)


class AddRole(UserCommand, frozen=True, tag=86):
    """A role that allows nothing yet."""

    role: Name

    def change(self, users: Users) -> Users:
        return users.with_role(self.role)


class RemoveRole(UserCommand, frozen=True, tag=87):
    """Its users lose it."""

    role: Name

    def change(self, users: Users) -> Users:
        return users.without_role(self.role)


class GrantRights(UserCommand, frozen=True, tag=88):
    """A role allows ``rights`` for keys that begin with ``prefix``, or does so no more (``granted``)."""

    role: Name
    rights: _Rights
    prefix: _Prefix
    granted: bool

    def change(self, users: Users) -> Users:
        return users.with_grant(self.role, Right(self.rights), self.prefix, granted=self.granted)


class ReadUsers(GroupRead, frozen=True, tag=90):
    """All users and roles: a :class:`raftkv.commands.results.UsersReport`. ``revision``: of those that are known."""

    revision: Count

    @property
    def sender(self) -> Sender:
        return Sender.OPERATOR
