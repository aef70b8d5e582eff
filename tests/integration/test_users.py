"""Guarantee: a cluster with users serves nobody else, and them what their roles allow, at whichever node they ask."""

from __future__ import annotations

import base64
import io
import json
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from queue import SimpleQueue
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

import raftkv
from raftkv.api.grpc_status import result_of
from raftkv.cli.admin.main import run
from raftkv.commands.base import Sender
from raftkv.commands.records import Put
from raftkv.errors import Code
from raftkv.frontend.port import Origin
from raftkv.node.messages import ask
from raftkv.testing import LocalCluster
from raftkv.v1 import admin_pb2, admin_pb2_grpc, kv_pb2, kv_pb2_grpc
from tests.integration.test_planted_peer import peer
from tests.waiting import PATIENCE, until


@pytest.fixture(scope="module")
def cluster() -> Iterator[LocalCluster]:
    with LocalCluster(nodes=3, groups=2, users=True, metrics=True) as running:
        yield running


class Admin:
    """``raftkv-admin`` as the first user."""

    def __init__(self, cluster: LocalCluster, capsys: pytest.CaptureFixture[str]) -> None:
        assert cluster.token is not None
        self._options = ["--endpoints", cluster.endpoints, "--token", cluster.token, "--yes", "--timeout", "60s"]
        self._capsys = capsys

    def __call__(self, command: str, code: int = 0) -> Any:
        """What ``command`` prints as JSON, or what it says of its failure."""
        self._capsys.readouterr()
        assert run([*self._options, "-o", "json", *command.split()]) == code
        out, err = self._capsys.readouterr()
        return json.loads(out) if out else err

    def user(self, name: str, *roles: str) -> str:
        """The token of a new user."""
        options = "".join(f" --role {role}" for role in roles)
        return str(self(f"user add {name}{options}")["token"])


@pytest.fixture
def admin(cluster: LocalCluster, capsys: pytest.CaptureFixture[str]) -> Admin:
    return Admin(cluster, capsys)


def refusal(code: Code) -> Any:
    """What a client raises for ``code``."""
    return pytest.raises({Code.UNAUTHENTICATED: raftkv.Unauthenticated}.get(code, raftkv.PermissionDenied))


def metadata(token: str | None) -> Any:
    return None if token is None else (("authorization", f"Bearer {token}"),)


def trail(cluster: LocalCluster) -> list[dict[str, Any]]:
    """The audit trails of all nodes."""
    files = [cluster.data_dir(node) / "audit.log" for node in cluster.nodes]
    return [json.loads(line) for file in files for line in file.read_text().splitlines()]


def noted(cluster: LocalCluster, **fields: Any) -> bool:
    """Whether a line of an audit trail has these fields."""
    return any(all(line.get(name) == value for name, value in fields.items()) for line in trail(cluster))


def code_of(call: Any) -> int:
    """The code with which an RPC ends."""
    try:
        call()
    except grpc.RpcError as error:
        return result_of(error).code  # type: ignore[arg-type]  # it has what is asked of it
    return 0


