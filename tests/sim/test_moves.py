"""Guarantee: whoever dies at whatever step of a move, and whenever it is cancelled, each slot has one owner in the end
and nothing is lost."""

import pytest

from faults.sim.moving import Step, Trouble, run_move


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("trouble", list(Trouble))
@pytest.mark.parametrize("step", list(Step))
def test_trouble_at_every_step(step: Step, trouble: Trouble, after: bool) -> None:
    course = run_move(step, trouble, after=after)
    assert course.struck
    assert course.problems == [], "\n".join([*course.problems, *course.trace[-200:]])
    if trouble is not Trouble.CANCEL:
        assert course.moved == 24
