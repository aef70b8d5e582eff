"""Every bound of raftkv, with its unit and its reason.

Sizes are in bytes, times in seconds unless a name says otherwise. Client and server read the same constants, so a
request that passes the client's check is never refused by the server for its size.
"""

from typing import Final

MAX_KEY_BYTES: Final = 8 * 1024
"""Keys live in memory on every replica and in every index of a slot; long keys belong into values."""

MAX_BOUND_BYTES: Final = MAX_KEY_BYTES + 1
"""Of a range of keys: right behind the longest key is one that is a byte longer."""

MAX_VALUE_BYTES: Final = 1024 * 1024
"""One value must fit many times into a frame, a log window and a snapshot chunk."""

MAX_BATCH_BYTES: Final = 4 * 1024 * 1024
"""Payload of one client batch; also gRPC's own default message limit."""

MAX_MESSAGE_BYTES: Final = MAX_BATCH_BYTES + 320 * 1024
"""gRPC message limit: a full batch and its framing."""

MAX_BATCH_OPS: Final = 4096
"""Operations of one Pipeline message: a few milliseconds of the loop; their framing fits MAX_MESSAGE_BYTES."""

MAX_STREAM_OPS: Final = 8192
"""Operations of one Pipeline stream read and not yet answered; beyond it the node reads no further message of it."""

MAX_STREAM_BYTES: Final = 16 * 1024 * 1024
"""Payload of one Pipeline stream, arrived or to be sent; beyond it the node reads no further message of it."""

MAX_ANSWER_BYTES: Final = 1024 * 1024
"""Values of one message of answers, unless one alone is larger: what is being sent exists three times."""

MAX_HELD_BYTES: Final = 64 * 1024 * 1024
"""What a node keeps for its clients: requests under way, and answers that they have not taken. Each connection may hold
as much of it as is free, alone half of it. Beyond it the rest of a message waits, and unary calls wait or are
refused."""

LEAST_HELD_BYTES: Final = 512 * 1024
"""Of MAX_HELD_BYTES, for a connection that holds nothing while others hold all: small answers wait for no slow
reader."""

MAX_STARTED_OPS: Final = 1024
"""Operations from Pipelines that a node has begun with and not answered, shared in the same way: what the cluster does
in a fraction of a second, and more where nodes are far from each other. The rest waits in its messages, so that another
client's operation is not queued behind."""

MAX_WAITING_BYTES: Final = MAX_HELD_BYTES // 2
"""Messages of Pipelines that wait for their turns, shared in the same way; what a further one asks for is refused."""

MAX_STREAMS: Final = 1024
"""Pipelines of a node, shared in the same way: an idle one takes some tens of kilobytes."""

MAX_CALLS: Final = 1024
"""Unary calls of a node at a time, shared in the same way; as many again for Admin and health."""

OP_OVERHEAD: Final = 64
"""Bytes that an operation counts for in a node besides its payload."""

MAX_FORWARDED_ANSWER_BYTES: Final = 2 * MAX_ANSWER_BYTES
"""Values in answers to one message of operations from another node, unless one alone is larger: further reads are
refused, and asked again when there is room where their client is."""

MAX_UNSENT_ANSWER_BYTES: Final = 8 * 1024 * 1024
"""Unsent bytes on the link to another node beyond which its further reads of values are refused in the same way: what
clients ask for must neither fill a node's memory nor hold up Raft on that link."""

STALLED_READER: Final = 10.0
"""Seconds without reading an answer after which a connection is closed, if others wait for what its answers hold."""

SCAN_PAGE_BYTES: Final = 256 * 1024
"""A page of a scan unless the caller asks for another size: about a millisecond of work."""

MAX_SCAN_PAGE_BYTES: Final = 2 * 1024 * 1024
"""Largest page of a scan; with one more record of the largest size it still fits a message."""

MAX_SCAN_KEYS: Final = 2048
"""Keys that a page of a scan looks at, those of slots that are not asked for included: a few milliseconds of work."""

MAX_ENTRY_BYTES: Final = MAX_BATCH_BYTES
"""Commands gathered into one log entry stop here; one more command starts the next entry."""

MAX_ENTRY_OPS: Final = 512
"""And here: so that what comes next waits some tens of milliseconds, however much waits before it."""

