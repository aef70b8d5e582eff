"""Other nodes: which ones are admitted, what they say, and what they are told unasked."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from raftkv.node import messages
from raftkv.node.config import NodeConfig
from raftkv.node.drivers.addresses import Addresses
from raftkv.node.map_copy import MapCopy
from raftkv.node.maps import Maps
from raftkv.node.replicas import Replicas
from raftkv.node.room import Full, Room
from raftkv.node.router import Router
from raftkv.peer.frames import ProtocolViolation
from raftkv.peer.hello import Hello, HelloRefused, Reason
from raftkv.peer.links import Links
from raftkv.storage.folder import DataFolder
from shards.map import Node

_FATAL: Final = (Reason.REMOVED, Reason.REPLACED_FOLDER)
"""Reasons for which a refused node can never get back into its cluster."""


class Neighbours:
    """``clear`` drops replicas that are left over; ``refused`` is called when this node cannot come back."""

    def __init__(
        self,
        config: NodeConfig,
        *,
        folder: DataFolder,
        links: Links,
        replicas: Replicas,
        router: Router,
        room: Room,
        maps: Maps,
        map_copy: MapCopy,
        addresses: Addresses,
        clear: Callable[[], None],
        refused: Callable[[str], None],
    ) -> None:
        self._node = config.node.id
        self._configured = config.nodes
        self._folder = folder
        self._links = links
        self._replicas = replicas
        self._router = router
        self._room = room
        self._maps = maps
        self._map_copy = map_copy
        self._addresses = addresses
        self._clear = clear
        self._refused = refused
        self._led: list[int] = []

    def members(self) -> list[Node] | None:
        """The configured nodes, once the data folder of each is known."""
        found = []
        for peer in self._configured:
            incarnation = self._folder.incarnation if peer.id == self._node else self._folder.peers.get(peer.id)
            if incarnation is None:
                return None
            found.append(Node(peer.id, peer.address, peer.peer_address, incarnation))
        return found

    def admit(self, hello: Hello) -> None:
        """Raises HelloRefused unless it comes from a member with the data folder that the cluster knows."""
        known = self._folder.peers.get(hello.node)
        confirmed, current = self._map_copy.confirmed, self._map_copy.current
        if confirmed is not None and hello.node in confirmed.removed:
            text = f"node {hello.node} has been removed from the cluster; a new node needs a new id"
            raise HelloRefused(Reason.REMOVED, text)
        if current is not None:
            member = None if confirmed is None else confirmed.find(hello.node)
            if member is not None:
                known = member.incarnation
            # By a map that is not confirmed nobody is refused for good: who is refused so would end.
            elif (newcomer := current.find(hello.node)) is None or newcomer.incarnation != hello.incarnation:
                raise HelloRefused(Reason.NOT_A_MEMBER, f"node {hello.node} is not a member of the cluster")
            else:
                return
        elif hello.node not in {node.id for node in self._configured}:
            raise HelloRefused(Reason.NOT_A_MEMBER, f"node {hello.node} is not among the configured nodes")
        if known is None:
            try:
                self._folder.remember_peer(hello.node, hello.incarnation)
            except OSError as problem:
                text = f"node {self._node} cannot note which data folder node {hello.node} has: {problem}"
                raise HelloRefused(Reason.CANNOT_REMEMBER, text) from None
        elif known != hello.incarnation:
            text = (
                f"replaced data folder: node {hello.node} was known by data folder {known} and came back with "
                f"{hello.incarnation}; its votes and acknowledgements are lost with the old one: replace it by a node "
                "with a new id"
            )
            raise HelloRefused(Reason.REPLACED_FOLDER, text)

    def on_refused(self, node: int, refusal: HelloRefused) -> None:
        """``node`` has refused this node's hello."""
        if refusal.reason in _FATAL:
            self._refused(f"node {node} refuses this node: {refusal}")

    def on_link(self, node: int, _link_number: int, up: bool) -> None:
        """The link to ``node`` has come up or gone down."""
        if not up:
            self._router.on_link_down(node)
            self._maps.forget(node)
        elif self._map_copy.current is not None:
            self._links.send(node, ["epoch", *self._maps.own])
            self._links.send(node, ["leads", self._led])
            self._room.greet(node)
            self._addresses.greet(node)

    def tell_epoch(self) -> None:
        """Tell all peers which map this node has: one with an older map asks for it, one with a newer map sends it."""
        self._links.send_to_all(["epoch", *self._maps.own])

    def tell_leads(self) -> None:
        """Nodes that hold no replica of a group hear in this way who leads it."""
        led = [group.group for group in self._replicas.all() if group.leads()]
        if led != self._led:
            self._led = led
            self._links.send_to_all(["leads", led])

    def on_message(self, peer: int, message: list[Any]) -> None:
        """Raises ProtocolViolation if it is malformed."""
        try:
            if not message:
                raise messages.Malformed("empty message")
            kind = message[0]
            if type(kind) is int:
                if not self._replicas.receive(peer, message):
                    raise messages.Malformed("malformed Raft message")
            elif kind == "op":
                self._router.on_forwarded(peer, *messages.operations(message))
            elif kind == "re":
                self._router.on_answers(peer, messages.answers(message))
            elif kind == "epoch":
                its, own = messages.epoch(message), self._maps.own
                self._maps.hear(peer, its)
                if its[0] < own[0]:
                    self._links.send(peer, self._map_copy.message())
                elif its[0] > own[0]:
                    self._links.send(peer, ["epoch", *own])
            elif kind == "leads":
                self._router.on_leads(peer, messages.groups(message))
            elif kind == "room":
                self._room.hear(peer, Full(*messages.room(message)))
            elif kind == "address":
                self._addresses.hear(peer, *messages.addresses(message))
            elif kind == "left" and len(message) == 1:
                self._clear()
            elif kind == "map":
                self._map_copy.take(peer, messages.encoded_map(message))
            else:
                raise messages.Malformed(f"unknown message {kind!r:.40}")
        except messages.Malformed as problem:
            raise ProtocolViolation(str(problem)) from None
