"""Keys whose histories cannot be, or that nobody could decide, as stories for people. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from faults.check.history import History
from faults.check.linearizability import Verdict, check_stale
from faults.check.numbered import check_key
from faults.check.register import Register
from faults.check.story import timeline

_TOLD: Final = 8
"""Stories on one page; more keys are only named."""


@dataclass(frozen=True, slots=True)
class Story:
    """``what``: what is wrong with ``key``. ``lines``: its operations around the place where it goes wrong."""

    key: str
    what: str
    lines: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Stories:
    """``checked``: how many keys were looked at. ``others``: guilty keys whose stories are left out."""

    checked: int = 0
    told: tuple[Story, ...] = ()
    others: tuple[str, ...] = ()


def stories_of(history: History) -> Stories:
    """Check every key again, and tell of those that are guilty or undecided."""
    model, found, checked = Register(), list[Story](), 0
    for key, operations in history.by_key():
        checked += 1
        finding = check_key(operations, model)
        if finding.verdict is not Verdict.LINEARIZABLE:
            found.append(Story(key, str(finding.verdict), tuple(timeline(operations, finding))))
        if wrong := check_stale(operations):
            found.append(Story(key, "impossible stale reads", tuple(one.describe() for one in wrong)))
    return Stories(checked, tuple(found[:_TOLD]), tuple(one.key for one in found[_TOLD:]))
