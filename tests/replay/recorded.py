"""Histories as a version wrote them, kept for ever: every later version must read them and come to the same mesh.

Belongs here: making them, and what is stored beside them. Does not belong here: what must hold (test_recorded.py).

    data/<version>/<name>.capsule   the records, as `meshlog capsule export` writes them; never changed again
    data/<version>/<name>.json      things: the mesh that they led to, never changed again;
                                    state, rows: digests in this version of the code

    python -m tests.replay.recorded record VERSION   write the histories of this version's events, once for each version
    python -m tests.replay.recorded digests          write the digests anew, where other rows are meant: the diff of
                                                     the JSON files says which tables of which nodes

A new kind of event asks for a recording in which it happens (a test says so): add it to `every_event`. As long as
CHANGELOG.md calls a version unreleased, its folder may be deleted and recorded anew; afterwards a new version has its own.
"""

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

from controlplane import events as e
from controlplane.commands.addresses import (
    ApplyCidrGroup,
    ChangeSettings,
    ExpireName,
    RemoveCidrGroup,
    ResolveName,
)
from controlplane.commands.balancer_pools import ApplyBalancerPool, RemoveBalancerPool
from controlplane.commands.cluster import LeaveCluster
from controlplane.commands.endpoint import ConfigureEndpoint, DeleteEndpoint, RelabelEndpoint
from controlplane.commands.identity import ReleaseIdentity
from controlplane.commands.namespace import ApplyNamespace, RemoveNamespace
from controlplane.commands.node import RemoveNode
from controlplane.commands.policy import ApplyPolicy, RemovePolicy
from controlplane.commands.redirect import ApplyLocalRedirect, RemoveLocalRedirect, SetBackendState
from controlplane.commands.service import ApplyService, RemoveService, ReportBackends, WithdrawBackends
from controlplane.commands.types import Author, Decision
from controlplane.commands.workload import ApplyWorkload, RemoveWorkload
from controlplane.history.at import Past
from controlplane.history.capsule import pack
from controlplane.history.changes import KINDS
from controlplane.history.exporting import export
from controlplane.history.replay import encoded_rows
from controlplane.history.rows import thing_fields, thing_name
from controlplane.model import Backend, Exposure, ServicePort
from controlplane.policy.manifests import canonical
from controlplane.projections.state import State
from kvstore.types import Record, Revision
from tests.controlplane.history.past import stored
from tests.controlplane.policy.worlds import cilium_policy, network_policy
from tests.controlplane.random_mesh import Log, history
from tests.controlplane.small_mesh import accept, add_endpoint, mesh
from tests.replay.fold import script

DATA = Path(__file__).parent / "data"
OPERATOR, WEST = Author("east", "operator"), Author("west", "operator")
PORT = ServicePort("http", 80, "TCP", "web")


def every_event() -> Log:
    """A small mesh in which each kind of event happens, and things are left of all kinds that can be."""
    log = mesh()
    accept(log, OPERATOR, ApplyNamespace("shop", {"team": "blue"}))
    accept(log, OPERATOR, ApplyNamespace("gone", {}))
    for number, (cluster, node, name) in enumerate(
        [("east", "n1", "front"), ("east", "n1", "db"), ("east", "n2", "cart"), ("west", "n1", "cart"),
         ("east", "n2", "gone")], 11,
    ):  # fmt: skip
        add_endpoint(log, cluster, node, name, number)
    accept(log, OPERATOR, ApplyService("shop", "db", (), (PORT,), {"app": "db"}, False, True, True))
    accept(log, OPERATOR, ApplyService("shop", "outside", (), (PORT,), {}, False, False, True))
    accept(log, OPERATOR, ApplyService("shop", "gone", (), (PORT,), {}, False, False, True))
    accept(log, OPERATOR, ReportBackends("shop", "s1", "outside", (Backend("198.51.100.1", True),), (PORT,)))
    accept(log, OPERATOR, ReportBackends("shop", "s2", "outside", (Backend("198.51.100.2", True),), (PORT,)))
    specs = {
        "guard": ("NetworkPolicy", network_policy("{podSelector: {matchLabels: {app: db}}, ingress: [{from: "
                                                  "[{podSelector: {matchLabels: {app: front}}}, {ipBlock: {cidr: 203.0.113.0/24}}]}]}")),
        "web": ("CiliumNetworkPolicy", cilium_policy("{endpointSelector: {matchLabels: {app: front}}, egress: "
                                                     "[{toFQDNs: [{matchName: www.example.com}]}, {toCIDRSet: [{cidrGroupRef: partners}]}]}")),
        "gone": ("NetworkPolicy", network_policy("{podSelector: {}}")),
    }  # fmt: skip
    for name, (kind, manifest) in specs.items():
        manifest["metadata"]["name"] = name
        accept(log, OPERATOR, ApplyPolicy(kind, "shop", name, canonical(manifest)))
    for name, prefix in (("partners", "198.51.100.0/24"), ("gone", "192.0.2.0/24")):
        accept(log, OPERATOR, ApplyCidrGroup(name, (prefix,), {"trust": "high"}))
    for name, address in (("www.example.com", "203.0.113.1"), ("gone.example.com", "203.0.113.2")):
        accept(log, OPERATOR, ResolveName(name, (address,)))
    accept(log, OPERATOR, ChangeSettings('{"enable-policy":"default"}'))
    for name in ("cache", "gone"):
        accept(log, OPERATOR, ApplyLocalRedirect("shop", name, "169.254.20.10", "", (PORT,), {"app": "cart"}))
    for name, block in (("public", "192.0.2.128/25"), ("gone", "192.0.2.0/25")):
        accept(log, OPERATOR, ApplyBalancerPool(name, (block,)))
    balanced = Exposure("LoadBalancer")
    accept(log, OPERATOR, ApplyService("shop", "front", (), (PORT,), {"app": "front"}, exposure=balanced))
    accept(log, OPERATOR, SetBackendState("198.51.100.1", 80, "TCP", "quarantined"))
    gone = next(each for each in log.state.endpoints.values() if each.workload == "gone")
    front = next(each for each in log.state.endpoints.values() if each.workload == "front")
    accept(log, OPERATOR, ApplyWorkload("shop", "front", {"app": "front", "tier": "web"}, True, "", {}, "n1"))
    accept(log, Author("east", "node.n1"), RelabelEndpoint("n1", front.endpoint_id))
    accept(log, OPERATOR, ConfigureEndpoint("n1", front.endpoint_id, True))
    accept(log, Author("east", "node.n2"), DeleteEndpoint("n2", gone.endpoint_id, "asked for"))
    for command in (
        ReleaseIdentity(gone.identity), RemoveWorkload("shop", "gone"), RemoveNamespace("gone"),
        RemoveLocalRedirect("shop", "gone"), RemoveService("shop", "gone"), WithdrawBackends("shop", "s2"),
        RemovePolicy("NetworkPolicy", "shop", "gone"), RemoveCidrGroup("gone"),
        RemoveBalancerPool("gone"),
        ExpireName("gone.example.com", ("203.0.113.2",)), RemoveNode("n2", "dead"),
    ):  # fmt: skip
        accept(log, OPERATOR, command)
    return log


