"""Guarantees: conditions are decided on the record as it is, versions are never reused, expiry is exact."""

import msgpack
import pytest

from raftkv import limits
from raftkv.errors import Code
from raftkv.store import Kind, Op, Result, SlotState, Store


def make(slots: int = 4) -> Store:
    store = Store()
    store.apply(1, [Op(Kind.GENESIS, 0, b"", msgpack.packb(list(range(slots))))])
    return store


def one(store: Store, op: Op, now: int = 0) -> Result:
    (result,) = store.apply(now, [op])
    return result


def put(key: bytes, value: bytes = b"v", **fields: int) -> Op:
    return Op(Kind.PUT, 0, key, value)._replace(**fields)  # type: ignore[arg-type]


def delete(key: bytes, **fields: int) -> Op:
    return Op(Kind.DELETE, 0, key)._replace(**fields)  # type: ignore[arg-type]


def cas(key: bytes, expected: bytes | None, value: bytes, ttl: int = 0) -> Op:
    return Op(Kind.CAS, 0, key, value, expected=expected, ttl=ttl)


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
    one(store, Op(Kind.TICK, 0, b""), now=1099)
    assert store.read(0, b"k") == Result(Code.OK, 1, b"v", 1)
    # Within the entry at whose time it expires, before anything was removed.
    results = store.apply(1100, [cas(b"k", b"v", b"w"), delete(b"k"), put(b"k", expect=0)])
    assert results == [Result(Code.CONDITION_FAILED, 0), Result(Code.OK, 0), Result(Code.OK, 2)]
    assert store.read(0, b"k").ttl == -1


def test_expired_records_are_removed_and_the_next_expiry_is_known() -> None:
    store = make()
    assert store.next_expiry() is None
    store.apply(1000, [put(b"a", ttl=300), put(b"b", ttl=100), put(b"c"), put(b"d", ttl=200)])
    assert store.next_expiry() == 1100
    one(store, put(b"b", b"for ever"))
    assert store.next_expiry() == 1200
    one(store, delete(b"d"))
    assert store.next_expiry() == 1300
    one(store, Op(Kind.TICK, 0, b""), now=1300)
    assert store.next_expiry() is None
    assert store.stats().records == 2


def test_one_entry_removes_a_bounded_number() -> None:
    store = make()
    count = limits.MAX_EXPIRED_PER_ENTRY * 2 + 10
    store.apply(1, [put(b"%d" % i, ttl=5) for i in range(count)])
    left = []
    while store.next_expiry() is not None:
        store.apply(6, [Op(Kind.TICK, 0, b"")])
        left.append(store.stats().records)
        # Absent at once, although it is removed last.
        assert store.read(0, b"999") == Result(Code.OK)
        assert store.scan(0, b"", 0).value == msgpack.packb([])
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
    one(store, Op(Kind.TICK, 0, b""), now=500)
    assert store.time == 1000
    store.apply(2**63, [])
    assert store.time == 1000


def test_slots_that_are_not_served() -> None:
    store = Store()
    assert one(store, put(b"k")).code == Code.MOVED
    assert store.read(0, b"k").code == Code.MOVED
    assert store.scan(0, b"", 0).code == Code.MOVED
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
    for bad in (b"", b"\xc1", msgpack.packb(5), msgpack.packb([-1]), msgpack.packb(["x"]), msgpack.packb([True]), None):
        assert one(store, Op(Kind.GENESIS, 0, b"", bad)).code == Code.INVALID_ARGUMENT
        assert not store.genesis
    assert one(store, Op(Kind.GENESIS, 0, b"", msgpack.packb([3, 5]))).code == Code.OK
    one(store, put(b"k", slot=3))
    assert one(store, Op(Kind.GENESIS, 0, b"", msgpack.packb([3, 7]))).code == Code.OK
    assert store.owned_slots() == [3, 5]
    assert store.read(3, b"k").version == 1


