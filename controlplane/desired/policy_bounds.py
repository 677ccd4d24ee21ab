"""How many policy rows a subject and a node may have, and what is left of a subject that has more. Pure.

Belongs here: the bounds. Does not belong here: rows (policy.py). What does not fit is not allowed: a subject keeps its
denials and as many permissions, in the order of their keys, as fit; where its denials alone do not fit, all is closed
to it, to the node's own host too. The places of the node's map go to the subjects in the order of their numbers.
Subjects themselves cannot be too many: there are fewer devices than places for them.
"""

from collections.abc import Mapping

import msgspec

from datapath.abi.types import ENUMS, POLICY_SUBJECT_ASKS_LOCALHOST, POLICY_VERDICT_DENY
from datapath.tables import PolicyKey, PolicyRow, PolicySubjectRow

NODE_MAX: int = ENUMS["limit"]["POLICY_MAX"]

PolicyRows = Mapping[PolicyKey, PolicyRow]


class Overflow(msgspec.Struct, frozen=True):
    """A subject that asks for more rows than it may have."""

    subject: int
    rows: int
    allowed: int


def overflows(counts: Mapping[int, int], subject_max: int, node_max: int) -> dict[int, Overflow]:
    """Of the rows that each subject asks for."""
    found = {}
    left = node_max
    for subject in sorted(counts):
        rows = counts[subject]
        allowed = min(rows, subject_max, left)
        left -= allowed
        if allowed < rows:
            found[subject] = Overflow(subject, rows, allowed)
    return found


def bounded(
    row: PolicySubjectRow, rows: PolicyRows, allowed: int
) -> tuple[PolicySubjectRow, dict[PolicyKey, PolicyRow]]:
    """What a subject has instead, at most `allowed` rows; never a flow that all of them would not allow."""
    denials = {key: each for key, each in rows.items() if each.verdict == POLICY_VERDICT_DENY}
    if len(denials) > allowed:
        flags = row.flags | POLICY_SUBJECT_ASKS_LOCALHOST
        return PolicySubjectRow(1, 1, ingress_shapes=0, egress_shapes=0, flags=flags), {}
    permissions = sorted(key for key in rows if key not in denials)[: allowed - len(denials)]
    return row, {**denials, **{key: rows[key] for key in permissions}}
