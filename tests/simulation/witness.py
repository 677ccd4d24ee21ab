"""What must hold at every moment of a simulated mesh, checked by somebody who sees everything and takes part in nothing.

Belongs here: the invariants of ARCHITECTURE.md, one function each. Does not belong here: making anything happen.
"""

import asyncio
from bisect import bisect_right
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from controlplane.codec import decode
from controlplane.events import NodeLeft
from controlplane.history.at import Past
from controlplane.history.replay import encoded_rows
from controlplane.projections.state import State
from datapath import codec
from datapath.digest import digest_of
from datapath.plan import UNSETTLED_EPOCH
from datapath.tables import TABLES, EndpointKey
from kvstore import checkpoint_parts
from kvstore.archive import Archive
from kvstore.checkpoint_parts import CheckpointManifest
from kvstore.errors import HistoryTruncated
from kvstore.keys import PREFIX, session_key, side_key
from kvstore.packed import Manifest
from kvstore.types import Record, Session
from tests.simulation.history import ArchivedLog
from tests.simulation.ledger import Breach, Ledger

if TYPE_CHECKING:
    from tests.simulation.mesh import Machine, NodeMachine, SimulatedMesh
    from tests.simulation.process import Process

Tables = Mapping[str, Mapping[bytes, bytes]]


class Broken(AssertionError):
    """An invariant does not hold; `invariant` names it."""

    def __init__(self, invariant: str, what: str) -> None:
        super().__init__(f"{invariant}: {what}")
        self.invariant = invariant


