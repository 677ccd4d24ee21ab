"""`meshlog verdict`: what would happen to these flows, from manifests alone or in the running mesh."""

import argparse
import json
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from controlplane.cli.at import add_at, asked, say_at
from controlplane.cli.errors import FAILED, OK, CommandFailed, UsageError, reason_of
from controlplane.cli.output import FORMATS, print_document, print_table
from controlplane.cli.target import add_target, ask, connect

if TYPE_CHECKING:
    from controlplane.fields import Refusal
    from controlplane.policy.mesh import Mesh
    from controlplane.policy.settings import PolicySettings

CLUSTER_DEFAULT = "default"
VERDICT, VERDICT_PACKETS = "/v1/verdict", "/v1/verdict/datapath"
PACKET_HEADER = ("DATAPATH", "AGREES", "WAY")
HEADER = ("FROM", "TO", "L4", "VERDICT", "EGRESS", "INGRESS", "L7", "BY")
EPILOG = """A flow is {"from": P, "to": P, "l4": "TCP/80"} and perhaps "http": {"method", "path", "host", "headers"},
"dns": NAME or "sni": NAME;
P is NS/POD, CLUSTER:NS/POD, ip:ADDR, entity:NAME or node:NAME; ICMP is "ICMP/8" or "ICMPv6/128".
The answers come in the order of the flows; a flow that cannot be judged has "error", and the exit status is 1.
With --datapath each has "datapath" as well: what the programs said of the flow's first packet, and its way; where that
is not what the model says, "agrees" is false, and the exit status is 1.

Examples:
  meshlog verdict -f flows.json --manifests deploy/ -o json
  meshlog verdict -f flows.json --datapath --at=-10m
  meshlog verdict -f - --manifests east=east/ --manifests west=west/ --settings settings.yaml < flows.json"""


FLOWS_RIGHT = 'right is a list of flows: [{"from": "shop/cart", "to": "shop/db", "l4": "TCP/5432"}]'


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of verdict."""
    parser.description = "What would happen to these flows. With --manifests it needs no mesh, no root and no kernel."
    parser.epilog = EPILOG
    parser.add_argument("-f", "--filename", required=True, metavar="FILE|-", help="a JSON list of flows")
    parser.add_argument("--manifests", action="append", metavar="[CLUSTER=]DIR",
                        help="manifests of a cluster; may be repeated. Without it the running mesh is asked")
    parser.add_argument("--settings", metavar="FILE", help="policy settings, JSON or YAML, named as in Cilium")
    parser.add_argument("--names", metavar="FILE", help='resolved names: {"www.example.com": ["192.0.2.1"]}')
    parser.add_argument("--ip-labels", metavar="FILE", help='{"203.0.113.10": ["reserved:kube-apiserver"]}')
    parser.add_argument("-o", "--output", choices=FORMATS, default="table", help="how to print (default: table)")
    parser.add_argument("--datapath", action="store_true",
                        help="run each flow as a packet through the programs too, on copies of the nodes' rows")
    add_at(parser)
    add_target(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Exit status 1 if a flow could not be judged."""
    flows = _flows(arguments.filename)
    answers = _from_manifests(arguments, flows) if arguments.manifests else _from_agent(arguments, flows)
    if arguments.output in ("json", "yaml"):
        print_document(arguments.output, answers)
    else:
        header = (*HEADER, *PACKET_HEADER) if arguments.datapath else HEADER
        pairs = zip(flows, answers, strict=True)
        print_table([header], [_row(flow, answer, arguments.datapath) for flow, answer in pairs])
    return FAILED if any("error" in answer or not answer.get("agrees", True) for answer in answers) else OK


def _from_manifests(arguments: argparse.Namespace, flows: list[Any]) -> list[dict[str, Any]]:
    from controlplane.policy.answers import answer
    from controlplane.policy.mesh import Judge

    if arguments.at or arguments.node or arguments.socket or arguments.datapath:
        raise UsageError("--manifests asks no mesh; leave out --at, --node, --socket and --datapath")
    judge = Judge(mesh_from_manifests(arguments))
    return [answer(judge, flow, number) for number, flow in enumerate(flows)]


def _from_agent(arguments: argparse.Namespace, flows: list[Any]) -> list[dict[str, Any]]:
    for name in ("settings", "names", "ip_labels"):
        if getattr(arguments, name):
            raise UsageError(f"--{name.replace('_', '-')} goes with --manifests; a running mesh has its own")
    route = VERDICT_PACKETS if arguments.datapath else VERDICT
    found = ask(connect(arguments), asked(route, {"at": arguments.at}), "POST", {"flows": flows})
    say_at(arguments, found)
    answers: list[dict[str, Any]] = found["answers"]
    return answers


