"""cilium.io CiliumCIDRGroup. Pure.

Belongs here: the fields of this kind. Does not belong here: what its prefixes are labelled with (prefixes.py).
"""

from typing import Any

from controlplane.fields import Reading
from controlplane.model import CidrGroup
from controlplane.policy.clauses import read_prefix

KIND = "CiliumCIDRGroup"
API_VERSIONS = ("cilium.io/v2", "cilium.io/v2alpha1")
FIELDS = ("apiVersion", "kind", "metadata", "spec", "status")


def read_group(
    reading: Reading, document: dict[str, Any], cluster: str, name: str, labels: dict[str, str]
) -> CidrGroup:
    """Refusals are in `reading`."""
    fields = reading.mapping(document, "", FIELDS)
    path = "spec.externalCIDRs"
    spec = reading.mapping(fields.get("spec"), "spec", ("externalCIDRs",))
    if "externalCIDRs" not in spec:
        reading.refuse(path, None, "is required: a list of prefixes, which may be empty")
    listed = reading.sequence(spec.get("externalCIDRs"), path)
    prefixes = [read_prefix(reading, item, f"{path}[{number}]", or_address=True) for number, item in enumerate(listed)]
    return CidrGroup(cluster, name, tuple(sorted(set(prefixes))), labels)
