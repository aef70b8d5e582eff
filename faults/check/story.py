"""The history of a guilty key as a timeline, for people."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Final

from faults.check.history import OPEN_END, Operation
from faults.check.linearizability import Finding, Verdict

_WIDTH: Final = 48
_AROUND: Final = 14
"""Operations of a guilty key that are shown before and behind the place where it goes wrong."""


def timeline(operations: Sequence[Operation], finding: Finding) -> Iterator[str]:
    """The operations around the one that cannot be explained, each as a bar over the time between its begin and end.

    ``*`` marks those that the checker could put in an order, ``!`` the one that then had to come next and could not.
    """
    placed = set(finding.order)
    guilty = finding.stuck
    focus = operations[-1].began if guilty is None else guilty.ended
    near = sorted(operations, key=lambda one: one.began)
    at = next((index for index, one in enumerate(near) if one.began > focus), len(near))
    shown = near[max(0, at - 2 * _AROUND) : at + _AROUND]
    if guilty is not None and guilty not in shown:
        shown.insert(0, guilty)
    yield from _bars(shown, lambda one: "!" if one is guilty else "*" if one.number in placed else " ")
    if finding.verdict is Verdict.OUT_OF_BUDGET:
        yield f"undecided after {finding.steps} steps; the state at the farthest point: {finding.state}"
    else:
        yield f"the state before the impossible operation: {finding.state}"


def latest(operations: Sequence[Operation]) -> Iterator[str]:
    """The last operations, each as a bar as in :func:`timeline`."""
    yield from _bars(sorted(operations, key=lambda one: one.began)[-2 * _AROUND :], lambda _: " ")


def _bars(shown: Sequence[Operation], mark: Callable[[Operation], str]) -> Iterator[str]:
    first = min(one.began for one in shown)
    last = max(one.began if one.ended == OPEN_END else one.ended for one in shown)
    for one in shown:
        yield f"{mark(one)} |{_bar(one, first, last)}| {one.describe()}"


def _bar(one: Operation, first: float, last: float) -> str:
    span = max(last - first, 1e-9)
    start = min(_WIDTH - 1, int((one.began - first) / span * _WIDTH))
    if one.ended == OPEN_END:
        return " " * start + "?" * (_WIDTH - start)
    end = max(start + 1, min(_WIDTH, int((one.ended - first) / span * _WIDTH) + 1))
    return " " * start + "-" * (end - start) + " " * (_WIDTH - end)
