"""The key layout of the log in etcd: how keys are built and read back.

Belongs here: names, prefixes, and the two directions between a key and its parts. Does not belong here:
values, transactions, I/O. Numbers in keys are hexadecimal of fixed width, so that key order is number order.
"""

import re

import msgspec

PREFIX = b"/meshlog/1/"
LOG = PREFIX + b"log/"
SEGMENT = PREFIX + b"segment/"
CURSOR = PREFIX + b"cursor/"
LOW = PREFIX + b"low/"
PACK = PREFIX + b"pack/"
MANIFEST = b"manifest"

NAME_CHARS_MAX = 128
PATH_CHARS_MAX = 512
SIDE_TABLES = ("report", "flow", "checkpoint", "manifest", "retention")
"""Tables that `EventLog.put` may write. The others belong to the log itself, to claims and to duties."""
LISTED_TABLES = (*SIDE_TABLES, "claim", "duty", "session", "head", "low")
"""Tables that `EventLog.list` may read. Records are read in order, by `read` and `follow`, never listed."""

_NAME = re.compile(r"[a-z0-9](?:[-a-z0-9.]*[a-z0-9])?")
_PATH = re.compile(r"[!-.0-~]+(?:/[!-.0-~]+)*")


class LogKey(msgspec.Struct, frozen=True):
    """The parts of a record's key."""

    cluster: str
    segment: int
    writer: str
    sequence: int


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


def log_key(cluster: str, segment: int, writer: str, sequence: int) -> bytes:
    """The key of one record. Names must have been checked."""
    return b"%b%b/%08x/%b/%016x" % (LOG, cluster.encode(), segment, writer.encode(), sequence)


def parse_log_key(key: bytes) -> LogKey:
    """The parts of a record's key. Raises ValueError if it is not one."""
    parts = key[len(LOG) :].decode("ascii", "replace").split("/")
    if not key.startswith(LOG) or len(parts) != 4 or len(parts[1]) != 8 or len(parts[3]) != 16:
        raise ValueError(f"key {key!r} is not {LOG.decode()}<cluster>/<segment>/<writer>/<sequence>")
    try:
        return LogKey(parts[0], int(parts[1], 16), parts[2], int(parts[3], 16))
    except ValueError:
        raise ValueError(f"key {key!r}: segment and sequence must be hexadecimal") from None


def log_segment(cluster: str, segment: int) -> tuple[bytes, bytes]:
    """First key and range end of all records of one segment."""
    return prefix_range(b"%b%b/%08x/" % (LOG, cluster.encode(), segment))


def segment_key(cluster: str, segment: int) -> bytes:
    """The marker of a segment: its mod_revision is the revision that opened the segment."""
    return b"%b%b/%08x" % (SEGMENT, cluster.encode(), segment)


def parse_segment_key(key: bytes) -> tuple[str, int]:
    """Cluster and number of a segment marker. Raises ValueError if it is not one."""
    cluster, slash, number = key.removeprefix(SEGMENT).decode("ascii", "replace").partition("/")
    if not key.startswith(SEGMENT) or not slash or len(number) != 8:
        raise ValueError(f"key {key!r} is not {SEGMENT.decode()}<cluster>/<segment>")
    return cluster, int(number, 16)


def pack_segment(cluster: str, segment: int) -> tuple[bytes, bytes]:
    """First key and range end of a repacked segment: its parts, then its manifest."""
    return prefix_range(b"%b%b/%08x/" % (PACK, cluster.encode(), segment))


def pack_part_key(cluster: str, segment: int, part: int) -> bytes:
    """One part of a repacked segment."""
    return b"%b%b/%08x/%04d" % (PACK, cluster.encode(), segment, part)


def pack_manifest_key(cluster: str, segment: int) -> bytes:
    """What a repacked segment holds; without it the parts are nothing."""
    return b"%b%b/%08x/%b" % (PACK, cluster.encode(), segment, MANIFEST)


def log_writer(cluster: str, segment: int, writer: str, before: int | None) -> tuple[bytes, bytes]:
    """First key and range end of one writer's records of a segment: all, or those below the sequence `before`."""
    first, end = prefix_range(b"%b%b/%08x/%b/" % (LOG, cluster.encode(), segment, writer.encode()))
    return first, end if before is None else log_key(cluster, segment, writer, before)


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


def head_key(cluster: str) -> bytes:
    """Holds the number of the open segment."""
    return b"%bhead/%b" % (PREFIX, cluster.encode())


def low_key(cluster: str) -> bytes:
    """Holds the revision after which history in etcd begins, and the segment that it ends."""
    return b"%b%b" % (LOW, cluster.encode())


def session_key(cluster: str, writer: str) -> bytes:
    """Lease-bound; its create_revision is the writer's fencing token."""
    return b"%bsession/%b/%b" % (PREFIX, cluster.encode(), writer.encode())


def cursor_key(cluster: str, writer: str) -> bytes:
    """Holds sequence, segment and fencing token of the writer's last batch."""
    return b"%b%b/%b" % (CURSOR, cluster.encode(), writer.encode())


def watch_range() -> tuple[bytes, bytes]:
    """First key and range end that hold every record and every cursor, and little else."""
    return CURSOR, prefix_range(LOG)[1]


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
