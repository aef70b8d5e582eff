"""The data folder: its lock, whose it is, which incarnations of the peers it has met, and the last shard map seen."""

from __future__ import annotations

import json
import random
import re
from typing import Any, Final
from zlib import crc32

from raftkv.errors import CorruptData, StorageError
from raftkv.storage.format import FORMAT, other_format
from raftkv.storage.fs import FileSystem, Lock
from raftkv.text import shown
from shards.slots import SLOT_RULE, rule_refusal

_IDENTITY: Final = "identity.json"
_MAP: Final = "map"
_USERS: Final = "users"
_LOCK: Final = "lock"
_TEMPORARY: Final = ".tmp"
MAP_AT: Final = 4
"""Where the map begins in its file, behind the checksum."""

_TYPES: Final[dict[str, type]] = {
    "cluster_id": str,
    "node_id": int,
    "incarnation": str,
    "started": bool,
    "peers": dict,
    "slot_rule": int,
}
_NODE: Final = re.compile(r"[1-9][0-9]{0,18}")

_ADVICE: Final = "replace the node: remove it and add a new node with an empty data folder, its peers have the data"


class DataFolder:
    """A node's folder, locked while this object lives.

    The incarnation is drawn when the folder is made: a node that lost its disk comes back with another one, and its
    peers refuse it, since it may have forgotten a vote or an acknowledgement.
    """

    path: str
    cluster_id: str
    node_id: int
    incarnation: str
    """32 hex digits."""
    peers: dict[int, str]
    """Incarnation of each other node met so far. Change it with :meth:`remember_peer`."""
    started: bool
    """The node has started from this folder before: its log must be there."""

    def __init__(self, fs: FileSystem, path: str, lock: Lock, identity: dict[str, Any]) -> None:
        self._fs = fs
        self._lock = lock
        self.path = path
        self.cluster_id = identity["cluster_id"]
        self.node_id = identity["node_id"]
        self.incarnation = identity["incarnation"]
        self.peers = {int(node): incarnation for node, incarnation in identity["peers"].items()}
        self.started = identity["started"]

    @classmethod
    def open(
        cls, fs: FileSystem, path: str, cluster_id: str, node_id: int, rng: random.Random, incarnation: str = ""
    ) -> DataFolder:
        """Lock the folder and check whose it is; make it if it is missing or empty; blocks.

        ``incarnation``: the one that it must have, where it was drawn before the folder; "" = any, a new one is drawn.
        Raises DataFolderInUse; StorageError if it has another format or slot rule, belongs to another cluster or node,
        has another incarnation or data without an identity, or cannot be used; CorruptData.
        """
        try:
            fs.makedirs(path)
            lock = fs.lock(f"{path}/{_LOCK}")
        except OSError as error:
            raise StorageError(f"{path}: this data folder cannot be used: {error.strerror or error}") from error
        try:
            identity = _read_identity(fs, path)
            if identity is None:
                identity = {
                    "cluster_id": cluster_id,
                    "node_id": node_id,
                    "incarnation": incarnation or f"{rng.getrandbits(128):032x}",
                    "started": False,
                    "peers": {},
                }
                folder = cls(fs, path, lock, identity)
                folder._save_identity()
                return folder
            _check_identity(path, identity, cluster_id, node_id)
            if incarnation not in ("", identity["incarnation"]):
                raise StorageError(f"{path}: this data folder is {identity['incarnation']}, not {incarnation}")
            fs.sync_dir(path)
            return cls(fs, path, lock, identity)
        except OSError as error:
            lock.release()
            raise StorageError(f"{path}: this data folder cannot be used: {error.strerror or error}") from error
        except BaseException:
            lock.release()
            raise

    @property
    def wal_path(self) -> str:
        return f"{self.path}/wal"

    @property
    def snapshot_path(self) -> str:
        return f"{self.path}/snapshots"

    @property
    def map_path(self) -> str:
        return f"{self.path}/{_MAP}"

    def mark_started(self) -> None:
        """Note durably that the log exists from now on. Raises OSError."""
        if not self.started:
            self.started = True
            self._save_identity()

    def remember_peer(self, node: int, incarnation: str) -> None:
        """Note durably which incarnation of a peer was met. Raises StorageError if another one is known, OSError."""
        known = self.peers.get(node)
        if known == incarnation:
            return
        if known is not None:
            raise StorageError(f"{self.path}: node {node} is known by incarnation {known}, not {incarnation}")
        self.peers[node] = incarnation
        try:
            self._save_identity()
        except BaseException:
            del self.peers[node]
            raise

    @property
    def knows_users(self) -> bool:
        """Whether this node has ever heard that the cluster has users."""
        return self._fs.exists(f"{self.path}/{_USERS}")

    def mark_users(self) -> None:
        """Note durably that the cluster has users, so that after a start nobody else is served. Raises OSError."""
        if not self.knows_users:
            self._replace(_USERS, b"1")

    def save_map(self, data: bytes) -> None:
        """Keep the latest shard map, as bytes, durably. Raises OSError."""
        self._replace(_MAP, crc32(data).to_bytes(MAP_AT, "little") + data)

    def load_map(self) -> bytes | None:
        """The map last saved. None if there is none or it is damaged: it is a hint, peers tell it anew."""
        return saved_map(self._fs, self.path)

    def close(self) -> None:
        """Release the lock."""
        self._lock.release()

    def _save_identity(self) -> None:
        identity = {
            "format": FORMAT,
            "slot_rule": SLOT_RULE,
            "cluster_id": self.cluster_id,
            "node_id": self.node_id,
            "incarnation": self.incarnation,
            "started": self.started,
            "peers": {str(node): incarnation for node, incarnation in sorted(self.peers.items())},
        }
        text = json.dumps(identity, indent=1).encode()
        self._replace(_IDENTITY, b"%b\ncrc32 %08x\n" % (text, crc32(text)))

    def _replace(self, name: str, data: bytes) -> None:
        path = f"{self.path}/{name}"
        temporary = path + _TEMPORARY
        if self._fs.exists(temporary):
            self._fs.remove(temporary)
        file = self._fs.create(temporary, 0)
        try:
            file.write_at(0, data)
            file.sync()
        finally:
            file.close()
        self._fs.rename(temporary, path)
        self._fs.sync_dir(self.path)


