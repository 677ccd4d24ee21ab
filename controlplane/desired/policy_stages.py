"""What goes into and comes out of an update of the compiled policy. Pure.

Belongs here: the values. Does not belong here: working them out (policy.py).
"""

from typing import NamedTuple

from controlplane.desired.facets import FacetChanges
from controlplane.model import NodeKey
from datapath.tables import PolicyKey, PolicyRow, PolicySubjectKey, PolicySubjectRow

SubjectRows = dict[PolicySubjectKey, PolicySubjectRow]
PolicyRows = dict[PolicyKey, PolicyRow]
SubjectChanges = dict[PolicySubjectKey, PolicySubjectRow | None]
PolicyChanges = dict[PolicyKey, PolicyRow | None]


class Stage(NamedTuple):
    """Rows that change, None for those that go; the prefixes, and addresses of nodes as prefixes, with another number.
    `is_change`: the one in which what changes is put in force."""

    subjects: SubjectChanges
    rows: PolicyChanges
    facets: FacetChanges
    prefixes: list[str]
    is_change: bool


class Dirty:
    """What an update has found to be out of date."""

    def __init__(self) -> None:
        self.identities: dict[int, None] = {}
        """Labels, addresses or ports may differ."""
        self.subjects: dict[int, None] = {}
        self.remotes: dict[tuple[int, int], None] = {}
        self.nodes: dict[NodeKey, None] = {}
        self.addresses: dict[str, None] = {}
        """Of nodes that had them."""
        self.prefixes: list[str] = []
        """Those with another number now, and addresses of nodes likewise."""
        self.looks: dict[int, None] = {}
        """Of their addresses policies may see something else."""
        self.endpoints = False


