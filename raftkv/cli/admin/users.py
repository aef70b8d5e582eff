"""``raftkv-admin user bootstrap|list|add|remove|rotate|passwd|grant|revoke``."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any, Final

import click

from raftkv.api.credentials import MAX_CREDENTIALS, digest_of, hashed, new_token
from raftkv.cli.admin.common import ask, command, complain, confirm, emit
from raftkv.cli.common import checked
from raftkv.cli.console import Section
from raftkv.commands.rights import check_name
from raftkv.v1 import admin_pb2

_NAME: Final = click.argument("name", callback=checked(check_name))
_ROLE: Final = click.argument("role", callback=checked(check_name))
_SHOWN_ONCE: Final = "the token is shown this once: only its hash is kept"


@click.group("user")
def user_command() -> None:
    """Who may use the cluster. Until the first user is made, everybody may do everything."""


@command(user_command, "bootstrap")
@click.argument("name", default="admin", callback=checked(check_name))
def bootstrap(name: str) -> None:
    """Make the first user, NAME, who may do everything. From then on nobody is served who is not a user.

    It must be asked of a node on this machine, over a loopback address. Exits with 4 if there are users.

    \b
    Example:
      raftkv-admin user bootstrap --endpoints 127.0.0.1:7401
    """
    token = new_token()
    ask(lambda client: client.bootstrap(name, digest_of(token)))
    _tell(name, token)


@command(user_command, "list")
def list_all() -> None:
    """List all users and their roles.

    \b
    Example:
      raftkv-admin user list
    """
    found = ask(lambda client: client.users())
    users = [{"user": u.name, "roles": list(u.roles), "password": u.has_password} for u in found.users]
    emit({"users": users}, _show)


def _show(report: dict[str, Any]) -> Iterator[Section | str]:
    rows = [
        (user["user"], ", ".join(user["roles"]) or "-", "yes" if user["password"] else "no") for user in report["users"]
    ]
    if rows:
        yield Section("", ("user", "roles", "password"), rows)
    else:
        yield "there are no users: everybody may do everything"


@command(user_command, "add")
@_NAME
@click.option("--role", "roles", multiple=True, metavar="ROLE", help="A role of the user; may be given again.")
def add(name: str, roles: tuple[str, ...]) -> None:
    """Make a user, and show its token.

    \b
    Example:
      raftkv-admin user add app --role orders
    """
    token = new_token()
    user = admin_pb2.AddUser(name=name, digest=digest_of(token), roles=roles)
    ask(lambda client: client.change_users(admin_pb2.ChangeUsersRequest(add_user=user)))
    _tell(name, token)


@command(user_command, "remove", confirms=True)
@_NAME
def remove(name: str) -> None:
    """Remove a user. Within a second, also on connections that are open, it may do nothing any more.

    \b
    Example:
      raftkv-admin user remove app
    """
    confirm(f"Remove the user {name}?")
    ask(lambda client: client.change_users(admin_pb2.ChangeUsersRequest(remove_user=name)))
    emit({"user": name}, lambda _: [f"user {name} is removed"])


@command(user_command, "rotate", confirms=True)
@_NAME
def rotate(name: str) -> None:
    """Give a user another token, and show it. Within a second the old one is worth nothing.

    \b
    Example:
      raftkv-admin user rotate app
    """
    confirm(f"Give the user {name} another token, and make the present one worthless?")
    token = new_token()
    change = admin_pb2.SetToken(name=name, digest=digest_of(token))
    ask(lambda client: client.change_users(admin_pb2.ChangeUsersRequest(set_token=change)))
    _tell(name, token)


@command(user_command, "passwd")
@_NAME
@click.option("--remove", "without", is_flag=True, help="The user has no password any more.")
def passwd(name: str, without: bool) -> None:
    """Give a user a password beside its token. It is asked for, or read from stdin.

    \b
    Example:
      raftkv-admin user passwd alice
    """
    kept = b"" if without else hashed(_password(name))
    change = admin_pb2.SetPassword(name=name, password=kept)
    ask(lambda client: client.change_users(admin_pb2.ChangeUsersRequest(set_password=change)))
    text = f"user {name} has no password" if without else f"user {name} has a new password"
    emit({"user": name, "password": not without}, lambda _: [text])


def _password(name: str) -> str:
    if sys.stdin.isatty():
        password: str = click.prompt(f"Password of {name}", hide_input=True, confirmation_prompt=True, err=True)
    else:
        password = sys.stdin.readline().rstrip("\n")
    if not password or len(name) + len(password) >= MAX_CREDENTIALS:
        raise click.UsageError(f"a password of {len(password)} characters: it has 1 to some {MAX_CREDENTIALS - 100}")
    return password


@command(user_command, "grant")
@_NAME
@_ROLE
def grant(name: str, role: str) -> None:
    """Give a user a further role.

    \b
    Example:
      raftkv-admin user grant app orders
    """
    _assign(name, role, assigned=True)
    emit({"user": name, "role": role}, lambda _: [f"user {name} has the role {role}"])


@command(user_command, "revoke")
@_NAME
@_ROLE
def revoke(name: str, role: str) -> None:
    """Take a role from a user.

    \b
    Example:
      raftkv-admin user revoke app orders
    """
    _assign(name, role, assigned=False)
    emit({"user": name, "role": role}, lambda _: [f"user {name} does not have the role {role}"])


def _assign(name: str, role: str, *, assigned: bool) -> None:
    change = admin_pb2.AssignRole(name=name, role=role, assigned=assigned)
    ask(lambda client: client.change_users(admin_pb2.ChangeUsersRequest(assign_role=change)))


def _tell(name: str, token: str) -> None:
    emit({"user": name, "token": token}, lambda _: [f"user   {name}", f"token  {token}"])
    complain(_SHOWN_ONCE)
