"""This node's copy of the cluster's users: who they are, and what they may do.

The copy is asked for anew five times a second. The meta group's leader answers while its lease holds, so an answer is
true as of some moment after the question: that moment is what counts, and for how long ago it was.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Final

from raftkv.commands.base import Sender, SlotCommand
from raftkv.commands.results import Result, UsersReport
from raftkv.commands.rights import DATA, Right, right_names
from raftkv.commands.users import ReadUsers
from raftkv.errors import Code
from raftkv.store.users import NO_USERS, Permit, User, Users, begin_so, decode
from shards.map import META_GROUP

if TYPE_CHECKING:
    from raftkv.clock import Clock, Timer
    from raftkv.commands.base import Command
    from raftkv.frontend.port import Caller, Submit

log = logging.getLogger(__name__)

_PERIOD: Final = 0.2
"""Seconds between questions."""
_PATIENCE: Final = 1.0
"""Seconds for an answer."""
_FRESH: Final = 3.0
"""Seconds for which somebody who is not known waits for the latest copy at most."""

UNKNOWN: Final = Result(Code.UNAVAILABLE, detail="the node has not heard for too long who the cluster's users are")
NOBODY: Final = Result(Code.UNAUTHENTICATED, detail="the cluster has users: a token is needed, and there is none")
STRANGER: Final = Result(Code.UNAUTHENTICATED, detail="this is the token or password of no user")
_BEHIND: Final = Result(Code.UNAVAILABLE, detail="the group's leader does not know the latest users yet")


def token_proof(digest: bytes) -> bytes:
    """What shows that somebody has the token with this SHA-256."""
    return b"t" + digest


def password_proof(name: str, password: bytes) -> bytes:
    """What shows that somebody knows the password of ``name`` that is kept as ``password``."""
    return b"p" + password + name.encode()


class Directory:
    """The users of one revision, found by what they show."""

    def __init__(self, users: Users) -> None:
        self.users = users
        self.named = {user.name: user for user in users.users}
        self._proofs: dict[bytes, User] = {}
        for user in users.users:
            self._proofs[token_proof(user.digest)] = user
            if user.password:
                self._proofs[password_proof(user.name, user.password)] = user
        self._permits: dict[str, Permit] = {}

    def shown(self, proof: bytes) -> Permit | None:
        """What the user may do whose ``proof`` this is."""
        user = self._proofs.get(proof)
        return None if user is None else self.permit(user.name)

    def permit(self, name: str) -> Permit | None:
        """What the user ``name`` may do."""
        found = self._permits.get(name)
        if found is None and name in self.named:
            found = self._permits[name] = self.users.permit(self.named[name])
        return found


class UserCopy:
    """``grace``: seconds after which a copy that was not confirmed is of no use. ``known``: this node has heard of
    users in an earlier life; ``heard`` notes it for later ones, and says whether it could.
    """

    def __init__(self, submit: Submit, clock: Clock, grace: float, known: bool, heard: Callable[[], bool]) -> None:
        self._submit = submit
        self._clock = clock
        self._heard = heard
        self.grace = grace
        self.on = self._noted = known
        """Whether the cluster has users, as far as this node knows. That it has some never ends."""
        self.directory = Directory(NO_USERS)
        self.refused: Callable[[Caller, Command, Result], None] = lambda *_: None
        """Hears of operations that are refused, of the first one of a message; also of those that another node passes
        on, which should have refused them."""
        self._timer: Timer | None = None
        self._asked: float | None = None
        self._confirmed = float("-inf")
        self._stale = True
        self._waiting: list[tuple[float, asyncio.Future[bool]]] = []

    @property
    def revision(self) -> int:
        """Of the copy; 0: there are no users."""
        return self.directory.users.revision

    # -- how it is kept up to date

    def start(self) -> None:
        """Ask from now on."""
        self._look()

    def close(self) -> None:
        """Ask no more."""
        if self._timer is not None:
            self._timer.cancel()

    def _look(self) -> None:
        self._timer = self._clock.call_later(_PERIOD, self._look)
        now = self._clock.now()
        self._waiting = [(since, one) for since, one in self._waiting if not one.done()]
        if not self._stale and now - self._confirmed > self.grace:
            self._stale = True
            if self.on:
                log.warning("users are refused: the meta group's leader has not said for %g s who they are", self.grace)
        if self._asked is None:
            self._ask(now)

    def _ask(self, now: float) -> None:
        self._asked = now
        self._submit((ReadUsers(META_GROUP, self.revision),), _PATIENCE, partial(self._answered, now))

    def _answered(self, asked: float, _: int, result: Result) -> None:
        self._asked = None
        report = result.answer
        if result.code or not isinstance(report, UsersReport):
            return
        if report.users and report.revision > self.revision:
            self.directory = Directory(decode(report.users))
        if report.revision != self.revision:
            return
        if report.revision and not self.on:
            self.on = True
            log.info("the cluster has users from now on, and serves nobody else")
        if self.on and not self._noted:
            self._noted = self._heard()
        self._confirmed = max(self._confirmed, asked)
        if self._stale and self._clock.now() - self._confirmed <= self.grace:
            self._stale = False
        for since, waiter in self._waiting:
            if since <= asked:
                _release(waiter, True)
        if self._asked is None and any(not waiter.done() for _, waiter in self._waiting):
            # Whoever came while this question was under way waits for the next.
            self._clock.call_later(0.0, self._ask_again)

    def _ask_again(self) -> None:
        if self._asked is None:
            self._ask(self._clock.now())

    async def latest(self) -> bool:
        """Wait, for some seconds at most, until the copy is at least as new as this call. Whether it is."""
        waiter: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._waiting.append((self._clock.now(), waiter))
        timer = self._clock.call_later(_FRESH, lambda: _release(waiter, False))
        try:
            return await waiter
        finally:
            timer.cancel()

    # -- what it says

    def permit(self, caller: Caller) -> Permit | Result:
        """What a client may do at this moment, or why it is not served."""
        if self._stale:
            return UNKNOWN
        if caller.rules is not self.directory:
            caller.rules, caller.permit = self.directory, self.directory.shown(caller.proof)
            if caller.permit is not None:
                caller.origin = caller.origin._replace(user=caller.permit.name, revision=self.revision)
        return caller.permit or (STRANGER if caller.proof else NOBODY)

    def refusals(self, caller: Caller, ops: Sequence[Command]) -> Mapping[int, Result]:
        """Operations of a client that are refused, by their index.

        They are either clients' commands on records or one command about a group.
        """
        permit = self.permit(caller)
        if not isinstance(permit, Result) and not DATA & ~permit.everywhere and isinstance(ops[0], SlotCommand):
            return {}
        return self._told(caller, ops, _refusals(permit, ops))

    def refusals_for(self, caller: Caller, ops: Sequence[Command]) -> Mapping[int, Result]:
        """As :meth:`refusals`, of a caller that another node speaks for."""
        permit: Permit | Result
        origin = caller.origin
        if origin.sender is Sender.NODE:
            return {}
        if origin.revision > self.revision:
            permit = _BEHIND
        elif not self.on:
            return {}
        elif self._stale:
            permit = UNKNOWN
        else:
            permit = self.directory.permit(origin.user) or (STRANGER if origin.user else NOBODY)
        return self._told(caller, ops, _refusals(permit, ops))

    def _told(self, caller: Caller, ops: Sequence[Command], refused: Mapping[int, Result]) -> Mapping[int, Result]:
        if refused:
            index, result = next(iter(refused.items()))
            self.refused(caller, ops[index], result)
        return refused


def _release(waiter: asyncio.Future[bool], confirmed: bool) -> None:
    if not waiter.done():
        waiter.set_result(confirmed)


def denied(permit: Permit, needs: Right, what: str) -> Result:
    """The refusal of ``what``."""
    rights = " and ".join(right_names(needs))
    return Result(Code.PERMISSION_DENIED, detail=f"user {permit.name} may not do this: {what} needs the right {rights}")


def _refusals(permit: Permit | Result, ops: Sequence[Command]) -> Mapping[int, Result]:
    refused: dict[int, Result] = {}
    found: dict[Right, tuple[tuple[bytes, ...], ...] | None] = {}
    for index, op in enumerate(ops):
        needs = op.needs
        if needs is None:
            continue
        if isinstance(permit, Result):
            refused[index] = permit
            continue
        if needs not in found:
            found[needs] = permit.within(needs)
        within = found[needs]
        if within is None or (within and not begin_so(within, op.keys, op.span)):
            refused[index] = denied(permit, needs, _what(op, needs))
    return refused


def _what(op: Command, needs: Right) -> str:
    what = op.name.replace("_", " ")
    if not needs & DATA:
        return what
    return f"a {what} of {'this key' if op.keys is not None and len(op.keys) == 1 else 'these keys'}"
