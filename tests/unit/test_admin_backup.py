"""A backup has every slot once, tells any damage, and brings all records back with the time that they had left."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from raftkv.cli.admin import archive, backup
from raftkv.cli.admin.archive import BackupError, GroupFile, coverage, owned, read_manifest, read_state
from raftkv.client.admin import AdminClient
from raftkv.client.aio import AsyncClient
from raftkv.commands.records import Put
from raftkv.errors import Overloaded, Unavailable
from tests.admin_world import CLUSTER, SLOTS, Admin, World, world_of

OTHER = "9d4f7c52-9a3e-4a8e-8c0f-0a3a1b2c3d4e"


@pytest.fixture
def world() -> Iterator[World]:
    with world_of(nodes=3, groups=2) as made:
        for number in range(300):
            made.put(b"key:%d" % number, b"value %d" % number)
        made.put(b"mortal", b"x", ttl=3_600_000)
        yield made


@pytest.fixture
def admin(world: World, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Admin:
    return Admin(world.endpoints, capsys, monkeypatch)


@pytest.fixture
def made(world: World, admin: Admin, tmp_path: Path) -> Path:
    """A backup of the world."""
    folder = tmp_path / "backup"
    assert admin("backup create", str(folder)) == 0, admin.err
    return folder


def file_of(group: int, slots: str) -> GroupFile:
    return GroupFile(f"group-{group}.snapshot", group, 1, "", 0, slots, 0, 0)


def test_each_slot_must_be_in_one_file() -> None:
    assert coverage([file_of(1, "0-4"), file_of(2, "5-7")], 8) == ([], {})
    assert coverage([file_of(1, "0-4"), file_of(2, "4-6"), file_of(3, "")], 8) == ([7], {4: [1, 2]})
    assert coverage([], 2) == ([0, 1], {})


def test_a_backup_describes_itself(made: Path, admin: Admin, world: World) -> None:
    manifest = read_manifest(made)
    assert (manifest.cluster_id, manifest.slots) == (CLUSTER, SLOTS)
    assert [file.group for file in manifest.files] == [1, 2]
    assert sorted(path.name for path in made.iterdir()) == ["group-1.snapshot", "group-2.snapshot", "manifest.json"]
    report = admin.json("backup verify", str(made))
    assert (report["valid"], report["problems"]) == (True, [])
    assert report["records"] == manifest.records >= 301
    assert admin("backup verify", str(made)) == 0
    assert "the backup is valid" in admin.out
    assert manifest.map["epoch"] == world.map.epoch


def test_verifying_and_restoring_ask_no_more_than_they_need(made: Path, admin: Admin) -> None:
    assert admin("--endpoints 127.0.0.1:1 backup verify", str(made)) == 0
    assert admin("backup restore", str(made), "--yes", "--endpoints", "127.0.0.1:1", "--timeout", "0.3") == 3


def test_a_folder_that_is_in_use_is_left_alone(made: Path, admin: Admin, tmp_path: Path) -> None:
    assert admin("backup create", str(made)) == 1
    assert "holds a backup already" in admin.err
    strange = tmp_path / "strange"
    strange.mkdir()
    (strange / "letter.txt").write_text("dear")
    assert admin("backup create", str(strange)) == 1
    assert "is not empty: it holds letter.txt" in admin.err
    half = tmp_path / "half"
    half.mkdir()
    (half / "group-1.snapshot").write_text("of an interrupted backup")
    (half / "group-9.snapshot.part").write_text("")
    assert admin("backup create", str(half)) == 0
    assert admin("backup verify", str(half)) == 0
    assert admin("backup verify", str(tmp_path / "nowhere")) == 1
    assert "there is no manifest.json" in admin.err


def damage(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def test_every_damage_is_told(made: Path, admin: Admin) -> None:
    path = made / "group-1.snapshot"
    whole = path.read_bytes()
    for harm in (lambda: damage(path, len(whole) // 2), lambda: path.write_bytes(whole[:-1]), path.unlink):
        harm()
        report = admin.json("backup verify", str(made), code=5)
        assert [one["file"] for one in report["problems"]] == ["group-1.snapshot"]
        assert admin("backup restore", str(made), "--yes") == 1
        assert "group-1.snapshot: " in admin.err
        path.write_bytes(whole)
    assert admin("backup verify", str(made)) == 0


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"records": 7}, "records is"),
        ({"bytes": 1}, "bytes is"),
        ({"time_ms": 1}, "time_ms is"),
        ({"slots": "0"}, "slots is"),
    ],
)
def test_counts_are_compared(made: Path, admin: Admin, change: dict[str, Any], told: str) -> None:
    rewrite(made, lambda raw: raw["files"][0].update(change))
    texts = [one["text"] for one in admin.json("backup verify", str(made), code=5)["problems"]]
    assert any(told in text and "the manifest says" in text for text in texts)


def test_a_missing_group_is_told(made: Path, admin: Admin) -> None:
    rewrite(made, lambda raw: raw["files"].pop())
    (problem,) = admin.json("backup verify", str(made), code=5)["problems"]
    assert (problem["file"], problem["text"][:22]) == ("manifest.json", "no file has the slots ")


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", '{"kind": "raftkv backup", "schema": 2}', '{"kind": "raftkv backup", "schema": 1, "files": [{}]}'],
)
def test_a_damaged_manifest_is_refused(made: Path, admin: Admin, text: str) -> None:
    (made / "manifest.json").write_text(text)
    assert admin("backup verify", str(made)) == 1
    assert "manifest.json" in admin.err


def test_no_file_elsewhere_is_read(made: Path) -> None:
    rewrite(made, lambda raw: raw["files"][0].update(name="../group-1.snapshot"))
    with pytest.raises(BackupError, match=r"files\[0\]\.name: "):
        read_manifest(made)


def rewrite(folder: Path, change: Any) -> None:
    path = folder / "manifest.json"
    raw = json.loads(path.read_text())
    change(raw)
    path.write_text(json.dumps(raw))


@pytest.mark.parametrize("data", [b"", b"raftkv", archive.MAGIC + b"\x01", archive.MAGIC + b"\xff" * 9, archive.MAGIC])
def test_what_is_no_group_file_is_refused(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "group-1.snapshot"
    path.write_bytes(data)
    with pytest.raises(BackupError, match=r"group-1\.snapshot"):
        read_state(path)


# Slots that move meanwhile


def test_a_slot_that_moves_between_two_reads_is_read_again(
    world: World, admin: Admin, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is in no file, or in two: only the groups that it concerns are read again."""
    monkeypatch.setattr(backup, "_PAUSE", 0.0)
    read: list[int] = []
    really = backup.read_group

    async def watched(client: Any, folder: Path, group: int) -> GroupFile:
        found = await really(client, folder, group)
        read.append(group)
        if len(read) == 1:
            slot = world.map.slots_of(2)[0]
            world.command("plan", world.map.epoch, [[[slot], 2, 1]], 1, 0)
        return found

    monkeypatch.setattr(backup, "read_group", watched)
    folder = tmp_path / "b"
    assert admin("backup create", str(folder)) == 0
    assert read == [1, 2, 1]
    assert admin("backup verify", str(folder)) == 0
    manifest = read_manifest(folder)
    states = [read_state(folder / file.name) for file in manifest.files]
    assert sum(len(slot.records) for state in states for slot in owned(state)) == manifest.records


