"""Guarantee: a node serves users what their roles allow, by what the meta group's leader said lately, or nobody."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any

import pytest

from raftkv.api.credentials import (
    MAX_CREDENTIALS,
    authorization,
    check_credentials,
    digest_of,
    hashed,
    new_token,
    shown,
    verified,
)
from raftkv.client.urls import parse_url
from raftkv.commands.base import Command, Sender
from raftkv.commands.ranges import Scan
from raftkv.commands.records import Cas, Delete, Get, Put
from raftkv.commands.registry import check
from raftkv.commands.results import DONE, Result, UsersReport
from raftkv.commands.rights import ALL, DATA, MAX_GRANTS, Right, parse_right
from raftkv.commands.transactions import Check, GetStep, PutStep, Transact
from raftkv.commands.updates import CompareAndDelete, GetAndDelete, Increment, Touch
from raftkv.commands.users import AddUser, Bootstrap, ReadUsers
from raftkv.errors import Code, ConditionFailed, InvalidArgument, Overloaded, Unauthenticated, Unavailable
from raftkv.frontend.grpc.users import is_local
from raftkv.frontend.port import NODE, Caller, Origin
from raftkv.node.access import Access
from raftkv.node.audit import Audit, place
from raftkv.node.users import UserCopy, token_proof
from raftkv.store.meta import MetaStore
from raftkv.store.users import NO_USERS, Users, decode, encode
from shards.map import META_GROUP
from tests.peer_world import ManualClock, rest

TOKEN, OTHER = "rkv-first", "rkv-other"
GET, PUT, SCAN = Get(1, b"a/1"), Put(1, b"a/1", b"v"), Scan(1, b"", b"", b"\xff" * 128)


def some_users() -> Users:
    """``admin`` with TOKEN, and ``app`` with OTHER, who may read what begins with ``a/``."""
    users = (
        NO_USERS.with_first("admin", digest_of(TOKEN)).with_role("a").with_grant("a", Right.READ, b"a/", granted=True)
    )
    return users.with_user("app", digest_of(OTHER), ["a"])


# -- the state


def test_there_is_always_somebody_who_may_administer() -> None:
    with pytest.raises(ConditionFailed, match="no users yet"):
        NO_USERS.with_user("app", b"d" * 32, [])
    with pytest.raises(ConditionFailed, match="no users yet"):
        NO_USERS.with_role("a")
    users = some_users()
    removals: list[Callable[[], Users]] = [
        lambda: users.without_user("admin"),
        lambda: users.without_role("admin"),
        lambda: users.with_role_of("admin", "admin", assigned=False),
        lambda: users.with_grant("admin", Right.ADMIN, b"", granted=False),
    ]
    for without in removals:
        with pytest.raises(ConditionFailed, match="then no user could administer"):
            without()
    second = users.with_role_of("app", "admin", assigned=True).without_user("admin")
    assert [user.name for user in second.users] == ["app"]


def test_what_cannot_be_is_refused_and_changes_nothing() -> None:
    users = some_users()
    refusals: list[tuple[Callable[[], Users], str]] = [
        (lambda: users.with_first("x", b"d" * 32), "there are users already"),
        (lambda: users.with_user("app", b"d" * 32, []), "there is a user app already"),
        (lambda: users.with_user("b", b"d" * 32, ["none"]), "there is no role none"),
        (lambda: users.with_user("b", digest_of(OTHER), []), "this token is in use"),
        (lambda: users.with_token("admin", digest_of(OTHER)), "this token is in use"),
        (lambda: users.without_user("b"), "there is no user b"),
        (lambda: users.with_role("a"), "there is a role a already"),
        (lambda: users.with_grant("a", Right.ADMIN, b"a/", granted=True), "they have no prefix"),
        (lambda: users.with_grant("a", Right.WRITE, b"a/", granted=False), "does not have all of these rights"),
    ]
    for refused, why in refusals:
        with pytest.raises(ConditionFailed, match=why):
            refused()
    for number in range(MAX_GRANTS - 1):
        users = users.with_grant("a", Right.READ, b"%d" % number, granted=True)
    with pytest.raises(ConditionFailed, match="rights for 64 prefixes already"):
        users.with_grant("a", Right.READ, b"more", granted=True)


def test_users_survive_their_encoding() -> None:
    users = some_users().with_password("app", b"p" * 48)
    assert decode(encode(users)) == users
    with pytest.raises(ValueError, match="Expected"):
        decode(b"\x93\x01\x02\x03")


def test_the_meta_group_answers_a_repeated_change_as_the_first_time() -> None:
    meta = MetaStore()
    first = Bootstrap(META_GROUP, b"t" * 16, "admin", digest_of(TOKEN))
    assert [first.apply_meta(meta), first.apply_meta(meta)] == [DONE, DONE]
    again = Bootstrap(META_GROUP, b"u" * 16, "other", digest_of(OTHER))
    assert again.apply_meta(meta) == again.apply_meta(meta)
    assert again.apply_meta(meta).code == Code.CONDITION_FAILED
    restored = MetaStore()
    restore = restored.begin_restore()
    for chunk in meta.snapshot().chunks():
        restore.feed(chunk)
    restore.finish()
    assert (restored.state.users, restored.digest()) == (meta.state.users, meta.digest())
    assert meta.read_users(1).answer == UsersReport(1, b"")
    assert meta.read_users(0).answer == UsersReport(1, encode(meta.state.users))


def test_a_command_that_others_could_not_read_is_not_proposed() -> None:
    check(AddUser(META_GROUP, b"t" * 16, "app", b"d" * 32, ("a",)))
    for bad in (
        AddUser(META_GROUP, b"t" * 16, "app", b"d" * 31, ()),
        AddUser(META_GROUP, b"t" * 16, "app:", b"d" * 32, ()),
        AddUser(META_GROUP, b"t" * 15, "app", b"d" * 32, ()),
        AddUser(META_GROUP, b"t" * 16, "app", b"d" * 32, ("a",) * 17),
    ):
        with pytest.raises(InvalidArgument):
            check(bad)


def test_rights_have_names() -> None:
    assert parse_right("backup") is Right.BACKUP
    with pytest.raises(InvalidArgument, match="'all' is not a right: there are read, write, admin, backup"):
        parse_right("all")


# -- what users show


def test_what_is_shown_is_what_was_sent() -> None:
    token = new_token()
    assert shown(authorization(token)) == ("", token)
    assert shown(authorization("alice:s3:cret é")) == ("alice", "s3:cret é")
    assert shown(f"bearer  {token}") == ("", token)
    for header in (
        "",
        "Bearer",
        "Bearer ",
        "Basic !",
        "Basic YQ==",
        "Digest x",
        f"Bearer {'x' * (MAX_CREDENTIALS + 1)}",
    ):
        assert shown(header) is None
    for bad in ("", "a b", "tökén", "x" * (MAX_CREDENTIALS + 1), "a\n"):
        with pytest.raises(InvalidArgument):
            check_credentials(bad)


def test_passwords_are_kept_as_scrypt_with_a_salt() -> None:
    kept = hashed("s3cret")
    assert len(kept) == 48
    assert kept != hashed("s3cret")
    assert verified("s3cret", kept)
    assert not verified("s3cre", kept)


def test_urls_carry_users_and_errors_do_not() -> None:
    assert parse_url("raftkv://rkv-t@a:1,b:2") == (("a:1", "b:2"), None, "rkv-t")
    assert parse_url("raftkv://alice:s3%40cret@a:1")[2] == "alice:s3@cret"
    for url in (
        "http://rkv-t@a:1",
        "raftkv://rkv-t@a:1/x",
        "raftkv://rkv-t@a",
        "raftkv://x:rkv-t@a:1?ca=b",
        "//rkv-t@[a",
    ):
        with pytest.raises(InvalidArgument) as refused:
            parse_url(url)
        assert "rkv-t" not in str(refused.value)


# -- a node's copy


class World:
    """A node's copy of ``users``, whose meta group answers while ``leads``."""

    def __init__(self, *, known: bool = False, users: Users = NO_USERS, noted: bool = True) -> None:
        self.clock = ManualClock()
        self.users = users
        self.leads = True
        self.noted = 0
        self.can_note = noted
        self.asked: list[Callable[[int, Result], None]] = []
        self.copy = UserCopy(self._submit, self.clock, 30.0, known, self._note)

    def _submit(
        self, ops: Sequence[Command], timeout: float, reply: Callable[[int, Result], None], caller: Caller = NODE
    ) -> None:
        (op,) = ops
        assert isinstance(op, ReadUsers)
        assert caller is NODE
        if not self.leads:
            self.clock.call_later(timeout, lambda: reply(0, Result(Code.UNAVAILABLE)))
            return
        users = b"" if op.revision == self.users.revision else encode(self.users)
        reply(0, Result(Code.OK, answer=UsersReport(self.users.revision, users)))

    def _note(self) -> bool:
        self.noted += self.can_note
        return self.can_note

    def refusals(self, token: str | None, *ops: Command) -> list[int]:
        """Codes of the operations of a client with ``token``."""
        caller = Caller.at("ipv4:127.0.0.1:1", proof=b"" if token is None else token_proof(digest_of(token)))
        refused = self.copy.refusals(caller, ops)
        return [refused[index].code if index in refused else 0 for index in range(len(ops))]


