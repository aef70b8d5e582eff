"""Operations that a node asks of groups on its own, awaited."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable
from typing import Any, Final

from raftkv.commands.base import GroupCommand
from raftkv.commands.meta import ChangeCluster
from raftkv.commands.results import Result
from raftkv.errors import Code, RaftKVError
from raftkv.frontend.port import Submit, answer_to
from raftkv.store.codec import pack
from raftkv.store.meta_state import MetaState
from shards.map import META_GROUP

Ask = Callable[[GroupCommand], Awaitable[Result]]
"""Executes an operation wherever its group is led. Raises Failed for every result but OK."""

_TIMEOUT: Final = 5.0
"""Seconds for one operation: covers a failover several times."""

_TOKEN_BYTES: Final = 16

Leading = Callable[[], MetaState | None]
"""The meta group's state while this node leads that group, else None."""


class Failed(RaftKVError):
    """An operation that a node asked for on its own did not succeed, or cannot be asked for now."""


def asker(submit: Submit, timeout: float = _TIMEOUT) -> Ask:
    """Awaitable operations over ``submit``."""

    async def ask(op: GroupCommand) -> Result:
        result = await answer_to(submit, op, timeout)
        if result.code != Code.OK:
            name = op.name.replace("_", " ")
            raise Failed(f"{name} at group {op.group}: {result.detail or Code(result.code).name}")
        return result

    return ask


def meta_command(rng: random.Random, verb: str, *arguments: Any) -> ChangeCluster:
    """A command of the meta group, with a token of its own: repeated attempts have one outcome."""
    return ChangeCluster(META_GROUP, rng.randbytes(_TOKEN_BYTES), verb, pack(list(arguments)))