MAX_FRAME_BYTES: Final = 16 * 1024 * 1024
"""A frame between nodes: several full entries. A longer announcement is garbage or an attack."""

MAX_DECODED_ITEMS: Final = 1024 * 1024
"""Items of one frame, those of nested arrays and maps included. A byte of msgpack can stand for an item
that takes 64 in memory; what nodes send has several bytes an item, in frames of little more than MAX_ENTRY_BYTES."""

MAX_PROPOSAL_BYTES: Final = 2 * MAX_ENTRY_BYTES
"""Payload of what is proposed together and must share an entry; more is TooLarge. Above what a client's message or
another node's forwarded operations can come to."""

MAX_COMMAND_BYTES: Final = MAX_FRAME_BYTES - 4096
"""Longest entry taken from a leader: it still fits into a frame when it is sent on."""

MAX_MAP_BYTES: Final = 2 * 1024 * 1024
"""An encoded shard map; one whose every slot has an owner of its own takes about half."""

SNAPSHOT_CHUNK_BYTES: Final = 32 * 1024
"""A chunk is built between two turns of the loop, and a write needs several: a quarter of a millisecond."""

SNAPSHOT_PART_BYTES: Final = 256 * 1024
"""A part of a snapshot's file goes to a follower that then asks for the next: each costs a round trip."""

MAX_SNAPSHOT_READS: Final = 2
"""Whole states that clients read from a node at a time: each can hold a copy of all that is written meanwhile."""

SNAPSHOT_READ_IDLE: Final = 30.0
"""Such a read ends if its reader takes no chunk for this long."""

MAX_INFLIGHT_APPEND_BYTES: Final = 2 * MAX_ENTRY_BYTES
"""Per follower: what may be sent before the first acknowledgement. Must hold at least one full entry."""

MAX_UNSYNCED_BYTES: Final = MAX_INFLIGHT_APPEND_BYTES
"""Per group: entries of a leader that its own disk lacks; its followers alone could commit any number of them."""

MAX_INFLIGHT_APPENDS: Final = 256
"""Per follower: messages sent before the first acknowledgement; on a far link every open entry is one."""

MAX_OPEN_ENTRIES: Final = MAX_INFLIGHT_APPENDS
"""Per group: entries of a leader's clients that are proposed and not yet applied, on the farthest link."""

MAX_OPEN_BYTES: Final = MAX_ENTRY_BYTES
"""Per group: bytes of open entries from which on no further one is opened: what comes next waits."""

MAX_PENDING_OPS: Final = 20_000
"""Operations accepted by a node and not yet answered; beyond it, Overloaded."""

MAX_PENDING_BYTES: Final = 64 * 1024 * 1024
"""Payload of the operations counted by MAX_PENDING_OPS."""

PENDING_RESERVE: Final = 8
"""One part in so many of MAX_PENDING_OPS and MAX_PENDING_BYTES is not for what clients do to records: administration,
other nodes and the node itself go on while clients flood it."""

MAX_PEER_BUFFER_BYTES: Final = 64 * 1024 * 1024
"""Unsent bytes on one link to a peer; beyond it the link is closed and dialled anew (Raft tolerates loss)."""

WAL_SEGMENT_BYTES: Final = 16 * 1024 * 1024
"""Preallocated: fdatasync of overwritten blocks is about three times faster than of appended ones."""

MAX_CONNECTIONS: Final = 4096
"""Connections of clients to one node, each about 11 KiB of memory while it is idle; fewer where descriptors are few."""

MAX_TTL: Final = 10 * 365 * 24 * 3600
"""Ten years; longer is a unit mistake."""

MIN_TIMEOUT: Final = 0.001
"""Shortest total budget of one call: a node is told its share in whole milliseconds."""

MAX_TIMEOUT: Final = 600
"""Longest total budget of one call; sessions live longer than any retry."""

DEFAULT_TIMEOUT: Final = 5.0
"""Total budget of a call that names none: covers a failover several times."""

SESSION_IDLE: Final = 3600
"""A client's dedupe records in a slot go after this much group time without a write; more than MAX_TIMEOUT."""

CLIENT_AHEAD: Final = 60
"""A client new to a slot whose id is ahead of the cluster's time by more draws another one. More than clocks that are
kept right differ by; so far ahead of the time can a flood of clients drive what a slot refuses."""