def test_who_is_no_user_is_served_nothing_but_health(cluster: LocalCluster) -> None:
    for token in (None, "rkv-unknown", "admin:guess"):
        with raftkv.Client(cluster.endpoints, token=token, timeout=PATIENCE) as client:
            for call in (lambda: client.get("k"), lambda: client.put("k", b"v"), lambda: list(client.scan())):
                with refusal(Code.UNAUTHENTICATED):
                    call()
    assert noted(cluster, action="enter", user=None, outcome="UNAUTHENTICATED")
    with grpc.insecure_channel(cluster.address(1)) as channel:
        kv, admin = kv_pb2_grpc.KVStub(channel), admin_pb2_grpc.AdminStub(channel)
        calls: list[tuple[Any, Any]] = [
            (kv.Put, kv_pb2.PutRequest(key=b"k", value=b"v")),
            (admin.GetMap, admin_pb2.GetMapRequest(slot_rule=2)),
            (admin.GetStatus, admin_pb2.GetStatusRequest()),
            (admin.Change, admin_pb2.ChangeRequest(remove_node=3)),
            (admin.GetUsers, admin_pb2.GetUsersRequest()),
            (admin.ReadAudit, admin_pb2.ReadAuditRequest()),
        ]
        for method, request in calls:
            assert code_of(lambda: method(request, timeout=PATIENCE)) == Code.UNAUTHENTICATED  # noqa: B023
        snapshot = admin.ReadSnapshot(admin_pb2.ReadSnapshotRequest(group=1), timeout=PATIENCE)
        assert code_of(lambda: list(snapshot)) == Code.UNAUTHENTICATED
        first = admin_pb2.BootstrapRequest(name="me", digest=b"d" * 32)
        assert code_of(lambda: admin.Bootstrap(first, timeout=PATIENCE)) == Code.CONDITION_FAILED
        # Who joins is no user: the meta group wants another token of it.
        join = admin_pb2.JoinRequest(address="h:1", peer_address="h:2", incarnation="x", slot_rule=2)
        assert code_of(lambda: admin.Join(join, timeout=PATIENCE)) == Code.CONDITION_FAILED
        for action in ("bootstrap", "join"):
            assert noted(cluster, action=action, user=None, outcome="CONDITION_FAILED")
        reflection = reflection_pb2_grpc.ServerReflectionStub(channel)
        asked = reflection_pb2.ServerReflectionRequest(list_services="")
        for token, code in ((None, Code.UNAUTHENTICATED), (cluster.token, Code.OK)):
            answers = reflection.ServerReflectionInfo(iter([asked]), timeout=PATIENCE, metadata=metadata(token))
            assert code_of(lambda: list(answers)) == code  # noqa: B023
        health = health_pb2_grpc.HealthStub(channel)
        serving = health_pb2.HealthCheckResponse.SERVING
        until(lambda: health.Check(health_pb2.HealthCheckRequest(), timeout=PATIENCE).status == serving)


def test_metrics_want_a_user_and_probes_do_not(cluster: LocalCluster) -> None:
    def status(path: str, header: str | None = None) -> int:
        headers = {} if header is None else {"Authorization": header}
        request = urllib.request.Request(f"http://{cluster.metrics_address(1)}{path}", headers=headers)
        try:
            with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
                return int(answer.status)
        except urllib.error.HTTPError as error:
            with error:
                return error.code

    assert [status(path) for path in ("/livez", "/readyz", "/metrics")] == [200, 200, 401]
    assert status("/metrics", "Bearer rkv-unknown") == status("/metrics", "nonsense") == 401
    until(lambda: status("/metrics", f"Bearer {cluster.token}") == 200)
    assert noted(cluster, action="enter", user=None, outcome="UNAUTHENTICATED")


def test_a_prefix_is_not_escaped(cluster: LocalCluster, admin: Admin) -> None:
    admin("role add orders")
    admin("role grant orders read write --prefix a/")
    with raftkv.Client(cluster.endpoints, token=admin.user("orders", "orders"), timeout=PATIENCE) as client:
        client.put("a/1", b"x")
        assert client.cas("a/1", b"x", b"y").succeeded
        for key in ("ab", "a", "b/a/", "/a/", "A/1"):
            for call in (
                lambda: client.get(key),  # noqa: B023
                lambda: client.get(key, consistency="stale"),  # noqa: B023
                lambda: client.put(key, b"x"),  # noqa: B023
                lambda: client.delete(key),  # noqa: B023
                lambda: client.cas(key, None, b"x"),  # noqa: B023
            ):
                with refusal(Code.PERMISSION_DENIED):
                    call()
    with raftkv.Client(cluster.endpoints, token=cluster.token, timeout=PATIENCE) as client:
        assert client.get("ab") is None
    assert noted(cluster, action="put", user="orders", outcome="PERMISSION_DENIED", arguments={"key": "ab"})


