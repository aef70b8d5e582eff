"""``raftkv-admin role list|add|remove|grant|revoke``."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

import click

from raftkv.cli.admin.common import ask, command, confirm, emit
from raftkv.cli.common import argument_bytes, checked, field
from raftkv.cli.console import Section
from raftkv.commands.rights import ALL, Right, check_name, parse_right, right_names
from raftkv.text import shown
from raftkv.v1 import admin_pb2

_NAME: Final = click.argument("name", callback=checked(check_name))
_RIGHTS: Final = click.argument("rights", type=click.Choice(right_names(ALL)), nargs=-1, required=True)
_PREFIX: Final = click.option(
    "--prefix", metavar="TEXT", help="For keys that begin with these bytes only: `a/` is not the beginning of `ab`."
)


@click.group("role")
def role_command() -> None:
    """What users may do: read, write, admin and backup, for all keys or for those with a prefix."""


@command(role_command, "list")
def list_all() -> None:
    """List all roles and what they allow.

    \b
    Example:
      raftkv-admin role list
    """
    found = ask(lambda client: client.users())
    emit({"roles": [_report(role) for role in found.roles]}, _show)


def _report(role: admin_pb2.RoleInfo) -> dict[str, Any]:
    grants = []
    for grant in role.grants:
        rights = [name for right in grant.rights for name in right_names(Right(right))]
        grants.append({"rights": rights, **field("prefix", grant.prefix)})
    return {"role": role.name, "grants": grants}


def _show(report: dict[str, Any]) -> Iterator[Section | str]:
    rows: list[tuple[str, str, str]] = []
    for role in report["roles"]:
        for grant in role["grants"] or [{"rights": [], "prefix": ""}]:
            prefix = grant["prefix"] if "prefix" in grant else f"{grant['prefix_b64']} (base64)"
            rows.append(
                (role["role"], ", ".join(grant["rights"]) or "-", prefix or ("all" if grant["rights"] else "-"))
            )
    if rows:
        yield Section("", ("role", "rights", "keys"), rows)
    else:
        yield "there are no roles"


@command(role_command, "add")
@_NAME
def add(name: str) -> None:
    """Make a role, which allows nothing yet.

    \b
    Example:
      raftkv-admin role add orders
    """
    ask(lambda client: client.change_users(admin_pb2.ChangeUsersRequest(add_role=name)))
    emit({"role": name}, lambda _: [f"role {name} is made: `raftkv-admin role grant {name} read` lets it read"])


@command(role_command, "remove", confirms=True)
@_NAME
def remove(name: str) -> None:
    """Remove a role; its users lose it.

    \b
    Example:
      raftkv-admin role remove orders
    """
    confirm(f"Remove the role {name}, also from its users?")
    ask(lambda client: client.change_users(admin_pb2.ChangeUsersRequest(remove_role=name)))
    emit({"role": name}, lambda _: [f"role {name} is removed"])


@command(role_command, "grant")
@_NAME
@_RIGHTS
@_PREFIX
def grant(name: str, rights: tuple[str, ...], prefix: str | None) -> None:
    """Let a role do more: read, write, admin, backup. The latter two are about all keys.

    \b
    Example:
      raftkv-admin role grant orders read write --prefix orders/
    """
    _grant(name, rights, prefix, granted=True)


@command(role_command, "revoke")
@_NAME
@_RIGHTS
@_PREFIX
def revoke(name: str, rights: tuple[str, ...], prefix: str | None) -> None:
    """Take rights from a role that were granted with just this prefix, or without one.

    \b
    Example:
      raftkv-admin role revoke orders write --prefix orders/
    """
    _grant(name, rights, prefix, granted=False)


def _grant(name: str, rights: tuple[str, ...], prefix: str | None, *, granted: bool) -> None:
    wanted = [admin_pb2.Right.ValueType(parse_right(right)) for right in rights]
    keys = b"" if prefix is None else argument_bytes(prefix)
    change = admin_pb2.GrantRights(role=name, grant=admin_pb2.Grant(rights=wanted, prefix=keys), granted=granted)
    ask(lambda client: client.change_users(admin_pb2.ChangeUsersRequest(grant_rights=change)))
    text = f"role {name} {'has' if granted else 'has no longer'} the right to {', '.join(rights)}: {_keys(keys)}"
    emit({"role": name, "rights": list(rights), **field("prefix", keys)}, lambda _: [text])


def _keys(prefix: bytes) -> str:
    return f"keys with the prefix {shown(prefix)}" if prefix else "all keys"
