"""Where keys live: slots, the consistent-hash ring and the shard map. Pure: no I/O, clocks, randomness or logging."""

from shards.map import Group, MapError, Node, ShardMap
from shards.placement import initial_map
from shards.slots import DEFAULT_SLOTS, slot_of

__all__ = ["DEFAULT_SLOTS", "Group", "MapError", "Node", "ShardMap", "initial_map", "slot_of"]