def test_a_range_does_not_leave_its_prefix(cluster: LocalCluster, admin: Admin) -> None:
    admin("role add ranges")
    admin("role grant ranges read write --prefix r/")
    everything = raftkv.Client(cluster.endpoints, token=cluster.token, timeout=PATIENCE)
    with everything, raftkv.Client(cluster.endpoints, token=admin.user("ranges", "ranges"), timeout=PATIENCE) as client:
        everything.put_many({"r": "x", "r-": "x", "r/1": "x", "r/22": "x", "r/23": "x", "r0": "x", "s": "x"})
        assert [record.key for record in client.scan(prefix="r/")] == [b"r/1", b"r/22", b"r/23"]
        assert [record.key for record in client.scan(prefix="r/", limit=1, reverse=True)] == [b"r/23"]
        assert [record.key for record in client.scan(start="r/2", end="r0")] == [b"r/22", b"r/23"]
        list(client.scan(prefix="r/", consistency="stale"))
        assert (client.count(prefix="r/2"), client.delete_prefix("r/2")) == (2, 2)
        beyond: list[Any] = [
            lambda: list(client.scan()),
            lambda: list(client.scan(prefix="r")),
            lambda: list(client.scan(start="r/")),
            lambda: list(client.scan(start="r/", end="r0\0", keys_only=True)),
            lambda: list(client.scan(start="r.", end="r/1", reverse=True)),
            lambda: list(client.scan(start="r/1", end="s", consistency="stale")),
            client.count,
            lambda: client.count(prefix="r"),
            lambda: client.delete_prefix("r"),
            lambda: client.delete_prefix("s"),
        ]
        for call in beyond:
            with refusal(Code.PERMISSION_DENIED):
                call()
        assert everything.count(start="r", end="s\0") == 5
    assert noted(cluster, action="scan", user="ranges", outcome="PERMISSION_DENIED")


def test_a_prefix_of_names_gives_locks_and_elections(cluster: LocalCluster, admin: Admin) -> None:
    admin("role add team")
    admin("role grant team read write --prefix {lock:team.")
    admin("role grant team read --prefix {election:team.")
    with raftkv.Client(cluster.endpoints, token=admin.user("team", "team"), timeout=PATIENCE) as client:
        with client.lock("team.report", ttl=60) as lock, ThreadPoolExecutor(1) as pool:
            other = client.lock("team.report", ttl=60)
            waiting = pool.submit(other.acquire)
            until(lambda: client.count(prefix="{lock:team.report}queue:") == 2, "it waits")
            assert client.txn().check(lock.key, version=lock.token).put("{lock:team.report}state", "x").commit()
            lock.release()
            assert waiting.result(PATIENCE)
            other.release()
        assert client.election("team.scheduler").leader() is None
        calls: list[Any] = [
            client.lock("team").acquire,
            client.lock("teams.report").acquire,
            client.election("team.scheduler", "me").campaign,
            client.election("other").leader,
        ]
        for call in calls:
            with refusal(Code.PERMISSION_DENIED):
                call()


def test_rights_are_the_same_at_every_node(cluster: LocalCluster, admin: Admin) -> None:
    """Two of three nodes forward the write: whoever is asked refuses it."""
    admin("role add reader")
    admin("role grant reader read")
    admin("role add saver")
    admin("role grant saver backup")
    reader, saver = admin.user("reader", "reader"), admin.user("saver", "saver")
    for node in cluster.nodes:
        with grpc.insecure_channel(cluster.address(node)) as channel:
            kv, stub = kv_pb2_grpc.KVStub(channel), admin_pb2_grpc.AdminStub(channel)

            def code(method: Any, request: Any, token: str) -> int:
                return code_of(lambda: method(request, timeout=PATIENCE, metadata=metadata(token)))

            get, put = kv_pb2.GetRequest(key=b"k"), kv_pb2.PutRequest(key=b"k", value=b"v")
            assert [code(kv.Get, get, token) for token in (reader, saver)] == [0, Code.PERMISSION_DENIED]
            assert [code(kv.Put, put, token) for token in (reader, saver)] == [Code.PERMISSION_DENIED] * 2
            for token in (reader, saver):
                assert code(stub.GetState, admin_pb2.GetStateRequest(slot_rule=2), token) == 0
                admins: list[tuple[Any, Any]] = [
                    (stub.Change, admin_pb2.ChangeRequest(remove_node=3)),
                    (stub.ChangeUsers, admin_pb2.ChangeUsersRequest(remove_user="admin")),
                    (stub.StartCheck, admin_pb2.StartCheckRequest(group=1)),
                    (stub.GetUsers, admin_pb2.GetUsersRequest()),
                ]
                for method, request in admins:
                    assert code(method, request, token) == Code.PERMISSION_DENIED
            group = admin_pb2.ReadSnapshotRequest(group=1)
            assert noted(cluster, action="put", user="reader", outcome="PERMISSION_DENIED", arguments={"key": "k"})
            assert noted(cluster, action="Change", user="saver", outcome="PERMISSION_DENIED")
            denied = stub.ReadSnapshot(group, timeout=PATIENCE, metadata=metadata(reader))
            assert code_of(lambda: list(denied)) == Code.PERMISSION_DENIED  # noqa: B023
            taken = stub.ReadSnapshot(group, timeout=PATIENCE, metadata=metadata(saver))
            # Only the group's leader vouches for it.
            assert code_of(lambda: list(taken)) in (0, Code.NOT_LEADER, Code.UNAVAILABLE)  # noqa: B023