def run(test: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(test())


def test_a_copy_is_good_for_as_long_as_its_grace() -> None:
    async def main() -> None:
        world = World(users=some_users())
        world.copy.start()
        assert world.copy.on
        assert world.refusals(TOKEN, GET, PUT, SCAN) == [0, 0, 0]
        assert world.refusals(OTHER, GET, PUT, SCAN, Get(1, b"a"), Get(1, b"ab")) == [
            0,
            *[Code.PERMISSION_DENIED] * 4,
        ]
        assert world.refusals("unknown", GET) == world.refusals(None, GET) == [Code.UNAUTHENTICATED]
        world.leads = False
        await world.clock.advance(29.0)
        assert world.refusals(TOKEN, GET) == [0]
        await world.clock.advance(2.0)
        assert world.refusals(TOKEN, GET) == world.refusals("unknown", GET) == [Code.UNAVAILABLE]
        world.leads = True
        await world.clock.advance(2.0)
        assert world.refusals(TOKEN, GET) == [0]

    run(main)


def test_a_change_holds_for_who_is_there_already() -> None:
    async def main() -> None:
        world = World(users=some_users())
        world.copy.start()
        caller = Caller.at("ipv4:127.0.0.1:1", proof=token_proof(digest_of(OTHER)))
        assert world.copy.refusals(caller, [GET]) == {}
        assert caller.origin.user == "app"
        world.users = world.users.with_grant("a", Right.READ, b"a/", granted=False)
        await world.clock.advance(0.3)
        (refused,) = world.copy.refusals(caller, [GET]).values()
        assert (refused.code, refused.detail) == (
            Code.PERMISSION_DENIED,
            "user app may not do this: a get of this key needs the right read",
        )
        world.users = world.users.with_token("app", digest_of("another"))
        await world.clock.advance(0.3)
        assert [one.code for one in world.copy.refusals(caller, [GET]).values()] == [Code.UNAUTHENTICATED]

    run(main)


def test_a_node_that_knew_users_once_serves_nobody_until_it_hears_who_they_are() -> None:
    async def main() -> None:
        world = World(known=True, users=some_users())
        world.leads = False
        world.copy.start()
        assert world.copy.on
        assert world.refusals(TOKEN, GET) == world.refusals(None, GET) == [Code.UNAVAILABLE]
        world.leads = True
        await world.clock.advance(2.0)
        assert world.refusals(TOKEN, GET) == [0]
        assert world.noted == 0

    run(main)


def test_that_there_are_users_is_noted_until_it_could_be() -> None:
    async def main() -> None:
        world = World(noted=False)
        world.copy.start()
        await world.clock.advance(1.0)
        assert not world.copy.on
        world.users = some_users()
        await world.clock.advance(0.3)
        assert world.copy.on
        world.can_note = True
        await world.clock.advance(1.0)
        assert world.noted == 1

    run(main)


def test_a_leader_looks_itself_at_who_asks_through_another_node() -> None:
    async def main() -> None:
        world = World(users=some_users())
        refusals = world.copy.refusals_for

        def of(user: str, revision: int) -> Origin:
            return Origin(7, Sender.OPERATOR, user, revision)

        assert refusals(of("", 0), [PUT]) == {}, "no users yet, as far as both know"
        assert [one.code for one in refusals(of("app", 4), [GET]).values()] == [Code.UNAVAILABLE], "it is behind"
        world.copy.start()
        assert refusals(of("app", 4), [GET]) == {}
        assert {at: one.code for at, one in refusals(of("app", 4), [GET, PUT]).items()} == {1: Code.PERMISSION_DENIED}
        assert [one.code for one in refusals(of("", 0), [GET]).values()] == [Code.UNAUTHENTICATED]
        assert [one.code for one in refusals(of("gone", 4), [GET]).values()] == [Code.UNAUTHENTICATED]
        assert refusals(of("admin", 4), [ReadUsers(META_GROUP, 0), PUT]) == {}
        assert list(refusals(of("app", 4), [ReadUsers(META_GROUP, 0)])) == [0]
        assert refusals(Origin(), [ReadUsers(META_GROUP, 0), PUT]) == {}, "the node itself asks"
        first = Bootstrap(META_GROUP, b"t" * 16, "x", b"d" * 32)
        assert refusals(of("", 0), [first]) == {}, "the meta group refuses it, and says why"
        world.leads = False
        await world.clock.advance(40.0)
        assert [one.code for one in refusals(of("admin", 4), [GET]).values()] == [Code.UNAVAILABLE]

    run(main)


def test_to_be_told_of_a_value_is_to_read_it() -> None:
    telling = (
        Cas(1, b"k", b"v"),
        CompareAndDelete(1, b"k", b"v"),
        GetAndDelete(1, b"k"),
        Increment(1, b"k", 1),
        Transact(1, (), (PutStep(b"k", b"v"),)),
    )
    assert {command.needs for command in telling} == {DATA}
    assert {command.needs for command in (PUT, Delete(1, b"k"), Touch(1, b"k", 0))} == {Right.WRITE}


def test_a_transaction_is_about_all_its_keys() -> None:
    checks, steps = (Check(b"a/1"),), (PutStep(b"a/2", b"v"),)
    users = some_users().with_grant("a", DATA, b"a/", granted=True)
    permit = users.permit(users.user("app"))
    for otherwise, allowed in (((), True), ((GetStep(b"a/3"),), True), ((GetStep(b"ab"),), False)):
        transaction = Transact(1, checks, steps, otherwise)
        assert transaction.needs is not None
        assert permit.allows(transaction.needs, transaction.keys) is allowed
    assert not permit.allows(DATA, Transact(1, (Check(b"b"),), steps).keys)


def test_rights_for_some_keys() -> None:
    assert SCAN.keys is None
    permit = some_users().permit(some_users().user("app"))
    assert not permit.allows(DATA, (b"a/1",))
    assert permit.allows(Right.NONE, None)
    assert not permit.allows(Right.ADMIN, (b"a/1",))


# -- the door


class ByHand:
    """A worker that works when it is told to."""

    def __init__(self) -> None:
        self.jobs: list[tuple[Callable[[], Any], Callable[[Any, BaseException | None], None]]] = []

    def submit(self, work: Callable[[], Any], done: Callable[[Any, BaseException | None], None]) -> None:
        self.jobs.append((work, done))

    def work(self) -> int:
        jobs, self.jobs = self.jobs, []
        for work, done in jobs:
            done(work(), None)
        return len(jobs)


class Door(World):
    """The door of a node with these users."""

    def __init__(self, folder: Path, users: Users) -> None:
        super().__init__(users=users)
        self.worker = ByHand()
        self.audit = Audit(folder, self.clock)
        self.access = Access(
            self.copy, self.audit, self.clock, worker=self.worker, reader=ByHand(), known_map=lambda: None
        )
        self.copy.start()

    async def enter(self, credentials: str | None) -> Caller:
        header = None if credentials is None else authorization(credentials)
        entering = asyncio.ensure_future(self.access.enter("ipv4:127.0.0.1:7", header))
        while not entering.done():
            await rest()
            self.worker.work()
            await self.clock.advance(0.5)
        return await entering

    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.audit.tail(1000)]


