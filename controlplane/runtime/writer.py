"""The one place from which a process appends to the log: a queue of commands, decided in order against what is applied.

Belongs here: the session, the queue, grouping, and what to do when an append is refused. Does not belong here: what a
command means (commands/). A command is decided against a state that holds every event that came before it, so a group
is decided on a scratch copy on which the group's own events are applied one after the other.
"""

import asyncio
from collections.abc import Sequence
from typing import Any

import msgspec
import structlog

from controlplane import codec
from controlplane.commands.decide import decide
from controlplane.commands.types import Author, Decision, Rejection
from controlplane.desired.turns import gives_meaning, moves
from controlplane.events import SCHEMA_VERSION, Batch, Event
from controlplane.projections.state import State
from controlplane.runtime.clock import Clock
from controlplane.runtime.follower import Follower
from controlplane.runtime.telemetry import Counters
from controlplane.settings import CommonSettings
from kvstore.api import EventLog
from kvstore.errors import ClaimConflict, Fenced, LogError, LogFull, LogRewound
from kvstore.types import Claim, Revision, Session, Want

GROUP_BYTES_MAX = 512 * 1024
"""Half of kvstore's bound for one batch: estimated before encoding, so there is room for error."""
GROUP_ATTEMPTS_MAX = 3
CATCH_UP_S = 0.2
"""How long a writer waits for the record behind a conflict; watch delivery takes milliseconds."""
GROUP_COMPARES_MAX = 100
"""A batch whose claims need more is full; up to kvstore.append.CLAIM_COMPARES_MAX there is room for one decision."""


class WriterFailed(Exception):
    """The command was not decided, or its fate is unknown: the log is away, full or not in sync. Try again."""


class Written(msgspec.Struct, frozen=True):
    """What a command came to. No events: it was true already, as of `revision`."""

    revision: int
    events: tuple[Event, ...]


Outcome = Written | Rejection


class _Wish:
    """A command on its way; `done` gets the outcome."""

    __slots__ = ("command", "decided", "done")

    def __init__(self, command: Any) -> None:
        self.command = command
        self.done: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        self.decided: Decision | Rejection = Decision()

    def settle(self, outcome: Outcome) -> None:
        if not self.done.done():
            self.done.set_result(outcome)

    def fail(self, error: Exception) -> None:
        if not self.done.done():
            self.done.set_exception(error)