def test_a_removed_user_is_refused_on_its_open_stream(cluster: LocalCluster, admin: Admin) -> None:
    admin("role add all")
    admin("role grant all read write")
    token = admin.user("short", "all")
    with raftkv.Client(cluster.endpoints, token=token, timeout=PATIENCE) as client:
        for number in range(20):
            client.put(f"k{number}", b"x")

        def serves(call: Any) -> bool:
            try:
                call()
            except (raftkv.PermissionDenied, raftkv.Unauthenticated):
                return False
            return True

        def refused() -> bool:
            return not any(serves(lambda: client.put(f"k{number}", b"x")) for number in range(20))  # noqa: B023

        admin("role revoke all write")
        until(refused)
        assert client.get("k1") is not None
        admin("role grant all write")
        until(lambda: all(serves(lambda: client.put(f"k{number}", b"x")) for number in range(20)))  # noqa: B023
        rotated = admin("user rotate short")["token"]
        until(refused)
        with refusal(Code.UNAUTHENTICATED):
            client.get("k1")
    with raftkv.Client(cluster.endpoints, token=rotated, timeout=PATIENCE) as client:
        client.put("k1", b"x")
        admin("user remove short")
        until(refused)
        with refusal(Code.UNAUTHENTICATED):
            client.put("k1", b"x")


def test_a_removed_user_is_refused_on_its_open_pipeline(cluster: LocalCluster, admin: Admin) -> None:
    """The stream stays, and what comes on it is judged by what holds then."""
    admin("role add piped")
    admin("role grant piped write")
    token, asked = admin.user("piped", "piped"), SimpleQueue[kv_pb2.PipelineRequest | None]()
    with grpc.insecure_channel(cluster.address(1)) as channel:
        stream: Any = kv_pb2_grpc.KVStub(channel).Pipeline(iter(asked.get, None), metadata=metadata(token))

        def put() -> int:
            operation = kv_pb2.Operation(id=7, kind=kv_pb2.KIND_PUT, key=b"k", value=b"x")
            asked.put(kv_pb2.PipelineRequest(operations=[operation], timeout_ms=round(1000 * PATIENCE)))
            (result,) = next(stream).results
            return int(result.code)

        assert put() == Code.OK
        admin("role revoke piped write")
        until(lambda: put() == Code.PERMISSION_DENIED)
        admin("role grant piped write")
        until(lambda: put() == Code.OK)
        admin("user remove piped")
        until(lambda: put() == Code.UNAUTHENTICATED)
        assert put() == Code.UNAUTHENTICATED
        asked.put(None)
        assert list(stream) == []
    assert noted(cluster, action="put", user="piped", outcome="UNAUTHENTICATED")