def mesh_from_manifests(arguments: argparse.Namespace) -> "Mesh":
    """Raises CommandFailed naming everything that cannot be used: no verdict is given on half of the policies."""
    from controlplane.kubernetes_mesh import MeshReader, read_address_labels, read_names

    name, settings = settings_of(arguments.settings)
    cluster = name or CLUSTER_DEFAULT
    reader = MeshReader(cluster, settings)
    faults: list[str] = []
    for place in arguments.manifests:
        own, equals, directory = place.partition("=")
        if equals and not own:
            raise UsageError(f"--manifests {place}: right is CLUSTER=DIR or DIR")
        faults += take_documents(reader, directory if equals else place, own if equals else cluster)
    faults += [f"{found.source}: {refusal}" for found in reader.refused for refusal in found.refusals]
    if faults:
        raise CommandFailed("\n         ".join(faults))
    say_skipped(reader.skipped, "no verdict depends on them")
    return reader.mesh(table_of(arguments.names, read_names), table_of(arguments.ip_labels, read_address_labels))


def say_skipped(skipped: Sequence[tuple[str, str]], why: str) -> None:
    """One line, however many manifests: "passed over: 12 Deployment, first in shop.yaml:7"."""
    first: dict[str, str] = {}
    for source, kind in skipped:
        first.setdefault(kind, source)
    kinds = Counter(kind for _, kind in skipped)
    told = ", ".join(f"{count} {kind} (first at {first[kind]})" for kind, count in kinds.items())
    if told:
        print(f"meshlog: passed over, {why}: {told}", file=sys.stderr)


def take_documents(reader: Any, place: str, cluster: str) -> list[str]:
    """Gives a reader every document of a file or directory; what could not be read."""
    from controlplane.kubernetes import Unreadable, read_paths

    faults = []
    for item in read_paths([place], sys.stdin):
        if isinstance(item, Unreadable):
            faults.append(f"{item.source}: {item.reason}")
        else:
            reader.take(item.document, item.source, cluster)
    return faults


def settings_of(path: str | None) -> "tuple[str, PolicySettings]":
    """The cluster's name and the settings of policies in a file; the defaults without one. Raises CommandFailed."""
    from controlplane.policy.settings import DEFAULTS, read_policy_settings

    if not path:
        return "", DEFAULTS
    found = read_policy_settings(document_of(path))
    if isinstance(found[0], str) and len(found) == 2:
        return found
    raise CommandFailed("\n         ".join(f"{path}: {refusal}" for refusal in found))


def table_of(path: str | None, read: "Callable[[Any], dict[str, Any] | tuple[Refusal, ...]]") -> dict[str, Any]:
    found = read(document_of(path)) if path else {}
    if isinstance(found, tuple):
        raise CommandFailed("\n         ".join(f"{path}: {refusal}" for refusal in found))
    return found


def document_of(path: str) -> Any:
    """The one document of a file, {} where it is empty."""
    from controlplane.kubernetes import Unreadable, read_text

    try:
        found = read_text(Path(path).read_text(encoding="utf-8"), path)
    except (OSError, UnicodeDecodeError) as error:
        raise CommandFailed(f"{path}: {reason_of(error)}") from None
    for item in found:
        if isinstance(item, Unreadable):
            raise CommandFailed(f"{item.source}: {item.reason}")
    if len(found) > 1:
        raise CommandFailed(f"{path}: holds {len(found)} documents; right is one")
    return next((item.document for item in found if not isinstance(item, Unreadable)), {})


def _flows(path: str) -> list[Any]:
    try:
        text = sys.stdin.read() if path == "-" else Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise CommandFailed(f"{path}: {reason_of(error)}") from None
    try:
        found = json.loads(text)
    except ValueError as error:
        raise CommandFailed(f"{path}: no JSON: {error}; {FLOWS_RIGHT}") from None
    if isinstance(found, dict):
        found = found.get("flows", [found])
    if not isinstance(found, list):
        raise CommandFailed(f"{path}: holds a {type(found).__name__}; {FLOWS_RIGHT}")
    return found


def _row(flow: Any, answer: dict[str, Any], is_tried: bool) -> list[Any]:
    given = flow if isinstance(flow, dict) else {}
    ends = [str(given.get(name, "")) for name in ("from", "to", "l4")]
    said = [str(answer.get(name, "")) for name in ("verdict", "egress", "ingress", "l7")]
    row = [*ends, *said, answer.get("error") or ", ".join(answer["by"])]
    return [*row, *_packet_cells(answer)] if is_tried else row


def _packet_cells(answer: dict[str, Any]) -> list[Any]:
    """DATAPATH, AGREES, WAY."""
    packet = answer.get("datapath", {"error": ""})
    if "error" in packet:
        return [packet["error"], "", ""]
    done = packet["verdict"]
    if "reason" in packet:
        done += f": {packet['reason']['name']} ({packet['reason']['code']})"
    if "backend" in packet:
        done += f", backend {packet['backend']}"
    return [done, "yes" if answer["agrees"] else "NO", ", ".join(packet["way"])]
