"""The move of slots from one group to another, as a table: what is to be done next follows from what three groups say.

The meta group says whether the move goes on, has happened, or was cancelled; the source's and the target's state
machines say how far they are. Whoever drives a move keeps nothing that could not be read again, so that after the death
of any node another one goes on.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Final


class Phase(StrEnum):
    """What the meta group's log has decided. A move is committed or cancelled, whichever comes first in that log."""

    STARTED = "started"
    COMMITTED = "committed"
    CANCELLED = "cancelled"


class SourceState(StrEnum):
    """How far a move is at the group that gives the slots away."""

    NONE = "none"
    TRACKED = "tracked"
    FROZEN = "frozen"
    RELEASED = "released"
    CANCELLED = "cancelled"


class TargetState(StrEnum):
    """How far a move is at the group that takes the slots."""

    NONE = "none"
    IMPORTING = "importing"
    STAGED = "staged"
    ACTIVE = "active"
    CANCELLED = "cancelled"


class Step(StrEnum):
    """The steps of a move. All are entries in some group's log, and safe to repeat."""

    BEGIN = "begin the import at the target"
    TRACK = "track changes at the source"
    COPY = "copy records, then freeze the source"
    COMPLETE = "copy the last changes and compare"
    COMMIT = "commit in the meta group"
    ACTIVATE = "serve at the target"
    RELEASE = "let go at the source"
    UNTRACK = "serve on at the source"
    DROP = "drop the import at the target"
    FINISH = "forget the move"


class Impossible(ValueError):
    """The three groups say what cannot be true together: the move must not go on."""


_STARTED: Final = {
    (SourceState.NONE, TargetState.NONE): Step.BEGIN,
    (SourceState.NONE, TargetState.IMPORTING): Step.TRACK,
    (SourceState.TRACKED, TargetState.IMPORTING): Step.COPY,
    (SourceState.FROZEN, TargetState.IMPORTING): Step.COMPLETE,
    (SourceState.FROZEN, TargetState.STAGED): Step.COMMIT,
}
_COMMITTED: Final = {
    (SourceState.FROZEN, TargetState.STAGED): Step.ACTIVATE,
    (SourceState.FROZEN, TargetState.ACTIVE): Step.RELEASE,
    (SourceState.RELEASED, TargetState.ACTIVE): Step.FINISH,
}
_LEADS_TO: Final[dict[Step, Phase | SourceState | TargetState]] = {
    Step.BEGIN: TargetState.IMPORTING,
    Step.TRACK: SourceState.TRACKED,
    Step.COPY: SourceState.FROZEN,
    Step.COMPLETE: TargetState.STAGED,
    Step.COMMIT: Phase.COMMITTED,
    Step.ACTIVATE: TargetState.ACTIVE,
    Step.RELEASE: SourceState.RELEASED,
    Step.UNTRACK: SourceState.CANCELLED,
    Step.DROP: TargetState.CANCELLED,
}


def next_step(phase: Phase, source: SourceState, target: TargetState) -> Step:
    """What to do next. Raises Impossible."""
    step: Step | None
    if phase is Phase.CANCELLED:
        step = _undo(source, target)
    else:
        step = (_STARTED if phase is Phase.STARTED else _COMMITTED).get((source, target))
    if step is None:
        raise Impossible(f"the move is {phase}, its source {source} and its target {target}")
    return step


def after(step: Step, phase: Phase, source: SourceState, target: TargetState) -> tuple[Phase, SourceState, TargetState]:
    """Where a move is once ``step`` was taken from there; after FINISH it is nowhere, and this raises KeyError."""
    reached = _LEADS_TO[step]
    if isinstance(reached, Phase):
        return reached, source, target
    if isinstance(reached, SourceState):
        return phase, reached, target
    return phase, source, reached


def _undo(source: SourceState, target: TargetState) -> Step | None:
    if source is SourceState.RELEASED or target is TargetState.ACTIVE:
        return None
    # The source first: its clients wait if it is frozen.
    if source is not SourceState.CANCELLED:
        return Step.UNTRACK
    return Step.FINISH if target is TargetState.CANCELLED else Step.DROP
