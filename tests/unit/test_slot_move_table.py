"""Guarantee: from every state that a move can be in, the table leads to its end, and never past what was decided."""

import itertools

import pytest

from shards.moves import Impossible, Phase, SourceState, Step, TargetState, after, next_step


def walk(phase: Phase, source: SourceState, target: TargetState, cancel_at: int = -1) -> list[Step]:
    """The steps from here to the end; the ``cancel_at``-th of them is preceded by a cancellation."""
    steps: list[Step] = []
    while True:
        if len(steps) == cancel_at and phase is Phase.STARTED:
            phase = Phase.CANCELLED
        step = next_step(phase, source, target)
        steps.append(step)
        if step is Step.FINISH:
            return steps
        phase, source, target = after(step, phase, source, target)
        assert len(steps) < 20


def test_a_move_takes_the_steps_in_order() -> None:
    assert walk(Phase.STARTED, SourceState.NONE, TargetState.NONE) == [
        Step.BEGIN,
        Step.TRACK,
        Step.COPY,
        Step.COMPLETE,
        Step.COMMIT,
        Step.ACTIVATE,
        Step.RELEASE,
        Step.FINISH,
    ]


@pytest.mark.parametrize("step", range(8))
def test_a_cancelled_move_goes_back_unless_it_was_committed(step: int) -> None:
    steps = walk(Phase.STARTED, SourceState.NONE, TargetState.NONE, cancel_at=step)
    if step <= 4:
        assert steps[step:] == [Step.UNTRACK, Step.DROP, Step.FINISH]
        assert Step.COMMIT not in steps
    else:
        assert steps[4:] == [Step.COMMIT, Step.ACTIVATE, Step.RELEASE, Step.FINISH]


def test_every_other_state_is_refused() -> None:
    refused = 0
    for phase, source, target in itertools.product(Phase, SourceState, TargetState):
        try:
            step = next_step(phase, source, target)
        except Impossible:
            refused += 1
            continue
        if step is Step.RELEASE:
            assert target is TargetState.ACTIVE
        if step is Step.ACTIVATE:
            assert phase is Phase.COMMITTED
            assert source is SourceState.FROZEN
        if step is Step.COMMIT:
            assert (source, target) == (SourceState.FROZEN, TargetState.STAGED)
    assert refused > 40
