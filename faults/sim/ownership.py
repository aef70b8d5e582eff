"""Who serves which slot: never two groups, and in the end exactly the one that the map says."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Container

from faults.sim.cluster import SimCluster, SimNode
from raftkv.raft import RaftGroup
from raftkv.store.meta import MetaStore
from raftkv.store.meta_state import MetaState
from raftkv.store.records import Store
from raftkv.store.slot import SlotState


class Ownership:
    """Looks at the owned slots after each applied entry, at the latest state of each group that any replica has."""

    def __init__(self, cluster: SimCluster, report: Callable[[str, str], None]) -> None:
        self.counts: Counter[str] = Counter()
        self._cluster = cluster
        self._report = report
        self._latest: dict[int, tuple[int, frozenset[int]]] = {}
        self._ended: set[int] = set()
        self._epoch = 0
        self._voters: dict[int, tuple[int, ...]] = {}
        cluster.on_applied.append(self._applied)

    def _applied(self, node: SimNode, group: RaftGroup, index: int) -> None:
        store = group.machine
        if isinstance(store, MetaStore):
            self._count(store.state)
            return
        assert isinstance(store, Store)
        known, owned = self._latest.get(group.group, (0, frozenset[int]()))
        if index <= known:
            return
        now = frozenset(store.owned_slots())
        self._latest[group.group] = (index, now)
        if now == owned:
            return
        for other, (_, theirs) in self._latest.items():
            if other != group.group and not now.isdisjoint(theirs):
                both = sorted(now & theirs)
                self._report("owners", f"groups {group.group} and {other} both serve {both}, by {node.name}")

    def _count(self, state: MetaState) -> None:
        for group in () if state.map is None else state.map.groups:
            before = self._voters.setdefault(group.id, group.voters)
            if set(before) != set(group.voters) and state.map is not None and state.map.epoch > self._epoch:
                self._voters[group.id] = group.voters
                self.counts["voters changed"] += 1
        self._epoch = self._epoch if state.map is None else max(self._epoch, state.map.epoch)
        for one in state.finished:
            if one.id not in self._ended:
                self._ended.add(one.id)
                self.counts["moves committed" if one.committed else "moves cancelled"] += 1
                self.counts["slots moved"] += one.slots if one.committed else 0

    def unsettled(self, ruined: Container[int]) -> str:
        """Why what was asked for is not done yet, or nothing."""
        states: dict[int, Store] = {}
        meta: MetaState | None = None
        for node in self._cluster.nodes.values():
            if node.node is None or node.id in ruined:
                continue
            for group in node.replicas():
                if isinstance(group.machine, MetaStore):
                    meta = group.machine.state
                elif isinstance(group.machine, Store):
                    states[group.group] = group.machine
        assert meta is not None
        assert meta.map is not None
        if meta.moves or meta.wanted or (meta.job is not None and meta.job.open):
            return f"moves {list(meta.moves)}, wanted voters {dict(meta.wanted)}, job {meta.job and meta.job.id}"
        left = [one for one in meta.garbage if one[1] not in ruined]
        if left:
            return f"replicas are left over: {left}"
        for owner in meta.map.data_groups():
            store = states.get(owner.id)
            if store is None:
                return f"nobody has group {owner.id}"
            strange = {slot: state for slot in range(meta.map.slots) if (state := store.slot_state(slot)) is not None}
            if set(strange) != set(meta.map.slots_of(owner.id)) or set(strange.values()) - {SlotState.OWNED}:
                return f"group {owner.id} does not hold just what the map says"
        return ""
