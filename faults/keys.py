"""Keys of runs: those of abusers, and one in each group."""

from __future__ import annotations

from itertools import count
from typing import Final

from shards.map import ShardMap
from shards.slots import slot_of

PREFIX: Final = "abuse/"
"""Of all keys that abusers write; nobody else's begin so."""


def one_key_per_group(shard_map: ShardMap, prefix: str) -> dict[int, str]:
    """Group -> a key that it owns, for the groups that own slots."""
    keys: dict[int, str] = {}
    owning = set(shard_map.owners)
    for number in count():
        if len(keys) == len(owning):
            break
        key = f"{prefix}{number}"
        keys.setdefault(shard_map.owners[slot_of(key.encode(), shard_map.slots)], key)
    return dict(sorted(keys.items()))