MAX_SESSIONS_PER_SLOT: Final = 4096
"""Beyond it the least recently used session goes, and its late retries get SessionExpired."""

MAX_RESULTS_PER_SESSION: Final = MAX_PENDING_OPS
"""Results kept for one client in one slot: more than a node lets be outstanding, so only a client that never raises its
first incomplete number loses the oldest."""

MAX_KEPT_BYTES: Final = 1024 * 1024
"""Recorded results of one slot that are more than a version, with KEPT_OVERHEAD for each. Beyond it the oldest go, down
to half, and late retries of their requests get SessionExpired. They also go after MAX_TIMEOUT of group time."""

KEPT_OVERHEAD: Final = 128
"""Bytes that such a result takes besides its own."""

MAX_TXN_STEPS: Final = 128
"""Checks of a transaction, and operations of each of its two lists: a tenth of a millisecond of the loop."""

MAX_TXN_BYTES: Final = 2 * 1024 * 1024
"""Keys and values of a transaction: it must fit into an entry beside others."""

STEP_OVERHEAD: Final = MAX_BATCH_BYTES // MAX_BATCH_OPS
"""Bytes that a check or an operation of a transaction counts for besides its payload, where operations are counted in
bytes: so a message, an entry of the log or a node holds no more of them than of operations by themselves."""

MAX_TXN_RESULT_BYTES: Final = 64 * 1024
"""What a transaction answers: its result is recorded whole, for each of its retries."""

MAX_EXPIRED_PER_ENTRY: Final = 1000
"""Records removed for their expiry while one entry is applied: bounds the time an entry takes."""

MAX_HISTORY_BYTES: Final = 16 * 1024 * 1024
"""Of a group: events that it keeps for watches, with EVENT_OVERHEAD for each; the oldest go first. Some seconds of as
many small writes as a group takes, so that watches outlast a failover; all of it is in each snapshot."""

EVENT_OVERHEAD: Final = 16
"""Bytes that an event counts for besides itself, packed."""

HISTORY_AGE: Final = 300
"""An event goes after so much group time, or up to a quarter more: a watch that was away for less goes on."""

WATCH_BYTES: Final = 64 * 1024
"""A message of a watch ends here, unless one command alone is larger: it is all that a node holds for a slow reader."""

MAX_WATCHES: Final = 1024
"""Watches of a node, shared between connections: each takes some kilobytes, and 8 bytes for each slot."""

MAX_TOLD_BYTES: Final = 8 * 1024 * 1024
"""What a node keeps of what it told watches last, for others of the same keys that come to the same place."""

WATCH_HEARTBEAT: Final = 0.5
"""Seconds after which a watch is told how far it is, also if there was nothing for it."""

MAX_FREED_PER_ENTRY: Final = 250
"""Items of slots that moved away whose memory is given back while one entry is applied: under a millisecond."""

assert MAX_VALUE_BYTES + MAX_KEY_BYTES < MAX_BATCH_BYTES <= MAX_ENTRY_BYTES
assert MAX_MESSAGE_BYTES + 64 * MAX_BATCH_OPS < MAX_PROPOSAL_BYTES < MAX_COMMAND_BYTES // 3 * 2
assert MAX_INFLIGHT_APPEND_BYTES + MAX_BATCH_BYTES < MAX_FRAME_BYTES
assert MAX_BATCH_BYTES + 79 * MAX_BATCH_OPS < MAX_MESSAGE_BYTES
assert 6 * (MAX_SCAN_PAGE_BYTES + MAX_VALUE_BYTES + MAX_KEY_BYTES) < MAX_HELD_BYTES
assert MAX_SCAN_PAGE_BYTES + MAX_VALUE_BYTES + MAX_KEY_BYTES < MAX_MESSAGE_BYTES
assert SESSION_IDLE > MAX_TIMEOUT
assert 2 * MAX_TXN_BYTES < MAX_HISTORY_BYTES
assert MAX_TXN_BYTES + 3 * MAX_TXN_STEPS * STEP_OVERHEAD < MAX_BATCH_BYTES
assert MAX_TXN_RESULT_BYTES < MAX_KEPT_BYTES // 2