def test_a_new_user_is_let_in_at_once_and_a_stranger_after_a_look(tmp_path: Path) -> None:
    async def main() -> None:
        door = Door(tmp_path, some_users())
        assert (await door.enter(OTHER)).origin.user == "app"
        door.users = door.users.with_user("new", digest_of("rkv-new"), [])
        assert (await door.enter("rkv-new")).origin.user == "new"
        for wrong in ("rkv-none", None, "app:", "app:x", "nobody:x"):
            with pytest.raises(Unauthenticated):
                await door.enter(wrong)
        door.leads = False
        assert (await door.enter(TOKEN)).origin.user == "admin"
        for perhaps in ("rkv-newer", "app:x"):
            with pytest.raises(Unavailable):
                await door.enter(perhaps)
        await door.clock.advance(40.0)
        for any_one in (TOKEN, "rkv-none"):
            with pytest.raises(Unavailable):
                await door.enter(any_one)
        door.access.close()
        lines = door.lines()
        assert lines[0] == {
            "time": lines[0]["time"],
            "user": None,
            "address": "127.0.0.1:7",
            "arguments": {},
            "action": "enter",
            "outcome": "UNAUTHENTICATED",
        }
        assert "rkv-" not in door.audit.path.read_text()

    run(main)


def test_a_password_is_checked_once_and_beside_the_loop(tmp_path: Path) -> None:
    async def main() -> None:
        door = Door(tmp_path, some_users().with_password("app", hashed("s3cret")))
        done = 0
        work = door.worker.work

        def counted() -> int:
            nonlocal done
            done += (now := work())
            return now

        door.worker.work = counted  # type: ignore[method-assign]
        assert (await door.enter("app:s3cret")).origin.user == "app"
        assert (await door.enter("app:s3cret")).origin.user == "app"
        assert done == 1
        door.users = door.users.with_password("app", hashed("other"))
        await door.clock.advance(0.3)
        with pytest.raises(Unauthenticated):
            await door.enter("app:s3cret")
        assert (await door.enter("app:other")).origin.user == "app"
        header = authorization("app:guess")
        waiting = [asyncio.ensure_future(door.access.enter("ipv4:127.0.0.1:7", header)) for _ in range(16)]
        await rest()
        with pytest.raises(Overloaded):
            await door.access.enter("ipv4:127.0.0.1:7", header)
        for one in waiting:
            one.cancel()
        await rest()
        with pytest.raises(Overloaded):
            await door.access.enter("ipv4:127.0.0.1:7", header)
        door.worker.jobs, jobs = [], door.worker.jobs
        for _, ended in jobs:
            ended(False, None)
        assert (await door.enter("app:other")).origin.user == "app"
        door.access.close()

    run(main)


