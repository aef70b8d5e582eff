"""Which node to ask: the client's copy of the shard map, leader hints and the health of endpoints. Pure.

Any node accepts any key, so that a wrong guess costs a hop, never a wrong answer.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import Final

from raftkv.addresses import BadAddress, parse_address
from raftkv.errors import InvalidArgument
from raftkv.text import shown
from shards.slots import DEFAULT_SLOTS, is_slot_count, slot_of

_FIRST_PENALTY: Final = 0.1
_MAX_PENALTY: Final = 2.0


@dataclass(frozen=True, slots=True)
class View:
    """What a client knows of the cluster: ``owners[slot]`` is a group, ``addresses`` are by node."""

    cluster_id: str
    epoch: int
    slots: int
    owners: tuple[int, ...]
    addresses: Mapping[int, str]
    voters: Mapping[int, tuple[int, ...]]
    leaders: Mapping[int, int]


def view_of(
    cluster_id: str,
    epoch: int,
    slots: int,
    nodes: Iterable[tuple[int, str]],
    groups: Iterable[tuple[int, Sequence[int], int]],
    ranges: Iterable[tuple[int, int, int]],
) -> View:
    """The view that a map's parts give: nodes (id, address), groups (id, voters, leader), ranges (first, last, group).

    Raises ValueError if they contradict one another.
    """
    if not is_slot_count(slots):
        raise ValueError(f"a shard map of {slots} slots")
    owners: list[int] = []
    for first, last, group in ranges:
        if first != len(owners) or not first <= last < slots:
            raise ValueError("a shard map whose ranges do not follow one another")
        owners.extend([group] * (last - first + 1))
    if len(owners) != slots:
        raise ValueError("a shard map that leaves slots out")
    known = list(groups)
    return View(
        cluster_id,
        epoch,
        slots,
        tuple(owners),
        dict(nodes),
        {group: tuple(voters) for group, voters, _ in known},
        {group: leader for group, _, leader in known if leader},
    )


def parse_endpoints(endpoints: str | Sequence[str]) -> tuple[str, ...]:
    """``host:port`` items, given as a sequence or separated by commas. Raises InvalidArgument."""
    if isinstance(endpoints, bytes) or not isinstance(endpoints, Iterable):
        raise InvalidArgument(
            f"endpoints are host:port items with commas between them, or a sequence: {shown(endpoints)}"
        )
    seeds: dict[str, None] = {}
    for item in endpoints.split(",") if isinstance(endpoints, str) else endpoints:
        seed = item.strip() if isinstance(item, str) else item
        if seed == "":
            continue
        try:
            parse_address(seed)
        except BadAddress as error:
            raise InvalidArgument(str(error)) from None
        seeds[seed] = None
    if not seeds:
        raise InvalidArgument("no endpoint is given")
    return tuple(seeds)


class _Penalty:
    __slots__ = ("failures", "until")

    def __init__(self) -> None:
        self.failures = 0
        self.until = 0.0


class Routing:
    """Chooses addresses. ``now`` is monotonic seconds everywhere."""

    def __init__(self, seeds: Sequence[str], rng: Random) -> None:
        self._seeds = tuple(seeds)
        self._rng = rng
        self._leaders: dict[int, int] = {}
        self._penalties: dict[str, _Penalty] = {}
        self._routes: dict[int, str] = {}
        self._turn = 0
        self.view: View | None = None
        self.slots = DEFAULT_SLOTS
        """Number of the cluster's slots, once there is a view."""

    def install(self, view: View) -> bool:
        """Take a newer view, or another one of the same epoch for its leaders. False: it was older."""
        old = self.view
        if old is not None and view.epoch < old.epoch:
            return False
        self.view = view
        self.slots = view.slots
        self._leaders.update(view.leaders)
        self._routes.clear()
        return True

    def slot(self, key: bytes) -> int:
        """Slot of ``key``; needs a view."""
        assert self.view is not None
        return slot_of(key, self.slots)

    def group(self, slot: int) -> int:
        """Group that owns ``slot``; needs a view."""
        assert self.view is not None
        return self.view.owners[slot]

    def route(self, slot: int) -> str:
        """The leader that :meth:`pick` found for ``slot``; "" if it has to be asked (again)."""
        return self._routes.get(slot, "")

    def hint(self, slot: int, node: int) -> None:
        """A node said that ``node`` leads the group of ``slot``."""
        view = self.view
        if view is not None and node in view.addresses:
            group = view.owners[slot]
            if self._leaders.get(group) != node:
                self._leaders[group] = node
                self._routes.clear()

    def served(self, slot: int, address: str) -> None:
        """The node at ``address`` has answered an operation itself, so it leads the group of ``slot``."""
        view = self.view
        if view is not None and view.addresses.get(self._leaders.get(view.owners[slot], 0)) != address:
            for node, known in view.addresses.items():
                if known == address:
                    self.hint(slot, node)

    def pick(self, slot: int, now: float, stale: bool = False, avoid: Sequence[str] = ()) -> str:
        """Address for an operation on ``slot``: its leader if known and healthy, else another replica, else any.

        ``stale``: any replica, in turns. ``avoid``: the addresses that have failed this call, the latest last: they
        come when all others have failed too, in that order.
        """
        view = self.view
        assert view is not None
        group = view.owners[slot]
        if not stale:
            address = view.addresses.get(self._leaders.get(group, 0))
            if address is not None and address not in avoid and not self._down(address, now):
                if address not in self._penalties:
                    # Holds until a leader changes or the address fails.
                    self._routes[slot] = address
                return address
        self._turn += 1
        voters = [view.addresses[node] for node in view.voters.get(group, ()) if node in view.addresses]
        start = self._turn % len(voters) if voters else 0
        return self._best([*voters[start:], *voters[:start], *view.addresses.values(), *self._seeds], now, avoid)

    def candidates(self, now: float) -> list[str]:
        """All known addresses for a question that any node can answer: healthy ones first, in random order."""
        known = [] if self.view is None else list(self.view.addresses.values())
        addresses = list(dict.fromkeys([*known, *self._seeds]))
        self._rng.shuffle(addresses)
        return sorted(addresses, key=lambda address: self._down(address, now))

    def endpoints(self) -> list[str]:
        """All known addresses: the nodes' by id, then the seeds that are no node's."""
        known = [] if self.view is None else [address for _, address in sorted(self.view.addresses.items())]
        return list(dict.fromkeys([*known, *self._seeds]))

    def failed(self, address: str, now: float) -> None:
        """``address`` did not answer: ask others for a while, longer each time."""
        self._routes.clear()
        penalty = self._penalties.setdefault(address, _Penalty())
        length = min(_FIRST_PENALTY * 2.0 ** min(penalty.failures, 10), _MAX_PENALTY)
        penalty.failures += 1
        penalty.until = now + length * self._rng.uniform(0.75, 1.0)

    def succeeded(self, address: str) -> None:
        """``address`` answered."""
        if self._penalties:
            self._penalties.pop(address, None)

    def _down(self, address: str, now: float) -> bool:
        penalty = self._penalties.get(address)
        return penalty is not None and now < penalty.until

    def _best(self, addresses: Sequence[str], now: float, avoid: Sequence[str]) -> str:
        for address in addresses:
            if address not in avoid and not self._down(address, now):
                return address
        others = [address for address in addresses if address not in avoid] or [
            address for address in avoid if address in addresses
        ]
        return min(others, key=lambda address: self._penalties[address].until if address in self._penalties else 0.0)
