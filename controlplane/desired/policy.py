"""The policy tables of a node: subject and policy rows for the identities of its own endpoints. Pure.

Belongs here: which policies and remotes concern this node, and what a change of the mesh changes in the rows.
Does not belong here: what a rule means (policy/), how rows reach the kernel (datapath).
A policy that cannot be read is not ignored: it closes both directions for every endpoint of its namespace.
"""

from collections.abc import Iterable, Sequence
from typing import TypeVar

from controlplane.fields import Refusal
from controlplane.model import RESERVED_IDENTITIES, NodeKey, ObjectKey, Policy
from controlplane.policy.clauses import in_cluster, in_namespace, reserved_labels
from controlplane.policy.manifests import parse_text
from controlplane.policy.resolve import effective_rules, put_rows, remotes_of, subject_row
from controlplane.policy.rules import ParsedPolicy, Rule
from controlplane.policy.selection import Selection
from controlplane.policy.selectors import Selector, selector_of
from controlplane.projections.change import Change
from controlplane.projections.state import State
from datapath.tables import PolicyKey, PolicyRow, PolicySubjectKey, PolicySubjectRow

Key = TypeVar("Key")
Row = TypeVar("Row")

SubjectRows = dict[PolicySubjectKey, PolicySubjectRow]
PolicyRows = dict[PolicyKey, PolicyRow]
SubjectChanges = dict[PolicySubjectKey, PolicySubjectRow | None]
PolicyChanges = dict[PolicyKey, PolicyRow | None]


class _Subject:
    """What is in force for one local identity; rows by remote, since a change mostly concerns one remote."""

    def __init__(self, row: PolicySubjectRow, rules: tuple[Rule, ...]) -> None:
        self.row = row
        self.rules = rules
        self.rows: dict[int, PolicyRows] = {}

    def selectors(self) -> list[Selector]:
        return list(dict.fromkeys(selector for rule in self.rules for selector in rule.peers or ()))