def test_a_leader_looks_itself_at_what_a_lying_node_forwards(cluster: LocalCluster, admin: Admin) -> None:
    """It speaks as node 3, and says that it has let users in who may not write, or do not exist."""
    admin("role add watcher")
    admin("role grant watcher read")
    token = admin.user("watcher", "watcher")
    for node in (1, 2):
        with grpc.insecure_channel(cluster.address(node)) as channel:
            status, shown = admin_pb2_grpc.AdminStub(channel).GetStatus, metadata(token)
            assert code_of(lambda: status(admin_pb2.GetStatusRequest(), timeout=PATIENCE, metadata=shown)) == 0  # noqa: B023
    cluster.kill(3)
    until(lambda: {cluster.leader(group) for group in (1, 2)} <= {1, 2})
    said = [("watcher", b"lied/1"), ("", b"lied/2"), ("nobody", b"lied/3"), ("admin", b"lied/4")]
    puts = [(user, Put(raftkv.slot_of(key, 1024), key, b"x")) for user, key in said]
    forwarded = [ask(at, 60_000, Origin(1, Sender.CLIENT, user, 1), [put]) for at, (user, put) in enumerate(puts)]
    for node in (1, 2):
        with peer(cluster, node) as connection:
            connection.send(*forwarded, 7)
            # The answers go to the real node 3, which is dead; the pong says that the messages were read.
            assert connection.read()[0][0][0] == 7
    with raftkv.Client(cluster.endpoints, token=cluster.token, timeout=PATIENCE) as client:
        until(lambda: client.get(b"lied/4") is not None)
        assert [client.get(key) for _, key in said[:3]] == [None] * 3
    told = {"address": "node 3", "action": "put"}
    assert noted(cluster, **told, user="watcher", outcome="PERMISSION_DENIED", arguments={"key": "lied/1"})
    assert noted(cluster, **told, user=None, outcome="UNAUTHENTICATED", arguments={"key": "lied/2"})
    assert noted(cluster, **told, user="nobody", outcome="UNAUTHENTICATED", arguments={"key": "lied/3"})
    cluster.restart(3)


