"""Guarantees: conditions are decided on the record as it is, versions are never reused, expiry is exact."""

from typing import Any

import msgpack
import pytest
from msgspec.structs import replace

from raftkv import limits
from raftkv.commands.base import Command
from raftkv.commands.group import Check, Genesis, Tick
from raftkv.commands.members import Members
from raftkv.commands.meta import FormCluster
from raftkv.commands.moving import MoveState
from raftkv.commands.records import Cas, Delete, Get, Put
from raftkv.commands.registry import decode_entry
from raftkv.commands.results import Result
from raftkv.errors import Code
from raftkv.store.history import Change, Event
from raftkv.store.records import Store
from raftkv.store.slot import SlotState
from tests.store_helpers import again, events_in, scan_of


def make(slots: int = 4) -> Store:
    store = Store()
    store.apply(1, [Genesis(tuple(range(slots)))])
    return store


def one(store: Store, op: Command, now: int = 0) -> Result:
    (result,) = store.apply(now, [op])
    return result


def put(key: bytes, value: bytes = b"v", **fields: Any) -> Command:
    return replace(Put(0, key, value), **fields)


def delete(key: bytes, **fields: int) -> Command:
    return replace(Delete(0, key), **fields)


def cas(key: bytes, expected: bytes | None, value: bytes, ttl: int = 0) -> Command:
    return Cas(0, key, value, expected=expected, ttl=ttl)


def test_put_read_delete() -> None:
    store = make()
    assert store.read(0, b"k") == Result(Code.OK)
    assert one(store, put(b"k", b"1")) == Result(Code.OK, 1)
    assert store.read(0, b"k") == Result(Code.OK, 1, b"1", -1)
    assert one(store, put(b"k", b"")) == Result(Code.OK, 2)
    assert store.read(0, b"k") == Result(Code.OK, 2, b"", -1)
    assert one(store, delete(b"k")) == Result(Code.OK, 2)
    assert one(store, delete(b"k")) == Result(Code.OK, 0)
    assert store.read(0, b"k") == Result(Code.OK)


def test_versions_are_not_reused_after_a_delete() -> None:
    store = make()
    seen = [one(store, put(b"k")).version]
    for _ in range(5):
        one(store, delete(b"k"))
        seen.append(one(store, put(b"k")).version)
    assert seen == sorted(set(seen))
    # The version before the deletion does not match the record that came after it.
    assert one(store, put(b"k", expect=seen[0])).code == Code.CONDITION_FAILED


def test_slots_count_apart() -> None:
    store = make()
    one(store, put(b"k"))
    assert one(store, put(b"k", slot=1)).version == 1


def test_put_with_a_condition() -> None:
    store = make()
    assert one(store, put(b"k", expect=3)) == Result(Code.CONDITION_FAILED, 0)
    assert one(store, put(b"k", expect=0)) == Result(Code.OK, 1)
    assert one(store, put(b"k", expect=0)) == Result(Code.CONDITION_FAILED, 1)
    assert one(store, put(b"k", b"new", expect=1)) == Result(Code.OK, 2)
    assert one(store, put(b"k", b"lost", expect=1)) == Result(Code.CONDITION_FAILED, 2)
    assert store.read(0, b"k").value == b"new"


def test_delete_with_a_condition() -> None:
    store = make()
    one(store, put(b"k"))
    assert one(store, delete(b"k", expect=0)) == Result(Code.CONDITION_FAILED, 1)
    assert one(store, delete(b"k", expect=9)) == Result(Code.CONDITION_FAILED, 1)
    assert one(store, delete(b"k", expect=1)) == Result(Code.OK, 1)
    assert one(store, delete(b"k", expect=0)) == Result(Code.OK, 0)


