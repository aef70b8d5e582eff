"""A backup on disk: a file per group, and a manifest that is written last.

A group's file is MAGIC and then the chunks of the group's snapshot, each after its length (4 bytes, little-endian).
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, BinaryIO, Final

from msgspec import DecodeError, Meta
from msgspec.json import Decoder

from raftkv.cli.admin.text import numbers_of, parse_ranges, ranges_text, shortened
from raftkv.cli.files import Watched
from raftkv.errors import RaftKVError
from raftkv.files import write_atomically
from raftkv.limits import MAX_FRAME_BYTES
from raftkv.store.packed import value_bytes
from raftkv.store.slot import Slot, SlotState
from raftkv.store.snapshot import StoreRestore, StoreState
from shards.slots import MAX_SLOTS

MAGIC: Final = b"raftkv backup 1\n"
MANIFEST: Final = "manifest.json"
PART: Final = ".part"
_KIND: Final = "raftkv backup"
_SCHEMA: Final = 1
_LENGTH_BYTES: Final = 4
_READ_BYTES: Final = 1024 * 1024
_Count = Annotated[int, Meta(ge=0, le=2**63 - 1)]
_OURS: Final = re.compile(r"group-\d+\.snapshot(\.part)?|manifest\.json(\.progress)?(\.\w+\.part)?")


class BackupError(RaftKVError):
    """The folder is no complete backup, or cannot be used; the message says why."""


@dataclass(frozen=True, slots=True)
class GroupFile:
    """One group's file. ``slots``: those that it owns, as text; ``records`` and ``bytes``: of keys and values in them.

    ``time_ms``: the group's time, from which the times to live in it count.
    """

    name: Annotated[str, Meta(pattern=r"^group-\d+\.snapshot$")]
    group: _Count
    size: _Count
    sha256: str
    time_ms: _Count
    slots: str
    records: _Count
    bytes: _Count


@dataclass(frozen=True, slots=True)
class _Head:
    """What tells a manifest from other files, and from those of other versions."""

    kind: str
    schema: int


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a backup holds. ``map``: the shard map, as ``raftkv-admin map show -o json`` has it."""

    cluster_id: str
    raftkv_version: str
    created_at: str
    slots: Annotated[int, Meta(ge=1, le=MAX_SLOTS)]
    map: Mapping[str, Any]
    files: tuple[GroupFile, ...]

    @property
    def records(self) -> int:
        """Records of all files."""
        return sum(file.records for file in self.files)

    @property
    def bytes(self) -> int:
        """Bytes of their keys and values."""
        return sum(file.bytes for file in self.files)


_HEAD: Final = Decoder(_Head)
_BODY: Final = Decoder(Manifest)


# Writing


def prepare_folder(folder: Path) -> None:
    """Make ``folder`` ready for a new backup; what an interrupted one left there goes. Raises BackupError."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        found = list(folder.iterdir())
        if any(path.name == MANIFEST for path in found):
            raise BackupError(f"{folder}: holds a backup already: use another folder")
        strange = [path.name for path in found if not _OURS.fullmatch(path.name)]
        if strange:
            raise BackupError(f"{folder}: is not empty: it holds {min(strange)}")
        for path in found:
            path.unlink()
    except OSError as error:
        raise BackupError(f"{folder}: cannot be used: {error.strerror or error}") from None


class GroupWriter:
    """Writes one group's file: it has its name once all of it is on disk."""

    def __init__(self, folder: Path, group: int) -> None:
        self.group = group
        self._path = folder / f"group-{group}.snapshot"
        self._part = self._path.with_name(self._path.name + PART)
        self._file: BinaryIO = self._part.open("wb")
        self._digest = hashlib.sha256()
        self._write(MAGIC)

    def _write(self, data: bytes) -> None:
        self._file.write(data)
        self._digest.update(data)

    def add(self, chunk: bytes) -> None:
        """The next chunk."""
        self._write(len(chunk).to_bytes(_LENGTH_BYTES, "little") + chunk)

    def abandon(self) -> None:
        """Remove what was written."""
        self._file.close()
        self._part.unlink(missing_ok=True)

    def finish(self) -> GroupFile:
        """Make the file durable, read it back and describe it. Raises BackupError if it is no whole snapshot."""
        self._file.flush()
        os.fsync(self._file.fileno())
        size = self._file.tell()
        self._file.close()
        self._part.replace(self._path)
        state = read_state(self._path)
        return described(self._path.name, self.group, size, self._digest.hexdigest(), state)


def described(name: str, group: int, size: int, sha256: str, state: StoreState) -> GroupFile:
    """What the file ``name`` holds."""
    mine = owned(state)
    return GroupFile(
        name,
        group,
        size,
        sha256,
        state.time,
        ranges_text(slot.number for slot in mine),
        sum(len(slot.records) for slot in mine),
        sum(len(key) + value_bytes(record) for slot in mine for key, record in slot.records.items()),
    )


