"""How backends are chosen: the settings of a cluster, and a service's own word by its annotations. Pure.

Belongs here: names as Cilium's users know them, values, defaults, and what is wrong with a value. Does not belong here:
rows (desired/), the algorithm (datapath/maglev.py).
"""

import base64
import binascii
from collections.abc import Mapping
from typing import Any

import msgspec

from controlplane.fields import Reading

SNAT, DSR, HYBRID = "snat", "dsr", "hybrid"
MODES = (SNAT, DSR, HYBRID)
RANDOM, MAGLEV = "random", "maglev"
ALGORITHMS = (RANDOM, MAGLEV)
TABLE_SIZES = (251, 509, 1021, 2039, 4093, 8191, 16381, 32749, 65521, 131071)
TABLE_SIZE_DEFAULT = 16381
SEED_DEFAULT = "JLfvgnHc2kaSUFaI"
"""Base64 of 12 bytes, and Cilium's default."""
SEED_BYTES = 12

MODE, ALGORITHM = "bpf-lb-mode", "bpf-lb-algorithm"
TABLE_SIZE, SEED = "bpf-lb-maglev-table-size", "bpf-lb-maglev-hash-seed"
RANGE_ALL_TYPES, EXTERNAL_CLUSTER_IP = "bpf-lb-source-range-all-types", "bpf-lb-external-clusterip"
NAMES = (MODE, ALGORITHM, TABLE_SIZE, SEED, RANGE_ALL_TYPES, EXTERNAL_CLUSTER_IP)

ALIASES = {
    "loadBalancer.mode": MODE,
    "loadBalancer.algorithm": ALGORITHM,
    "maglev.tableSize": TABLE_SIZE,
    "maglev.hashSeed": SEED,
    "bpf.lbSourceRangeAllTypes": RANGE_ALL_TYPES,
    "bpf.lbExternalClusterIP": EXTERNAL_CLUSTER_IP,
    "node-port-mode": MODE,
    "node-port-algorithm": ALGORITHM,
}
"""The same settings as values of the Helm chart, and by their older names."""


class BalancingSettings(msgspec.Struct, frozen=True, array_like=True):
    """Equal on all nodes of a cluster. `mode`: who answers the client of a backend on another node, this node (snat),
    the backend's (dsr), or the backend's for TCP only (hybrid). `algorithm`: of frontends that the network reaches.
    `range_all_types`: source ranges hold for every such frontend, not only for addresses of load balancers.
    `external_cluster_ip`: cluster addresses are reached from the network too.
    """

    mode: str = SNAT
    algorithm: str = RANDOM
    table_size: int = TABLE_SIZE_DEFAULT
    seed: str = SEED_DEFAULT
    range_all_types: bool = False
    external_cluster_ip: bool = False


DEFAULTS = BalancingSettings()


def read_balancing_settings(reading: Reading, fields: Mapping[str, Any]) -> BalancingSettings:
    """From settings by their names; what is wrong is refused by `reading`."""
    seed = reading.text(fields.get(SEED), SEED) or SEED_DEFAULT
    if seed_bytes(seed) is None:
        reading.refuse(SEED, seed, f"must be base64 of {SEED_BYTES} bytes, such as {SEED_DEFAULT}")
        seed = SEED_DEFAULT
    return BalancingSettings(
        reading.one_of(fields.get(MODE), MODE, MODES, SNAT),
        reading.one_of(fields.get(ALGORITHM), ALGORITHM, ALGORITHMS, RANDOM),
        _table_size(reading, fields.get(TABLE_SIZE)),
        seed,
        _flag(reading, fields.get(RANGE_ALL_TYPES), RANGE_ALL_TYPES),
        _flag(reading, fields.get(EXTERNAL_CLUSTER_IP), EXTERNAL_CLUSTER_IP),
    )


def seed_bytes(seed: str) -> bytes | None:
    """Of its text; None for any other text."""
    try:
        found = base64.b64decode(seed, validate=True)
    except (binascii.Error, ValueError):
        return None
    return found if len(found) == SEED_BYTES else None


def _table_size(reading: Reading, value: Any) -> int:
    number = int(value) if isinstance(value, str) and value.isascii() and value.isdigit() else value
    if number is None:
        return TABLE_SIZE_DEFAULT
    if isinstance(number, bool) or number not in TABLE_SIZES:
        reading.refuse(TABLE_SIZE, value, f"must be one of {', '.join(map(str, TABLE_SIZES))}")
        return TABLE_SIZE_DEFAULT
    return int(number)


def _flag(reading: Reading, value: Any, name: str) -> bool:
    """A ConfigMap holds "true" as text."""
    given = {"true": True, "false": False}.get(value, value) if isinstance(value, str) else value
    return reading.flag(given, name, False)


