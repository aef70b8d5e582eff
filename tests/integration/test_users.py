"""Guarantee: a cluster with users serves nobody else, and them what their roles allow, at whichever node they ask."""

from __future__ import annotations

import base64
import io
import json
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

import raftkv
from raftkv.api.grpc_status import result_of
from raftkv.cli.admin.main import run
from raftkv.errors import Code
from raftkv.testing import LocalCluster
from raftkv.v1 import admin_pb2, admin_pb2_grpc, kv_pb2, kv_pb2_grpc
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
        with refusal(Code.PERMISSION_DENIED):
            list(client.scan())
    with raftkv.Client(cluster.endpoints, token=cluster.token, timeout=PATIENCE) as client:
        assert client.get("ab") is None


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
            streams = [_watched(cluster, node, token) for node in cluster.nodes]
            assert all(next(stream).opened for stream in streams)
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
