"""Requests between two attempts.

Most are tried again a moment later. Requests of a group without a leader wait together until one is known; meanwhile
one of them at a time asks the voters. Once a group has had no leader for longer than an election takes, all its
requests are refused at once, so that a group without a majority takes no room from healthy groups.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Final

from raftkv.clock import Clock
from raftkv.node.leaders import Leaders
from raftkv.node.requests import Request

_BACKOFF: Final = 0.025
"""Seconds before the next attempt."""

_SCOUT: Final = 1.0
"""Seconds between two operations that a group without a leader does not refuse: an answer may show one."""


@dataclass(slots=True)
class _Leaderless:
    """A group without a leader that can be asked. Clock times; ``scout``: when the next request asks around.

    ``given_up``: for so long that only those still wait of which an attempt may take effect.
    """

    since: float
    scout: float
    given_up: bool = False
    waiting: deque[Request] = field(default_factory=deque)


class Retries:
    """``route`` makes an attempt, ``refuse`` answers a request whose group has no leader.

    ``grace``: seconds for which a group may be without one before that.
    """

    def __init__(
        self,
        clock: Clock,
        leaders: Leaders,
        route: Callable[[Request], None],
        refuse: Callable[[Request], None],
        grace: float,
    ) -> None:
        self._clock = clock
        self._leaders = leaders
        self._route = route
        self._refuse = refuse
        self._grace = grace
        self._due: deque[tuple[float, Request]] = deque()
        self._leaderless: dict[int, _Leaderless] = {}

    def later(self, request: Request) -> None:
        """Try again in a moment."""
        request.attempt += 1
        self._due.append((self._clock.now() + _BACKOFF, request))

    # -- groups without a leader

    def wait_for_leader(self, request: Request, group: int) -> None:
        """No leader of ``group`` could be asked."""
        if request.attempt:
            # Late answers to the attempt that has ended do not count for the next one.
            request.attempt += 1
        state = self._leaderless.get(group)
        if state is None:
            now = self._clock.now()
            state = self._leaderless[group] = _Leaderless(now, now + _BACKOFF)
        if state.given_up and not request.maybe_applied:
            self._refuse(request)
        else:
            state.waiting.append(request)

    def leaderless(self, group: int) -> bool:
        """Whether a new request for ``group`` has nobody to ask, but may wait."""
        state = self._leaderless.get(group)
        return state is not None and not state.given_up

    def hopeless(self, group: int) -> bool:
        """Whether a new request for ``group`` is to be refused; now and then one is not."""
        state = self._leaderless.get(group)
        if state is None or not state.given_up or self._leaders.reachable(group):
            return False
        now = self._clock.now()
        if now < state.scout:
            return True
        state.scout = now + _SCOUT
        return False

    def look(self) -> None:
        """Called whenever a leader may have become known: whoever waits for it goes on."""
        for group in [group for group in self._leaderless if self._leaders.reachable(group)]:
            self.found(group)

    def found(self, group: int) -> None:
        """There is a leader of ``group``."""
        state = self._leaderless.pop(group, None)
        if state is not None:
            self._route_all(state.waiting)

    # -- when it is time

    def at_once(self) -> None:
        """Try all of them again now."""
        due, self._due = self._due, deque()
        self._route_all([request for _, request in due])
        for state in list(self._leaderless.values()):
            waiting, state.waiting = state.waiting, deque()
            self._route_all(waiting)

    def _route_all(self, requests: Iterable[Request]) -> None:
        for request in requests:
            if not request.answered:
                self._route(request)

    def sweep(self, now: float) -> None:
        """Called every few milliseconds."""
        while self._due and self._due[0][0] <= now:
            request = self._due.popleft()[1]
            if not request.answered:
                self._route(request)
        self.look()
        for state in list(self._leaderless.values()):
            if not state.given_up and now > state.since + self._grace:
                self._give_up(state)
            if state.waiting and now >= state.scout:
                state.scout = now + (_SCOUT if state.given_up else _BACKOFF)
                self._send_scout(state)

    def _give_up(self, state: _Leaderless) -> None:
        state.given_up = True
        waiting, state.waiting = state.waiting, deque(request for request in state.waiting if request.maybe_applied)
        for request in waiting:
            if not request.maybe_applied and not request.answered:
                self._refuse(request)

    def _send_scout(self, state: _Leaderless) -> None:
        while state.waiting:
            request = state.waiting.popleft()
            if not request.answered:
                self._route(request)
                return
