"""Users, their roles, and what these allow: immutable values, replaced as a whole by every change."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import reduce
from operator import or_
from typing import Final, TypeVar

from msgspec import Struct
from msgspec.msgpack import Decoder, Encoder
from msgspec.structs import replace

from raftkv.commands.bounds import behind
from raftkv.commands.rights import ALL, DATA, MAX_GRANTS, MAX_ROLES, MAX_ROLES_OF_USER, MAX_USERS, Right
from raftkv.errors import ConditionFailed

_FIRST_ROLE: Final = "admin"


class Grant(Struct, frozen=True, array_like=True, order=True):
    """``rights`` for the keys that begin with the bytes ``prefix``; without a prefix, for everything."""

    prefix: bytes
    rights: int


class Role(Struct, frozen=True, array_like=True):
    """``grants``: one for each prefix, in its order."""

    name: str
    grants: tuple[Grant, ...] = ()


class User(Struct, frozen=True, array_like=True):
    """``digest``: SHA-256 of the token. ``password``: salt and scrypt's result, empty if there is none."""

    name: str
    digest: bytes
    roles: tuple[str, ...] = ()
    password: bytes = b""


class Permit(Struct, frozen=True, gc=False):
    """What a user may do. ``everywhere``: rights that do not depend on keys. ``read``, ``write``: prefixes of the keys
    that may be read and written besides."""

    name: str
    everywhere: Right
    read: tuple[bytes, ...]
    write: tuple[bytes, ...]

    def within(self, needs: Right) -> tuple[tuple[bytes, ...], ...] | None:
        """For what ``needs`` these rights: keys must begin with one prefix of each of these; None = it is denied."""
        missing = needs & ~self.everywhere
        if not missing:
            return ()
        if missing & ~DATA:
            return None
        return tuple(of for right, of in ((Right.READ, self.read), (Right.WRITE, self.write)) if missing & right)

    def allows(self, needs: Right, keys: tuple[bytes, ...] | None, span: tuple[bytes, bytes] | None = None) -> bool:
        """Whether it may be done: to ``keys``; if they are None, to those of ``span``, as a command has it; if that is
        None too, to any keys."""
        prefixes = self.within(needs)
        return prefixes is not None and begin_so(prefixes, keys, span)


def begin_so(
    prefixes: tuple[tuple[bytes, ...], ...], keys: tuple[bytes, ...] | None, span: tuple[bytes, bytes] | None
) -> bool:
    """Whether all ``keys``, or if they are None those of ``span``, begin with one of each of the ``prefixes``."""
    for some in prefixes:
        if keys is not None:
            for key in keys:
                if not key.startswith(some):
                    return False
        elif span is None or not any(_covers(prefix, *span) for prefix in some):
            return False
    return True


T = TypeVar("T", User, Role)