def test_compare_and_swap() -> None:
    store = make()
    assert one(store, cas(b"k", b"a", b"b")) == Result(Code.CONDITION_FAILED, 0)
    assert one(store, cas(b"k", None, b"a")) == Result(Code.OK, 1)
    assert one(store, cas(b"k", None, b"x")) == Result(Code.CONDITION_FAILED, 1)
    assert one(store, cas(b"k", b"b", b"x")) == Result(Code.CONDITION_FAILED, 1)
    assert one(store, cas(b"k", b"a", b"b", ttl=50)) == Result(Code.OK, 2)
    assert store.read(0, b"k") == Result(Code.OK, 2, b"b", 50)
    # An empty value is a value.
    one(store, put(b"e", b""))
    assert one(store, cas(b"e", None, b"x")).code == Code.CONDITION_FAILED
    assert one(store, cas(b"e", b"", b"x")).code == Code.OK


def test_an_expired_record_is_absent_for_everybody() -> None:
    store = make()
    one(store, put(b"k", b"v", ttl=100), now=1000)
    assert store.read(0, b"k").ttl == 100
    one(store, Tick(), now=1099)
    assert store.read(0, b"k") == Result(Code.OK, 1, b"v", 1)
    # Within the entry at whose time it expires, before anything was removed.
    results = store.apply(1100, [cas(b"k", b"v", b"w"), delete(b"k"), put(b"k", expect=0)])
    assert results == [Result(Code.CONDITION_FAILED, 0), Result(Code.OK, 0), Result(Code.OK, 3)]
    assert store.read(0, b"k").ttl == -1
    assert [event.change for event in events_in(store, 0)] == [Change.PUT, Change.EXPIRE, Change.PUT]


def test_expired_records_are_removed_and_the_next_expiry_is_known() -> None:
    store = make()
    assert store.next_expiry() is None
    store.apply(1000, [put(b"a", ttl=300), put(b"b", ttl=100), put(b"c"), put(b"d", ttl=200)])
    assert store.next_expiry() == 1100
    one(store, put(b"b", b"for ever"))
    assert store.next_expiry() == 1200
    one(store, delete(b"d"))
    assert store.next_expiry() == 1300
    one(store, Tick(), now=1300)
    assert store.next_expiry() is None
    assert store.stats().records == 2


def test_one_entry_removes_a_bounded_number() -> None:
    store = make()
    count = limits.MAX_EXPIRED_PER_ENTRY * 2 + 10
    store.apply(1, [put(b"%d" % i, ttl=5) for i in range(count)])
    left = []
    while store.next_expiry() is not None:
        store.apply(6, [Tick()])
        left.append(store.stats().records)
        # Absent at once, although it is removed last.
        assert store.read(0, b"999") == Result(Code.OK)
    assert left == [limits.MAX_EXPIRED_PER_ENTRY + 10, 10, 0]
    assert store.stats().bytes == 0


def test_replaced_expiries_do_not_pile_up() -> None:
    store = make()
    for i in range(20_000):
        store.apply(i, [put(b"k%d" % (i % 10), ttl=10_000_000)])
    assert len(store._expiry) < 4096
    assert store._expiry.live == 10
    for _ in range(20_000):
        store.apply(20_000, [put(b"k", ttl=10_000_000), delete(b"k")])
    assert len(store._expiry) < 4096
    assert store.next_expiry() is not None
    store.apply(30_000_000, [])
    assert store.stats().records == 0


def test_time_never_goes_back() -> None:
    store = make()
    one(store, put(b"k", ttl=100), now=1000)
    one(store, Tick(), now=500)
    assert store.time == 1000
    store.apply(2**63, [])
    assert store.time == 1000


