"""raftkv-admin says why something cannot be: dead nodes, damaged manifests, a meta group that does not answer."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from raftkv.cli.admin.archive import BackupError, read_manifest
from tests.admin_world import Admin, World, world_of


@pytest.fixture
def world() -> Iterator[World]:
    with world_of(nodes=3, groups=2) as running:
        yield running


@pytest.fixture
def admin(world: World, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Admin:
    return Admin(world.endpoints, capsys, monkeypatch)


def test_a_dead_node_is_not_made_leader(world: World, admin: Admin) -> None:
    (follower, *_) = [node for node in world.map.group(1).voters if node != world.leading[1]]
    before = world.map
    world.stop_node(follower)
    assert admin(f"leader transfer 1 {follower}") == 4
    assert f"node {follower} does not answer: {world.address(follower)}: " in admin.err
    assert world.map == before
    # Even group 0, and its leader's own node that is gone by now.
    assert admin(f"leader transfer 0 {follower}") == 4


def test_balancing_leaders_does_not_wait_for_a_dead_node(world: World, admin: Admin) -> None:
    world.stop_node(3)
    report = admin.json("leader balance --over nodes", code=6)
    assert {one["reason"] for one in report["missing"]} == {report["missing"][0]["reason"]}
    assert report["missing"][0]["reason"].startswith(f"node 3 does not answer: {world.address(3)}: ")


@pytest.mark.parametrize("command", ["group list", "map show", "map show --slot 1", "slot stats"])
def test_a_copy_of_the_map_is_told_as_such(world: World, admin: Admin, command: str) -> None:
    world.meta_down = True
    code = admin(command, "--timeout", "500ms")
    assert code in (0, 5)
    assert "the meta group does not answer: this is one node's copy of the map, which may be old" in admin.err
    if command != "slot stats":
        assert admin.json(f"{command} --timeout 500ms")["meta_answers"] is False
        world.meta_down = False
        assert admin.json(command)["meta_answers"] is True
        assert admin.err == ""


@pytest.mark.parametrize(
    "command", ["node undrain", "node remove --yes", "node add", "group remove --yes", "group drain --yes"]
)
def test_ids_that_no_cluster_can_have_are_wrong_usage(admin: Admin, command: str) -> None:
    assert admin(command, "9" * 25) == 2
    assert "is not in the range 1<=x<=" in admin.err


@pytest.fixture(scope="module")
def backup(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from raftkv.cli.admin.main import run

    folder = tmp_path_factory.mktemp("backups") / "whole"
    with world_of(nodes=1, groups=1) as one:
        one.put(b"a", b"1")
        assert run(["--endpoints", one.endpoints, "backup", "create", str(folder)]) == 0
    return folder


def first(name: str, value: object) -> Callable[[dict[str, Any]], object]:
    """Change a field of the first file."""
    return lambda raw: raw["files"][0].update({name: value})


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (first("group", [1]), r"files\[0\]\.group: "),
        (first("records", "many"), r"files\[0\]\.records: "),
        (first("bytes", None), r"files\[0\]\.bytes: "),
        (first("bytes", float("inf")), "JSON is malformed"),
        (first("size", True), r"files\[0\]\.size: "),
        (first("size", 1.5), r"files\[0\]\.size: "),
        (first("sha256", 5), r"files\[0\]\.sha256: "),
        (first("time_ms", {}), r"files\[0\]\.time_ms: "),
        (first("name", 5), r"files\[0\]\.name: "),
        (first("name", "a\0b"), r"files\[0\]\.name: "),
        (first("name", ".."), r"files\[0\]\.name: "),
        (first("name", ""), r"files\[0\]\.name: "),
        (first("name", "\ud800"), "JSON is malformed"),
        (first("records", -1), r"files\[0\]\.records: "),
        (first("size", 10**400), r"files\[0\]\.size: "),
        (first("slots", 7), r"files\[0\]\.slots: "),
        (first("slots", "a-b"), "slots of group-1.snapshot: 'a-b' is neither"),
        (first("slots", "0-2147483647"), "slots of group-1.snapshot: over 255"),
        (lambda raw: raw.update(slots=10**30), "slots: "),
        (lambda raw: raw.update(slots=-5), "slots: Expected `int` >= 1"),
        (lambda raw: raw.update(slots="x"), "slots: "),
        (lambda raw: raw.update(files=None), "files: "),
        (lambda raw: raw.update(files="abc"), "files: "),
        (lambda raw: raw.update(files=[5]), r"files\[0\]: "),
        (lambda raw: raw.update(cluster_id={}), "cluster_id: "),
        (lambda raw: raw.update(created_at=None), "created_at: "),
        (lambda raw: raw.update(map=5), "map: "),
        (lambda raw: raw.update(schema=[]), "schema: "),
        (lambda raw: raw.update(schema=2), "has schema 2"),
        (lambda raw: raw.update(kind="else"), "is not the manifest of a backup"),
    ],
)
def test_a_manifest_of_odd_types_is_damaged(
    backup: Path, tmp_path: Path, change: Callable[[dict[str, Any]], object], told: str
) -> None:
    raw = json.loads((backup / "manifest.json").read_text())
    change(raw)
    (tmp_path / "manifest.json").write_text(json.dumps(raw))
    with pytest.raises(BackupError, match=told) as caught:
        read_manifest(tmp_path)
    assert str(caught.value).startswith(f"{tmp_path / 'manifest.json'}: ")
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("content", [b"", b"\xff\xfe", b"[" * 100_000, b"5", b'"x"', b"null", b"{" * 10, b"\0"])
def test_a_manifest_that_is_not_an_object_is_damaged(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "manifest.json").write_bytes(content)
    with pytest.raises(BackupError, match="is damaged: "):
        read_manifest(tmp_path)


def test_whole_manifests_are_read(backup: Path) -> None:
    manifest = read_manifest(backup)
    assert (manifest.records, manifest.slots) == (1, 256)
