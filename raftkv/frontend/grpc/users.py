"""Users and roles as messages of the service Admin: what is asked, and what is answered."""

from __future__ import annotations

from ipaddress import IPv6Address, ip_address
from urllib.parse import unquote

from raftkv.commands.rights import Right, check_name
from raftkv.commands.users import (
    AddRole,
    AddUser,
    AssignRole,
    Bootstrap,
    GrantRights,
    RemoveRole,
    RemoveUser,
    SetPassword,
    SetToken,
    UserCommand,
)
from raftkv.errors import InvalidArgument
from raftkv.store.users import Users
from raftkv.v1 import admin_pb2
from shards.map import META_GROUP


def is_local(peer: str) -> bool:
    """Whether what gRPC calls ``peer`` is this machine, by a loopback address."""
    kind, _, rest = unquote(peer).partition(":")
    if kind not in ("ipv4", "ipv6"):
        return False
    try:
        address = ip_address(rest.rpartition(":")[0].strip("[]"))
    except ValueError:
        return False
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return (mapped or address).is_loopback


def first_user(request: admin_pb2.BootstrapRequest, token: bytes) -> Bootstrap:
    """Raises InvalidArgument for a name that is none."""
    return Bootstrap(META_GROUP, token, _name(request.name), request.digest)


def users_command(request: admin_pb2.ChangeUsersRequest, token: bytes) -> UserCommand:
    """The meta group's command. Raises InvalidArgument for a name that is none, or if nothing is asked for."""
    kind = request.WhichOneof("change")
    about = META_GROUP, token
    if kind == "add_user":
        user = request.add_user
        return AddUser(*about, _name(user.name), user.digest, tuple(_name(role) for role in user.roles))
    if kind == "remove_user":
        return RemoveUser(*about, _name(request.remove_user))
    if kind == "set_token":
        return SetToken(*about, _name(request.set_token.name), request.set_token.digest)
    if kind == "set_password":
        return SetPassword(*about, _name(request.set_password.name), request.set_password.password or None)
    if kind == "assign_role":
        change = request.assign_role
        return AssignRole(*about, _name(change.name), _name(change.role), change.assigned)
    if kind == "add_role":
        return AddRole(*about, _name(request.add_role))
    if kind == "remove_role":
        return RemoveRole(*about, _name(request.remove_role))
    if kind == "grant_rights":
        asked = request.grant_rights
        rights = sum(set(asked.grant.rights))
        return GrantRights(*about, _name(asked.role), rights, asked.grant.prefix, asked.granted)
    raise InvalidArgument("a change of users or roles is required")


def users_message(users: Users) -> admin_pb2.GetUsersResponse:
    """All users and roles, without what they prove themselves with."""
    answer = admin_pb2.GetUsersResponse(revision=users.revision)
    for user in users.users:
        answer.users.add(name=user.name, roles=user.roles, has_password=bool(user.password))
    for role in users.roles:
        message = answer.roles.add(name=role.name)
        for grant in role.grants:
            rights = [right.value for right in Right if right & grant.rights]
            message.grants.add(rights=[admin_pb2.Right.ValueType(right) for right in rights], prefix=grant.prefix)
    return answer


def _name(name: str) -> str:
    check_name(name)
    return name