class PolicyCompiler:
    """Compiles for one node. Call `full` first, then `update` after every change of the state."""

    def __init__(self) -> None:
        self._clear("", "")

    def _clear(self, cluster: str, node: str) -> None:
        self._node = NodeKey(cluster, node)
        self._selection = Selection()
        self._policies: dict[ObjectKey, ParsedPolicy] = {}
        self._sources: dict[ObjectKey, Policy] = {}
        self._subjects: dict[int, _Subject] = {}
        self._users: dict[Selector, dict[int, None]] = {}
        self.unreadable: dict[ObjectKey, tuple[Refusal, ...]] = {}
        """Policies of the log that this version cannot read, and why; their namespaces are closed."""

    def full(self, state: State, cluster: str, node: str) -> tuple[SubjectRows, PolicyRows]:
        """All rows, from nothing."""
        self._clear(cluster, node)
        for name, number in RESERVED_IDENTITIES.items():
            self._selection.put(number, reserved_labels(name))
        for number in sorted(state.identities):
            self._selection.put(number, state.identities[number].labels)
        for key in sorted(state.policies):
            self._read_policy(key, state.policies[key])
        for subject in self._wanted_subjects(state):
            self._build_subject(subject)
        subjects = {PolicySubjectKey(number): found.row for number, found in self._subjects.items()}
        rows: PolicyRows = {}
        for found in self._subjects.values():
            for part in found.rows.values():
                rows.update(part)
        return subjects, rows

    def update(self, state: State, changes: Iterable[Change]) -> tuple[SubjectChanges, PolicyChanges]:
        """What the rows must become now that these changes are in the state; None: the row goes.

        Calling it with more changes than there were, or with one twice, gives the same rows.
        """
        identities: dict[int, None] = {}
        policies: dict[ObjectKey, None] = {}
        endpoints = False
        for change in changes:
            if change.kind == "identity":
                identities[change.key] = None
            elif change.kind == "policy":
                policies[change.key] = None
            elif change.kind == "endpoint":
                endpoints |= (change.key.cluster, change.key.node) == self._node
        rebuilt: dict[int, None] = {}
        remotes: dict[tuple[int, int], None] = {}
        for number in sorted(identities):
            self._refresh_identity(state, number, rebuilt, remotes)
        for key in sorted(policies):
            self._refresh_policy(state, key, rebuilt)
        wanted = dict.fromkeys(self._subjects)
        if endpoints or rebuilt:
            wanted = dict.fromkeys(self._wanted_subjects(state))
            rebuilt.update(dict.fromkeys(number for number in wanted if number not in self._subjects))
            rebuilt.update(dict.fromkeys(number for number in self._subjects if number not in wanted))
        return self._rebuild(wanted, rebuilt, remotes)

    def _rebuild(
        self, wanted: Iterable[int], subjects: Iterable[int], remotes: Iterable[tuple[int, int]]
    ) -> tuple[SubjectChanges, PolicyChanges]:
        """Whole subjects first; of the others, the rows of these (subject, remote) pairs."""
        kept, whole = frozenset(wanted), frozenset(subjects)
        subject_changes: SubjectChanges = {}
        row_changes: PolicyChanges = {}
        for subject in sorted(whole):
            self._rebuild_subject(subject, subject in kept, subject_changes, row_changes)
        for subject, remote in sorted(remotes):
            if subject not in whole:
                self._rebuild_remote(subject, remote, row_changes)
        return subject_changes, row_changes

    def _wanted_subjects(self, state: State) -> Sequence[int]:
        """Identities of the node's endpoints. One whose labels are not known gets no row: the programs drop."""
        own = state.node_endpoints.get(self._node, ())
        found = dict.fromkeys(state.endpoints[key].identity for key in own)
        return sorted(number for number in found if self._selection.labels_of(number) is not None)

    def _refresh_identity(
        self, state: State, number: int, rebuilt: dict[int, None], remotes: dict[tuple[int, int], None]
    ) -> None:
        if number in RESERVED_IDENTITIES.values():
            return
        before = self._selection.labels_of(number)
        identity = state.identities.get(number)
        changed = self._selection.put(number, identity.labels) if identity else self._selection.remove(number)
        for selector in changed:
            remotes.update(dict.fromkeys((subject, number) for subject in self._users[selector]))
        if self._selection.labels_of(number) != before:
            rebuilt[number] = None

    def _refresh_policy(self, state: State, key: ObjectKey, rebuilt: dict[int, None]) -> None:
        old = self._policies.get(key)
        self._read_policy(key, state.policies.get(key))
        new = self._policies.get(key)
        if old == new:
            return
        for policy in (old, new):
            if policy is not None:
                rebuilt.update(dict.fromkeys(each for each in self._subjects if self._is_about(policy, each)))

    def _read_policy(self, key: ObjectKey, policy: Policy | None) -> None:
        """Parses once per manifest. Policies of other clusters are about none of this node's endpoints."""
        if policy is None:
            for known in (self._policies, self._sources, self.unreadable):
                known.pop(key, None)
            return
        if policy.cluster != self._node.cluster or self._sources.get(key) == policy:
            return
        self._sources[key] = policy
        self.unreadable.pop(key, None)
        parsed = parse_text(policy.kind, policy.manifest, policy.cluster, policy.parser)
        if not isinstance(parsed, tuple) and parsed.key != key:
            parsed = (Refusal("metadata", parsed.name, f"the event names {key.kind}/{key.namespace}/{key.name}"),)
        if isinstance(parsed, tuple):
            self.unreadable[key] = parsed
            parsed = _closing(key)
        self._policies[key] = parsed

    def _is_about(self, policy: ParsedPolicy, subject: int) -> bool:
        index = self._selection.labels_of(subject)
        return index is not None and policy.subject.matches_index(index)

    def policies_of(self, subject: int) -> list[ParsedPolicy]:
        """The policies about an identity, by name."""
        return [self._policies[key] for key in sorted(self._policies) if self._is_about(self._policies[key], subject)]

    def _build_subject(self, subject: int) -> _Subject:
        policies = self.policies_of(subject)
        built = _Subject(subject_row(policies), effective_rules(policies))
        for selector in built.selectors():
            self._selection.add(selector)
            self._users.setdefault(selector, {})[subject] = None
        for rule in built.rules:
            put_rows(built.rows, subject, remotes_of(rule, self._selection.selected), rule)
        self._subjects[subject] = built
        return built

    def _rebuild_subject(
        self, subject: int, wanted: bool, subject_changes: SubjectChanges, row_changes: PolicyChanges
    ) -> None:
        old = self._subjects.pop(subject, None)
        new = self._build_subject(subject) if wanted else None
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

    def _rebuild_remote(self, subject: int, remote: int, row_changes: PolicyChanges) -> None:
        found = self._subjects[subject]
        built: dict[int, PolicyRows] = {}
        index = self._selection.labels_of(remote)
        for rule in found.rules:
            if index is not None and any(selector.matches_index(index) for selector in rule.peers or ()):
                put_rows(built, subject, (remote,), rule)
        rows = built.get(remote, {})
        _compare(found.rows.get(remote, {}), rows, row_changes)
        if rows:
            found.rows[remote] = rows
        else:
            found.rows.pop(remote, None)


def _compare(old: dict[Key, Row], new: dict[Key, Row], changes: dict[Key, Row | None]) -> None:
    for key in old:
        if key not in new:
            changes[key] = None
    for key, row in new.items():
        if old.get(key) != row:
            changes[key] = row


def _closing(key: ObjectKey) -> ParsedPolicy:
    subject = selector_of((in_namespace(key.namespace), in_cluster(key.cluster)))
    return ParsedPolicy(key, subject, enforce_ingress=True, enforce_egress=True, rules=())
