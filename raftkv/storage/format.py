"""The number of the format of a data folder, and what is said of a folder, or a file in it, that has another one."""

from __future__ import annotations

from typing import Final

from raftkv.errors import StorageError

FORMAT: Final = 5
"""Of all that a data folder holds: identity, shard map, WAL, log entries, snapshot files and the states in them.

1 was that of version 0.1, with keys on slots by another rule and log entries of other commands; in 2 all recorded
outcomes of writes were numbers; 3 knew no users, no join tokens, no index of a shard map, no events, and no numbers of
expiries; in 4 events went by larger blocks, so that replicas would not agree on which are kept.
"""

_CARRY_OVER: Final = (
    "nothing was changed; to carry the data over, start the cluster with the version of raftkv that wrote it, save its "
    "records with `raftkv dump` or `raftkv-admin backup create`, start a new cluster of this version in empty folders, "
    "and bring the records in with `raftkv load` or `raftkv-admin backup restore`"
)
_NEWER: Final = "a later version of raftkv wrote it; nothing was changed; start it with that version"


def other_format(path: str, found: int) -> StorageError:
    """The refusal of what is at ``path``, which has the format ``found``."""
    text = f"format {found}, this version of raftkv reads and writes format {FORMAT}"
    if found >= FORMAT:
        return StorageError(f"{path}: {text}: {_NEWER}")
    writer = "raftkv 0.1" if found == 1 else "an earlier raftkv"
    return StorageError(f"{path}: {text}: it is of {writer}; {_CARRY_OVER}")