PREFIX = "service.cilium.io/"
OLD_PREFIX = "io.cilium/"
GLOBAL_ANNOTATIONS = (f"{PREFIX}global", f"{OLD_PREFIX}global-service")
SHARED_ANNOTATIONS = (f"{PREFIX}shared", f"{OLD_PREFIX}shared-service")
AFFINITY_ANNOTATIONS = (f"{PREFIX}affinity", f"{OLD_PREFIX}service-affinity")
ALGORITHM_ANNOTATION = f"{PREFIX}lb-algorithm"
MODE_ANNOTATION = f"{PREFIX}forwarding-mode"
TYPE_ANNOTATION = f"{PREFIX}type"
RANGES_ANNOTATION = f"{PREFIX}src-ranges-policy"
NODE_ANNOTATION = f"{PREFIX}node"
NODE_SELECTOR_ANNOTATION = f"{PREFIX}node-selector"
WEIGHT_ANNOTATION = "service.meshlog.io/weight"
"""Of a Pod or an EndpointSlice: its backends' share of new flows where Maglev chooses; 0: no new flows."""

ANY_CLUSTER, LOCAL_CLUSTER, REMOTE_CLUSTER = "none", "local", "remote"
ALLOW, DENY = "allow", "deny"
FRONTEND_TYPES = ("ClusterIP", "NodePort", "LoadBalancer", "ExternalIPs", "HostPort")

VALUES: Mapping[str, tuple[str, ...]] = {
    **dict.fromkeys((*GLOBAL_ANNOTATIONS, *SHARED_ANNOTATIONS), ("true", "false")),
    **dict.fromkeys(AFFINITY_ANNOTATIONS, (ANY_CLUSTER, LOCAL_CLUSTER, REMOTE_CLUSTER)),
    ALGORITHM_ANNOTATION: ALGORITHMS,
    MODE_ANNOTATION: (SNAT, DSR),
    RANGES_ANNOTATION: (ALLOW, DENY),
}
"""Annotations with a fixed choice of values."""


class ServiceOptions(msgspec.Struct, frozen=True):
    """What a service's annotations say. `algorithm`, `mode` "": as the cluster's settings do. `types`: of the frontends
    that there are, () all. `node_labels`: of the nodes that have them, each a label's key and its value, None: any.
    """

    affinity: str = ANY_CLUSTER
    algorithm: str = ""
    mode: str = ""
    types: tuple[str, ...] = ()
    ranges_deny: bool = False
    node_labels: tuple[tuple[str, str | None], ...] = ()


NO_OPTIONS = ServiceOptions()


def options_of(annotations: Mapping[str, str]) -> ServiceOptions:
    """A value that is none of those known counts as absent: old logs may hold any."""
    if not annotations:
        return NO_OPTIONS
    return ServiceOptions(
        affinity=next((_known(annotations, name) for name in AFFINITY_ANNOTATIONS if name in annotations), "")
        or ANY_CLUSTER,
        algorithm=_known(annotations, ALGORITHM_ANNOTATION),
        mode=_known(annotations, MODE_ANNOTATION),
        types=tuple(each for each in _listed(annotations.get(TYPE_ANNOTATION, "")) if each in FRONTEND_TYPES),
        ranges_deny=_known(annotations, RANGES_ANNOTATION) == DENY,
        node_labels=_node_labels(annotations),
    )


def annotation_fault(name: str, value: str) -> str:
    """What is wrong with an annotation of a service; "" if nothing is, or if it is not about balancing."""
    if not name.startswith((PREFIX, OLD_PREFIX)):
        return ""
    if name in VALUES:
        good = value.lower() in VALUES[name]
        return "" if good else f"must be {' or '.join(VALUES[name])}"
    if name == TYPE_ANNOTATION:
        wrong = [each for each in _listed(value) if each not in FRONTEND_TYPES]
        return f"must be a list of {', '.join(FRONTEND_TYPES)}" if wrong or not _listed(value) else ""
    if name == NODE_SELECTOR_ANNOTATION:
        bad = any(not key or set(key) & set("!() ") for key, _ in _pairs(value))
        return "must be labels with their values, such as zone=a,disk; other operators are not supported" if bad else ""
    return "" if name == NODE_ANNOTATION else "is not supported; remove it"


def _known(annotations: Mapping[str, str], name: str) -> str:
    value = annotations.get(name, "").lower()
    return value if value in VALUES[name] else ""


def _listed(value: str) -> list[str]:
    return [each.strip() for each in value.split(",") if each.strip()]


def _pairs(value: str) -> list[tuple[str, str | None]]:
    parts = (each.replace("==", "=").partition("=") for each in _listed(value))
    return [(key.strip(), text.strip() if equals else None) for key, equals, text in parts]


def _node_labels(annotations: Mapping[str, str]) -> tuple[tuple[str, str | None], ...]:
    found: list[tuple[str, str | None]] = []
    if NODE_ANNOTATION in annotations:
        found.append((NODE_ANNOTATION, annotations[NODE_ANNOTATION]))
    return (*found, *_pairs(annotations.get(NODE_SELECTOR_ANNOTATION, "")))
