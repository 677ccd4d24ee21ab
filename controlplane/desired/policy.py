"""The policy tables of a node: subject and policy rows for the identities of its own endpoints. Pure.

Belongs here: which policies and remotes concern this node, and what a change of the mesh changes in the rows.
Does not belong here: what a rule means (policy/), what the policies are (policy_inputs.py), how rows reach the kernel
(datapath).
"""

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TypeVar

from controlplane.desired.facets import SCOPE as FACETS
from controlplane.desired.facets import FacetChanges, Facets, Looks, all_facets, looks_of
from controlplane.desired.ipcache import Numbers, host_prefix
from controlplane.desired.members import API_SERVER, HOST, REMOTE_NODE, RESERVED_LABELS, Members
from controlplane.desired.nodes import Sight, numbered_nodes, seen_nodes
from controlplane.desired.policy_bounds import NODE_MAX, Overflow, bounded, overflows
from controlplane.desired.policy_inputs import ADDRESS_KINDS, OldAndNew, PolicyInputs
from controlplane.desired.policy_mesh import mesh_node
from controlplane.desired.policy_stages import Dirty, PolicyChanges, PolicyRows, Stage, SubjectChanges, SubjectRows
from controlplane.desired.prefixes import PrefixIdentities
from controlplane.desired.underlay import node_addresses
from controlplane.fields import Refusal
from controlplane.model import Endpoint, EndpointKey, Labels, NodeKey, ObjectKey
from controlplane.policy.mesh import host_labels
from controlplane.policy.prefixes import AddressKeys, AddressLabels, merged
from controlplane.policy.resolve import (
    PortNumbers,
    asks_facets,
    asks_remotes,
    effective_rules,
    put_rows,
    remotes_of,
    subject_row,
)
from controlplane.policy.rules import ParsedPolicy, Rule
from controlplane.policy.selection import Selection, Subjects
from controlplane.policy.selectors import LabelIndex, Selector, index_labels
from controlplane.policy.settings import PolicySettings
from controlplane.projections.change import Change
from controlplane.projections.state import State
from datapath.tables import PolicySubjectKey, PolicySubjectRow

Key = TypeVar("Key")
Row = TypeVar("Row")

NO_POLICIES: Mapping[ObjectKey, OldAndNew] = {}
OF_NODES = (HOST, REMOTE_NODE, API_SERVER)


class _Subject:
    """What is in force for one local identity; rows by remote, since a change mostly concerns one remote."""

    def __init__(self, row: PolicySubjectRow, rules: tuple[Rule, ...]) -> None:
        self.row = row
        self.rules = rules
        self.rows: dict[int, PolicyRows] = {}
        self.count = 0
        """Of all rows."""
        self.names_ports = any(rule.named for rule in rules)
        self.asks_facets = any(map(asks_facets, rules))

    def selectors(self) -> list[Selector]:
        return list(dict.fromkeys(selector for rule in self.rules for selector in rule.peers or ()))