def test_slots_that_go_on_moving_are_told(
    world: World, admin: Admin, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backup, "_PAUSE", 0.0)
    really = backup.read_group

    moved: list[int] = []

    async def moving(client: Any, folder: Path, group: int) -> GroupFile:
        found = await really(client, folder, group)
        moved.append(next(slot for slot in world.map.slots_of(3 - group) if slot not in moved))
        world.command("plan", world.map.epoch, [[moved[-1:], 3 - group, group]], 1, 0)
        return found

    monkeypatch.setattr(backup, "read_group", moving)
    assert admin("backup create", str(tmp_path / "b")) == 4
    assert "rebalance pause" in admin.err
    assert not (tmp_path / "b" / "manifest.json").exists()


def test_a_leader_that_fails_is_asked_again(
    world: World, admin: Admin, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backup, "_PAUSE", 0.0)
    monkeypatch.setattr(backup, "_ATTEMPTS", 3)
    really = AdminClient.read_snapshot
    failures = [1, 1]

    async def failing(self: Any, address: str, group: int) -> Any:
        if failures:
            failures.pop()
            raise Unavailable("no longer the leader")
        async for chunk in really(self, address, group):
            yield chunk

    monkeypatch.setattr(AdminClient, "read_snapshot", failing)
    assert admin("backup create", str(tmp_path / "b")) == 0
    assert admin("backup verify", str(tmp_path / "b")) == 0
    failures += [1] * 9
    assert admin("backup create", str(tmp_path / "c")) == 3
    assert "no longer the leader" in admin.err
    assert not list((tmp_path / "c").iterdir())


