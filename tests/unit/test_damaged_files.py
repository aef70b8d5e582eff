"""Guarantee: what a data folder holds is CorruptData, with file and offset, if it is not what was written there,
however right its checksum; and what was damaged is left as it is."""

from __future__ import annotations

import json
import random
from typing import Any
from zlib import crc32

import msgpack
import pytest

from faults.sim.disk import SimDisk
from faults.sim.worker import SimWorker
from raftkv.errors import CorruptData
from raftkv.raft.snapshots import align
from raftkv.storage import snapshot_format as fmt
from raftkv.storage.folder import DataFolder
from raftkv.storage.format import FORMAT
from raftkv.storage.snapshots import SnapshotInfo, SnapshotStore
from raftkv.store.meta import MetaStore
from raftkv.store.records import Store

FOLDER = "n/snapshots"
IDENTITY = {
    "format": FORMAT,
    "slot_rule": 2,
    "cluster_id": "c",
    "node_id": 1,
    "incarnation": "ab",
    "started": True,
    "peers": {"2": "cd"},
}


def folder_with(text: bytes) -> SimDisk:
    disk = SimDisk()
    fs = disk.mount()
    fs.makedirs("n")
    file = fs.create("n/identity.json", 0)
    file.write_at(0, b"%b\ncrc32 %08x\n" % (text, crc32(text)))
    file.sync()
    file.close()
    fs.sync_dir("n")
    disk.kill()
    return disk


def open_folder(disk: SimDisk) -> DataFolder:
    return DataFolder.open(disk.mount(), "n", "c", 1, random.Random(0))


def test_the_identity_as_it_should_be_is_read() -> None:
    folder = open_folder(folder_with(json.dumps(IDENTITY).encode()))
    assert (folder.node_id, folder.incarnation, folder.started, folder.peers) == (1, "ab", True, {2: "cd"})


@pytest.mark.parametrize("key", IDENTITY)
def test_an_identity_without_a_key_is_damaged(key: str) -> None:
    found = {name: value for name, value in IDENTITY.items() if name != key}
    disk = folder_with(json.dumps(found).encode())
    before = disk.files()
    with pytest.raises(
        CorruptData, match=rf"n/identity.json: damaged at byte 0: .*{key} is missing; nothing was changed"
    ):
        open_folder(disk)
    assert disk.files()["n/identity.json"] == before["n/identity.json"]


@pytest.mark.parametrize("key", IDENTITY)
@pytest.mark.parametrize("value", [None, 1.5, [1], {"a": 1}, {"0": "x"}, {"2": 5}])
def test_an_identity_of_odd_types_is_damaged(key: str, value: object) -> None:
    with pytest.raises(CorruptData, match=f"identity is not valid: ({key}|peers) "):
        open_folder(folder_with(json.dumps({**IDENTITY, key: value}).encode()))


@pytest.mark.parametrize("text", [b"", b"[]", b"5", b"null", b"{", b"\xff", b"[" * 100_000, b'"x"'])
def test_an_identity_that_is_no_object_is_damaged(text: bytes) -> None:
    with pytest.raises(CorruptData, match="identity is not valid"):
        open_folder(folder_with(text))


# Snapshots


def header(description: bytes) -> bytes:
    crc = crc32(description, crc32(fmt._HEADER.pack(fmt.MAGIC, FORMAT, len(description), 0)))
    return fmt._HEADER.pack(fmt.MAGIC, FORMAT, len(description), crc) + description


def snapshots(disk: SimDisk) -> SnapshotStore:
    disk.kill()
    return SnapshotStore(disk.mount(), SimWorker(), FOLDER)


def written(chunks: list[bytes]) -> tuple[SimDisk, SnapshotInfo]:
    disk = SimDisk()
    store = snapshots(disk)
    writer = store.writer(1, 9, 2, [1, 2])
    writer.add(chunks, lambda _: None)
    found: list[SnapshotInfo | None] = []
    writer.commit(lambda info, _: found.append(info))
    (info,) = found
    assert info is not None
    return disk, info


@pytest.mark.parametrize(
    "description",
    [
        b"",
        b"\xc1",
        b"\x93\x01",
        *(msgpack.packb(one) for one in (5, [], [1, 9, 2], [1, 9, 2, 5], [1, 9, 2, ["x"]], [1, 9, 2, "ab"], {"a": 1})),
        *(msgpack.packb(one) for one in ([1, 9, 2, [1], 5], [1, 8, 2, [1]], ["1", 9, 2, [1]], [[1], 9, 2, [1]])),
    ],
)
def test_a_snapshot_with_an_odd_description_is_damaged(description: bytes) -> None:
    disk, info = written([b"x"])
    data = disk.files()[info.path]
    _, start = fmt._read_header(disk.mount(), info.path, 1, 9, 2)
    disk.kill()
    disk.replace(info.path, header(description) + data[start:])
    with pytest.raises(CorruptData, match=rf"snap-1-9-2.snap: damaged at byte {fmt._HEADER.size}: .*left as it is"):
        snapshots(disk)
    assert info.path in disk.files()


