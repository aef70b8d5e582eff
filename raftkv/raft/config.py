"""Settings of a Raft group. Times in seconds, sizes in bytes."""

from __future__ import annotations

from dataclasses import dataclass

from raftkv import limits


@dataclass(frozen=True, slots=True)
class RaftConfig:
    """Timing and sizes of one group.

    ``election_min``/``election_max``: bounds of the random election time-out. ``heartbeat``: longest silence of a
    leader. ``lease_share``: the leader's lease as a share of ``election_min``; the rest is the allowance for clocks
    that run at different rates. ``snapshot_bytes``: log bytes after which a snapshot is taken, if they
    are also at least ``snapshot_share`` of the latest one's. ``keep_entries``, ``keep_bytes``: entries kept in memory
    behind a snapshot for followers that are a little behind, and at most how many bytes of them. ``chunk_bytes``: parts
    in which a snapshot is sent. ``open_entries``: entries proposed and not yet applied while commands gather for the
    next one; 0 = as many as the links to the followers are long.
    """

    election_min: float = 0.5
    election_max: float = 0.9
    heartbeat: float = 0.1
    lease_share: float = 0.9
    snapshot_bytes: int = 32 * 1024 * 1024
    snapshot_share: float = 0.5
    keep_entries: int = 1000
    keep_bytes: int = limits.MAX_INFLIGHT_APPEND_BYTES
    chunk_bytes: int = limits.SNAPSHOT_PART_BYTES
    open_entries: int = 0

    def __post_init__(self) -> None:
        if not 0 < 3 * self.heartbeat < self.election_min < self.election_max:
            raise ValueError("need 3 x heartbeat < election_min < election_max")
        if not 0 < self.lease_share < 1:
            raise ValueError("lease_share must be between 0 and 1")

    @property
    def lease(self) -> float:
        """Seconds for which a confirmed contact with a majority allows local reads."""
        return self.election_min * self.lease_share

    @property
    def silence(self) -> float:
        """Seconds after its start in which a replica gives no vote: it may have acknowledged a leader just before."""
        return self.election_min

    @property
    def contact_timeout(self) -> float:
        """Seconds after which a leader that no majority has answered steps down."""
        return self.election_max

    @property
    def transfer_timeout(self) -> float:
        """Seconds after which a leadership transfer that has come to nothing ends."""
        return self.election_max