def test_a_refusal_is_no_trouble_with_the_folder(
    world: World, admin: Admin, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def refusing(self: Any, address: str, group: int) -> Any:
        raise Overloaded("too much to do")
        yield

    monkeypatch.setattr("raftkv.cli.admin.backup._ATTEMPTS", 1)
    monkeypatch.setattr(AdminClient, "read_snapshot", refusing)
    assert admin("backup create", str(tmp_path / "b")) == 1
    assert "too much to do" in admin.err
    assert "cannot write" not in admin.err


# Restoring


def restore(admin: Admin, folder: Path, target: World, *more: str, code: int = 0) -> Any:
    command = ["backup", "restore", str(folder), "--endpoints", target.endpoints, "--yes", "-o", "json", *more]
    assert admin(command[0], *command[1:]) == code, admin.err
    return json.loads(admin.out) if admin.out else None


def test_all_records_come_back(made: Path, admin: Admin, world: World) -> None:
    with world_of(nodes=1, groups=1, cluster_id=OTHER) as target:
        report = restore(admin, made, target)
        assert report["written"] + report["expired"] == report["records"]
        assert target.records() == world.records()
        assert len(target.records()) == 301
        left = {op.key: op.ttl for op in target.served if isinstance(op, Put)}
        assert left[b"key:1"] == 0
        # One group's time is behind the other's: what counts is what was left when the group was read.
        assert 3_400_000 < left[b"mortal"] <= 3_600_000
        assert not (made / "manifest.json.progress").exists()


def test_a_cluster_that_holds_records_is_not_written_to(made: Path, admin: Admin) -> None:
    with world_of(nodes=1, groups=1, cluster_id=OTHER) as target:
        target.put(b"mine", b"1")
        restore(admin, made, target, code=4)
        assert "the cluster holds 1 record already" in admin.err
        assert target.records() == {b"mine": b"1"}
        restore(admin, made, target, "--into-nonempty")
        assert len(target.records()) == 302


class Interruption:
    """Lets a restore write so many records only."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.left = 10_000
        put = AsyncClient.put

        async def stopping(client: AsyncClient, key: bytes, value: bytes, **options: Any) -> Any:
            if not self.left:
                raise Unavailable("the cluster has gone")
            self.left -= 1
            return await put(client, key, value, **options)

        monkeypatch.setattr(AsyncClient, "put", stopping)


@pytest.fixture
def interruption(monkeypatch: pytest.MonkeyPatch) -> Interruption:
    return Interruption(monkeypatch)


def interrupted(admin: Admin, made: Path, target: World, interruption: Interruption, after: int = 100) -> None:
    interruption.left = after
    restore(admin, made, target, "--in-flight", "5", code=6)
    interruption.left = 10_000


def test_an_interrupted_restore_goes_on(made: Path, admin: Admin, world: World, interruption: Interruption) -> None:
    """Without being told to write into a cluster that is not empty: what is there came from itself."""
    with world_of(nodes=1, groups=1, cluster_id=OTHER) as target:
        interrupted(admin, made, target, interruption)
        assert "the cluster has gone" in admin.err
        assert "the same command resumes" in admin.err
        assert 0 < len(target.records()) < 301
        report = restore(admin, made, target)
        assert report["skipped"] > 0
        assert "resuming after" in admin.err
        assert target.records() == world.records()
        assert not (made / "manifest.json.progress").exists()


def test_a_restore_that_could_not_save_anything_goes_on(
    made: Path, admin: Admin, world: World, interruption: Interruption
) -> None:
    with world_of(nodes=1, groups=1, cluster_id=OTHER) as target:
        interrupted(admin, made, target, interruption)
        progress = made / "manifest.json.progress"
        progress.write_text(json.dumps({**json.loads(progress.read_text()), "done": 0}))
        assert restore(admin, made, target)["skipped"] == 0
        assert target.records() == world.records()


def test_a_restore_into_a_cluster_that_was_emptied_since_begins_anew(
    made: Path, admin: Admin, world: World, interruption: Interruption
) -> None:
    with world_of(nodes=1, groups=1, cluster_id=OTHER) as target:
        interrupted(admin, made, target, interruption)
    with world_of(nodes=1, groups=1, cluster_id=OTHER) as target:
        report = restore(admin, made, target)
        assert "are still there unchanged: starting over" in admin.err
        assert report["skipped"] == 0
        assert target.records() == world.records()


def test_a_restore_into_a_cluster_that_others_have_filled_since_is_refused(
    made: Path, admin: Admin, world: World, interruption: Interruption
) -> None:
    with world_of(nodes=1, groups=1, cluster_id=OTHER) as target:
        interrupted(admin, made, target, interruption)
    with world_of(nodes=1, groups=1, cluster_id=OTHER) as target:
        target.put(b"mine", b"1")
        restore(admin, made, target, code=4)
        assert "the cluster holds 1 record already" in admin.err
        assert target.records() == {b"mine": b"1"}
        restore(admin, made, target, "--into-nonempty")
        assert target.records() == {**world.records(), b"mine": b"1"}


def test_a_restore_begins_anew_if_it_is_told_to(
    made: Path, admin: Admin, world: World, interruption: Interruption
) -> None:
    with world_of(nodes=1, groups=1, cluster_id=OTHER) as target:
        interrupted(admin, made, target, interruption)
        assert restore(admin, made, target, "--restart")["skipped"] == 0
        assert target.records() == world.records()
    with world_of(nodes=1, groups=1, cluster_id=OTHER) as target:
        interrupted(admin, made, target, interruption)
    with world_of(nodes=1, groups=1, cluster_id=OTHER) as target:
        target.put(b"mine", b"1")
        restore(admin, made, target, "--restart", code=4)
        assert "already" in admin.err


def test_progress_of_another_backup_or_cluster_is_told(
    made: Path, admin: Admin, world: World, interruption: Interruption
) -> None:
    with world_of(nodes=1, groups=1, cluster_id=OTHER) as target:
        interrupted(admin, made, target, interruption)
    rewrite(made, lambda raw: raw.update(created_at="2026-01-01T00:00:00+00:00"))
    with world_of(nodes=1, groups=1, cluster_id=OTHER.replace("9", "8")) as target:
        assert restore(admin, made, target)["skipped"] == 0
        assert "manifest.json.progress is of another backup and cluster: starting over" in admin.err
        assert target.records() == world.records()


def test_a_file_that_changes_after_it_was_verified_is_told(
    made: Path, admin: Admin, monkeypatch: pytest.MonkeyPatch
) -> None:
    verified = backup.verify_report

    def verify_and_change(folder: Path, manifest: Any) -> Any:
        report = verified(folder, manifest)
        (made / "group-1.snapshot").write_bytes((made / "group-2.snapshot").read_bytes())
        return report

    monkeypatch.setattr(backup, "verify_report", verify_and_change)
    with world_of(nodes=1, groups=1, cluster_id=OTHER) as target:
        restore(admin, made, target, code=6)
        assert "group-1.snapshot: changed after it was verified" in admin.err


def test_a_backup_is_no_stream(admin: Admin, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for command in ("create", "verify", "restore"):
        assert admin(f"backup {command}", "-") == 2
        assert "stdin and stdout are not possible here" in admin.err
    assert admin("backup create", "./-") == 0
    assert admin("backup verify", "./-") == 0
