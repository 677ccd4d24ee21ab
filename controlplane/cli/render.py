"""`meshlog render`: the tables that a node's kernel should hold, from manifests alone."""

import argparse
import json
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from controlplane.cli.errors import OK, CommandFailed, UsageError
from controlplane.cli.listing import address_and_port
from controlplane.cli.output import FORMATS, print_document, print_table
from controlplane.cli.verdict import CLUSTER_DEFAULT, document_of, say_skipped, table_of, take_documents

if TYPE_CHECKING:
    from controlplane.kubernetes_state import StateReader
    from controlplane.policy.settings import PolicySettings

ZONE_LABEL = "topology.kubernetes.io/zone"
PARTS = ("services", "health_checks", "policy", "ipcache", "routes", "endpoints")
EPILOG = """Nothing runs for it: no mesh, no root, no kernel. Pods count with status.podIP and spec.nodeName; Nodes
give addresses, labels and pod CIDRs. What a mesh would decide and manifests do not say is decided in a fixed order.

Examples:
  meshlog render --manifests deploy/ --node n1
  meshlog render --manifests east=east/ --manifests west=west/ --node n1 --zone a -o json
  meshlog render --manifests deploy/ --node n1 --node-address 192.0.2.1 --backend-health health.json --only services"""

NODES_NAMED_MAX = 10


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of render."""
    parser.description = "The tables of one node as its kernel should hold them: services, policy, ipcache and routes."
    parser.epilog = EPILOG
    parser.add_argument("--manifests", action="append", required=True, metavar="[CLUSTER=]DIR",
                        help="manifests of a cluster; may be repeated. The node is of the first")
    parser.add_argument("--node", required=True, metavar="NAME", help="whose tables")
    parser.add_argument("--node-address", action="append", default=[], metavar="ADDRESS",
                        help="of the node, instead of those of its Node object; may be repeated")
    parser.add_argument("--node-label", action="append", default=[], metavar="KEY=VALUE",
                        help="of the node, beside those of its Node object; may be repeated")
    parser.add_argument("--zone", metavar="ZONE", help=f"the node's {ZONE_LABEL}")
    parser.add_argument("--backend-health", metavar="FILE",
                        help='{"10.0.0.1:8080/TCP": "quarantined", "10.0.0.2": "maintenance"}')
    parser.add_argument("--settings", metavar="FILE", help="settings, JSON or YAML, named as in Cilium")
    parser.add_argument("--only", choices=PARTS, action="append", help="only this part; may be repeated")
    parser.add_argument("-o", "--output", choices=FORMATS, default="table", help="how to print (default: table)")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Fails, naming all of them, where documents cannot be used: half of a mesh has other tables."""
    found = _rendered(arguments)
    parts = arguments.only or PARTS
    if arguments.output in ("json", "yaml"):
        kept = {name: value for name, value in found.items() if name not in PARTS or name in parts}
        print_document(arguments.output, kept)
        return OK
    for name in parts:
        if len(parts) > 1:
            print(f"{'' if name == parts[0] else chr(10)}{name.replace('_', ' ').upper()}")
        if found[name]:
            header, row_of = LAYOUTS[name]
            print_table([header], [row_of(row) for row in found[name]])
    return OK


def _rendered(arguments: argparse.Namespace) -> dict[str, Any]:
    from controlplane.api.render_view import render
    from controlplane.kubernetes_state import NodeWords, StateReader, read_health
    from controlplane.model import NodeKey

    name, settings, of_policies = _settings(arguments.settings)
    own = name or CLUSTER_DEFAULT
    places = [_place(place, own) for place in arguments.manifests]
    cluster = name or places[0][0]
    reader = StateReader(of_policies)
    faults = [fault for place in places for fault in take_documents(reader, place[1], place[0])]
    labels = [*arguments.node_label, *([f"{ZONE_LABEL}={arguments.zone}"] if arguments.zone else [])]
    words = NodeWords(tuple(map(_address, arguments.node_address)), tuple(map(_label, labels)))
    health = table_of(arguments.backend_health, read_health)
    where = NodeKey(cluster, arguments.node)
    known = reader.nodes(cluster)
    clusters = dict.fromkeys((cluster, *(place[0] for place in places)))
    state = reader.state(where, words, dict.fromkeys(clusters, settings) if settings else {}, health)
    _refuse(reader, faults)
    if arguments.node not in known and not words.addresses:
        right = f"there are {', '.join(known[:NODES_NAMED_MAX])}" if known else "none names any"
        note = f"no manifest is about node {arguments.node} of cluster {cluster}, nor --node-address; {right}"
        print(f"meshlog: {note}", file=sys.stderr)
    return render(state, where)