class Users(Struct, frozen=True, array_like=True):
    """All users and roles, by their names. ``revision`` rises with every change; 0: there never was a user.

    Every change is a method that returns another value, and raises ConditionFailed with the reason if it must not be
    done. There is always a user who may administer the cluster once there was one.
    """

    revision: int = 0
    users: tuple[User, ...] = ()
    roles: tuple[Role, ...] = ()

    def user(self, name: str) -> User:
        """Raises ConditionFailed if there is none of that name."""
        return _named(self.users, name, "user")

    def role(self, name: str) -> Role:
        """Raises ConditionFailed if there is none of that name."""
        return _named(self.roles, name, "role")

    def permit(self, user: User) -> Permit:
        """What ``user`` may do, by all roles together."""
        grants = [grant for role in self.roles if role.name in user.roles for grant in role.grants]
        everywhere = Right(reduce(or_, (grant.rights for grant in grants if not grant.prefix), 0))
        return Permit(user.name, everywhere, *(_prefixes(grants, right) for right in (Right.READ, Right.WRITE)))

    def with_first(self, name: str, digest: bytes) -> Users:
        """The first user of all, who may do everything."""
        if self.revision:
            raise ConditionFailed("there are users already: one of them who has the right admin makes others")
        everything = Role(_FIRST_ROLE, (Grant(b"", int(ALL)),))
        return Users(1, (User(name, digest, (_FIRST_ROLE,)),), (everything,))

    def with_user(self, name: str, digest: bytes, roles: Iterable[str]) -> Users:
        """Another user."""
        self._check_begun()
        if any(user.name == name for user in self.users):
            raise ConditionFailed(f"there is a user {name} already")
        if len(self.users) >= MAX_USERS:
            raise ConditionFailed(f"there are {MAX_USERS} users already")
        wanted = tuple(sorted(set(roles)))
        for role in wanted:
            self.role(role)
        return self._next(users=(*self.users, self._fresh(User(name, digest, wanted))))

    def without_user(self, name: str) -> Users:
        """Without this user."""
        self.user(name)
        return self._next(users=(user for user in self.users if user.name != name))

    def with_token(self, name: str, digest: bytes) -> Users:
        """With another token of this user."""
        return self._with(self._fresh(replace(self.user(name), digest=digest)))

    def with_password(self, name: str, password: bytes) -> Users:
        """With another password of this user; empty: with none."""
        return self._with(replace(self.user(name), password=password))

    def with_role_of(self, name: str, role: str, *, assigned: bool) -> Users:
        """With ``role`` among the user's, or without it."""
        user = self.user(name)
        self.role(role)
        roles = {*user.roles, role} if assigned else set(user.roles) - {role}
        if len(roles) > MAX_ROLES_OF_USER:
            raise ConditionFailed(f"user {name} has {MAX_ROLES_OF_USER} roles already")
        return self._with(replace(user, roles=tuple(sorted(roles))))

    def with_role(self, name: str) -> Users:
        """Another role, which allows nothing."""
        self._check_begun()
        if any(role.name == name for role in self.roles):
            raise ConditionFailed(f"there is a role {name} already")
        if len(self.roles) >= MAX_ROLES:
            raise ConditionFailed(f"there are {MAX_ROLES} roles already")
        return self._next(roles=(*self.roles, Role(name)))

    def without_role(self, name: str) -> Users:
        """Without this role."""
        self.role(name)
        users = (replace(user, roles=tuple(one for one in user.roles if one != name)) for user in self.users)
        return self._next(users=users, roles=(role for role in self.roles if role.name != name))

    def with_grant(self, name: str, rights: Right, prefix: bytes, *, granted: bool) -> Users:
        """The role allows ``rights`` for keys with this prefix too, or does so no more."""
        role = self.role(name)
        if prefix and rights & ~DATA:
            raise ConditionFailed("the rights admin and backup are about all keys: they have no prefix")
        grants = {grant.prefix: grant.rights for grant in role.grants}
        before = grants.pop(prefix, 0)
        if not granted and rights & ~before:
            raise ConditionFailed(f"role {name} does not have all of these rights for just that prefix")
        if after := before | rights if granted else before & ~rights:
            grants[prefix] = after
        if len(grants) > MAX_GRANTS:
            raise ConditionFailed(f"role {name} has rights for {MAX_GRANTS} prefixes already")
        changed = Role(name, tuple(sorted(Grant(prefix, int(some)) for prefix, some in grants.items())))
        return self._next(roles=(changed if one.name == name else one for one in self.roles))

    def _check_begun(self) -> None:
        if not self.revision:
            raise ConditionFailed("there are no users yet: `raftkv-admin user bootstrap` makes the first one")

    def _fresh(self, user: User) -> User:
        """``user``, if nobody else has the token."""
        if any(one.digest == user.digest for one in self.users):
            raise ConditionFailed("this token is in use")
        return user

    def _with(self, changed: User) -> Users:
        return self._next(users=(changed if user.name == changed.name else user for user in self.users))

    def _next(self, users: Iterable[User] | None = None, roles: Iterable[Role] | None = None) -> Users:
        changed = Users(
            self.revision + 1,
            self.users if users is None else tuple(sorted(users, key=_name)),
            self.roles if roles is None else tuple(sorted(roles, key=_name)),
        )
        admins = {role.name for role in changed.roles if any(grant.rights & Right.ADMIN for grant in role.grants)}
        if all(admins.isdisjoint(user.roles) for user in changed.users):
            raise ConditionFailed("then no user could administer the cluster any more")
        return changed


NO_USERS: Final = Users()

_encoder: Final = Encoder()
_decoder: Final = Decoder(Users)
encode: Final[Callable[[Users], bytes]] = _encoder.encode
decode: Final[Callable[[bytes], Users]] = _decoder.decode
"""Raises ValueError for anything but what ``encode`` has made."""


def _name(one: User | Role) -> str:
    return one.name


def _named(known: tuple[T, ...], name: str, what: str) -> T:
    for one in known:
        if one.name == name:
            return one
    raise ConditionFailed(f"there is no {what} {name}")


def _covers(prefix: bytes, start: bytes, end: bytes) -> bool:
    """Whether all keys from ``start`` to before ``end``, empty = no bound, begin with ``prefix``."""
    return start.startswith(prefix) and (end == behind(prefix) or end.startswith(prefix))


def _prefixes(grants: Iterable[Grant], right: Right) -> tuple[bytes, ...]:
    """The shortest ones that say all: what begins with another one is left out."""
    found: list[bytes] = []
    for prefix in sorted(grant.prefix for grant in grants if grant.rights & right):
        if not found or not prefix.startswith(found[-1]):
            found.append(prefix)
    return tuple(found)