class Writer:
    """Commands of one author, one batch in flight. `run` must be running for `submit` to return."""

    def __init__(
        self,
        log: EventLog,
        follower: Follower,
        author: Author,
        clock: Clock,
        settings: CommonSettings,
        counters: Counters,
    ) -> None:
        self.author = author
        self._log = log
        self._follower = follower
        self._clock = clock
        self._settings = settings
        self._counters = counters
        self._queue: asyncio.Queue[_Wish] = asyncio.Queue(settings.command_queue_max)
        self._session: Session | None = None
        self._session_lock = asyncio.Lock()
        self._turn = asyncio.Lock()
        """One group at a time."""
        self._logger = structlog.get_logger()

    async def session(self) -> Session:
        """The open session, opened now if there is none. Raises LogError."""
        async with self._session_lock:
            if self._session is None:
                self._session = await self._log.open_session(self.author.cluster, self.author.writer)
            return self._session

    def forget_session(self, session: Session) -> None:
        """It was fenced: the next use opens another."""
        if self._session == session:
            self._session = None
            self._counters.add("log_session_lost_total")

    async def close(self) -> None:
        """Give the session back."""
        session, self._session = self._session, None
        if session is not None:
            await self._log.close_session(session)

    async def submit(self, command: Any) -> Outcome:
        """Decide, append, and return when the follower has applied it. Raises WriterFailed."""
        return (await self.submit_all((command,)))[0]

    async def submit_all(self, commands: Sequence[Any]) -> list[Outcome]:
        """As `submit`, in order, sharing batches where they fit. Raises WriterFailed for the first that fails."""
        wishes = [_Wish(command) for command in commands]
        for wish in wishes:
            await self._queue.put(wish)
        return await _outcomes(wishes)

    async def submit_ahead(self, commands: Sequence[Any]) -> list[Outcome]:
        """As `submit_all`, before all that waits, and also while the follower's state is held back."""
        wishes = [_Wish(command) for command in commands]
        async with self._turn:
            group = wishes
            while group:
                group = await self._commit_some(group, ahead=True)
        return await _outcomes(wishes)

    def preview(self, commands: Sequence[Any]) -> list[Decision | Rejection]:
        """What would be decided, in order, each after the events of those before. Appends nothing."""
        scratch = _Scratch(self._follower.state, self.author)
        return [scratch.decide(command, claims_clash=True) or Decision() for command in commands]

    async def run(self) -> None:
        """Group after group, for ever."""
        while True:
            group = [await self._queue.get()]
            while len(group) < self._settings.group_commands_max and not self._queue.empty():
                group.append(self._queue.get_nowait())
            while group:
                group = await self._commit_released(group)

    async def _commit_released(self, group: list[_Wish]) -> list[_Wish]:
        try:
            await self._follower.wait_released(self._settings.wait_applied_s)
        except TimeoutError:
            for wish in group:
                wish.fail(WriterFailed(self._follower.held))
            return []
        async with self._turn:
            return await self._commit_some(group)

    async def _commit_some(self, group: list[_Wish], *, ahead: bool = False) -> list[_Wish]:
        """Commit as many as fit one batch; give back the rest."""
        try:
            return await self._commit(group, ahead)
        except (LogError, TimeoutError) as error:
            failure = WriterFailed(f"the log does not take writes: {error or 'no answer in time'}")
        except Exception as error:
            self._logger.exception("deciding failed")
            failure = WriterFailed(f"{type(error).__name__}: {error}")
        for wish in group:
            wish.fail(failure)
        return []

    async def _commit(self, group: list[_Wish], ahead: bool) -> list[_Wish]:
        full_until_s: float | None = None
        attempt = 0
        while attempt < self._settings.decide_again_max:
            if not self._follower.in_sync:
                await self._follower.wait_in_sync(self._settings.wait_applied_s)
            if self._follower.held and not ahead:
                return group
            # What goes on conflicting must not hold up the others: it meets its end alone.
            taken, scratch = self._decide(group if attempt < GROUP_ATTEMPTS_MAX else group[:1])
            if not scratch.events:
                return self._settle(group, taken, self._follower.state.revision)
            try:
                revision = await self._append(scratch)
            except LogFull:
                # Nothing is lost by waiting: what was acknowledged is stored, and what is held here is not yet said.
                now_s = self._clock.monotonic_s()
                full_until_s = full_until_s or now_s + self._settings.full_wait_s
                if now_s >= full_until_s:
                    raise
                await self._clock.sleep_s(self._clock.jitter(self._settings.retry_s))
                continue
            attempt += 1
            if revision is None:
                continue
            self._follower.learn_head(revision)
            await self._follower.wait_applied(revision, self._settings.wait_applied_s)
            return self._settle(group, taken, revision)
        group[0].fail(
            WriterFailed(
                f"{type(group[0].command).__name__} met a conflict in {self._settings.decide_again_max} rounds"
            )
        )
        return group[1:]

    def _decide(self, group: list[_Wish]) -> tuple[int, "_Scratch"]:
        """Decide from the front until the batch is full; the number decided."""
        scratch = _Scratch(self._follower.state, self.author)
        for taken, wish in enumerate(group):
            decided = None if scratch.is_full else scratch.decide(wish.command)
            if decided is None:
                return taken, scratch
            wish.decided = decided
        return len(group), scratch

    async def _append(self, scratch: "_Scratch") -> Revision | None:
        """None: what was known is old; it has been caught up with."""
        session = await self.session()
        batch = Batch(SCHEMA_VERSION, self._clock.time_ns(), 0, tuple(scratch.events))
        try:
            revision = await self._log.append(session, codec.encode(batch), scratch.claims, known=scratch.known)
        except Fenced:
            self.forget_session(session)
            return None
        except ClaimConflict as conflict:
            self._counters.add("log_claim_conflicts_total")
            await self._catch_up(conflict.revision)
            return None
        except LogRewound:
            # The follower meets it as well, and then there is another state to decide upon.
            await self._clock.sleep_s(self._clock.jitter(self._settings.retry_s))
            return None
        self._counters.add("log_appends_total")
        self._counters.add("log_events_appended_total", len(scratch.events))
        return revision

    async def _catch_up(self, revision: int) -> None:
        """The claim that was in the way came with a record: wait for what is on its way. The revision itself may be
        that of another key, which no reader meets before the log is quiet."""
        try:
            await self._follower.wait_applied(revision, CATCH_UP_S)
        except TimeoutError:
            return

    def _settle(self, group: list[_Wish], taken: int, revision: int) -> list[_Wish]:
        # Only now: a rejection too may rest on events of this group, which had to land first.
        for wish in group[:taken]:
            decided = wish.decided
            wish.settle(Written(revision, decided.events) if isinstance(decided, Decision) else decided)
        return group[taken:]


