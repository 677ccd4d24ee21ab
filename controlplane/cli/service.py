"""`meshlog service`: the columns of `cilium-dbg service list`."""

import argparse
from typing import Any

from controlplane.cli.listing import add_list, address_and_port

HEADER = ("ID", "Frontend", "Service Type", "Backend")
WIDE = ("Name", "Cluster", "Global", "Flags")
INTERNAL_SUFFIX = "/i"
"""As Cilium marks what the mesh itself asks for, where it leads elsewhere than for the network."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb list."""
    parser.description = "Services, one row for each frontend."
    add_list(parser, "service", "frontends and their backends", layout)


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