@pytest.mark.parametrize(
    ("op", "code"),
    [
        (put(b""), Code.INVALID_ARGUMENT),
        (put(b"k", ttl=-1), Code.INVALID_ARGUMENT),
        (put(b"k", ttl=limits.MAX_TTL * 1000 + 1), Code.INVALID_ARGUMENT),
        (put(b"k", expect=-2), Code.INVALID_ARGUMENT),
        (put(b"k" * (limits.MAX_KEY_BYTES + 1)), Code.TOO_LARGE),
        (put(b"k", b"v" * (limits.MAX_VALUE_BYTES + 1)), Code.TOO_LARGE),
        (cas(b"k", None, b"v" * (limits.MAX_VALUE_BYTES + 1)), Code.TOO_LARGE),
        (Op(Kind.PUT, 0, b"k", None), Code.INVALID_ARGUMENT),
        (Op(Kind.PUT, 0, "k", b"v"), Code.INVALID_ARGUMENT),  # type: ignore[arg-type]
        (Op(Kind.CAS, 0, b"k", b"v", expected="x"), Code.INVALID_ARGUMENT),  # type: ignore[arg-type]
        (Op(Kind.GET, 0, b"k"), Code.INVALID_ARGUMENT),
        (Op(Kind.MAP_INIT, 0, b"k", b"v"), Code.INVALID_ARGUMENT),
        (Op(99, 0, b"k", b"v"), Code.INVALID_ARGUMENT),
        (Op(Kind.PUT, 0, b"k", b"v", client=b"short", seq=1), Code.INVALID_ARGUMENT),
        (Op(Kind.PUT, 0, b"k", b"v", client=b"c" * 16, seq=0), Code.INVALID_ARGUMENT),
        (Op(Kind.PUT, 0, b"k", b"v", client=b"c" * 16, seq=1, first=2), Code.INVALID_ARGUMENT),
    ],
)
def test_refused_commands_change_nothing(op: Op, code: Code) -> None:
    store = make()
    before = store.digest()
    assert one(store, op).code == code
    assert store.digest() == before


def test_trailing_defaults_may_be_left_out() -> None:
    store = make()
    assert store.apply(1, [[1, 0, b"k", b"v"], [10, 0, b""], [1, 0]]) == [
        Result(Code.OK, 1),
        Result(Code.OK),
        Result(Code.INVALID_ARGUMENT, detail="malformed command"),
    ]


def test_limits_themselves_are_allowed() -> None:
    store = make()
    key, value = b"k" * limits.MAX_KEY_BYTES, b"v" * limits.MAX_VALUE_BYTES
    assert one(store, put(key, value, ttl=limits.MAX_TTL * 1000)).code == Code.OK
    assert store.read(0, key).value == value


def test_scan_pages_in_key_order() -> None:
    store = make()
    keys = [b"%03d" % i for i in range(100)]
    store.apply(10, [put(key, b"x" * 50, ttl=5 if i % 2 else 0) for i, key in enumerate(reversed(keys))])
    seen: list[tuple[bytes, bytes, int, int]] = []
    after, pages, more = b"", 0, 1
    while more:
        code, more, value, *_ = store.scan(0, after, 500)
        assert code == Code.OK
        assert value is not None
        page = msgpack.unpackb(value)
        assert 0 < len(page) <= 7
        seen += [tuple(row) for row in page]
        after, pages = seen[-1][0], pages + 1
    assert [row[0] for row in seen] == keys
    assert pages > 10
    assert {row[3] for row in seen} == {-1, 5}
    assert all(store.read(0, key)[1:4] == (version, value, ttl) for key, value, version, ttl in seen)


def test_scan_skips_what_has_expired_and_sees_new_keys() -> None:
    store = make()
    store.apply(10, [put(b"a", ttl=5), put(b"c")])
    assert store.scan(0, b"", 0) == Result(Code.OK, 0, msgpack.packb([[b"a", b"v", 1, 5], [b"c", b"v", 2, -1]]))
    store.apply(15, [put(b"b"), delete(b"c")])
    assert store.scan(0, b"", 0) == Result(Code.OK, 0, msgpack.packb([[b"b", b"v", 3, -1]]))
    assert store.scan(0, b"b", 0) == Result(Code.OK, 0, msgpack.packb([]))


def test_a_page_holds_one_record_however_small_the_limit() -> None:
    store = make()
    store.apply(1, [put(b"a", b"x" * 1000), put(b"b", b"y" * 1000)])
    result = store.scan(0, b"", 1)
    assert result.version == 1
    assert [row[0] for row in msgpack.unpackb(result.value)] == [b"a"]


def test_stats_follow_every_change() -> None:
    store = make()
    store.apply(1, [put(b"aa", b"1234"), put(b"b", b"12"), put(b"aa", b"1"), delete(b"b"), cas(b"aa", b"1", b"123")])
    assert store.stats() == (1, 5, 0, 4)