def test_slots_that_are_not_served() -> None:
    store = Store()
    assert one(store, put(b"k")).code == Code.MOVED
    assert store.read(0, b"k").code == Code.MOVED
    assert store.scan(scan_of(0)).code == Code.MOVED
    store = make(2)
    assert store.owned_slots() == [0, 1]
    assert one(store, put(b"k", slot=2)).code == Code.MOVED
    store._slots[1].state = SlotState.FROZEN
    assert one(store, put(b"k", slot=1)).code == Code.SLOT_MOVING
    assert store.read(1, b"k").code == Code.SLOT_MOVING
    assert store.slot_state(1) is SlotState.FROZEN
    assert store.slot_state(2) is None
    store._slots[1].state = SlotState.IMPORTING
    assert one(store, put(b"k", slot=1)).code == Code.MOVED


def test_only_the_first_genesis_counts() -> None:
    store = Store()
    assert not store.genesis
    assert one(store, Genesis((3, 5))).code == Code.OK
    one(store, put(b"k", slot=3))
    assert one(store, Genesis((3, 7))).code == Code.OK
    assert store.owned_slots() == [3, 5]
    assert store.read(3, b"k").version == 1


@pytest.mark.parametrize("op", [Get(0, b"k"), FormCluster(b"v"), Members(1), MoveState(1, 1)])
def test_commands_of_others_change_nothing(op: Command) -> None:
    store = make()
    before = store.digest()
    assert one(store, op).code == Code.INVALID_ARGUMENT
    assert store.digest() == before


@pytest.mark.parametrize(
    "op",
    [
        put(b""),
        put(b"k", ttl=-1),
        put(b"k", ttl=limits.MAX_TTL * 1000 + 1),
        put(b"k", expect=-2),
        put(b"k", slot=-1),
        put(b"k", slot=65536),
        put(b"k", seq=-1),
        Put(0, b"k", None),  # type: ignore[arg-type]
        Put(0, "k", b"v"),  # type: ignore[arg-type]
        Cas(0, b"k", b"v", expected="x"),  # type: ignore[arg-type]
        Put(0, b"k", b"v", client=b"c" * 17, seq=1),
        Genesis((-1,)),
        Genesis((True,)),
        Check(1, 0),
        Get(0, b"k"),
    ],
)
def test_what_breaks_the_bounds_of_its_type_is_not_read_from_a_log(op: Command) -> None:
    with pytest.raises(ValueError):
        again([op])


def test_trailing_defaults_may_be_left_out() -> None:
    assert decode_entry(msgpack.packb([7, [[1, 0, b"k", b"v"], [10]]])) == (7, [Put(0, b"k", b"v"), Tick()])


def test_changes_of_records_are_events() -> None:
    store = make()
    ops = [put(b"a", b"1", ttl=5), put(b"b", b"2"), put(b"b", b"3", expect=9), cas(b"b", b"2", b"4"), delete(b"b")]
    store.apply(10, [*ops, delete(b"b"), put(b"c", b"5", client=b"c" * 16, seq=1)])
    assert events_in(store, 0) == [
        Event(0, 1, b"a", Change.PUT, b"1", False),
        Event(0, 2, b"b", Change.PUT, b"2", False),
        Event(0, 3, b"b", Change.PUT, b"4", False),
        Event(0, 4, b"b", Change.DELETE, None, False),
        Event(0, 5, b"c", Change.PUT, b"5", False),
    ]
    store.apply(15, [put(b"c", b"5", client=b"c" * 16, seq=1)])
    assert events_in(store, 0)[5:] == [Event(0, 6, b"a", Change.EXPIRE, None, False)], "a retry changes nothing"


def test_limits_themselves_are_allowed() -> None:
    store = make()
    key, value = b"k" * limits.MAX_KEY_BYTES, b"v" * limits.MAX_VALUE_BYTES
    assert one(store, put(key, value, ttl=limits.MAX_TTL * 1000)).code == Code.OK
    assert store.read(0, key).value == value


def test_stats_follow_every_change() -> None:
    store = make()
    store.apply(1, [put(b"aa", b"1234"), put(b"b", b"12"), put(b"aa", b"1"), delete(b"b"), cas(b"aa", b"1", b"123")])
    assert store.stats() == (1, 5, 0, 4)