def test_the_trail_is_bounded_and_strangers_do_not_fill_it(tmp_path: Path) -> None:
    async def main() -> None:
        door = Door(tmp_path, some_users())
        caller = Caller.at("ipv6:%5B::1%5D:9", proof=token_proof(digest_of(OTHER)))
        for _ in range(500):
            door.copy.refused(caller, PUT, Result(Code.PERMISSION_DENIED))
        door.access.note(Caller.at("ipv4:10.0.0.1:5"), "add_group", {"voters": [1] * 5000}, "OK")
        lines = door.lines()
        assert [(line["action"], line["outcome"]) for line in lines] == [
            ("put", "PERMISSION_DENIED"),
            ("add_group", "OK"),
        ]
        assert (lines[0]["arguments"], lines[0]["address"]) == ({"key": "a/1"}, "[::1]:9")
        assert len(lines[1]["arguments"]["cut"]) == 4096
        door.audit.close()
        assert door.lines()[2]["text"].startswith("499 more from @[::1] in the last minute")

    run(main)


@pytest.mark.parametrize(
    ("peer", "local", "told"),
    [
        ("ipv4:127.0.0.1:5", True, "127.0.0.1:5"),
        ("ipv4:10.0.0.1:5", False, "10.0.0.1:5"),
        ("ipv6:%5B::1%5D:5", True, "[::1]:5"),
        ("ipv6:%5B::ffff:127.0.0.1%5D:5", True, "[::ffff:127.0.0.1]:5"),
        ("ipv6:%5Bfe80::1%25lo%5D:5", False, "[fe80::1%lo]:5"),
        ("unix:/run/127.0.0.1:5", False, "unix:/run/127.0.0.1:5"),
        ("", False, ""),
    ],
)
def test_where_a_client_is(peer: str, local: bool, told: str) -> None:
    assert (is_local(peer), place(peer)) == (local, told)


def test_everything_is_allowed_to_who_has_all_rights() -> None:
    permit = some_users().permit(some_users().user("admin"))
    assert permit.everywhere == ALL
