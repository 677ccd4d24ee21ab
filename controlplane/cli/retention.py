"""`meshlog log retention`: what of the history is kept where, since when, and what it costs.

Belongs here: reading what the operators published, and how it reads. Does not belong here: keeping it
(runtime/retention.py).
"""

import argparse
import asyncio
import time
from collections.abc import Sequence
from typing import Any

import msgspec

from controlplane.cli.errors import OK, CommandFailed
from controlplane.cli.output import print_document, print_table
from controlplane.cli.replay import with_log
from controlplane.cli.target import ask, connect
from controlplane.runtime.archives import copies_of
from controlplane.runtime.archivist import ArchiveReport
from controlplane.runtime.retention import Kept, kept_of
from kvstore.etcd import EtcdLog

HEADER = ("CLUSTER", "WHERE", "SEGMENTS", "RECORDS", "SIZE", "FROM", "SINCE", "AT")


def run_retention(arguments: argparse.Namespace) -> int:
    """One line for each place; exit status 1 if an archive is damaged."""
    endpoints = arguments.etcd or ask(connect(arguments), "/v1/status")["log"]["endpoints"]
    found, copies = asyncio.run(with_log(arguments, endpoints, _published))
    if not found:
        raise CommandFailed("no operator has published what it keeps yet; it does within seconds of holding its duty")
    if arguments.output in ("json", "yaml"):
        told = [{**msgspec.to_builtins(each), "copies": _copies_of(each.cluster, copies)} for each in found]
        print_document(arguments.output, told)
    else:
        print_table([HEADER], [row for each in found for row in (*_rows(each), *_copy_rows(each.cluster, copies))])
    for each in found:
        for text in each.waits:
            print(f"history of {each.cluster} stays in etcd for a copy: {text}")
    damaged = [reason for each in found for reason in each.damaged]
    for reason in damaged:
        print(f"damaged: {reason}")
    return 1 if damaged else OK


Copies = Sequence[tuple[str, ArchiveReport]]


async def _published(log: EtcdLog) -> tuple[Sequence[Kept], Copies]:
    return await kept_of(log), await copies_of(log)


def _copies_of(cluster: str, copies: Copies) -> list[dict[str, Any]]:
    return [
        {"keeper": name, "host": copy.host, "directory": copy.directory, "error": copy.error}
        | msgspec.to_builtins(each)
        for name, copy in copies
        for each in copy.holdings
        if each.cluster == cluster
    ]


def _copy_rows(cluster: str, copies: Copies) -> list[list[Any]]:
    """One line for each, but for what the cluster's own operator has, which has its line."""
    return [
        [cluster, f"copy of {each['keeper']}", each["segments"], "-", _size(each["size"]), each["first_revision"], "-",
         f"{each['host']}:{each['directory']}{' rests: ' + each['error'] if each['error'] else ''}"]
        for each in _copies_of(cluster, copies)
        if each["keeper"] != f"operator {cluster}"
    ]  # fmt: skip


def _rows(kept: Kept) -> list[list[Any]]:
    budget = f"{_size(kept.packed_bytes)} of {_size(kept.retention_bytes_max)}"
    rows: list[list[Any]] = [
        [kept.cluster, "etcd, packed", kept.packed_segments, kept.packed_records, budget, kept.low + 1,
         _age(kept, kept.packed_since_ns), f"at most {_span(kept.retention_s)}"],
        [kept.cluster, "etcd, as written", kept.segments - kept.packed_segments, kept.loose_records,
         _size(kept.loose_bytes), "-", _age(kept, kept.open_since_ns) if kept.loose_records else "-",
         f"sealed after {_span(kept.segment_age_s)}" if kept.segment_age_s else "-"],
        [kept.cluster, "etcd, checkpoint", "-", "-", _size(kept.checkpoint_bytes), kept.checkpoint_revision,
         _age(kept, kept.checkpoint_ns), "-"],
        [kept.cluster, "etcd, whole file", "-", "-", f"{_size(kept.etcd_used_bytes)} of {_size(kept.etcd_file_bytes)}",
         "-", "-", "all clusters"],
        [kept.cluster, "archive", kept.archived_segments, kept.archived_records, _size(kept.archived_bytes),
         kept.archived_from or "-", _age(kept, kept.archived_since_ns),
         f"{kept.host}:{kept.archive}" if kept.host else kept.archive],
    ]  # fmt: skip
    return rows


def _age(kept: Kept, since_ns: int) -> str:
    return "-" if not since_ns else _span(max(0.0, (max(time.time_ns(), kept.time_ns) - since_ns) / 1e9))


def _span(seconds: float) -> str:
    for unit, length in (("d", 86_400), ("h", 3600), ("m", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f}{unit}"
    return f"{seconds:.0f}s"


def _size(count: int) -> str:
    value, unit = float(count), "B"
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024 or unit == "GiB":
            break
        value /= 1024
    return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
