"""What the driver of slot moves does when what it knows is out of date."""

from __future__ import annotations

import asyncio
import logging
import random
from typing import Any, cast

import pytest

from raftkv.api.status import Move
from raftkv.commands.base import GroupCommand
from raftkv.commands.moving import MoveState
from raftkv.commands.results import MoveReport, Result
from raftkv.node.drivers.mover import Mover
from raftkv.store.meta_state import MetaState
from shards.moves import Phase, SourceState, TargetState
from tests.peer_world import ManualClock, rest


class _State:
    """A meta group in which one move is under way, and no job."""

    def __init__(self, move: Move) -> None:
        self.moves = {move.id: move}
        self.job = None


def test_a_driver_whose_view_is_old_looks_again_without_an_error(caplog: pytest.LogCaptureFixture) -> None:
    """A meta leader that had just lost its office saw a move of an old phase that both groups had gone beyond: its log
    showed an error with a traceback, and the move came to no harm."""
    caplog.set_level(logging.INFO)
    asyncio.run(_drive_an_old_phase())
    told = [record for record in caplog.records if record.name == "raftkv.node.drivers.mover"]
    assert any("retrying" in record.message for record in told)
    assert all(record.levelno < logging.WARNING and record.exc_info is None for record in told)


async def _drive_an_old_phase() -> None:
    move = Move(1, (3,), 1, 2, Phase.STARTED, 0)
    leading: list[Any] = [_State(move)]
    looked = 0

    async def ask(op: GroupCommand) -> Result:
        nonlocal looked
        assert isinstance(op, MoveState), "it must not take a step"
        looked += 1
        if op.group == move.source:
            return Result(0, answer=MoveReport(SourceState.RELEASED.value, "none", 0, b"", 0, 0))
        return Result(0, answer=MoveReport("none", TargetState.ACTIVE.value, 0, b"", 0, 0))

    clock = ManualClock()
    mover = Mover(lambda: cast("MetaState | None", leading[0]), ask, clock, random.Random(1))
    mover.run()
    await rest()
    assert looked == 2
    await clock.advance(1.0)
    assert looked > 2, "it looks again"
    leading[0] = None
    await clock.advance(1.0)
    ended = looked
    await clock.advance(1.0)
    assert looked == ended, "the node does not lead any more"
    mover.close()
