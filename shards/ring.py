"""Consistent hashing with virtual nodes and bounded load (Mirrokni, Thorup, Zadimoghaddam 2016).

Positions come from blake2b, so every process computes the same ring.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from hashlib import blake2b
from typing import Final

VIRTUAL_NODES: Final = 128
"""Points per member: more make arcs more even and the ring bigger."""

LOAD_PERCENT: Final = 105
"""A member takes at most this share of the mean."""


def position(label: str) -> int:
    """Place of ``label`` on the ring: 64 bits, the same in every process."""
    return int.from_bytes(blake2b(label.encode(), digest_size=8).digest(), "big")


class Ring:
    """An immutable ring of members (small ints), each with several points.

    Raises ValueError if there are no members, a member comes twice or there is no virtual node.
    """

    def __init__(self, members: Sequence[int], virtual_nodes: int = VIRTUAL_NODES) -> None:
        if not members or len(set(members)) != len(members):
            raise ValueError("a ring needs members, each once")
        if virtual_nodes < 1:
            raise ValueError("virtual_nodes must be at least 1")
        points = sorted((position(f"member/{member}/{i}"), member) for member in members for i in range(virtual_nodes))
        self.members: tuple[int, ...] = tuple(members)
        self._positions = [place for place, _ in points]
        self._owners = [member for _, member in points]

    def walk(self, place: int) -> Iterator[int]:
        """Members in the order in which a walk clockwise from ``place`` first meets them, each once."""
        seen: set[int] = set()
        count = len(self._owners)
        start = bisect_right(self._positions, place)
        for step in range(count):
            member = self._owners[(start + step) % count]
            if member not in seen:
                seen.add(member)
                yield member
                if len(seen) == len(self.members):
                    return

    def assign(self, slots: int, load_percent: int = LOAD_PERCENT) -> tuple[int, ...]:
        """Owner of each slot 0..slots-1.

        A slot goes to the first member clockwise that has room; nobody gets more than ``load_percent`` (>= 100) of the
        mean, rounded up.
        """
        if load_percent < 100:
            raise ValueError("load_percent must be at least 100")
        room = dict.fromkeys(self.members, -(-slots * load_percent // (100 * len(self.members))))
        owners: list[int] = []
        for slot in range(slots):
            for member in self.walk(position(f"slot/{slot}")):
                if room[member]:
                    room[member] -= 1
                    owners.append(member)
                    break
        return tuple(owners)
