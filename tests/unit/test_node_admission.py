"""Guarantee: no group and no caller takes a node's room away from the others; administration always finds some."""

from __future__ import annotations

from raftkv import limits
from raftkv.errors import Code
from raftkv.frontend.port import NODE, Caller
from raftkv.node.admission import Admission

RESERVED = limits.MAX_PENDING_OPS // limits.PENDING_RESERVE


def fill(admission: Admission, group: int, caller: Caller, size: int = 0) -> int:
    """Take as much as is let in. How many operations that is."""
    taken = 0
    while admission.refusal(group, caller, 1, size) is None:
        admission.add(group, caller, 1, size)
        taken += 1
    return taken


def fill_in_turns(admission: Admission, claims: list[tuple[int, Caller]]) -> list[int]:
    """Take as much as is let in for each (group, caller), one operation at a time. How many each got."""
    taken = [0] * len(claims)
    before = -1
    while admission.ops != before:
        before = admission.ops
        for at, (group, caller) in enumerate(claims):
            if admission.refusal(group, caller, 1, 0) is None:
                admission.add(group, caller, 1, 0)
                taken[at] += 1
    return taken


def test_one_group_gets_half_of_the_room_whoever_asks() -> None:
    admission = Admission()
    taken = sum(fill(admission, 1, Caller()) for _ in range(40))
    assert taken == (limits.MAX_PENDING_OPS - RESERVED) // 2
    refusal = admission.refusal(1, Caller(), 1, 0)
    assert refusal is not None
    assert refusal.code == Code.OVERLOADED
    assert "group 1" in refusal.detail
    assert admission.refusal(2, Caller(), 1000, 0) is None


def test_many_groups_that_cannot_go_on_leave_room_for_another() -> None:
    admission = Admission()
    taken = fill_in_turns(admission, [(group, Caller()) for group in range(1, 20)])
    assert min(taken) > 800
    assert max(taken) - min(taken) <= 1
    assert fill(admission, 20, Caller()) > 400


def test_many_callers_that_flood_leave_room_for_another() -> None:
    admission = Admission()
    taken = fill_in_turns(admission, [(1000 + number, Caller()) for number in range(18)])
    assert min(taken) > 800
    assert admission.refusal(100, NODE, RESERVED, 0) is None
    assert fill(admission, 100, Caller()) > 400


def test_bytes_are_shared_as_operations_are() -> None:
    admission = Admission()
    one = Caller()
    size = 1 << 20
    room = limits.MAX_PENDING_BYTES - limits.MAX_PENDING_BYTES // limits.PENDING_RESERVE
    assert fill(admission, 1, one, size) == room // 2 // size
    assert admission.refusal(2, Caller(), 1, size) is None
    assert admission.refusal(2, one, 1, size) is not None


def test_administration_and_the_node_itself_use_the_reserve() -> None:
    admission = Admission()
    for group in range(200):
        fill(admission, group, Caller())
    admission.add(300, Caller(), limits.MAX_PENDING_OPS - RESERVED - admission.ops, 0)
    assert admission.refusal(301, Caller(), 1, 0) is not None
    assert admission.refusal(301, Caller(), 1, 0, reserve=True) is None
    assert admission.refusal(1, NODE, RESERVED, 0) is None
    assert admission.refusal(1, NODE, RESERVED + 1, 0) is not None


def test_what_is_answered_makes_room_again() -> None:
    admission = Admission()
    one = Caller()
    taken = fill(admission, 1, one)
    admission.remove(1, one, taken, 0)
    assert (admission.ops, admission.bytes) == (0, 0)
    assert fill(admission, 1, one) == taken