class PolicyCompiler:
    """Compiles for one node, which has room for `rows_max` rows. Call `full` first, then `stages` after every change
    of the state."""

    def __init__(self, rows_max: int = NODE_MAX) -> None:
        self._rows_max = rows_max
        self._clear("", "")

    def _clear(self, cluster: str, node: str) -> None:
        self._node = NodeKey(cluster, node)
        self._selection = Selection()
        self._inputs = PolicyInputs(cluster)
        self._about = Subjects()
        self._members = Members()
        self._sight = Sight()
        self._facts: dict[int, PortNumbers] = {}
        self._subjects: dict[int, _Subject] = {}
        self._host: LabelIndex | None = None
        self._users: dict[Selector, dict[int, None]] = {}
        self.prefixes = PrefixIdentities()
        self.nodes = numbered_nodes()
        self.facets = Facets()
        self.overflow: dict[int, Overflow] = {}
        """Subjects that ask for more rows than they may have: they are held closer than their policies say."""

    @property
    def unreadable(self) -> dict[ObjectKey, tuple[Refusal, ...]]:
        """Policies of the log that this version cannot read, and why; what they could be about is closed."""
        return self._inputs.unreadable

    @property
    def _addresses(self) -> AddressLabels:
        """What the policies say of addresses."""
        return self._sight.addresses

    @property
    def numbers(self) -> Numbers:
        """Of prefixes and nodes."""
        return Numbers(self.prefixes.numbers, self.nodes.numbers)

    @property
    def settings(self) -> PolicySettings:
        """Of the policies of the cluster."""
        return self._inputs.settings

    def labels_of(self, number: int) -> LabelIndex | None:
        """What selectors see of an identity on this node; None if it is not known."""
        return self._selection.labels_of(number)

    def policies(self) -> list[ParsedPolicy]:
        """Of the cluster, by name."""
        return [self._inputs.policies[key] for key in sorted(self._inputs.policies)]

    def selected(self, selector: Selector) -> list[int]:
        """The identities that it selects, whether or not a rule of this node uses it."""
        numbers = _without_facets(self._selection.identities())
        known = ((number, self._selection.labels_of(number)) for number in numbers)
        return [number for number, index in known if index is not None and selector.matches_index(index)]

    def full(self, state: State, cluster: str, node: str) -> tuple[SubjectRows, PolicyRows]:
        """All rows, from nothing."""
        self._clear(cluster, node)
        self._inputs.fill(state)
        for key, policy in self._inputs.policies.items():
            self._about.put(key, (part.subject for part in policy.parts))
        self._host = self._read_host(state)
        self._members.fill(state)
        self._sight = Sight(self._inputs.settings, self._inputs.address_labels(state))
        self.prefixes.replace(self._addresses.prefixes())
        self.nodes.replace(seen_nodes(state, self._node, self._sight, state.nodes))
        self.facets = all_facets(state, self._members, self._addresses)
        derived = (*sorted(self.prefixes.labels), *sorted(self.nodes.labels), *sorted(self.facets.labels))
        for number in (*RESERVED_LABELS, *sorted(state.identities), *derived):
            self._selection.put(number, self._labels(state, number) or ())
        for subject in self._wanted_subjects(state):
            self._build_subject(state, subject)
        self.overflow = self._overflows()
        subjects: SubjectRows = {}
        rows: PolicyRows = {}
        for number in self._subjects:
            row, own = self._held(number)
            subjects[PolicySubjectKey(number)] = row
            rows.update(own)
        return subjects, rows

    def _overflows(self) -> dict[int, Overflow]:
        counts = {number: found.count for number, found in self._subjects.items()}
        return overflows(counts, self._inputs.settings.policy_map_max, self._rows_max)

    def _held(self, subject: int) -> tuple[PolicySubjectRow, PolicyRows]:
        """The rows of a subject within its bounds."""
        found = self._subjects[subject]
        rows = {key: row for part in found.rows.values() for key, row in part.items()}
        over = self.overflow.get(subject)
        return bounded(found.row, rows, over.allowed) if over else (found.row, rows)

    def fullness(self) -> float:
        """The largest share that a subject asks for of the rows it may have; above 1 some are left out."""
        most = max((found.count for found in self._subjects.values()), default=0)
        return most / self._inputs.settings.policy_map_max

    def _labels(self, state: State, number: int) -> Labels | None:
        """What selectors see of an identity; None if it is not known."""
        if number == HOST:
            return self._sight.of_host(state.nodes.get(self._node))
        derived = self.prefixes.labels.get(number) or self.nodes.labels.get(number) or self.facets.labels.get(number)
        if derived is not None or (number in OF_NODES and self._sight.tells_apart):
            return derived or RESERVED_LABELS[number]
        identity = state.identities.get(number)
        own = RESERVED_LABELS.get(number) or (identity.labels if identity else None)
        if own is None or not self._addresses.keys.blocks:
            return own
        addresses = self._members.addresses(state, number, self._node, self._addresses.api_servers)
        return (*own, *self._addresses.of_mesh(addresses))

    def stages(self, state: State, changes: Iterable[Change]) -> Iterator[Stage]:
        """What the rows must become now that these changes are in the state, in steps, each to be written whole before
        the next. With more changes than there were, or with one twice, they end at the same rows.

        Where policies come to ask for other differences between addresses, or endpoints begin or cease to disagree on
        a named port, addresses get other numbers while rows get other verdicts, and no order of single writes keeps
        every address under its old policy or its new one. So first all are told apart that are before or afterwards,
        under the old policies: verdicts stay. Then what has changed is in force, each number's rows by themselves. Then
        those that look alike again are put together: verdicts stay.
        """
        changes = tuple(changes)
        coming, policies = self._inputs.after(state, changes)
        asked = keys = self._addresses.keys
        if policies:
            keys = coming.keys()
            asked = merged((asked, keys))
        if asked != self._addresses.keys:
            yield self._stage(state, Dirty(), asked)
        dirty = Dirty()
        for change in changes:
            self._mark(state, change, dirty)
        turning = self.facets.turning({number: self._looks(state, number) for number in dirty.identities})
        if turning - self.facets.split.keys():
            yield self._stage(state, Dirty(), self._addresses.keys, apart=turning)
        self._inputs = coming
        for key, (_, changed) in policies.items():
            self._about.put(key, (part.subject for part in changed.parts) if changed else ())
        asks_anew = any(change.kind in ADDRESS_KINDS for change in changes)
        yield self._stage(state, dirty, asked, policies, turning, is_change=True, asks_anew=asks_anew)
        if turning or keys != asked:
            yield self._stage(state, Dirty(), keys)

    def _stage(
        self,
        state: State,
        dirty: Dirty,
        keys: AddressKeys,
        policies: Mapping[ObjectKey, OldAndNew] = NO_POLICIES,
        apart: frozenset[int] = frozenset(),
        is_change: bool = False,
        asks_anew: bool = False,
    ) -> Stage:
        settings = self._sight.settings
        asks_anew |= keys != self._addresses.keys
        asks_anew |= frozenset(self._inputs.api_servers) != self._addresses.api_servers
        if asks_anew or self._inputs.settings != settings:
            self._refresh_sight(state, dirty, keys if asks_anew else None)
        self._refresh_nodes(state, dirty)
        facets = self._refresh_facets(state, dirty, apart)
        for number in sorted(dirty.identities):
            self._refresh_identity(state, number, dirty)
        for old, new in policies.values():
            for policy in (old, new):
                if policy is not None:
                    found = (each for each in self._subjects if self._parts_about(policy, each))
                    dirty.subjects.update(dict.fromkeys(found))
        if self._inputs.settings != settings:
            dirty.subjects.update(dict.fromkeys(self._subjects))
        host, self._host = self._host, self._read_host(state)
        if host != self._host:
            dirty.subjects[HOST] = None
        wanted = dict.fromkeys(self._subjects)
        if dirty.endpoints or dirty.subjects:
            wanted = dict.fromkeys(self._wanted_subjects(state))
            dirty.subjects.update(dict.fromkeys(number for number in wanted if number not in self._subjects))
            dirty.subjects.update(dict.fromkeys(number for number in self._subjects if number not in wanted))
        subjects, rows = self._within_bounds(*self._rebuild(state, wanted, dirty))
        return Stage(subjects, rows, facets, dirty.prefixes, is_change)

    def _within_bounds(self, subjects: SubjectChanges, rows: PolicyChanges) -> tuple[SubjectChanges, PolicyChanges]:
        """The changes, but of the subjects that are over their bounds, or were, everything that they hold."""
        before, self.overflow = self.overflow, self._overflows()
        over = {number: None for number in (*before, *self.overflow) if number in self._subjects}
        if not over:
            return subjects, rows
        rows = {key: row for key, row in rows.items() if row is None or key.subject_identity not in over}
        for number in over:
            row, held = self._held(number)
            subjects[PolicySubjectKey(number)] = row
            asked = (key for part in self._subjects[number].rows.values() for key in part)
            rows.update((key, held.get(key)) for key in asked)
        return subjects, rows

    def _mark(self, state: State, change: Change, dirty: Dirty) -> None:
        if change.kind == "identity":
            dirty.identities[change.key] = None
        elif change.kind == "endpoint":
            known = [each.identity for each in (change.old, change.new, state.endpoints.get(change.key)) if each]
            self._move(state, change.key, known)
            dirty.identities.update(dict.fromkeys(known))
            dirty.endpoints |= (change.key.cluster, change.key.node) == self._node
        elif change.kind == "workload":
            place = (change.key.cluster, change.key.namespace, change.key.name)
            for key in state.workload_endpoints.get(place, ()):
                dirty.identities[state.endpoints[key].identity] = None
        elif change.kind == "node":
            dirty.nodes[change.key] = None
            dirty.addresses.update(dict.fromkeys(node_addresses(change.old) if change.old else ()))

    def _move(self, state: State, key: EndpointKey, known: Iterable[int]) -> None:
        endpoint = state.endpoints.get(key)
        self._members.move(key, known, endpoint.identity if endpoint else None)

    def _refresh_sight(self, state: State, dirty: Dirty, asked: AddressKeys | None) -> None:
        """How policies look at addresses and nodes, after a change of settings or of what is `asked`."""
        before = self._sight
        addresses = before.addresses if asked is None else self._inputs.address_labels(state, asked)
        self._sight = Sight(self._inputs.settings, addresses)
        if asked is not None:
            dirty.prefixes, numbers = self.prefixes.replace(addresses.prefixes())
            dirty.identities.update(dict.fromkeys(numbers))
        if not before.is_like(self._sight):
            dirty.nodes.update(dict.fromkeys((self._node, *state.nodes)))
        if before.addresses.keys.blocks != addresses.keys.blocks:
            dirty.identities.update(dict.fromkeys((*RESERVED_LABELS, *state.identities)))
        if before.addresses.keys.ports != addresses.keys.ports:
            self._facts = {}
            dirty.looks.update(dict.fromkeys(state.identities))

    def _refresh_nodes(self, state: State, dirty: Dirty) -> None:
        """The numbers of other nodes' addresses, and what their identities and the host's look like."""
        if not dirty.nodes:
            return
        holders = (state.addresses.get(address) for address in dirty.addresses)
        dirty.nodes.update((holder, None) for holder in holders if isinstance(holder, NodeKey))
        gone: dict[str, Labels | None] = dict.fromkeys(dirty.addresses)
        seen = seen_nodes(state, self._node, self._sight, dirty.nodes)
        addresses, numbers = self.nodes.replace(gone | seen)
        dirty.prefixes += map(host_prefix, addresses)
        dirty.identities.update(dict.fromkeys((*OF_NODES, *numbers)))

    def _refresh_facets(self, state: State, dirty: Dirty, apart: frozenset[int]) -> FacetChanges:
        """After everything that says whose addresses look otherwise."""
        before = frozenset(self.facets.split)
        looks = {number: self._looks(state, number) for number in sorted({*dirty.identities, *dirty.looks})}
        changed, numbers = self.facets.replace(looks, apart)
        dirty.identities.update(dict.fromkeys(numbers))
        turned = sorted(before ^ self.facets.split.keys())
        dirty.subjects.update((number, None) for number in turned if number in self._subjects)
        dirty.endpoints |= bool(changed)
        return changed

    def _looks(self, state: State, number: int) -> Looks:
        return looks_of(state, number, self._members.of(number), self._addresses)

    def _rebuild(self, state: State, wanted: Iterable[int], dirty: Dirty) -> tuple[SubjectChanges, PolicyChanges]:
        """Whole subjects first; of the others, the rows of single (subject, remote) pairs."""
        kept, whole = frozenset(wanted), frozenset(dirty.subjects)
        subject_changes: SubjectChanges = {}
        row_changes: PolicyChanges = {}
        for subject in sorted(whole):
            self._rebuild_subject(state, subject, subject in kept, subject_changes, row_changes)
        for subject, remote in sorted(dirty.remotes):
            if subject not in whole and subject in self._subjects:
                self._rebuild_remote(state, subject, remote, row_changes)
        return subject_changes, row_changes

    def _wanted_subjects(self, state: State) -> Sequence[int]:
        """Identities of the node's endpoints, and its own under host policies. One whose labels are not known gets no
        row: the programs drop."""
        own = state.node_endpoints.get(self._node, ())
        found = dict.fromkeys(number for key in own for number in self.subjects_of(state.endpoints[key]))
        known = [number for number in found if self._selection.labels_of(number) is not None]
        return sorted([*known, HOST] if self._host is not None else known)

    def subjects_of(self, endpoint: Endpoint) -> Sequence[int]:
        """The numbers by which the programs find the rows about an endpoint: its identity, and where endpoints of this
        disagree on named ports, the facets of its addresses."""
        addresses = (endpoint.ipv4, endpoint.ipv6) if endpoint.identity in self.facets.split else ()
        facets = (self.facets.number_of(each) for each in addresses if each)
        return [endpoint.identity, *dict.fromkeys(number for number in facets if number)]

    def _read_host(self, state: State) -> LabelIndex | None:
        """The labels by which host policies select this node; None while none is in force."""
        node = state.nodes.get(self._node)
        if node is None or not self._inputs.settings.host_firewall:
            return None
        return index_labels(host_labels(mesh_node(node)))

    def _refresh_identity(self, state: State, number: int, dirty: Dirty) -> None:
        before = self._selection.labels_of(number)
        labels = self._labels(state, number)
        changed = self._selection.put(number, labels) if labels else self._selection.remove(number)
        for selector in changed:
            dirty.remotes.update(dict.fromkeys((subject, number) for subject in self._users[selector]))
        if self._selection.labels_of(number) != before:
            dirty.subjects[number] = None
        facts = self._facts.pop(number, None)
        if facts is None or facts != self._ports(number):
            for subject, found in self._subjects.items():
                if found.names_ports:
                    dirty.remotes[subject, number] = None
                    if subject == number:
                        dirty.subjects[subject] = None

    def _ports(self, number: int) -> PortNumbers:
        if number not in self._facts:
            self._facts[number] = self.facets.ports(number)
        return self._facts[number]

    def _subject_index(self, subject: int) -> LabelIndex | None:
        """The labels by which policies select it; None if they are not known."""
        return self._host if subject == HOST else self._selection.labels_of(subject)

    def _parts_about(self, policy: ParsedPolicy, subject: int) -> list[ParsedPolicy]:
        """The specs of a policy that select the identity. Host policies select nodes: of those, this one."""
        is_host, index = subject == HOST, self._subject_index(subject)
        if index is None:
            return []
        return [part for part in policy.parts if part.of_nodes == is_host and part.subject.matches_index(index)]

    def policies_of(self, subject: int) -> list[ParsedPolicy]:
        """The policies about an identity, one for each spec, by name."""
        index = self._subject_index(subject)
        keys = self._about.candidates(index) if index is not None else []
        return [part for key in keys for part in self._parts_about(self._inputs.policies[key], subject)]

    def _build_subject(self, state: State, subject: int) -> _Subject:
        policies = self.policies_of(subject)
        settings = self._inputs.settings
        row = subject_row(policies, settings, is_host=subject == HOST, is_split=subject in self.facets.split)
        built = _Subject(row, effective_rules(policies, settings))
        for selector in built.selectors():
            self._selection.add(selector)
            self._users.setdefault(selector, {})[subject] = None
        for rule in built.rules:
            remotes: Iterable[int] = remotes_of(rule, self._selection.selected, self._selection.identities)
            if not built.asks_facets:
                remotes = _without_facets(sorted(remotes))
            put_rows(built.rows, subject, remotes, rule, self._ports)
        built.count = sum(map(len, built.rows.values()))
        self._subjects[subject] = built
        return built

    def _rebuild_subject(
        self, state: State, subject: int, wanted: bool, subject_changes: SubjectChanges, row_changes: PolicyChanges
    ) -> None:
        old = self._subjects.pop(subject, None)
        new = self._build_subject(state, subject) if wanted else None
        if old is not None:
            self._release(subject, old, new)
        key = PolicySubjectKey(subject)
        old_row, new_row = old.row if old else None, new.row if new else None
        if old_row != new_row:
            subject_changes[key] = new_row
        old_rows, new_rows = old.rows if old else {}, new.rows if new else {}
        for remote in sorted({*old_rows, *new_rows}):
            _compare(old_rows.get(remote, {}), new_rows.get(remote, {}), row_changes)

    def _release(self, subject: int, old: _Subject, new: _Subject | None) -> None:
        """Forgets the selectors that only the old form of the subject used."""
        kept = dict.fromkeys(new.selectors()) if new else {}
        for selector in old.selectors():
            if selector in kept:
                continue
            users = self._users[selector]
            del users[subject]
            if not users:
                del self._users[selector]
                self._selection.drop(selector)

    def _rebuild_remote(self, state: State, subject: int, remote: int, row_changes: PolicyChanges) -> None:
        found = self._subjects[subject]
        if remote >= FACETS and not found.asks_facets:
            return
        built: dict[int, PolicyRows] = {}
        index = self._selection.labels_of(remote)
        for rule in found.rules:
            about = asks_remotes(rule) or (
                index is not None and any(selector.matches_index(index) for selector in rule.peers or ())
            )
            if about and index is not None:
                put_rows(built, subject, (remote,), rule, self._ports)
        rows, old = built.get(remote, {}), found.rows.get(remote, {})
        found.count += len(rows) - len(old)
        _compare(old, rows, row_changes)
        if rows:
            found.rows[remote] = rows
        else:
            found.rows.pop(remote, None)


def _without_facets(numbers: Sequence[int]) -> Sequence[int]:
    """Of sorted numbers."""
    return numbers[: bisect_left(numbers, FACETS)]


def _compare(old: dict[Key, Row], new: dict[Key, Row], changes: dict[Key, Row | None]) -> None:
    for key in old:
        if key not in new:
            changes[key] = None
    for key, row in new.items():
        if old.get(key) != row:
            changes[key] = row
