"""One run of an agent or an operator: between any two of its steps it can be killed or stopped.

Belongs here: the gates that its log, kernel, devices, files and clock pass, and which fault waits at which. Does not
belong here: what outlives a process (mesh.py), when faults come (faults.py).

A killed process does nothing any more: its tasks stay where they are. So no `finally` of it runs, as after kill -9.
"""

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import aclosing
from typing import TYPE_CHECKING, Any, TypeVar

from controlplane.model import Device
from controlplane.runtime.devices import device_name
from datapath.kernel.fake import Crash
from datapath.reconciler import KernelWorker
from kvstore.append import Cursor, Found, Landed, Lost, Place, attempt, encode_batch, settle
from kvstore.errors import Fenced, LogUnavailable
from kvstore.keys import session_key
from kvstore.types import Bookmark, Claim, Position, Record, Revision, Session, Stored
from tests.simulation.history import ArchivedLog, Archives, SimulatedRetention
from tests.simulation.loop import OWNER

if TYPE_CHECKING:
    from tests.simulation.mesh import SimulatedMesh

Result = TypeVar("Result")

START_NS = 1_700_000_000_000_000_000
LATENCY_S_MAX = 0.02

KILL_POINTS = (
    "before append", "after append", "before apply", "after apply", "before kernel", "after kernel", "before device",
    "after device", "before file", "after file", "before put", "after put", "before session", "after session",
    "before history", "before seal", "after seal", "before truncate", "after truncate",
)  # fmt: skip
"""After deciding and before the append, after the append and before its answer, between two records, and so on; within
a pass of kernel writes the fake kernel itself crashes."""


class Process:
    """`number` counts the processes of a mesh; its chance is its own, so that faults do not shift another's."""

    def __init__(self, mesh: "SimulatedMesh", name: str, number: int, archives: Archives = ()) -> None:
        self.mesh, self.name = mesh, name
        self.chance = random.Random(f"{mesh.seed} {number}")
        self.loop = asyncio.get_running_loop()
        self.clock = SkewedClock(self)
        self.log = SimulatedLog(self, archives)
        self.is_dead = False
        self.lag_s = 0.0
        """How long each record takes to come: a slow reader."""
        self.in_doubt = False
        """A record of its watch was overtaken or dropped. Until the log is quiet for it, it may not know."""
        self.was_quiet = False
        """The last that its log delivered was a bookmark."""
        self.was_in_sync = False
        """Its log has been through once."""
        self.failure: BaseException | None = None
        """What a process fell over by itself; it must not."""
        self._kill_at: tuple[str, int] | None = None
        self._resumed: asyncio.Event | None = None
        self._main: asyncio.Task[None] | None = None

    def start(self, body: Callable[[], Awaitable[None]]) -> None:
        """Run it as this process."""
        self._main = asyncio.ensure_future(self._run(body))

    async def _run(self, body: Callable[[], Awaitable[None]]) -> None:
        OWNER.set(self)
        try:
            await body()
        except BaseException as error:
            if not self.is_dead and not isinstance(error, asyncio.CancelledError):
                self.failure = error
            raise

    async def at(self, point: str) -> None:
        """The gate of everything that a process does to the world."""
        if self._kill_at is not None and self._kill_at[0] == point:
            left = self._kill_at[1] - 1
            self._kill_at = (point, left)
            if left <= 0:
                self.mesh.note(f"{self.name} dies {point}")
                self.mesh.kill(self)
        while self._resumed is not None:
            await self._resumed.wait()
        if self.is_dead:
            await self.loop.create_future()

    def kill_at(self, point: str, times: int) -> None:
        """It dies when it comes to this point for the so-many-th time."""
        self._kill_at = (point, times)

    def stop(self) -> None:
        """SIGSTOP."""
        self._resumed = self._resumed or asyncio.Event()

    def resume(self) -> None:
        """SIGCONT."""
        resumed, self._resumed = self._resumed, None
        if resumed is not None:
            resumed.set()

    @property
    def is_stopped(self) -> bool:
        return self._resumed is not None

    async def latency(self) -> None:
        """What a request takes on its way."""
        await asyncio.sleep(self.chance.uniform(0.0005, LATENCY_S_MAX))


class SkewedClock:
    """A clock of a machine of its own: its wall clock is wrong by some time and jumps, its seconds are not quite ours."""

    def __init__(self, process: Process) -> None:
        self._process = process
        self._rate = process.chance.uniform(0.95, 1.05)
        self._origin_s = process.chance.uniform(0.0, 1e6)
        self.wrong_by_s = process.chance.uniform(-100.0, 100.0)

    def time_ns(self) -> int:
        """See Clock."""
        return START_NS + int((self._process.loop.time() + self.wrong_by_s) * 1e9)

    def monotonic_s(self) -> float:
        """See Clock."""
        return self._origin_s + self._process.loop.time() * self._rate

    async def sleep_s(self, delay_s: float) -> None:
        """See Clock."""
        await asyncio.sleep(delay_s / self._rate)
        await self._process.at("awake")

    def jitter(self, value: float) -> float:
        """See Clock."""
        return value * self._process.chance.uniform(0.8, 1.2)

    def token(self) -> str:
        """See Clock."""
        return f"{self._process.chance.getrandbits(32):08x}"


