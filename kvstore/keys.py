"""The key layout of the log in etcd: how keys are built and read back.

Belongs here: names, prefixes, and the two directions between a key and its parts. Does not belong here:
values, transactions, I/O. Numbers in keys are hexadecimal of fixed width, so that key order is number order.
"""

import re

import msgspec

PREFIX = b"/meshlog/1/"
LOG = PREFIX + b"log/"
CURSOR = PREFIX + b"cursor/"
SEALED = PREFIX + b"sealed/"
SEGMENT = PREFIX + b"segment/"
PACK = PREFIX + b"pack/"
LOW = PREFIX + b"low/"

NAME_CHARS_MAX = 128
PATH_CHARS_MAX = 512
SIDE_TABLES = ("report", "flow", "checkpoint", "manifest", "retention")
"""Tables that `EventLog.put` may write. The others belong to the log itself, to claims and to duties."""
LISTED_TABLES = (*SIDE_TABLES, "claim", "duty", "session", "sealed", "low")
"""Tables that `EventLog.list` may read. Records are read in order, by `read` and `follow`, never listed."""

_NAME = re.compile(r"[a-z0-9](?:[-a-z0-9.]*[a-z0-9])?")
_PATH = re.compile(r"[!-.0-~]+(?:/[!-.0-~]+)*")


class LogKey(msgspec.Struct, frozen=True):
    """The parts of a record's key."""

    cluster: str
    writer: str
    sequence: int


class SegmentKey(msgspec.Struct, frozen=True):
    """The parts of a segment's key: all its records lie between `opened` and `through`, both included."""

    cluster: str
    number: int
    opened: int
    through: int


def checked_name(kind: str, name: str) -> str:
    """The name itself. Raises ValueError naming `kind` unless it is like a DNS name."""
    if len(name) > NAME_CHARS_MAX or _NAME.fullmatch(name) is None:
        raise ValueError(
            f"{kind} name {name!r}: use lower-case letters, digits, '-' and '.', "
            f"a letter or digit at both ends, at most {NAME_CHARS_MAX} characters"
        )
    return name


def checked_path(kind: str, path: str) -> str:
    """The path itself. Raises ValueError naming `kind` unless it is printable parts joined by '/'."""
    if len(path) > PATH_CHARS_MAX or _PATH.fullmatch(path) is None:
        raise ValueError(
            f"{kind} key {path!r}: use printable ASCII parts joined by single '/', none at either end, "
            f"at most {PATH_CHARS_MAX} characters"
        )
    return path


def log_key(cluster: str, writer: str, sequence: int) -> bytes:
    """The key of one record. Names must have been checked."""
    return b"%b%b/%b/%016x" % (LOG, cluster.encode(), writer.encode(), sequence)


def parse_log_key(key: bytes) -> LogKey:
    """The parts of a record's key. Raises ValueError if it is not one."""
    parts = key[len(LOG) :].decode("ascii", "replace").split("/")
    if not key.startswith(LOG) or len(parts) != 3 or len(parts[2]) != 16:
        raise ValueError(f"key {key!r} is not {LOG.decode()}<cluster>/<writer>/<sequence>")
    try:
        return LogKey(parts[0], parts[1], int(parts[2], 16))
    except ValueError:
        raise ValueError(f"key {key!r}: the sequence must be hexadecimal") from None


def log_cluster(cluster: str) -> tuple[bytes, bytes]:
    """First key and range end of all records of a cluster that are kept by writer."""
    return prefix_range(b"%b%b/" % (LOG, cluster.encode()))


def log_writer(cluster: str, writer: str) -> tuple[bytes, bytes]:
    """First key and range end of all that one writer may write as its records."""
    return prefix_range(b"%b%b/%b/" % (LOG, cluster.encode(), writer.encode()))


def log_sequences(cluster: str, writer: str, first: int, last: int) -> tuple[bytes, bytes]:
    """First key and range end of one writer's records from a sequence to another, both included."""
    return log_key(cluster, writer, first), log_key(cluster, writer, last + 1)


def sealed_key(cluster: str) -> bytes:
    """Says how far a cluster's records are sealed in segments."""
    return SEALED + cluster.encode()


def sealed_cluster(key: bytes) -> str:
    """The cluster of a sealed key."""
    return key.removeprefix(SEALED).decode("ascii", "replace")


def segment_key(cluster: str, number: int, opened: int, through: int) -> bytes:
    """Where a segment's manifest is; what a reader needs to plan stands in the key."""
    return b"%b%b/%08x/%016x/%016x" % (SEGMENT, cluster.encode(), number, opened, through)


def parse_segment_key(key: bytes) -> SegmentKey:
    """The parts of a segment's key. Raises ValueError if it is not one."""
    parts = key.removeprefix(SEGMENT).decode("ascii", "replace").split("/")
    if not key.startswith(SEGMENT) or [len(part) for part in parts[1:]] != [8, 16, 16]:
        raise ValueError(f"key {key!r} is not {SEGMENT.decode()}<cluster>/<number>/<opened>/<through>")
    return SegmentKey(parts[0], *(int(part, 16) for part in parts[1:]))


