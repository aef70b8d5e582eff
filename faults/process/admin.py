"""What an operator asks of a real cluster: through the service Admin."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, Final, Self

from faults.operator import AdminAnswer
from raftkv.api.status import ClusterState
from raftkv.client.admin import AdminClient
from raftkv.client.tls import TLS
from raftkv.errors import ConditionFailed, NotApplied, RaftKVError
from raftkv.v1 import admin_pb2

_AGAIN: Final = 0.1


class ProcessAdmin:
    """See :class:`faults.operator.Admin`. Use as an asynchronous context manager."""

    timeout = 4.0

    def __init__(self, endpoints: str, tls: TLS | None) -> None:
        self._client = AdminClient(endpoints, timeout=self.timeout, tls=tls)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._client.close()

    async def look(self) -> ClusterState | None:
        try:
            return await self._client.state()
        except RaftKVError:
            return None

    async def tell(self, verb: str, *arguments: Any) -> AdminAnswer:
        return await self._answer(_told(verb, *arguments), self._client.change(_request(verb, *arguments)))

    async def transfer(self, group: int, node: int) -> AdminAnswer:
        return await self._answer(f"group {group} to n{node}", self._client.transfer(group, node))

    async def finish(self, patience: float) -> ClusterState:
        """Wait until no moves are under way; what the meta group says then. Raises TimeoutError."""
        async with asyncio.timeout(patience):
            while True:
                state = await self.look()
                if state is not None and (state.job is None or state.job.ended) and not state.moves:
                    return state
                await asyncio.sleep(_AGAIN)

    @staticmethod
    async def _answer(what: str, call: Coroutine[Any, Any, object]) -> AdminAnswer:
        try:
            await call
        except (ConditionFailed, NotApplied) as refusal:
            return AdminAnswer("refused", str(refusal))
        except RaftKVError as problem:
            return AdminAnswer("unknown", str(problem))
        return AdminAnswer("done", what)


def _told(verb: str, *arguments: Any) -> str:
    """What is asked for, for people."""
    if verb != "plan":
        return ", ".join(map(str, arguments))
    _, moves, *_ = arguments
    (source, target), *_ = {tuple(move[1:]) for move in moves}
    return f"{sum(len(move[0]) for move in moves)} slots from group {source} to {target}"


def _request(verb: str, *arguments: Any) -> admin_pb2.ChangeRequest:
    """A command of the meta group as the service takes it."""
    if verb == "plan":
        epoch, moves, concurrency, rate = arguments
        planned = [admin_pb2.PlannedMove(slots=slots, source=source, target=target) for slots, source, target in moves]
        plan = admin_pb2.StartPlan(epoch=epoch, moves=planned, concurrency=concurrency, rate=rate)
        return admin_pb2.ChangeRequest(start_plan=plan)
    if verb == "want":
        epoch, groups = arguments
        wanted = [admin_pb2.WantedVoters(group=group, voters=voters) for group, voters in groups]
        return admin_pb2.ChangeRequest(change_voters=admin_pb2.ChangeVoters(epoch=epoch, groups=wanted))
    if verb == "tune":
        return admin_pb2.ChangeRequest(pace=admin_pb2.Pace(concurrency=arguments[0], rate=arguments[1]))
    if verb == "add group":
        return admin_pb2.ChangeRequest(add_group=admin_pb2.AddGroup(voters=arguments[0]))
    if verb == "remove group":
        return admin_pb2.ChangeRequest(remove_group=arguments[0])
    if verb == "pause":
        return admin_pb2.ChangeRequest(pause=arguments[0])
    assert verb == "cancel", verb
    return admin_pb2.ChangeRequest(cancel=True)