class SimulatedLog(ArchivedLog):
    """A process's way to the store: slow, cut off at times, its answers lost or late, its watch not to be trusted."""

    def __init__(self, process: Process, archives: Archives = ()) -> None:
        super().__init__(process.mesh.store, archives)
        self.process = process
        self.append_faults: list[str] = []
        """For the next appends: "lost" on the way, "unanswered" though it landed, "late" in its answer, "limbo": given
        up, and landing later, "resent": without an answer, so that the same transaction is sent again."""
        self.watch_faults: list[str] = []
        """For the next deliveries of the watch: "twice", "turned" within a writer, "overtaken" by another, "dropped"."""
        self.disturb = self._disturb

    def _call(self, name: str, act: Callable[[], Result]) -> Result:
        if self.process.is_dead:
            raise LogUnavailable("this process is dead")
        return super()._call(name, act)

    def retention(self, cluster: str) -> SimulatedRetention:
        """See EtcdLog."""
        return SimulatedRetention(self.process, cluster)

    async def append(
        self, session: Session, payload: bytes, claims: Sequence[Claim] = (), *, known: int = 0
    ) -> Revision:
        """See EventLog."""
        restored = self.process.mesh.seen["restored"]
        await self.process.at("before append")
        fault = self.append_faults.pop(0) if self.append_faults and self.connected else ""
        await self.process.latency()
        await self.process.at("on the way")
        if fault in ("lost", "limbo"):
            if fault == "limbo":
                sequence = self.store.sequences.get(f"{session.cluster}/{session.writer}", 0)
                delay_s = self.process.chance.uniform(0.1, 3.0)
                self.process.loop.call_later(delay_s, self._land, session, payload, tuple(claims), sequence)
            raise LogUnavailable(f"append: {fault}")
        if fault == "unanswered":
            self.fail_next("append", landed=True)
        sequence = self.store.sequences.get(f"{session.cluster}/{session.writer}", 0)
        revision = await super().append(session, payload, claims, known=known)
        if fault == "resent" and self.process.mesh.seen["restored"] == restored:
            revision = await self._resend(session, payload, claims, sequence)
        await self.process.at("after append")
        await (asyncio.sleep(self.process.chance.uniform(1.0, 4.0)) if fault == "late" else self.process.latency())
        await self.process.at("answered")
        if not self.connected:
            raise LogUnavailable("append: the answer was lost")
        if self.process.mesh.seen["restored"] == restored:
            self.process.mesh.witness.acknowledged(self.process, revision, payload)
        return revision

    async def _resend(self, session: Session, payload: bytes, claims: Sequence[Claim], before: int) -> Revision:
        """As etcd_writer.py does: what the refused copy finds in the store says what became of the first. Meanwhile the
        writer's place may be another's."""
        rewinds = self.process.mesh.seen["restored"]
        sent = attempt(Place(session.token, before, 0, 0), session.cluster, session.writer, payload)
        await self.process.at("resends")
        await asyncio.sleep(self.process.chance.choice((0.01, 1.0)))
        if not self.connected or self.process.mesh.seen["restored"] != rewinds:
            raise LogUnavailable("append: no answer to the second copy")
        self.process.mesh.seen["append resent"] += 1
        name, held = (session.cluster, session.writer), self.store.kept.get(session_key(session.cluster, session.writer))
        own = [each for each in self.store.records if (each.cluster, each.writer) == name]
        stored = next((each for each in own if each.sequence == sent.sequence), None)
        outcome = settle(sent, (), Found(
            session_token=held.revision if held else 0,
            cursor=Cursor(self.store.sequences["/".join(name)], own[-1].token if own else 0, 0),
            cursor_revision=own[-1].revision if own else 1,
            stored=encode_batch(stored.token, stored.payload) if stored else b"",
            stored_revision=stored.revision if stored else 0,
            claims_touched=(),
        ))  # fmt: skip
        if isinstance(outcome, Landed):
            return outcome.revision
        if isinstance(outcome, Lost):
            raise Fenced(f"session of {self.process.name} is gone")
        return await super().append(session, payload)

    def _land(self, session: Session, payload: bytes, claims: Sequence[Claim], sequence: int) -> None:
        """A transaction that was given up arrives: it compares the cursor, as all do."""
        if self.store.sequences.get(f"{session.cluster}/{session.writer}", 0) != sequence:
            return
        try:
            self.store.append(session, payload, claims)
        except Exception as refused:
            self.process.mesh.note(f"what {self.process.name} gave up came too late: {type(refused).__name__}")

    async def follow(self, after: Position) -> AsyncIterator[Record | Bookmark]:
        """See EventLog."""
        async with aclosing(super().follow(after)) as deliveries:  # type: ignore[type-var]
            async for delivery in deliveries:
                if isinstance(delivery, Record):
                    await self.process.at("before apply")
                    if self.process.lag_s:
                        await asyncio.sleep(self.process.lag_s)
                self.process.was_quiet = isinstance(delivery, Bookmark)
                self.process.was_in_sync |= self.process.was_quiet
                yield delivery
                if isinstance(delivery, Record):
                    await self.process.at("after apply")

    def _disturb(self, records: Sequence[Record]) -> Sequence[Record]:
        delivered = list(records)
        for fault in tuple(self.watch_faults):
            if _TWISTS[fault](delivered, self.process.chance):
                self.watch_faults.remove(fault)
                self.process.in_doubt |= fault in ("overtaken", "dropped")
                self.process.mesh.seen[f"watch: {fault}"] += 1
        return delivered

    async def open_session(self, cluster: str, writer: str) -> Session:
        """See EventLog."""
        await self.process.at("before session")
        await self.process.latency()
        session = await super().open_session(cluster, writer)
        await self.process.at("after session")
        return session

    async def put(
        self, key: str, value: bytes, session: Session | None = None, *, lasting: bool = False
    ) -> Revision:
        """See EventLog."""
        await self.process.at("before put")
        await self.process.latency()
        revision = await super().put(key, value, session, lasting=lasting)
        await self.process.at("after put")
        return revision

    async def acquire(self, session: Session, duty: str) -> bool:
        """See EventLog."""
        await self.process.at("duty")
        return await super().acquire(session, duty)

    async def list(self, prefix: str) -> Sequence[Stored]:
        """See EventLog."""
        await self.process.at("list")
        await self.process.latency()
        return await super().list(prefix)


