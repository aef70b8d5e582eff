"""A data folder of another format is refused as a whole, with what to do, and is left as it is."""

from __future__ import annotations

import json
import random
from pathlib import Path
from zlib import crc32

import pytest

from faults.sim.disk import SimDisk
from raftkv.cli.admin.archive import owned, read_state
from raftkv.errors import CorruptData, StorageError
from raftkv.storage import snapshot_format, wal_format
from raftkv.storage.folder import DataFolder
from raftkv.storage.format import FORMAT
from raftkv.store.packed import fields
from shards.slots import SLOT_RULE

IDENTITY = {"cluster_id": "c", "node_id": 1, "incarnation": "ab", "started": True, "peers": {"2": "cd"}}
OLD = {"format": 1, **IDENTITY}
"""As version 0.1 wrote it."""


def folder_with(identity: dict[str, object]) -> SimDisk:
    """A folder as a node of version 0.1 left it, with this identity."""
    disk = SimDisk()
    fs = disk.mount()
    fs.makedirs("n/wal")
    fs.makedirs("n/snapshots")
    text = json.dumps(identity, indent=1).encode()
    head = wal_format._SEGMENT.pack(wal_format.MAGIC, 1, 1, 7, 4096)
    files = {
        "n/identity.json": b"%b\ncrc32 %08x\n" % (text, crc32(text)),
        "n/lock": b"",
        "n/map": b"\0\0\0\0\x80",
        "n/wal/wal-000000000001.log": head + crc32(head).to_bytes(4, "little") + bytes(4000),
        "n/snapshots/snap-1-5-1.snap": snapshot_format._HEADER.pack(snapshot_format.MAGIC, 1, 0, 0),
    }
    for path, data in files.items():
        file = fs.create(path, 0)
        file.write_at(0, data)
        file.sync()
        file.close()
    for folder in ("n", "n/wal", "n/snapshots"):
        fs.sync_dir(folder)
    disk.kill()
    return disk


def refusal_of(disk: SimDisk) -> str:
    before = disk.files()
    said = []
    for _ in range(2):  # the second time it is not locked
        with pytest.raises(StorageError) as caught:
            DataFolder.open(disk.mount(), "n", "c", 1, random.Random(0))
        assert not isinstance(caught.value, CorruptData)
        said.append(str(caught.value))
    assert disk.files() == before
    assert said[0] == said[1]
    return said[0]


@pytest.mark.parametrize("identity", [OLD, {"format": 1}, {**OLD, "node_id": 9}], ids=["whole", "bare", "another's"])
def test_a_folder_of_version_0_1_is_refused_with_the_way_to_carry_data_over(identity: dict[str, object]) -> None:
    said = refusal_of(folder_with(identity))
    assert said.startswith(f"n: format 1, this version of raftkv reads and writes format {FORMAT}: it is of raftkv 0.1")
    for told in ("nothing was changed", "`raftkv dump`", "`raftkv load`", "`raftkv-admin backup restore`"):
        assert told in said


def test_a_folder_of_a_later_version_is_refused() -> None:
    said = refusal_of(folder_with({"format": FORMAT + 1, "whatever": 1}))
    assert "a later version of raftkv wrote it; nothing was changed; start it with that version" in said


@pytest.mark.parametrize("rule", [1, 3, 0])
def test_a_folder_of_another_slot_rule_is_refused(rule: int) -> None:
    said = refusal_of(folder_with({**IDENTITY, "format": FORMAT, "slot_rule": rule}))
    assert f"keys get their slots by rule {SLOT_RULE} here" in said


def test_all_files_of_a_folder_have_its_format() -> None:
    fs = folder_with(OLD).mount()
    segment = fs.read("n/wal/wal-000000000001.log", 0, 100)
    with pytest.raises(StorageError, match="format 1, this version of raftkv"):
        wal_format.check_segment_header("a", segment, 1, 7)
    path = "n/snapshots/snap-1-5-1.snap"
    data = fs.read(path, 0, fs.size(path))
    crc = crc32(data)
    file = fs.create("n/snapshots/whole", 0)
    file.write_at(0, snapshot_format._HEADER.pack(snapshot_format.MAGIC, 1, 0, crc))
    with pytest.raises(StorageError, match="format 1, this version of raftkv"):
        snapshot_format._read_header(fs, "n/snapshots/whole", 1, 5, 1)


OLD_BACKUP = bytes.fromhex(
    "726166746b76206261636b757020310a9100000093ae726166746b762073746f72652033cd05dcc39701030101c4000000940203c406757365"
    "723a31c413010000000000000000000000000000006f6e6593030396c4106363636363636363636363636363636301cd05dccd05dc01019701"
    "cd02bc0101c40000009402cd02bcc4087b636172747d3a39c41301000000000000003cf000000000000074776f950402020100"
)
"""A group's file of a backup, as version 0.1 wrote it: a write of a client, and a record that expires."""


def test_a_backup_of_version_0_1_is_read(tmp_path: Path) -> None:
    """It is written by key, wherever its keys lie now."""
    path = tmp_path / "group-1.snapshot"
    path.write_bytes(OLD_BACKUP)
    state = read_state(path)
    records = {key: fields(record) for slot in owned(state) for key, record in slot.records.items()}
    assert state.time == 1500
    assert records == {b"user:1": (b"one", 1, 0), b"{cart}:9": (b"two", 1, 61_500)}