def segments_cluster(cluster: str) -> tuple[bytes, bytes]:
    """First key and range end of the manifests of a cluster's segments."""
    return prefix_range(b"%b%b/" % (SEGMENT, cluster.encode()))


def segment_number(cluster: str, number: int) -> tuple[bytes, bytes]:
    """First key and range end that hold the manifest of one segment."""
    return prefix_range(b"%b%b/%08x/" % (SEGMENT, cluster.encode(), number))


def pack_cluster(cluster: str) -> tuple[bytes, bytes]:
    """First key and range end of the pieces of a cluster's segments."""
    return prefix_range(b"%b%b/" % (PACK, cluster.encode()))


def pack_segment(cluster: str, number: int) -> tuple[bytes, bytes]:
    """First key and range end of a segment's pieces, and of those that another packer left unfinished."""
    return prefix_range(b"%b%b/%08x/" % (PACK, cluster.encode(), number))


def pack_pieces(cluster: str, number: int, digest: bytes) -> bytes:
    """What the keys of a segment's pieces begin with, by the digest of its manifest: two packers that began at
    different times pack different records, and do not mix."""
    return b"%b%b/%08x/%b/" % (PACK, cluster.encode(), number, digest[:8].hex().encode())


def pack_part_key(cluster: str, number: int, digest: bytes, part: int) -> bytes:
    """One piece of a segment."""
    return pack_pieces(cluster, number, digest) + b"%04d" % part


def low_cluster(key: bytes) -> str:
    """The cluster of a low key."""
    return key.removeprefix(LOW).decode("ascii", "replace")


def low_value(revision: int, segment: int) -> bytes:
    """History in the store begins behind this revision, which ends this segment."""
    return b"%d %d" % (revision, segment)


def parse_low_value(value: bytes) -> tuple[int, int]:
    """Revision and segment; (0, 0) of an absent key, segment 0 where none is said. Raises ValueError."""
    revision, _, segment = value.partition(b" ")
    return int(revision or b"0"), int(segment or b"0")


def low_key(cluster: str) -> bytes:
    """Holds the revision after which history in etcd begins, and the segment that it ends."""
    return b"%b%b" % (LOW, cluster.encode())


def session_key(cluster: str, writer: str) -> bytes:
    """Lease-bound; its create_revision is the writer's fencing token."""
    return b"%bsession/%b/%b" % (PREFIX, cluster.encode(), writer.encode())


def cursor_key(cluster: str, writer: str) -> bytes:
    """Says which batch was the writer's last."""
    return b"%b%b/%b" % (CURSOR, cluster.encode(), writer.encode())


def parse_cursor_key(key: bytes) -> str:
    """ "cluster/writer" of a cursor key. Raises ValueError if it is not one."""
    name = key.removeprefix(CURSOR).decode("ascii", "replace")
    if not key.startswith(CURSOR) or name.count("/") != 1:
        raise ValueError(f"key {key!r} is not {CURSOR.decode()}<cluster>/<writer>")
    return name


def claim_key(path: str) -> bytes:
    """The key of a claim. Raises ValueError on a malformed path."""
    return b"%bclaim/%b" % (PREFIX, checked_path("claim", path).encode())


def duty_key(duty: str) -> bytes:
    """The key that says who holds a duty. Raises ValueError on a malformed name."""
    return b"%bduty/%b" % (PREFIX, checked_name("duty", duty).encode())


def side_key(path: str) -> bytes:
    """The key of a side-table entry, such as "report/east/n1". Raises ValueError for any other table."""
    table = checked_path("side-table", path).split("/", 1)[0]
    if table not in SIDE_TABLES or table == path:
        raise ValueError(
            f"side-table key {path!r}: begin with one of {', '.join(t + '/' for t in SIDE_TABLES)}"
        )
    return PREFIX + path.encode()


def list_range(prefix: str) -> tuple[bytes, bytes]:
    """First key and range end below `prefix`. Raises ValueError for a table that is not listed."""
    table = prefix.split("/", 1)[0]
    if table not in LISTED_TABLES:
        raise ValueError(f"list prefix {prefix!r}: begin with one of {', '.join(LISTED_TABLES)}")
    path = checked_path("list", prefix.rstrip("/"))
    return prefix_range(PREFIX + path.encode() + (b"/" if prefix.endswith("/") or table == path else b""))


def relative(key: bytes) -> str:
    """A key without the prefix that all keys share."""
    return key.removeprefix(PREFIX).decode("ascii", "replace")


def prefix_range(prefix: bytes) -> tuple[bytes, bytes]:
    """First key and range end of all keys that begin with `prefix`, whose last byte must be below 0xff."""
    assert prefix and prefix[-1] < 0xFF
    return prefix, prefix[:-1] + bytes([prefix[-1] + 1])