def _same_writer(one: Record, other: Record) -> bool:
    return (one.cluster, one.writer) == (other.cluster, other.writer)


def _twice(records: list[Record], chance: random.Random) -> bool:
    if not records:
        return False
    again = chance.randrange(len(records))
    records.insert(chance.randrange(again, len(records)) + 1, records[again])
    return True


def _turned(records: list[Record], chance: random.Random) -> bool:
    return _swap(records, chance, True)


def _overtaken(records: list[Record], chance: random.Random) -> bool:
    return _swap(records, chance, False)


def _swap(records: list[Record], chance: random.Random, same: bool) -> bool:
    pairs = [n for n in range(len(records) - 1) if _same_writer(records[n], records[n + 1]) is same]
    if pairs:
        first = chance.choice(pairs)
        records[first], records[first + 1] = records[first + 1], records[first]
    return bool(pairs)


def _dropped(records: list[Record], chance: random.Random) -> bool:
    if len(records) < 2:
        return False
    del records[chance.randrange(len(records) - 1)]
    return True


_TWISTS = {"twice": _twice, "turned": _turned, "overtaken": _overtaken, "dropped": _dropped}
WATCH_FAULTS = tuple(_TWISTS)
APPEND_FAULTS = ("lost", "unanswered", "late", "limbo", "resent")


class SimulatedWorker(KernelWorker):
    """Calls the kernel in the loop, at the gates of its process."""

    def __init__(self, process: Process) -> None:
        """Without a thread."""
        self._process = process

    async def call(self, function: Callable[..., Result], *arguments: Any) -> Result:
        await self._process.at("before kernel")
        await asyncio.sleep(self._process.chance.uniform(0.0, 0.005))
        await self._process.at("kernel")
        try:
            found = function(*arguments)
        except Crash:
            self._process.mesh.note(f"{self._process.name} dies in its kernel writes")
            self._process.mesh.kill(self._process)
            await self._process.at("dead")
            raise
        await self._process.at("after kernel")
        return found

    def close(self) -> None:
        """Nothing to close."""


class SimulatedDevices:
    """A process's way to its machine's devices; `found`, by name, is the machine's and stays."""

    def __init__(self, process: Process, found: dict[str, int]) -> None:
        self._process, self._found = process, found

    async def create(self, key: str, netns: str, interface: str, mtu_bytes: int, owner: str) -> Device:
        await self._process.at("before device")
        number = 100 + len(self._found) + self._process.chance.randrange(1 << 16) * 256
        self._found[device_name(key)] = number
        low = f"{number >> 16 & 255:02x}:{number >> 8 & 255:02x}:{number & 255:02x}"
        await self._process.at("after device")
        return Device(device_name(key), number, f"02:00:01:{low}", f"02:00:02:{low}")

    async def configure(self, netns: str, interface: str, host_mac: str, addresses: Awaitable[Sequence[str]]) -> None:
        """Nobody looks inside."""
        await addresses
        await self._process.at("configured")

    async def delete(self, name: str) -> bool:
        await self._process.at("before device")
        return self._found.pop(name, None) is not None

    async def list(self) -> dict[str, int]:
        await self._process.at("devices")
        return dict(self._found)

    async def ensure_tunnel(self, protocol: str, port: int, mtu_bytes: int) -> Device:
        await self._process.at("before device")
        return Device(f"mesh_{protocol}", 99, "02:00:00:00:00:99")

    async def remove_tunnels(self, but: str) -> Sequence[str]:
        await self._process.at("before device")
        return ()

    async def close(self) -> None:
        """Devices stay."""