class Witness:
    """Folds every record as it lands, and keeps what the mesh was after each."""

    def __init__(self, mesh: "SimulatedMesh") -> None:
        self.mesh = mesh
        self.state = State()
        self.records: list[Record] = []
        self.tokens: dict[str, int] = {}
        """By cluster/writer, the token of the session that holds the place now."""
        self._leases: dict[int, str] = {}
        self.ledger = Ledger(self._realized)
        self._digests: dict[int, str] = {0: State().digest()}
        self._epochs: dict[int, int] = {0: 0}
        self._states: dict[int, State] = {}
        self._rows: dict[tuple[str, str, int], Tables] = {}
        self._landed: dict[bytes, int] = {}
        self._checked: dict[str, tuple[int, int]] = {}
        self._kernel_epochs: dict[str, int] = {}
        self._older_epochs: dict[str, None] = {}
        """Nodes whose kernel may still have rows from before a restore, since which revisions count anew."""
        self._breaches: list[Broken] = []

    def breach(self, invariant: str, what: str) -> None:
        """Raises Broken."""
        raise Broken(invariant, what)

    def find(self, invariant: str, what: str) -> None:
        """To be raised by the next check: whoever runs now is part of the mesh and would catch it."""
        self._breaches.append(Broken(invariant, what))

    # --- what the store tells ---------------------------------------------------------------------------------------

    def opened(self, session: Session) -> None:
        name = f"{session.cluster}/{session.writer}"
        self.tokens[name] = session.token
        self._leases[session.lease] = name

    def revoked(self, lease: int) -> None:
        name = self._leases.pop(lease, None)
        if name is not None:
            self.tokens.pop(name, None)

    def acknowledged(self, process: "Process", revision: int, payload: bytes) -> None:
        """A process was told that its batch stands at this revision."""
        if not any(each.revision == revision and each.payload == payload for each in reversed(self.records)):
            self.find("exactly once", f"{process.name} was told of revision {revision}, which is not its batch")

    def landed(self, record: Record) -> None:
        name = f"{record.cluster}/{record.writer}"
        last = self.records[-1].revision if self.records else 0
        if record.revision <= last:
            self.find("one order", f"record {record.revision} after {last}")
        if self.tokens.get(name) != record.token:
            self.find("fencing", f"{name} appended with token {record.token}; {self.tokens.get(name)} holds its place")
        if record.sequence != self.state.sequences.get(name, 0) + 1:
            self.find("no gap", f"{name}: sequence {record.sequence} at revision {record.revision}")
        self._landed[record.payload] = self._landed.get(record.payload, 0) + 1
        if self._landed[record.payload] > 1:
            self.find("exactly once", f"a batch of {name} stands in the log twice, at {record.revision}")
        self.records.append(record)
        events = decode(record.payload).events
        self.mesh.note(f"{record.revision} {name}: {', '.join(type(each).__name__ for each in events)[:150]}")
        for each in events:
            self.mesh.seen[type(each).__name__] += 1
            if isinstance(each, NodeLeft):
                node = next(found for found in self.mesh.nodes if (found.cluster, found.name) == (record.cluster, each.node))
                node.living.clear()
        refused = self._fold(record)
        try:
            self.ledger.add(record, tuple(each for each in events if type(each).__name__ not in refused))
        except Breach as breach:
            self.find("decisions are recorded", str(breach))

    def _fold(self, record: Record) -> list[str]:
        """The kinds of its events that are refused."""
        refused, epoch = self.state.refused_count, self.state.policy_epoch
        self.state.apply(record)
        revision = self.state.revision
        self._digests[revision] = self.state.digest()
        self._epochs[revision] = self.state.policy_epoch
        self._states[revision] = self.state.copy()
        if self.state.policy_epoch < epoch:
            self.find("the epoch only grows", f"from {epoch} to {self.state.policy_epoch}")
        found = self.state.refused_events[len(self.state.refused_events) - (self.state.refused_count - refused) :]
        for each in found:
            self.mesh.seen["event refused"] += 1
            if self.mesh.all_know_the_store():
                self.find("what is decided is accepted", f"{each.event} at {revision} is refused: {each.reason}")
        return [each.event for each in found]

    def leaves(self, cluster: str, manifest: Manifest) -> None:
        """A segment is about to leave the store: it must be in an archive, record by record, and a checkpoint behind it."""
        own = [each for each in self.records if each.cluster == cluster and manifest.opened <= each.revision <= manifest.last_revision]
        store_id = self.mesh.store.cluster_id
        for _, where in self._archives(cluster):
            kept = Archive(where).records(store_id, cluster, manifest.segment)
            if kept is not None and list(kept) == own:
                break
        else:
            self.find("history stays", f"segment {manifest.segment} of {cluster} leaves, and no archive has it")
        at = self._checkpoint_at(cluster)
        if at < manifest.last_revision:
            self.find("history stays", f"{cluster}'s history leaves up to {manifest.last_revision}, its checkpoint is at {at}")

    def _checkpoint_at(self, cluster: str) -> int:
        """The revision of a cluster's checkpoint in the store, 0 if there is none that is whole. What was damaged just now
        is mended: whoever read it before cannot know."""
        store, now_s = self.mesh.store, asyncio.get_running_loop().time()
        found = store.kept.get(side_key(f"manifest/{cluster}"))
        if found is None:
            return 0
        manifest = msgspec.msgpack.decode(found.value, type=CheckpointManifest)
        parts = store.table(PREFIX + f"checkpoint/{cluster}/{manifest.position.revision:016x}/".encode())
        for key, (at_s, before) in self.mesh.spoilt.items():
            if key in parts and parts[key].revision == before.revision and now_s - at_s < 1.0:
                store.kept[key] = before
        content = b"".join(store.kept[key].value for key in parts)
        is_whole = len(content) == manifest.size and checkpoint_parts._digest(manifest, content) == manifest.digest
        return int(manifest.position.revision) if is_whole else 0

    def _archives(self, cluster: str = "") -> list[tuple[str, Path]]:
        return [pair for each in self.mesh.machines for pair in each.archives if cluster in ("", pair[0])]

    async def check_past(self, revisions: int) -> None:
        """Whoever has all archives is told of any revision what the mesh was, whatever has left the store since; of a
        store that was put back, as far as it had kept it."""
        log = ArchivedLog(self.mesh.store, self._archives())
        past = Past(log, lambda: int(self.state.revision))
        known = sorted(self._states)
        for _ in range(revisions if known else 0):
            revision = self.mesh.chance.choice(known)
            try:
                moment = await past.moment(revision)
            except HistoryTruncated:
                if not self.mesh.seen["restored"]:
                    self.breach("history stays", f"what the mesh was at {revision} cannot be told any more")
                continue
            self.mesh.seen["past told"] += 1
            if moment.state.digest() != self._digests[revision]:
                self.breach("history stays", f"what is told of {revision} is not what was")

    def rewound(self, revision: int) -> None:
        """The store was put back: what was later has never been."""
        records = [each for each in self.records if each.revision <= revision]
        held = self.mesh.store.kept
        names = {f"{each.cluster}/{each.writer_name}": (each.cluster, each.writer_name) for each in self.mesh.machines}
        sessions = {name: held.get(session_key(*pair)) for name, pair in names.items()}
        self.tokens = {name: kept.revision for name, kept in sessions.items() if kept is not None}
        self._leases = {kept.lease: name for name, kept in sessions.items() if kept is not None}
        self.state, self.records = State(), []
        self.ledger = Ledger(self._realized)
        self._landed.clear()
        self._digests, self._epochs = {0: State().digest()}, {0: 0}
        self._states.clear()
        self._rows.clear()
        self._checked.clear()
        self._kernel_epochs.clear()
        self._older_epochs = {str(each): None for each in self.mesh.nodes}
        for record in records:
            self.records.append(record)
            self._landed[record.payload] = 1
            self._fold(record)
            self.ledger.add(record, decode(record.payload).events)

    def _realized(self, key: tuple[str, str]) -> int:
        """The last generation that a node's kernel held whole."""
        node = next((each for each in self.mesh.nodes if (each.cluster, each.name) == key), None)
        if node is None:
            return 0
        if node.is_running:
            report = node.work.parts.reconciler._realization.report()
            if not report.not_done and node.work.parts.reconciler.realized_generation >= 0:
                node.realized_max = max(node.realized_max, report.realized_generation)
        return node.realized_max

    # --- after each step --------------------------------------------------------------------------------------------

    def check(self) -> None:
        """Raises Broken."""
        if self._breaches:
            raise self._breaches[0]
        for machine in self.mesh.machines:
            if machine.process is not None and machine.process.failure is not None:
                raise Broken("nothing falls over", f"{machine}: {machine.process.failure!r}") from machine.process.failure
            if machine.is_running:
                self._check_follower(machine)
        for node in self.mesh.nodes:
            self._check_kernel(node)

    def _check_follower(self, machine: "Machine") -> None:
        """The state at a revision is that of the log at this revision, whatever way it came about. A reader whose watch
        lost a record may be wrong until its log is quiet; by then it has noticed."""
        state, follower, process = machine.follower.state, machine.follower, machine.process
        assert process is not None
        revision = int(state.revision)
        place = (revision, id(state))
        if self._checked.get(f"state of {machine}") != place and self._digests.get(revision) == state.digest():
            self._checked[f"state of {machine}"] = place
            if self._epochs[revision] != state.policy_epoch:
                self.breach("same log, same state", f"{machine}: epoch {state.policy_epoch}, not {self._epochs[revision]}")
        if not follower.in_sync or follower.repairing or process.log.cluster_id != state.store_id:
            return
        is_right = self._checked.get(f"state of {machine}") == place
        is_done = revision >= self._last_at(follower.applied_revision)
        if is_right and is_done:
            process.in_doubt &= not process.was_quiet
        elif process.was_quiet or not process.in_doubt:
            self.breach(
                "no gap unnoticed" if self._lost(state) or not is_done else "same log, same state",
                f"{machine} at {revision}, applied {follower.applied_revision}, is not what the log gives{self._lost(state)}",
            )

    def _last_at(self, revision: int) -> int:
        """The revision of the last record at or below this one."""
        place = bisect_right(self.records, revision, key=lambda each: each.revision)
        return int(self.records[place - 1].revision) if place else 0

    def _lost(self, state: State) -> str:
        known = self._states.get(int(state.revision))
        if known is None:
            return ", which has no such record"
        behind = {
            name: (state.sequences.get(name), held)
            for name, held in known.sequences.items()
            if state.sequences.get(name) != held
        }
        return f": sequences held and due {behind}" if behind else ""

    def _check_kernel(self, node: "NodeMachine") -> None:
        memory = node.memory.tables
        place = (node.memory.writes, id(node.process))
        if node.is_running:
            self._check_realized(node)
        if self._checked.get(f"kernel of {node}") == place:
            return
        self._check_references(str(node), memory)
        self._check_epoch(str(node), memory)
        self._check_living(node)
        self._checked[f"kernel of {node}"] = place

    def _check_realized(self, node: "NodeMachine") -> None:
        """A kernel that says to be realized through a generation holds its rows and no others; one that has not been
        in sync changes nothing that it found."""
        reconciler, follower = node.work.parts.reconciler, node.follower
        report = reconciler._realization.report()
        generation = report.realized_generation
        is_blind = node.process is not None and not node.process.was_in_sync and not node.was_empty
        if is_blind and node.memory.writes != node.writes_at_start:
            self.breach("prune only in sync", f"{node} changed what it found, before it knew the log")
        if generation < 0 or generation not in self._states:
            return
        self._realized((node.cluster, node.name))
        if reconciler.realized_generation < 0 or follower.state.store_id != self.mesh.store.cluster_id:
            return  # it has not seen that the log is another one, or not written a row by that one
        place = (generation, node.memory.writes)
        is_unsure = node.process is None or node.process.in_doubt or follower.repairing
        if report.not_done or is_unsure or self._checked.get(f"rows of {node}") == place:
            return
        wanted = self.rows(node, generation)
        for table in TABLES:
            held = node.memory.tables[table]
            if report.in_sync and held != wanted[table]:
                self.breach("same log, same rows", _difference(node, table, generation, wanted[table], held))
            if not wanted[table].items() <= held.items():
                self.breach("same log, same rows", _difference(node, table, generation, wanted[table], held))
            if report.digests[table] != digest_of(held):
                self.breach("digests tell", f"{node}: {table} at {generation}")
        self._checked[f"rows of {node}"] = place
        if self.mesh.all_know_the_store():
            self._older_epochs.pop(str(node), None)

    def rows(self, node: "NodeMachine", revision: int) -> Tables:
        """What the node's kernel must hold at a revision."""
        key = (node.cluster, node.name, revision)
        if key not in self._rows:
            self._rows[key] = encoded_rows(self._states[revision], node.cluster, node.name).tables
        return self._rows[key]

    def _check_references(self, node: str, tables: Tables) -> None:
        """At every moment, in the middle of a crashed pass too: nothing points to what is not there."""
        decode_key, decode_row = codec.decode_key, codec.decode_row
        backends = {decode_key("backends", key) for key in tables["backends"]}
        slots: dict[int, int] = {}
        for each in backends:
            slots[each.backend_set] = slots.get(each.backend_set, 0) + 1
        for key, row in tables["services"].items():
            service = decode_row("services", row)
            if service.count > slots.get(service.backend_set, 0):
                self.breach("referents first", f"{node}: {decode_key('services', key)} has {service.count} backends, "
                            f"and {slots.get(service.backend_set, 0)} are there")  # fmt: skip
        devices = {decode_key("devices", key).ifindex for key in tables["devices"]}
        guarded = {decode_key("attachments", key).ifindex for key in tables["attachments"]}
        for row in tables["endpoints"].values():
            endpoint = decode_row("endpoints", row)
            if endpoint.ifindex and endpoint.ifindex not in devices & guarded:
                self.breach("referents first", f"{node}: endpoint {endpoint.endpoint_id} leads to an unguarded device")

    def _check_epoch(self, node: str, tables: Tables) -> None:
        for row in tables["node_state"].values():
            epoch = codec.decode_row("node_state", row).policy_epoch & ~UNSETTLED_EPOCH
            if node in self._older_epochs:
                continue
            if epoch < self._kernel_epochs.get(node, 0):
                self.breach("the epoch only grows", f"{node}: from {self._kernel_epochs[node]} to {epoch}")
            self._kernel_epochs[node] = epoch

    def _check_living(self, node: "NodeMachine") -> None:
        """Packets of an endpoint that somebody was told to be there go on, whatever becomes of log and agent."""
        for container, made in node.living.items():
            for each in made.addresses:
                key = codec.encode_key("endpoints", EndpointKey(codec.address_bytes(each.address.split("/")[0])))
                if key not in node.memory.tables["endpoints"]:
                    self.breach("living endpoints stay", f"{node}: the kernel has no row of {container}, {each.address}")

    # --- at the end -------------------------------------------------------------------------------------------------

    def check_living(self) -> None:
        """They are in the log with the same number and addresses, and their devices are there."""
        for node in self.mesh.nodes:
            for container, made in node.living.items():
                found = self.state.endpoint_of(node.cluster, node.name, container, "eth0")
                if found is None or found.endpoint_id != made.endpoint_id:
                    self.breach("living endpoints stay", f"{node}: {container} is {found} in the log, was {made}")
                assert found is not None
                if [each for each in (found.ipv4, found.ipv6) if each] != [a.address.split("/")[0] for a in made.addresses]:
                    self.breach("living endpoints stay", f"{node}: {container} has other addresses: {found}, was {made}")
                if node.devices.get(found.device.name) != found.device.ifindex:
                    self.breach("living endpoints stay", f"{node}: the device of {container} is gone")

    def check_replay(self) -> None:
        """From the first record, and from a checkpoint anywhere: the same bytes. And what is decided by nobody is kept
        by no one: live things are those of the ledger."""
        whole = State()
        middle: State | None = None
        for number, record in enumerate(self.records):
            whole.apply(record)
            if middle is not None:
                middle.apply(record)
            if number == self.mesh.chance.randrange(len(self.records)) or number == len(self.records) // 2:
                middle = State.load(whole.save())
        if not whole.digest() == self.state.digest() == (middle or whole).digest():
            self.breach("same log, same state", "a replay from the first record or from a checkpoint differs")
        state, ledger = self.state, self.ledger
        pairs = {
            "nodes": (set(state.nodes), set(ledger.nodes)),
            "identities": (set(state.identities), set(ledger.identities)),
            "endpoints": ({tuple(key) for key in state.endpoints}, set(ledger.endpoints)),
            "services": ({(k.cluster, k.namespace, k.name) for k in state.services}, set(ledger.services)),
        }
        for what, (held, written) in pairs.items():
            if held != written:
                self.breach("decisions are recorded", f"{what}: held {held ^ written} otherwise than written")


def _difference(node: object, table: str, generation: int, wanted: Mapping[bytes, bytes], held: Mapping[bytes, bytes]) -> str:
    missing = [codec.decode_key(table, key) for key in sorted(wanted) if wanted[key] != held.get(key)]
    alien = [codec.decode_key(table, key) for key in sorted(held) if key not in wanted]
    return f"{node}: {table} at {generation}: missing or other {missing[:3]}, too many {alien[:3]}"
