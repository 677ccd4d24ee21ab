"""`meshlog service`: the columns of `cilium-dbg service list`."""

import argparse
from typing import Any

from controlplane.cli.listing import add_list, address_and_port

HEADER = ("ID", "Frontend", "Service Type", "Backend")
WIDE = ("Name", "Cluster", "Global")


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
        row: list[Any] = [number, frontend, item["type"], backends]
        name = f"{item['namespace']}/{item['name']}"
        rows.append([*row, name, item["cluster"], "yes" if item["is_global"] else "no"] if wide else row)
    return [HEADER + WIDE if wide else HEADER], rows


def _backend(place: int, backend: dict[str, Any], cluster: str) -> str:
    elsewhere = f" from {backend['cluster']}" if backend["cluster"] != cluster else ""
    return f"{place} => {address_and_port(backend['address'], backend['port'])} ({backend['state']}){elsewhere}"