def owned(state: StoreState) -> list[Slot]:
    """The slots whose records count: what a group imports still belongs to another one."""
    return [slot for slot in state.slots if slot.state in (SlotState.OWNED, SlotState.FROZEN)]


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Make the backup complete. Raises BackupError."""
    plain = {
        "schema": _SCHEMA,
        "kind": _KIND,
        "created_at": manifest.created_at,
        "raftkv_version": manifest.raftkv_version,
        "cluster_id": manifest.cluster_id,
        "slots": manifest.slots,
        "records": manifest.records,
        "bytes": manifest.bytes,
        "files": [asdict(file) for file in manifest.files],
        "map": manifest.map,
    }
    try:
        _sync_folder(folder)
        write_atomically(folder / MANIFEST, json.dumps(plain, indent=1) + "\n")
        _sync_folder(folder)
    except OSError as error:
        raise BackupError(f"{folder}: cannot write the manifest: {error.strerror or error}") from None


def _sync_folder(folder: Path) -> None:
    number = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)


def coverage(files: Iterable[GroupFile], slots: int) -> tuple[list[int], dict[int, list[int]]]:
    """Slots that no file owns, and slot -> groups of those that more than one owns. Valid: nothing of either."""
    holders: dict[int, list[int]] = {}
    for file in files:
        for slot in numbers_of(parse_ranges(file.slots)) if file.slots else ():
            holders.setdefault(slot, []).append(file.group)
    missing = [slot for slot in range(slots) if slot not in holders]
    return missing, {slot: groups for slot, groups in sorted(holders.items()) if len(groups) > 1}


# Reading


def read_manifest(folder: Path) -> Manifest:
    """Raises BackupError if there is none or it is not one."""
    path = folder / MANIFEST
    try:
        text = path.read_bytes()
    except FileNotFoundError:
        raise BackupError(f"{folder}: is not a complete backup: there is no {MANIFEST}") from None
    except OSError as error:
        raise BackupError(f"{path}: cannot read it: {error.strerror or error}") from None
    try:
        head = _HEAD.decode(text)
        if head.kind != _KIND:
            raise BackupError(f"{path}: is not the manifest of a backup")
        if head.schema != _SCHEMA:
            raise BackupError(f"{path}: has schema {head.schema}, this version of raftkv reads {_SCHEMA}")
        manifest = _BODY.decode(text)
    except (DecodeError, RecursionError) as error:
        what, _, key = str(error).partition(" - at `$")
        where = key.strip(".`")
        raise BackupError(f"{path}: is damaged: {f'{where}: ' if where else ''}{what}") from None
    for file in manifest.files:
        try:
            ranges = parse_ranges(file.slots) if file.slots else ()
        except ValueError as error:
            raise BackupError(f"{path}: is damaged: slots of {file.name}: {error}") from None
        if any(last >= manifest.slots for _, last in ranges):
            raise BackupError(f"{path}: is damaged: slots of {file.name}: over {manifest.slots - 1}")
    return manifest


def read_state(path: Path, sha256: str = "") -> StoreState:
    """The state that a group's file holds. Raises BackupError that says what is wrong with it.

    ``sha256``: of a file that was verified before, and must not have changed since.
    """
    found: list[StoreState] = []
    restore = StoreRestore(found.append)
    digest = hashlib.sha256()
    try:
        with io.BufferedReader(Watched(path.open("rb", buffering=0), digest.update), _READ_BYTES) as file:
            for chunk in _chunks(file):
                restore.feed(chunk)
        restore.finish()
        if sha256 not in ("", digest.hexdigest()):
            raise BackupError("changed after it was verified")
    except OSError as error:
        raise BackupError(f"{path}: cannot read it: {error.strerror or error}") from None
    except RaftKVError as error:
        raise BackupError(f"{path}: {error}") from None
    return found[0]


def _chunks(file: io.BufferedReader[Watched]) -> Iterator[bytes]:
    if file.read(len(MAGIC)) != MAGIC:
        raise BackupError("is not a file of a backup, or of another version")
    while head := file.read(_LENGTH_BYTES):
        length = int.from_bytes(head, "little")
        if length > MAX_FRAME_BYTES:
            raise BackupError(f"damaged before byte {file.tell()}")
        chunk = file.read(length)
        if len(head) < _LENGTH_BYTES or len(chunk) < length:
            raise BackupError("ends too early")
        yield chunk


def checksum(path: Path) -> tuple[int, str]:
    """Size and SHA-256 of a file. Raises BackupError."""
    digest = hashlib.sha256()
    size = 0
    try:
        with path.open("rb") as file:
            while data := file.read(_READ_BYTES):
                digest.update(data)
                size += len(data)
    except OSError as error:
        raise BackupError(f"{path}: cannot read it: {error.strerror or error}") from None
    return size, digest.hexdigest()


def file_problem(folder: Path, file: GroupFile) -> str | None:
    """What is wrong with one file of the backup; None if nothing is."""
    path = folder / file.name
    try:
        size, digest = checksum(path)
        if size != file.size:
            return f"has {size} bytes, the manifest says {file.size}"
        if digest != file.sha256:
            return "its checksum is not that of the manifest"
        found = described(file.name, file.group, size, digest, read_state(path))
    except BackupError as error:
        return str(error).removeprefix(f"{path}: ")
    for name in ("time_ms", "slots", "records", "bytes"):
        holds, noted = getattr(found, name), getattr(file, name)
        if holds != noted:
            return f"{name} is {shortened(str(holds))}, the manifest says {shortened(str(noted))}"
    return None


def problems(folder: Path, manifest: Manifest) -> Iterator[tuple[str, str]]:
    """Everything that is wrong with a backup: (file, text). Reads all files."""
    for file in manifest.files:
        text = file_problem(folder, file)
        if text is not None:
            yield file.name, text
    missing, doubled = coverage(manifest.files, manifest.slots)
    if missing:
        yield MANIFEST, f"no file has the slots {shortened(ranges_text(missing))}"
    if doubled:
        yield MANIFEST, f"several files have the slots {shortened(ranges_text(doubled))}"