def _refuse(reader: "StateReader", faults: Sequence[str]) -> None:
    """Raises CommandFailed if anything could not be used."""
    faults = [*faults, *(f"{found.source}: {refusal}" for found in reader.refused for refusal in found.refusals)]
    if faults:
        raise CommandFailed("\n         ".join(faults))
    say_skipped(reader.skipped, "no table depends on them")


def _place(text: str, cluster: str) -> tuple[str, str]:
    own, equals, directory = text.partition("=")
    if equals and not own:
        raise UsageError(f"--manifests {text}: right is CLUSTER=DIR or DIR")
    return (own, directory) if equals else (cluster, text)


def _address(text: str) -> str:
    from ipaddress import ip_address

    try:
        return str(ip_address(text))
    except ValueError:
        raise UsageError(f"--node-address {text}: right is an address such as 192.0.2.1") from None


def _label(text: str) -> str:
    key, equals, _ = text.partition("=")
    if not key or not equals:
        raise UsageError(f"--node-label {text}: right is KEY=VALUE")
    return text


def _settings(path: str | None) -> "tuple[str, str, PolicySettings]":
    """The cluster's name, the document as the log would have it, and what it says of policies; "" for none."""
    from controlplane.policy.settings import DEFAULTS, Settings, read_settings

    if not path:
        return "", "", DEFAULTS
    document = document_of(path)
    found = read_settings(document)
    if isinstance(found, Settings):
        return found.cluster, json.dumps(document, sort_keys=True), found.policy
    raise CommandFailed("\n         ".join(f"{path}: {refusal}" for refusal in found))


def _service(row: dict[str, Any]) -> list[Any]:
    place = row["frontend"]
    words = [*row["flags"], *([row["algorithm"]] if row["algorithm"] != "random" else [])]
    words += [f"affinity {row['session_affinity_s']}s"] if row["session_affinity_s"] else []
    words += [f"from {','.join(row['source_ranges'])}"] if row["source_ranges"] else []
    backends = [
        f"{number} => {address_and_port(each['address'], each['port'])} ({each['state']})"
        + ("" if each["selected"] else " keeps its flows only")
        for number, each in enumerate(row["backends"], 1)
    ]
    name = f"{row['namespace']}/{row['name']}"
    frontend = address_and_port(place["address"], place["port"], place["protocol"])
    return [name, frontend, place["scope"], row["type"], backends or "none", ", ".join(words)]


def _health(row: dict[str, Any]) -> list[Any]:
    return [f"{row['namespace']}/{row['name']}", row["port"], row["local_backends"]]


def _policy(row: dict[str, Any]) -> list[Any]:
    rules = [
        f"{each['direction']} {each['verdict']} {','.join(each['remote_labels']) or each['remote_identity']} "
        f"{each['ports']}/{each['protocol']}"
        for each in row["rows"]
    ]
    enforced = [name for name in ("ingress", "egress") if row[f"{name}_enforced"]]
    return [row["identity"], row["endpoints"] or "-", ",".join(enforced) or "none", rules or "-"]


def _ipcache(row: dict[str, Any]) -> list[Any]:
    return [row["prefix"], row["identity"], ",".join(row["labels"]), row["node"] or "-", ",".join(row["flags"])]


def _route(row: dict[str, Any]) -> list[Any]:
    return [row["prefix"], row["gateway"] or "-", row["endpoint"] or "-"]


def _endpoint(row: dict[str, Any]) -> list[Any]:
    return [f"{row['namespace']}/{row['name']}", row["identity"], row["ipv4"] or "-", row["ipv6"] or "-"]


LAYOUTS: dict[str, tuple[tuple[str, ...], Any]] = {
    "services": (("SERVICE", "FRONTEND", "SCOPE", "TYPE", "BACKENDS", "FLAGS"), _service),
    "health_checks": (("SERVICE", "PORT", "LOCAL BACKENDS"), _health),
    "policy": (("IDENTITY", "ENDPOINTS", "ENFORCED", "ROWS"), _policy),
    "ipcache": (("PREFIX", "IDENTITY", "LABELS", "NODE", "FLAGS"), _ipcache),
    "routes": (("PREFIX", "GATEWAY", "ENDPOINT"), _route),
    "endpoints": (("POD", "IDENTITY", "IPV4", "IPV6"), _endpoint),
}
