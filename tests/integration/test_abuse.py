"""Guarantee: one client, or one sick node, never hurts the others; the short form of ``python -m faults abuse``."""

from __future__ import annotations

import pytest

from faults.abuse.catalogue import SCENARIOS, perform
from faults.disks import NoSickDisks
from tests import needs


@pytest.mark.slow
@pytest.mark.parametrize("name", SCENARIOS)
def test_others_do_not_feel_it(name: str) -> None:
    """What depends on how fast the machine is, is measured by the command and not judged here."""
    try:
        found = perform(SCENARIOS[name], short=True)
    except NoSickDisks as problem:
        needs.need(False, str(problem))
        raise
    told = {one.name: one.text for one in found.figures}
    assert found.problem == "", told
    judged = [one for one in found.figures if not one.timed]
    assert [f"{one.name}: {one.text}, {one.bound}" for one in judged if not one.passed] == [], told
