"""`meshlog get`: manifests as they are in force."""

import argparse
import sys
from typing import Any
from urllib.parse import quote, urlencode

from controlplane.cli.at import add_at, say_at
from controlplane.cli.errors import OK, CommandFailed
from controlplane.cli.output import add_output, print_document, print_table
from controlplane.cli.target import add_target, ask, connect

DEFAULT_NAMESPACE = "default"
CLUSTER_SCOPED = ("namespace", "namespaces", "ns", "node", "nodes", "ccnp", "ciliumclusterwidenetworkpolicy",
                  "ciliumclusterwidenetworkpolicies", "ciliumcidrgroup", "ciliumcidrgroups", "ccg")
HEADER = ("NAMESPACE", "NAME", "KIND", "LABELS")
SERVICE_HEADER = ("NAMESPACE", "NAME", "TYPE", "CLUSTER-IP", "EXTERNAL-IP", "PORT(S)")
"""As kubectl shows services."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of get."""
    parser.description = "Manifests as they are in force: pods, services, networkpolicies, ciliumnetworkpolicies, ..."
    parser.epilog = "Examples:\n  meshlog get pods -A\n  meshlog get networkpolicy shop -n shop -o yaml"
    parser.add_argument("kind", help="as in a manifest, in any case, singular or plural")
    parser.add_argument("name", nargs="?", default="", help="one of them")
    place = parser.add_mutually_exclusive_group()
    place.add_argument("-n", "--namespace", default=DEFAULT_NAMESPACE, help="(default: default)")
    place.add_argument("-A", "--all-namespaces", action="store_true", help="in every namespace")
    add_output(parser)
    add_at(parser)
    add_target(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """A named one that is absent is a failure."""
    everywhere = arguments.all_namespaces or arguments.kind.lower() in CLUSTER_SCOPED
    namespace = "" if everywhere else arguments.namespace
    query = {"namespace": namespace, "name": arguments.name} | ({"at": arguments.at} if arguments.at else {})
    answer = ask(connect(arguments), f"/v1/get/{quote(arguments.kind)}?{urlencode(query)}")
    say_at(arguments, answer)
    documents = answer["documents"]
    if arguments.name and not documents:
        raise CommandFailed(f"{arguments.kind} {arguments.name!r} not found in {namespace or 'any namespace'}")
    if arguments.output in ("json", "yaml"):
        whole = {"apiVersion": "v1", "kind": "List", "items": documents}
        print_document(arguments.output, documents[0] if arguments.name and len(documents) == 1 else whole)
    elif documents:
        is_service = all(document["kind"] == "Service" for document in documents)
        header, row_of = (SERVICE_HEADER, _service) if is_service else (HEADER, _row)
        print_table([header], [row_of(document) for document in documents])
    else:
        print(f"No resources found in {namespace or 'any namespace'}.", file=sys.stderr)
    return OK


def _row(document: dict[str, Any]) -> list[Any]:
    metadata = document.get("metadata", {})
    labels = [f"{key}={value}" for key, value in sorted((metadata.get("labels") or {}).items())]
    return [metadata.get("namespace", ""), metadata.get("name", ""), document.get("kind", ""), labels]


def _service(document: dict[str, Any]) -> list[Any]:
    metadata, spec = document["metadata"], document["spec"]
    ingress = document.get("status", {}).get("loadBalancer", {}).get("ingress", [])
    outside = [each["ip"] for each in ingress] + spec.get("externalIPs", [])
    waiting = "<pending>" if spec["type"] == "LoadBalancer" else "<none>"
    ports = [
        f"{each['port']}{':' + str(each['nodePort']) if each.get('nodePort') else ''}/{each['protocol']}"
        for each in spec.get("ports", [])
    ]
    return [
        metadata.get("namespace", ""),
        metadata["name"],
        spec["type"],
        spec.get("clusterIP") or "<none>",
        spec.get("externalName") or ",".join(outside) or waiting,
        ",".join(ports) or "<none>",
    ]
