"""A peer that is none: it says hello as a node that does not run, as a replay of its bytes would."""

from __future__ import annotations

import asyncio
import json
import zlib
from pathlib import Path

import msgpack

from faults.abuse.acts import open_socket
from raftkv import limits
from raftkv.clock import SystemClock
from raftkv.commands.client_ids import TAIL_BYTES, client_id
from raftkv.commands.records import Put
from raftkv.node import messages
from raftkv.peer.frames import HEADER, Decoder, Encoder
from raftkv.peer.hello import Identity, hello_frame


def identity_of(cluster_id: str, node: int, data: Path) -> Identity:
    """Who ``node`` is, as its data folder says."""
    kept = json.loads((data / "identity.json").read_bytes().rpartition(b"\ncrc32 ")[0])
    return Identity(cluster_id, node, str(kept["incarnation"]), "another boot")


async def say(address: str, identity: Identity, to_node: int, frame: bytes, wait: float) -> bool:
    """Send ``frame`` to the node at ``address`` after a hello, and wait up to ``wait`` seconds until it hangs up.

    Whether it welcomed the hello.
    """
    async with open_socket(address) as (reader, writer):
        writer.write(Encoder().frame_of(hello_frame(identity, to_node)))
        decoder, welcomed = Decoder(), False
        try:
            async with asyncio.timeout(wait):
                while not welcomed and (data := await reader.read(65536)):
                    welcomed = any(received and received[0] == "welcome" for received in decoder.feed(data))
                writer.write(frame)
                await writer.drain()
                while await reader.read(65536):
                    pass
        except (TimeoutError, OSError):
            pass
        return welcomed


def operations_frame(slot: int, key: bytes, count: int) -> bytes:
    """A frame as long as can be: an "op" message with ``count`` puts of equal size."""
    size = limits.MAX_FRAME_BYTES // count - 1024
    room = limits.MAX_FRAME_BYTES - len(_operations(slot, key, [size] * count))
    return _framed(_operations(slot, key, [size + room, *[size] * (count - 1)]))


def _operations(slot: int, key: bytes, sizes: list[int]) -> bytes:
    client = client_id(round(1000 * SystemClock().wall()), bytes(TAIL_BYTES))
    puts = [Put(slot, key, b"b" * size, client=client, seq=at) for at, size in enumerate(sizes, 1)]
    packed: bytes = msgpack.packb([messages.ask(1, 10_000, 1, puts)], use_bin_type=True)
    return packed


def empty_maps_frame(size: int) -> bytes:
    """A frame of ``size`` bytes, nearly all of them empty maps, in arrays of a million."""
    most = 1024 * 1024 - 1
    inner = b"".join(
        b"\xdd" + min(most, size - at).to_bytes(4, "big") + b"\x80" * min(most, size - at)
        for at in range(0, size, most)
    )
    count = -(-size // most)
    return _framed(b"\x91" + b"\xdd" + count.to_bytes(4, "big") + inner)


def _framed(packed: bytes) -> bytes:
    return HEADER.pack(len(packed), zlib.crc32(packed)) + packed
