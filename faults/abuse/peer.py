"""A peer that is none: it says hello as a node that does not run, with what that node's folder knows."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from random import SystemRandom
from typing import Any

import msgpack

from faults.abuse.acts import open_socket
from raftkv import limits
from raftkv.clock import SystemClock
from raftkv.commands.base import Sender
from raftkv.commands.client_ids import TAIL_BYTES, client_id
from raftkv.commands.records import Put
from raftkv.errors import RaftKVError
from raftkv.frontend.port import Origin
from raftkv.node import messages
from raftkv.peer.frames import CHECKSUM, Decoder, Encoder, Seal, framed
from raftkv.peer.handshake import Dialling, Secret
from raftkv.peer.hello import Identity


def identity_of(cluster_id: str, node: int, data: Path) -> Identity:
    """Who ``node`` is, as its data folder says."""
    kept = json.loads((data / "identity.json").read_bytes().rpartition(b"\ncrc32 ")[0])
    return Identity(cluster_id, node, str(kept["incarnation"]), "another boot")


def secret_of(cluster: Path) -> Secret:
    """What the nodes of the local cluster in this folder know."""
    return Secret((cluster / "peer.secret").read_bytes().strip(), SystemRandom())


class Impostor:
    """The dialler's side of a connection, as bytes. ``hello``: its first frame, to be changed before it is sent."""

    def __init__(self, identity: Identity, to_node: int, secret: Secret) -> None:
        self._handshake = Dialling(identity, to_node, secret)
        self.hello = self._handshake.hello
        self._encoder = Encoder()
        self._decoder = Decoder()
        self._seal: Seal = CHECKSUM

    @property
    def welcomed(self) -> bool:
        return self._handshake.welcomed

    def begin(self) -> bytes:
        """The hello."""
        return bytes(self._encoder.frame_of(self.hello))

    def shake(self, data: bytes) -> bytes:
        """What to send after the answer ``data``. Raises HelloRefused or ProtocolViolation."""
        for frame in self._decoder.feed(data):
            reply = self._handshake.answer(frame)
            if reply is not None:
                return bytes(self._encoder.frame_of(reply))
            self._seal, self._decoder.seal = self._handshake.seals()
        return b""

    def read(self, data: bytes) -> list[list[Any]]:
        """What came, once it is welcomed."""
        return self._decoder.feed(data)

    def frame(self, body: bytes) -> bytes:
        """A frame of any ``body``, as a node would seal it."""
        return framed(body, self._seal)

    def say(self, *messages: Any) -> bytes:
        """A frame of messages."""
        return bytes(self._encoder.frame_of(messages, self._seal))


async def say(address: str, impostor: Impostor, body: bytes, wait: float) -> bool:
    """Send ``body`` to the node at ``address`` in a frame after a hello, and wait up to ``wait`` seconds until it hangs
    up. Whether it welcomed the hello.
    """
    async with open_socket(address) as (reader, writer):
        try:
            async with asyncio.timeout(wait):
                writer.write(impostor.begin())
                while not impostor.welcomed and (data := await reader.read(65536)):
                    writer.write(impostor.shake(data))
                writer.write(impostor.frame(body))
                await writer.drain()
                while await reader.read(65536):
                    pass
        except (TimeoutError, OSError, RaftKVError):
            pass
        return impostor.welcomed


def operations_body(slot: int, key: bytes, count: int) -> bytes:
    """The body of a frame as long as can be: an "op" message with ``count`` puts of equal size."""
    size = limits.MAX_FRAME_BYTES // count - 1024
    room = limits.MAX_FRAME_BYTES - len(_operations(slot, key, [size] * count))
    return _operations(slot, key, [size + room, *[size] * (count - 1)])


def _operations(slot: int, key: bytes, sizes: list[int]) -> bytes:
    client = client_id(round(1000 * SystemClock().wall()), bytes(TAIL_BYTES))
    puts = [Put(slot, key, b"b" * size, client=client, seq=at) for at, size in enumerate(sizes, 1)]
    packed: bytes = msgpack.packb([messages.ask(1, 10_000, Origin(1, Sender.CLIENT), puts)], use_bin_type=True)
    return packed


def empty_maps_body(size: int) -> bytes:
    """The body of a frame, of ``size`` bytes, nearly all of them empty maps, in arrays of a million."""
    most = 1024 * 1024 - 1
    inner = b"".join(
        b"\xdd" + min(most, size - at).to_bytes(4, "big") + b"\x80" * min(most, size - at)
        for at in range(0, size, most)
    )
    count = -(-size // most)
    return b"\x91" + b"\xdd" + count.to_bytes(4, "big") + inner
