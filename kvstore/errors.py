"""The error tree of this room. Refusals that a caller must act on are types, not texts.

LogError
├── LogUnavailable      no endpoint answers; retry later, what was in flight is unknown or resent
├── LogFull             etcd is out of space (NOSPACE); reads go on
├── NotAllowed          the store asks for a login, or for another one; the text says which
├── PayloadTooLarge     the batch exceeds types.BATCH_BYTES_MAX
├── Fenced              the session is gone or another one took its place; open a new session
├── ClaimConflict       a claimed key was not as expected; catch up and decide again
├── SequenceGap         a writer's dense sequence has a hole, a repeat or a step back
├── HistoryTruncated    the records asked for left the log; start from a checkpoint
├── LogRewound          revision or cluster id went backwards: another or a restored etcd
├── CheckpointDamaged   a checkpoint file is not what was saved; replay from the log instead
├── ArchiveDamaged      an archive file or a packed segment is not what was kept; its segment cannot be read
└── EmbeddedError       the embedded etcd could not be started; the text says what to change
"""


class LogError(Exception):
    """Base of everything that the log raises about the world."""


class LogUnavailable(LogError):
    """No endpoint answered in time. Nothing is known about what was in flight."""


class LogFull(LogError):
    """The store refuses writes for lack of space; what was acknowledged is safe. The append that was refused may be
    stored all the same: etcd says so too of the one that it has just applied and that filled it."""


class NotAllowed(LogError):
    """The store does not know who asks, or does not let them do this."""


class PayloadTooLarge(LogError):
    """The payload is over types.BATCH_BYTES_MAX bytes."""


class Fenced(LogError):
    """The session's key is gone or has another create_revision: this writer may not append."""


class ClaimConflict(LogError):
    """A claim did not hold. `key` is the first that failed, `revision` the log's revision then."""

    def __init__(self, key: str, revision: int) -> None:
        super().__init__(f"claim {key!r} was not as expected at revision {revision}")
        self.key = key
        self.revision = revision


class SequenceGap(LogError):
    """A record of `writer` came with `got` where `expected` was due."""

    def __init__(self, writer: str, expected: int, got: int, revision: int) -> None:
        super().__init__(f"writer {writer}: expected sequence {expected}, got {got} at revision {revision}")
        self.writer = writer
        self.expected = expected
        self.got = got
        self.revision = revision


class HistoryTruncated(LogError):
    """History in the store begins after `low`; the reader's position is before it."""

    def __init__(self, low: int) -> None:
        super().__init__(f"history in the store begins after revision {low}")
        self.low = low


class LogRewound(LogError):
    """The store answers with a lower revision, or another cluster id, than this reader has already seen."""


class CheckpointDamaged(LogError):
    """The file does not hold what was saved. `path` is the file, `reason` says what is wrong with it."""

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(f"checkpoint {path}: {reason}")
        self.path = path
        self.reason = reason


class ArchiveDamaged(LogError):
    """A sealed segment cannot be read. `path` is its file or key, `reason` says what is wrong and which revisions."""

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(f"archive {path}: {reason}")
        self.path = path
        self.reason = reason


class EmbeddedError(LogError):
    """The embedded etcd could not be started; the text says what to change."""
