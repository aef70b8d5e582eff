"""The node's door: who comes in, what they may ask for, and what is noted of it.

What operations need, and whether their users may have it, is decided where they are taken (:mod:`raftkv.node.users`).
"""

from __future__ import annotations

import asyncio
import hmac
import secrets
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final, NoReturn, TypeVar, cast

from raftkv.api.credentials import digest_of, shown, verified
from raftkv.api.failures import error_of, overloaded
from raftkv.commands.results import Result
from raftkv.commands.rights import PASSWORD_BYTES, Right
from raftkv.errors import Code
from raftkv.frontend.port import Caller, Origin
from raftkv.node.audit import membership, place
from raftkv.node.users import STRANGER, UNKNOWN, denied, password_proof, token_proof

if TYPE_CHECKING:
    from collections.abc import Callable

    from raftkv.clock import Clock, Timer
    from raftkv.commands.base import Command
    from raftkv.node.audit import Audit
    from raftkv.node.users import UserCopy
    from raftkv.storage.fs import Worker
    from shards.map import ShardMap

T = TypeVar("T")

_MAX_CHECKS: Final = 16
"""Passwords that wait to be checked, one after the other, each for about 50 ms."""
_REMEMBERED: Final = 1024
"""Passwords that were right, and need no check again."""
_MAX_WAITING: Final = 256
"""Clients that are not known, and wait for the latest copy of the users."""
_LOOK: Final = 1.0
"""Seconds between looks for members that have changed, and for lines that were left out."""


class Access:
    """``known_map``: the node's copy of the shard map. ``worker`` checks passwords, ``reader`` reads the trail."""

    def __init__(
        self,
        users: UserCopy,
        audit: Audit,
        clock: Clock,
        *,
        worker: Worker,
        reader: Worker,
        known_map: Callable[[], ShardMap | None],
    ) -> None:
        self._users = users
        self._audit = audit
        self._clock = clock
        self._worker = worker
        self._reader = reader
        self._known_map = known_map
        self._map = known_map()
        self._checks = 0
        self._waiting = 0
        self._key = secrets.token_bytes(32)
        self._right: dict[bytes, None] = {}
        # As costly to check as any other, so that the time tells nobody who is a user.
        self._nobody = secrets.token_bytes(PASSWORD_BYTES)
        self._timer: Timer | None = None
        users.refused = self._on_refused

    def start(self) -> None:
        """Learn who the users are, and note changes of members, from now on."""
        self._users.start()
        self._look()

    def close(self) -> None:
        """Note nothing more."""
        if self._timer is not None:
            self._timer.cancel()
        self._audit.close()

    def _look(self) -> None:
        self._timer = self._clock.call_later(_LOOK, self._look)
        before, self._map = self._map, self._known_map()
        if before is not None and self._map is not None and self._map is not before:
            for action, arguments in membership(before, self._map):
                self._audit.write(action, "done", user=None, address=None, arguments=arguments)
        self._audit.sweep()

    # -- who comes in

    @property
    def closed(self) -> bool:
        return self._users.on

    async def enter(self, peer: str, authorization: str | None) -> Caller:
        found = None if authorization is None else shown(authorization)
        if found is None or (found.name and not self._users.on):
            proof = b""
        elif not found.name:
            proof = token_proof(digest_of(found.secret))
        else:
            proof = await self._password_proof(peer, found.name, found.secret)
        caller = Caller.at(peer, proof=proof)
        if self._users.on:
            permit = self._users.permit(caller)
            if permit is STRANGER:
                # Its user may be newer than what this node knows.
                permit = self._users.permit(caller) if await self._latest() else UNKNOWN
            if isinstance(permit, Result):
                self._refuse(caller, "enter", permit)
        return caller

    async def _password_proof(self, peer: str, name: str, password: str) -> bytes:
        kept = self._kept(name)
        if not await self._is_right(password, kept):
            # What is not right may be newer than what this node knows.
            latest = await self._latest()
            before, kept = kept, self._kept(name)
            if kept == before or not await self._is_right(password, kept):
                self._refuse(Caller(Origin(user=name), peer), "enter", STRANGER if latest else UNKNOWN)
        return password_proof(name, kept)

    async def _latest(self) -> bool:
        """Wait for a copy of the users of now. False if the node got none."""
        if self._waiting >= _MAX_WAITING:
            raise error_of(overloaded("too many clients with unknown tokens"))
        self._waiting += 1
        try:
            return await self._users.latest()
        finally:
            self._waiting -= 1

    def _kept(self, name: str) -> bytes:
        user = self._users.directory.named.get(name)
        return user.password if user is not None and user.password else self._nobody

    async def _is_right(self, password: str, kept: bytes) -> bool:
        known = hmac.digest(self._key, kept + password.encode("utf-8", "surrogateescape"), "sha256")
        if known in self._right:
            return True
        if self._checks >= _MAX_CHECKS:
            raise error_of(overloaded("too many passwords wait to be checked"))
        self._checks += 1
        right = await _done(self._worker, lambda: verified(password, kept), self._checked)
        if right:
            self._right[known] = None
            if len(self._right) > _REMEMBERED:
                del self._right[next(iter(self._right))]
        return right

    def _checked(self) -> None:
        self._checks -= 1

    # -- what they may ask for

    def check(self, caller: Caller, right: Right, action: str) -> None:
        if not self._users.on:
            return
        permit = self._users.permit(caller)
        if isinstance(permit, Result):
            self._refuse(caller, action, permit)
        elif not permit.allows(right, None):
            self._refuse(caller, action, denied(permit, right, action))

    # -- what is noted

    def note(self, caller: Caller, action: str, arguments: Mapping[str, Any], outcome: str) -> None:
        address = place(caller.peer)
        user = caller.origin.user
        # Strangers and those who may do nothing can ask as often as they like, also to join or to be the first user.
        refused = outcome in (Code.UNAUTHENTICATED.name, Code.PERMISSION_DENIED.name)
        bounded = refused or (not user and outcome != Code.OK.name)
        source = f"{user}@{address.rpartition(':')[0]}" if bounded else ""
        self._audit.write(action, outcome, source=source, user=user or None, address=address, arguments=dict(arguments))

    async def notes(self, lines: int) -> list[str]:
        return await _done(self._reader, lambda: self._audit.tail(lines))

    def _refuse(self, caller: Caller, action: str, result: Result) -> NoReturn:
        """Raises what ``result`` says."""
        if result.code != Code.UNAVAILABLE:
            self.note(caller, action, {}, Code(result.code).name)
        raise error_of(result)

    def _on_refused(self, caller: Caller, op: Command, result: Result) -> None:
        if result.code != Code.UNAVAILABLE:
            self.note(caller, op.name, _about(op), Code(result.code).name)


def _about(op: Command) -> dict[str, str]:
    """What the audit trail says of a refused command's keys."""
    named = {"start": op.span[0], "end": op.span[1]} if op.span else {"key": b" ".join(op.keys or ())}
    return {name: key[:256].decode(errors="backslashreplace") for name, key in named.items() if key}


async def _done(worker: Worker, work: Callable[[], T], ended: Callable[[], None] = lambda: None) -> T:
    """What ``work`` returns, done by ``worker``. ``ended`` is called when it is, even if nobody waits any more."""
    answer: asyncio.Future[T] = asyncio.get_running_loop().create_future()

    def done(result: T | None, problem: BaseException | None) -> None:
        ended()
        if answer.done():
            return
        if problem is not None:
            answer.set_exception(problem)
        else:
            answer.set_result(cast("T", result))

    worker.submit(work, done)
    return await answer