def test_a_deleted_snapshot_is_named_by_its_path() -> None:
    disk, info = written([b"x"])
    store = snapshots(disk)
    with pytest.raises(CorruptData, match=r"n/snapshots/snap-1-9-\*.snap: .*the snapshot is missing"):
        align(1, None, 9, [], None, Store(), store)  # type: ignore[arg-type]
    with pytest.raises(CorruptData, match=r"n/snapshots/snap-1-12-\*.snap: .*the snapshot is missing"):
        align(1, info, 12, [], None, Store(), store)  # type: ignore[arg-type]


@pytest.mark.parametrize("at", [0, 1, 2])
def test_a_chunk_that_does_not_belong_is_named_with_its_place(at: int) -> None:
    chunks = [
        msgpack.packb(["raftkv store 3", 5, True]),
        msgpack.packb([1, 0, 1, 0, b"", 0, 0]),
        msgpack.packb([4, 1, 0, 0, 0]),
    ]
    chunks[at] = msgpack.packb({"odd": 1})
    disk, info = written(chunks)
    with pytest.raises(CorruptData, match="not a snapshot of a store") as caught:
        align(1, info, 9, [], None, Store(), snapshots(disk))  # type: ignore[arg-type]
    assert caught.value.path == info.path
    assert disk.files()[info.path][caught.value.offset :].startswith(chunks[at])


def test_a_snapshot_that_ends_too_soon_is_damaged() -> None:
    disk, info = written([msgpack.packb(["raftkv store 3", 5, True])])
    with pytest.raises(CorruptData, match="incomplete"):
        align(1, info, 9, [], None, Store(), snapshots(disk))  # type: ignore[arg-type]


def odd_meta_states() -> list[Any]:
    plain = [None, [0, 0, 0, 0], [], None, [], [], [], [], []]
    odd = [
        (1, [0, 0, 0, "x"]),
        (1, [0.5, 0, 0, 0]),
        (2, [[1, "abc", 1, 2, "started", 5]]),
        (2, [[1, [1], 1, 2, "gone", 5]]),
    ]
    odd += [(3, [1]), (3, [1, [[["x"], 1, 2]], 1, 1, 1, 1, 1]), (4, [["x"] * 9]), (5, [[1, "ab"]]), (5, 7), (6, ["n"])]
    odd += [(7, [[1, None]]), (7, [1]), (8, [[1, 2, 3]]), (0, {"slot_rule": 1}), (0, 5), (0, [])]
    return [[value if at == place else part for at, part in enumerate(plain)] for place, value in odd]


@pytest.mark.parametrize(
    "encoded",
    [
        *(msgpack.packb(["raftkv meta", 5, state, []]) for state in odd_meta_states()),
        *(msgpack.packb(["raftkv meta", 5, odd_meta_states()[0][:1], tokens]) for tokens in (5, [[1]], [["t", 1, ""]])),
        msgpack.packb(["raftkv meta", -1, [], []]),
        msgpack.packb(["raftkv meta", 2**63, [], []]),
        msgpack.packb({"raftkv": 1}),
        b"",
    ],
)
def test_a_meta_snapshot_of_odd_types_is_damaged(encoded: bytes) -> None:
    disk, info = written([encoded] if encoded else [])
    store = MetaStore()
    before = store.digest()
    with pytest.raises(CorruptData, match="not a snapshot of the meta group") as caught:
        align(0, info, 9, [], None, store, snapshots(disk))  # type: ignore[arg-type]
    assert caught.value.path == info.path
    assert store.digest() == before


def test_what_a_peer_sends_is_not_this_nodes_damage() -> None:
    """No advice to replace this node: the file goes, and nothing of the node's own is concerned."""
    disk, info = written([b"x" * 50])
    data = bytearray(disk.files()[info.path])
    data[-30] ^= 1
    other = SimDisk()
    store = snapshots(other)
    failures: list[BaseException | None] = []
    incoming = store.incoming(1, 9, 2, len(data))
    incoming.write(0, bytes(data), failures.append)
    incoming.commit(lambda _, failure: failures.append(failure))
    (failure,) = [one for one in failures if one is not None]
    assert isinstance(failure, CorruptData)
    assert "the received data is discarded" in str(failure)
    assert "replace the node" not in str(failure)
    assert not [name for name in other.files() if "snap-" in name]
