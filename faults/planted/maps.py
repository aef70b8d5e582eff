"""Shard maps that nobody decided, and nodes that believe them."""

from __future__ import annotations

from dataclasses import replace
from typing import Final
from weakref import WeakKeyDictionary

from raftkv.node.map_copy import MapCopy
from raftkv.store.codec import pack, unpack
from shards.map import ShardMap

_FAR: Final = 2**62
_PERIOD: Final = 20
"""Calls of a node's :meth:`MapCopy.run`, 0.1 s apart, from one forged map to the next."""

_run = MapCopy.run
_calls: WeakKeyDictionary[MapCopy, int] = WeakKeyDictionary()


def forged(shard_map: ShardMap, gone: int) -> ShardMap:
    """A map of far in the future in which the node ``gone`` was removed, whatever it holds."""
    groups = tuple(
        replace(group, voters=tuple(node for node in group.voters if node != gone), learners=())
        for group in shard_map.groups
    )
    nodes = tuple(node for node in shard_map.nodes if node.id != gone)
    return replace(shard_map, epoch=_FAR, index=_FAR, nodes=nodes, groups=groups, removed=(*shard_map.removed, gone))


def told_a_forged_map(copy: MapCopy) -> None:
    """Every two seconds each node gets a forged map, in which one after the other is removed."""
    calls = _calls[copy] = _calls.get(copy, 0) + 1
    known = copy.confirmed
    if known is not None and calls % _PERIOD == 0:
        gone = known.nodes[calls // _PERIOD % len(known.nodes)].id
        copy.take(gone, pack(forged(known, gone).to_wire()))
    _run(copy)


def believes_any_map(copy: MapCopy, _: int, data: bytes) -> None:
    """What another node has sent counts as confirmed."""
    copy.keep(ShardMap.from_wire(unpack(data)))
