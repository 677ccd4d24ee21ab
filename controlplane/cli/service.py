"""`meshlog service`: the columns of `cilium-dbg service list`, and judging backends."""

import argparse
import re
from typing import Any

from controlplane.cli.errors import OK, UsageError
from controlplane.cli.listing import add_list, address_and_port
from controlplane.cli.target import add_target, ask, connect

HEADER = ("ID", "Frontend", "Service Type", "Backend")
WIDE = ("Name", "Cluster", "Global", "Flags")
INTERNAL_SUFFIX = "/i"
"""As Cilium marks what the mesh itself asks for, where it leads elsewhere than for the network."""


STATES = ("active", "quarantined", "maintenance")
PLACE = re.compile(r"(?:\[(?P<ipv6>[^\]]+)\]|(?P<ipv4>[^:\[\]]+)):(?P<port>\d{1,5})(?:/(?P<protocol>[A-Za-z]+))?")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verbs list and backend."""
    parser.description = "Services, one row for each frontend."
    add_list(parser, "service", "frontends and their backends", layout, more=_add_backend)


def _add_backend(verbs: Any) -> None:
    judge = verbs.add_parser(
        "backend", help="say that a backend is unfit, or fit again", allow_abbrev=False,
        description="Judge a backend of the cluster, for all services. One that is not active gets no new flows on any "
        "node, and keeps those that it has.",
        epilog="Example: meshlog service backend 10.1.0.2:8080 --state maintenance",
    )  # fmt: skip
    judge.add_argument("backend", metavar="ADDRESS:PORT[/PROTOCOL]", help="10.1.0.2:8080 or [fd00::2]:53/UDP; else TCP")
    judge.add_argument("--state", required=True, choices=STATES, help="active: nothing is said against it")
    add_target(judge)
    judge.set_defaults(run=judge_backend)


def judge_backend(arguments: argparse.Namespace) -> int:
    """In the cluster of the agent that is asked."""
    found = PLACE.fullmatch(arguments.backend)
    if found is None:
        raise UsageError(f"backend {arguments.backend!r}: right is for example 10.1.0.2:8080 or [fd00::2]:53/UDP")
    address, port = found["ipv6"] or found["ipv4"], int(found["port"])
    protocol = (found["protocol"] or "TCP").upper()
    body = {"address": address, "port": port, "protocol": protocol, "state": arguments.state}
    answer = ask(connect(arguments), "/v1/backends", "POST", body)
    shown = address_and_port(address, port, protocol)
    said = "changed" if answer["changed"] else "unchanged"
    print(f"backend/{shown} {arguments.state}, {said}, revision {answer['revision']}")
    return OK


def layout(items: list[dict[str, Any]], wide: bool) -> Any:
    """ID is the row's number; a headless service has no frontend."""
    rows = []
    for number, item in enumerate(items, 1):
        backends = [_backend(place, backend, item["cluster"]) for place, backend in enumerate(item["backends"], 1)]
        frontend = address_and_port(item["address"], item["port"], item["protocol"]) if item["address"] else "None"
        frontend += INTERNAL_SUFFIX if item["scope"] == "internal" else ""
        row: list[Any] = [number, frontend, item["type"], backends]
        name = f"{item['namespace']}/{item['name']}"
        row += [name, item["cluster"], "yes" if item["is_global"] else "no", _flags(item)] if wide else []
        rows.append(row)
    return [HEADER + WIDE if wide else HEADER], rows


def _flags(item: dict[str, Any]) -> str:
    words = list(item["flags"])
    words += [f"affinity {item['affinity_s']}s"] if item["affinity_s"] else []
    words += [f"from {','.join(item['source_ranges'])}"] if item["source_ranges"] else []
    return ", ".join(words)


def _backend(place: int, backend: dict[str, Any], cluster: str) -> str:
    elsewhere = f" from {backend['cluster']}" if backend["cluster"] != cluster else ""
    return f"{place} => {address_and_port(backend['address'], backend['port'])} ({backend['state']}){elsewhere}"