def test_a_watch_needs_to_read_all_that_it_may_tell_of(cluster: LocalCluster, admin: Admin) -> None:
    admin("role add news")
    admin("role grant news read --prefix w/")
    token = admin.user("reporter", "news")
    writer = raftkv.Client(cluster.endpoints, token=cluster.token, timeout=PATIENCE)
    with writer, raftkv.Client(cluster.endpoints, token=token, timeout=PATIENCE) as client:
        refused: list[dict[str, Any]] = [{"prefix": "w"}, {"prefix": ""}, {"key": "w"}, {"key": "x/w/"}]
        for asked in refused:
            with client.watch(**asked) as watch, refusal(Code.PERMISSION_DENIED):
                next(watch)
        with client.watch(prefix="w/") as watch, client.watch(key="w/1") as one:
            assert next(watch).type == next(one).type == "live"
            writer.put_many({"v/1": "0", "w/1": "1", "w": "2"})
            assert [(event.key, event.value) for event in (next(watch), next(one))] == [(b"w/1", b"1")] * 2
            with grpc.insecure_channel(cluster.address(1)) as channel:
                stub, slots = kv_pb2_grpc.KVStub(channel), writer.slots()
                for prefix, code in ((b"w/", Code.OK), (b"w", Code.PERMISSION_DENIED)):
                    request = kv_pb2.CursorRequest(prefix=prefix, slots=b"\xff" * (slots // 8))
                    assert code_of(lambda: stub.Cursor(request, timeout=PATIENCE, metadata=metadata(token))) == code  # noqa: B023
            streams = [_let_in(cluster, node, token) for node in cluster.nodes]
            admin("role revoke news read --prefix w/")
            for stream in streams:
                assert code_of(lambda: list(stream)) == Code.PERMISSION_DENIED  # noqa: B023
            for ended in (watch, one):
                with refusal(Code.PERMISSION_DENIED):
                    next(ended)
        admin("role grant news read --prefix w/")
        until(lambda: _watches(client))
        with client.watch(prefix="w/") as watch:
            assert next(watch).type == "live"
            admin("user rotate reporter")
            with refusal(Code.UNAUTHENTICATED):
                next(watch)


def _watched(cluster: LocalCluster, node: int, token: str) -> Iterator[kv_pb2.WatchResponse]:
    """The messages of a watch that a node has let in; they end when the node ends it."""
    with grpc.insecure_channel(cluster.address(node)) as channel:
        stream = kv_pb2_grpc.KVStub(channel).Watch(
            kv_pb2.WatchRequest(prefix=b"w/", places=[kv_pb2.Place(slot=0)]), timeout=PATIENCE, metadata=metadata(token)
        )
        yield from stream


def _let_in(cluster: LocalCluster, node: int, token: str) -> Iterator[kv_pb2.WatchResponse]:
    """A watch that a node has let in, once it has heard who the users are: stubs do not try again by themselves."""
    found: list[Iterator[kv_pb2.WatchResponse]] = []

    def enters() -> bool:
        stream = _watched(cluster, node, token)
        try:
            assert next(stream).opened
        except grpc.RpcError as error:
            if error.code() != grpc.StatusCode.UNAVAILABLE:
                raise
            return False
        found.append(stream)
        return True

    until(enters)
    return found[0]


def _watches(client: raftkv.Client) -> bool:
    try:
        with client.watch(prefix="w/") as watch:
            return next(watch).type == "live"
    except raftkv.PermissionDenied:
        return False


def test_passwords(cluster: LocalCluster, admin: Admin, monkeypatch: pytest.MonkeyPatch) -> None:
    admin.user("alice", "admin")
    monkeypatch.setattr("sys.stdin", io.StringIO("s3cret:word\n"))
    admin("user passwd alice")
    with raftkv.Client.from_url(f"raftkv://alice:s3cret%3Aword@{cluster.endpoints}", timeout=PATIENCE) as client:
        client.put("k", b"v")
        client.get("k")
    with (
        raftkv.Client(cluster.endpoints, token="alice:s3cret", timeout=PATIENCE) as client,
        refusal(Code.UNAUTHENTICATED),
    ):
        client.get("k")
    admin("user passwd alice --remove")
    until(lambda: _is_refused(cluster, "alice:s3cret:word"))


def _is_refused(cluster: LocalCluster, token: str) -> bool:
    with raftkv.Client(cluster.endpoints, token=token, timeout=PATIENCE) as client:
        try:
            client.get("k")
        except raftkv.Unauthenticated:
            return True
    return False


def test_the_last_administrator_stays(admin: Admin) -> None:
    if any(user["user"] == "alice" for user in admin("user list")["users"]):
        admin("user remove alice")
    assert "then no user could administer the cluster" in admin("user remove admin", code=4)
    assert "there are users already" in admin("user bootstrap", code=4)


def test_a_node_that_joins_and_one_that_starts_again_know_the_users(cluster: LocalCluster, admin: Admin) -> None:
    new = cluster.add_node()

    def noted(action: str) -> list[Any]:
        return [line for line in admin("audit tail -n 1000")["lines"] if line["action"] == action]

    assert noted("join")[-1]["outcome"] == "OK"
    until(lambda: {line["node"] for line in noted("node_joined")} >= {1, 2, 3})
    cluster.restart(2)
    for node in (new, 2):
        with raftkv.Client(cluster.address(node), timeout=PATIENCE) as client, refusal(Code.UNAUTHENTICATED):
            client.get("k")
        with raftkv.Client(cluster.address(node), token=cluster.token, timeout=PATIENCE) as client:
            client.get("k")


def test_the_trail_tells_who_did_what_and_no_secrets(cluster: LocalCluster, admin: Admin) -> None:
    token = admin.user("told")
    admin("role grant none read", code=4)
    with raftkv.Client(cluster.endpoints, token=token, timeout=PATIENCE) as client, refusal(Code.PERMISSION_DENIED):
        client.put("k", b"v")
    with raftkv.Client(cluster.endpoints, token="rkv-guess", timeout=PATIENCE) as client, refusal(Code.UNAUTHENTICATED):
        client.put("k", b"v")
    lines = admin("audit tail -n 1000")["lines"]

    def of(action: str) -> list[Any]:
        return [line for line in lines if line["action"] == action]

    assert of("bootstrap")[0]["arguments"] == {"name": "admin"}
    (added,) = [line for line in of("add_user") if line["arguments"]["add_user"]["name"] == "told"]
    assert (added["user"], added["outcome"], added["address"].split(":")[0]) == ("admin", "OK", "127.0.0.1")
    assert of("grant_rights")[-1]["outcome"] == "CONDITION_FAILED"
    assert {line["outcome"] for line in of("enter")} == {"UNAUTHENTICATED"}
    assert "told" in [line["user"] for line in of("put")]
    assert cluster.token is not None
    secrets = [text.encode() for text in (cluster.token, token, "rkv-guess", "s3cret:word")]
    secrets += [base64.b64encode(secret) for secret in secrets]
    for path in cluster.folder.rglob("*"):
        if path.is_file() and path.name != "admin.token":
            data = path.read_bytes()
            assert not any(secret in data for secret in secrets), path