def with_faults() -> Log:
    """Records of a newer version, malformed ones, and forged ones among good ones; a cluster that leaves at the end."""
    log = mesh()
    add_endpoint(log, "east", "n1", "front", 11)
    _append(log, "east", "node.n1", b"\x93\x01\x07\x00")
    _append(log, "east", "operator", b"\x94\x01\x07\x00\x91\x92\xaeClusterRenamed\xa4east")
    log.write("west", "node.n1", e.EndpointDeleted("n2", 1))
    log.write("east", "node.n2", e.NodeLeft("n1", "because"))
    log.write("east", "operator", e.AddressBlockAssigned("n1", ("not a prefix", "")))
    for author, command in (
        (OPERATOR, ApplyWorkload("shop", "db", {"app": "db"}, True, "", {}, "n1")),
        (WEST, RemoveNode("n1", "dead")),
        (WEST, LeaveCluster()),
    ):
        assert isinstance(log.wish(author, command), Decision)
    return log


def _append(log: Log, cluster: str, writer: str, payload: bytes) -> None:
    sequence = 1 + sum((each.cluster, each.writer) == (cluster, writer) for each in log.records)
    record = Record(Revision(len(log.records) * 3 + 2), cluster, writer, sequence, 1, payload)
    log.records.append(record)
    log.changes.append(log.state.apply(record))


HISTORIES = {
    "every-event": every_event,
    "faults": with_faults,
    "random": lambda: history(script()),
}


def things_of(state: State) -> dict[str, dict[str, Any]]:
    """The mesh as a person reads it: kind and name -> fields."""
    return {
        kind: {thing_name(kind, key): thing_fields(value) for key, value in sorted(getattr(state, held).items())}
        for kind, held in KINDS.items()
    }


def digests_of(state: State) -> dict[str, Any]:
    """Of the state, and of each table of each node."""
    rows = {"/".join(where): encoded_rows(state, *where).digests() for where in sorted(state.nodes)}
    return {"state": state.digest(), "refused": state.refused_count, "unknown": state.unknown_tags, "rows": rows}


def folded(records: list[Record]) -> State:
    """From the first record on."""
    state = State()
    for record in records:
        state.apply(record)
    return state


def write_json(path: Path, content: Any) -> None:
    """Readable in a diff."""
    path.write_text(json.dumps(content, indent=1, sort_keys=True) + "\n")


async def record(version: str) -> None:
    """All histories. Raises FileExistsError where the version has been recorded."""
    folder = DATA / version
    folder.mkdir(parents=True)
    for name, make in HISTORIES.items():
        log = make()
        until = int(log.records[-1].revision)
        past = Past(stored(log), lambda until=until: until)  # type: ignore[misc]
        first = await past.moment(0)
        capsule = await export(past, first, until, (), "east", "", version, 0)
        (folder / f"{name}.capsule").write_bytes(pack(capsule))
        write_json(folder / f"{name}.json", {"things": things_of(log.state), **digests_of(log.state)})


def rewrite_digests() -> None:
    """In every version's files; what the mesh is stays as it was recorded."""
    from controlplane.history.capsule import unpack

    for path in sorted(DATA.glob("*/*.json")):
        expected = json.loads(path.read_text())
        capsule = unpack(path.with_suffix(".capsule").read_bytes())
        write_json(path, {"things": expected["things"], **digests_of(folded(list(capsule.records)))})


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["record", version]:
            asyncio.run(record(version))
        case ["digests"]:
            rewrite_digests()
        case _:
            sys.exit(__doc__)
