"""Messages of a forged peer: too large, and small ones that are large once they are read."""

from __future__ import annotations

import asyncio
from abc import abstractmethod
from collections.abc import Iterator

from faults.abuse.peer import Impostor, empty_maps_body, identity_of, operations_body, say, secret_of
from faults.abuse.stage import AbuseScenario, Stage
from faults.keys import PREFIX
from shards.slots import slot_of

_FORGED = 3
_ANSWERS = 3.0
_KEY = f"{PREFIX}forged".encode()


class _Forged(AbuseScenario):
    live = 2

    async def run(self, stage: Stage) -> None:
        cluster = stage.cluster
        identity = identity_of(cluster.cluster_id, _FORGED, cluster.data_dir(_FORGED))
        # The real node would dial again and take the place of the connection that speaks in its name.
        await asyncio.to_thread(cluster.kill, _FORGED)
        found = await stage.map()
        group = found.owners[slot_of(_KEY, found.slots)]
        leader = await stage.leader(group)
        welcomed = 0
        async with stage.watched():
            for node in (leader, *(node for node in cluster.nodes if node not in (leader, _FORGED))):
                for body in self.bodies(slot_of(_KEY, found.slots)):
                    if stage.alive() == self.live:
                        impostor = Impostor(identity, node, secret_of(cluster.folder))
                        welcomed += await say(cluster.peer_address(node), impostor, body, _ANSWERS)
                        await stage.served()
        stage.note("frames that a node has taken", welcomed, least=1)

    @abstractmethod
    def bodies(self, slot: int) -> Iterator[bytes]:
        """What is sent to each node."""


class BigForward(_Forged):
    name = "big-forward"
    what = "a forwarded operation of 16 MiB, and a forward of four of nearly 4 MiB, from a forged peer"

    def bodies(self, slot: int) -> Iterator[bytes]:
        yield operations_body(slot, _KEY, 1)
        yield operations_body(slot, _KEY, 4)


class EmptyMaps(_Forged):
    name = "empty-maps"
    what = "a frame of 15.7 MB of empty maps from a forged peer"

    def bodies(self, slot: int) -> Iterator[bytes]:
        yield empty_maps_body(15_700_000)
