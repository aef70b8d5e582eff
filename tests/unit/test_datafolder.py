"""The data folder: one process, one owner, one incarnation."""

import random
from pathlib import Path

import pytest

from faults.sim.disk import PowerLoss, SimDisk
from raftkv.errors import CorruptData, DataFolderInUse, StorageError
from raftkv.storage.folder import DataFolder
from raftkv.storage.fs import FileSystem, OsFileSystem


def make(fs: FileSystem, path: str = "n", cluster: str = "c1", node: int = 1, seed: int = 1) -> DataFolder:
    return DataFolder.open(fs, path, cluster, node, random.Random(seed))


@pytest.fixture(params=["real", "simulated"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[FileSystem, str]:
    return (OsFileSystem() if request.param == "real" else SimDisk().mount()), f"{tmp_path}/node"


def test_identity_peers_and_map_are_remembered(place: tuple[FileSystem, str]) -> None:
    fs, path = place
    folder = make(fs, path)
    incarnation = folder.incarnation
    assert len(bytes.fromhex(incarnation)) == 16
    assert (folder.peers, folder.started, folder.load_map()) == ({}, False, None)
    folder.remember_peer(2, "aa")
    folder.remember_peer(3, "bb")
    folder.remember_peer(2, "aa")
    folder.save_map(b"map 1")
    folder.save_map(b"map 2")
    folder.mark_started()
    folder.close()
    again = make(fs, path, seed=2)
    assert (again.cluster_id, again.node_id, again.incarnation) == ("c1", 1, incarnation)
    assert (again.peers, again.started, again.load_map()) == ({2: "aa", 3: "bb"}, True, b"map 2")
    assert again.wal_path.startswith(path)
    assert again.snapshot_path.startswith(path)


def test_a_folder_in_use_is_refused(place: tuple[FileSystem, str]) -> None:
    fs, path = place
    folder = make(fs, path)
    with pytest.raises(DataFolderInUse):
        make(fs, path)
    folder.close()
    make(fs, path).close()


@pytest.mark.parametrize(
    ("cluster", "node", "problem"), [("c2", 1, "cluster 'c1', not 'c2'"), ("c1", 2, "node 1, not 2")]
)
def test_a_folder_of_another_cluster_or_node_is_refused(
    place: tuple[FileSystem, str], cluster: str, node: int, problem: str
) -> None:
    fs, path = place
    make(fs, path).close()
    with pytest.raises(StorageError, match=problem):
        make(fs, path, cluster, node)
    make(fs, path).close()


def test_a_folder_that_cannot_be_made_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="cannot be used: Not a directory"):
        make(OsFileSystem(), f"{tmp_path}/file/node")


def test_h7_a_node_that_lost_its_identity_gets_no_new_one_over_old_data() -> None:
    """H7: a log without an identity must not be adopted by a fresh incarnation; a wiped folder gets another one."""
    disk = SimDisk()
    fs = disk.mount()
    folder = make(fs)
    fs.makedirs(folder.wal_path)
    folder.close()
    disk.delete("n/identity.json")
    with pytest.raises(StorageError, match=r"identity.json: missing, although n/wal exists"):
        make(fs)
    assert make(fs, "m", seed=2).incarnation != folder.incarnation


def test_h7_another_incarnation_of_a_known_peer_is_refused() -> None:
    disk = SimDisk()
    folder = make(disk.mount())
    folder.remember_peer(2, "aa")
    with pytest.raises(StorageError, match="node 2 is known by incarnation aa, not bb"):
        folder.remember_peer(2, "bb")
    assert folder.peers == {2: "aa"}


def test_a_damaged_identity_is_refused_in_every_byte() -> None:
    disk = SimDisk()
    folder = make(disk.mount())
    folder.remember_peer(2, "aa")
    data = disk.files()["n/identity.json"]
    for offset in range(len(data)):
        disk.kill()
        disk.flip("n/identity.json", offset)
        with pytest.raises(CorruptData, match="identity is not valid"):
            make(disk.mount())
        disk.flip("n/identity.json", offset)
    disk.kill()
    assert make(disk.mount()).peers == {2: "aa"}


def test_a_damaged_map_is_forgotten() -> None:
    """The map is a hint that peers tell anew: no reason not to start."""
    disk = SimDisk()
    folder = make(disk.mount())
    folder.save_map(b"map")
    disk.flip("n/map", 5)
    assert folder.load_map() is None


def test_a_failed_write_remembers_nothing() -> None:
    disk = SimDisk()
    folder = make(disk.mount())
    disk.fail_syncs("identity")
    with pytest.raises(OSError, match="Input/output"):
        folder.remember_peer(2, "aa")
    assert folder.peers == {}


def test_power_loss_at_any_operation_keeps_what_was_remembered() -> None:
    """The incarnation never changes once it was told, a peer is never forgotten, the map is the old or the new one."""
    for operations in range(100):
        disk = SimDisk()
        told: dict[str, object] = {}
        disk.power_off_after(operations)
        finished = False
        try:
            folder = make(disk.mount())
            told["incarnation"] = folder.incarnation
            folder.save_map(b"old")
            told["map"] = b"old"
            folder.remember_peer(2, "aa")
            told["peer"] = "aa"
            folder.save_map(b"new")
            finished = True
        except PowerLoss:
            pass
        for kept in (0, 20, 10_000):
            for names in (False, True):
                twin = disk.copy()
                twin.crash_keeping(kept, names)
                after = make(twin.mount(), seed=2)
                assert after.incarnation == told.get("incarnation", after.incarnation)
                assert after.peers.get(2) == told.get("peer", after.peers.get(2))
                if "map" in told:
                    assert after.load_map() in ((b"new",) if finished else (b"old", b"new"))
        if finished:
            assert operations > 15
            return
    raise AssertionError("the scenario never finished")