def saved_map(fs: FileSystem, folder: str) -> bytes | None:
    """The map last saved in a data folder, which may be in use; None if there is none or it is damaged."""
    path = f"{folder}/{_MAP}"
    if not fs.exists(path):
        return None
    stored = fs.read(path, 0, fs.size(path))
    data = stored[MAP_AT:]
    return data if stored[:MAP_AT] == crc32(data).to_bytes(MAP_AT, "little") else None


def _read_identity(fs: FileSystem, path: str) -> dict[str, Any] | None:
    file = f"{path}/{_IDENTITY}"
    if not fs.exists(file):
        for name in ("wal", "snapshots"):
            if fs.exists(f"{path}/{name}"):
                raise StorageError(f"{file}: missing, although {path}/{name} exists; {_ADVICE}")
        return None
    data = fs.read(file, 0, fs.size(file))
    text, _, rest = data.rpartition(b"\ncrc32 ")
    if rest != b"%08x\n" % crc32(text):
        raise CorruptData(file, 0, f"the node's identity is not valid; nothing was changed; {_ADVICE}")
    try:
        identity = json.loads(text)
        problem = "it is not an object" if type(identity) is not dict else _type_problem(identity, {"format": int})
        if not problem and identity["format"] != FORMAT:
            raise other_format(path, identity["format"])
        problem = problem or _type_problem(identity, _TYPES)
    except (ValueError, RecursionError) as error:
        problem = f"it is not JSON: {error}"
    if problem:
        raise CorruptData(file, 0, f"the node's identity is not valid: {problem}; nothing was changed; {_ADVICE}")
    return identity  # type: ignore[no-any-return]


def _type_problem(identity: dict[str, Any], types: dict[str, type]) -> str:
    """What is wrong with the keys that ``types`` names, "" if nothing is."""
    for key, kind in types.items():
        if key not in identity:
            return f"{key} is missing"
        if type(identity[key]) is not kind:
            return f"{key} is {shown(identity[key])}"
    for node, incarnation in identity["peers"].items() if "peers" in types else ():
        if not _NODE.fullmatch(node) or type(incarnation) is not str:
            return f"peers has {shown(node)}: {shown(incarnation)}"
    return ""


def _check_identity(path: str, identity: dict[str, Any], cluster_id: str, node_id: int) -> None:
    if refusal := rule_refusal(identity["slot_rule"]):
        raise StorageError(f"{path}: {refusal}; nothing was changed")
    found = identity["cluster_id"]
    if found != cluster_id:
        raise StorageError(f"{path}: this data folder belongs to cluster {found!r}, not {cluster_id!r}")
    if identity["node_id"] != node_id:
        raise StorageError(f"{path}: this data folder belongs to node {identity['node_id']}, not {node_id}")
