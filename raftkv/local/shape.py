"""The shape of a local cluster: what its folder remembers of it from the first start on."""

from __future__ import annotations

import json
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from raftkv.addresses import Address, parse_address
from raftkv.errors import ConfigError
from raftkv.node.config import DEFAULT_SLOTS

PEER_PORT_OFFSET: Final = 100
MAX_LOCAL_NODES: Final = 50
_FORMAT: Final = 1


@dataclass(frozen=True, slots=True)
class Place:
    """Where one node listens, host:port, for clients and for its peers."""

    id: int
    address: str
    peer_address: str


@dataclass(frozen=True, slots=True)
class Shape:
    """What a cluster's folder remembers."""

    cluster_id: str
    groups: int
    replicas: int
    slots: int
    places: tuple[Place, ...]

    def to_json(self) -> str:
        nodes = [{"id": p.id, "address": p.address, "peer_address": p.peer_address} for p in self.places]
        shape = {"format": _FORMAT, "cluster_id": self.cluster_id, "groups": self.groups, "replicas": self.replicas}
        return json.dumps({**shape, "slots": self.slots, "nodes": nodes}, indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str, where: Path) -> Shape:
        """Raises ConfigError that names the file."""
        try:
            raw: dict[str, Any] = json.loads(text)
            if raw["format"] != _FORMAT:
                raise ConfigError(f"{where}: written by another version of raftkv (format {raw['format']})")
            places = tuple(Place(int(n["id"]), str(n["address"]), str(n["peer_address"])) for n in raw["nodes"])
            for place in places:
                parse_address(place.address)
                parse_address(place.peer_address)
            return cls(str(raw["cluster_id"]), int(raw["groups"]), int(raw["replicas"]), int(raw["slots"]), places)
        except (ValueError, KeyError, TypeError) as error:
            raise ConfigError(f"{where}: damaged: {error!r}") from None


def places_from(port: int, nodes: int, host: str = "127.0.0.1") -> tuple[Place, ...]:
    """Node i takes ``port + i - 1`` for clients and the port 100 above it for its peers."""
    if port < 1 or port + PEER_PORT_OFFSET + nodes - 1 > 65535:
        raise ConfigError(f"--port {port}: the ports of {nodes} nodes must be from 1 to 65535")
    first = port + PEER_PORT_OFFSET
    return tuple(Place(i + 1, str(Address(host, port + i)), str(Address(host, first + i))) for i in range(nodes))


def new_shape(places: Sequence[Place], groups: int, replicas: int, slots: int = DEFAULT_SLOTS) -> Shape:
    """A cluster that never was: it gets an id of its own."""
    return Shape(str(uuid.uuid4()), groups, replicas, slots, tuple(places))
