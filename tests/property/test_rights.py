"""Guarantee: rights are what a plain model of grants says, for any roles and keys, and an encoding loses nothing."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from raftkv.commands.rights import DATA, Right
from raftkv.errors import ConditionFailed
from raftkv.store.users import NO_USERS, Users, decode, encode

RIGHTS = (Right.READ, Right.WRITE, Right.ADMIN, Right.BACKUP)
names = st.sampled_from(["a", "b"])
prefixes = st.binary(max_size=2).map(lambda raw: bytes(65 + byte % 2 for byte in raw))
keys = st.none() | st.binary(min_size=1, max_size=4).map(lambda raw: bytes(65 + byte % 2 for byte in raw))
changes = st.tuples(names, st.sampled_from(RIGHTS), prefixes, st.booleans())


def _only(key: bytes | None) -> tuple[bytes, ...] | None:
    return None if key is None else (key,)


@settings(derandomize=True, max_examples=300, deadline=None)
@given(st.lists(changes, max_size=12), st.sets(names), st.lists(st.tuples(st.sampled_from(RIGHTS), keys), max_size=12))
def test_rights(
    steps: list[tuple[str, Right, bytes, bool]], own: set[str], asked: list[tuple[Right, bytes | None]]
) -> None:
    users: Users = NO_USERS.with_first("admin", b"d" * 32).with_role("a").with_role("b")
    users = users.with_user("user", b"e" * 32, own)
    model: dict[str, set[tuple[Right, bytes]]] = {"a": set(), "b": set()}
    for role, right, prefix, granted in steps:
        before = users
        try:
            users = users.with_grant(role, right, prefix, granted=granted)
        except ConditionFailed:
            assert users == before
            assert (prefix and right & ~DATA) or (not granted and (right, prefix) not in model[role])
            continue
        assert users.revision == before.revision + 1
        if granted:
            model[role].add((right, prefix))
        else:
            model[role].remove((right, prefix))
    assert decode(encode(users)) == users
    permit = users.permit(users.user("user"))
    grants = {grant for role in own for grant in model[role]}
    for right, key in asked:
        expected = any(right is one and (not prefix or (key or b"").startswith(prefix)) for one, prefix in grants)
        assert permit.allows(right, _only(key)) == expected
    for key in {key for _, key in asked}:
        assert permit.allows(DATA, _only(key)) == all(
            permit.allows(right, _only(key)) for right in (Right.READ, Right.WRITE)
        )