async def _outcomes(wishes: Sequence[_Wish]) -> list[Outcome]:
    """Of each. Raises the first failure when all are done."""
    outcomes = await asyncio.gather(*(wish.done for wish in wishes), return_exceptions=True)
    decided: list[Outcome] = []
    for outcome in outcomes:
        if isinstance(outcome, BaseException):
            raise outcome
        decided.append(outcome)
    return decided


class _Scratch:
    """Decisions in order. The state is copied only when a second command follows one that has events."""

    def __init__(self, state: State, author: Author) -> None:
        self.events: list[Event] = []
        self.claims: list[Claim] = []
        self.known = state.sequences.get(f"{author.cluster}/{author.writer}", 0)
        """The author's last sequence that the decisions have seen."""
        self._state = state
        self._known = state.revision
        self._copied = False
        self._unseen: list[Event] = []
        self._author = author
        self._bytes = 0
        self._compares = 0

    @property
    def is_full(self) -> bool:
        """Another decision might not fit the batch."""
        return self._bytes > GROUP_BYTES_MAX or self._compares > GROUP_COMPARES_MAX

    def decide(self, command: Any, claims_clash: bool = False) -> Decision | Rejection | None:
        """Against the state and every event decided before. None, unless `claims_clash`: it claims what an earlier one
        of the batch has claimed or given up, which one transaction cannot do twice; or it is for a later turn."""
        self._see()
        decided = decide(self._state, self._author, command)
        if isinstance(decided, Decision):
            claims = self._fresh(decided.claims)
            keys = {claim.key for claim in self.claims}
            if not claims_clash and any(claim.key in keys for claim in claims):
                return None
            if not claims_clash and moves(self.events) and gives_meaning(decided.events):
                return None
            self.events += decided.events
            self.claims += claims
            self._compares += sum(claim.compares for claim in claims)
            self._unseen += decided.events
        return decided

    def _fresh(self, claims: Sequence[Claim]) -> list[Claim]:
        """Without those that the batch makes already by holding or taking the key, and as of the revision that is
        really known: the scratch copy's own revisions beyond it may be another writer's records."""
        kept = {claim.key for claim in self.claims if claim.want is not Want.FREED}
        found = []
        for claim in claims:
            if claim.want is Want.HELD and claim.untouched_since is None and claim.key in kept:
                continue
            if claim.untouched_since is not None:
                claim = msgspec.structs.replace(claim, untouched_since=min(claim.untouched_since, self._known))
            found.append(claim)
        return found

    def _see(self) -> None:
        if not self._unseen:
            return
        if not self._copied:
            self._state, self._copied = self._state.copy(), True
        payload = codec.encode(Batch(SCHEMA_VERSION, 0, 0, tuple(self._unseen)))
        self._bytes += len(payload)
        self._state.apply(self._state.next_record(*self._author, payload))
        self._unseen = []
