"""From state to the kernel's maps: cold start, services, ipcache, one change, and an audit, against C's batches.

Real maps in a network namespace and a BPF filesystem of the bench's own (__main__.py made both). CPU time of this
process, since the machine's wall clock is shared.
"""

import gc
import json
import statistics
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from controlplane.desired.derive import Deriver
from controlplane.events import BackendsReported, EndpointDeleted
from controlplane.model import Backend, ServicePort
from controlplane.projections.state import State
from datapath.abi.types import STRUCTS
from datapath.codec import struct_name
from datapath.delta import Pending
from datapath.kernel.real import RealKernel
from datapath.maglev import lookup_table
from datapath.realization import Realization
from datapath.tables import TABLES, Desired
from tests.bench.report import Row
from tests.bench.world import CLUSTER, Written, node_name, records, world

BPF = Path(__file__).parents[2] / "bpf"
OBSERVER = "observer"
"""A node without endpoints of its own: what it must hold is what is known of all others."""
CHANGES = 300
ROUNDS = 3
"""The least of so many figures counts: what else the machine does meanwhile is no cost of a change."""
SLICES = 200


def measure() -> list[Row]:
    """All rows of this file."""
    return [_cold_start(), _services(), _ipcache(), _one_change(), _one_slice(), _lookup_table(), _audit()]


@contextmanager
def _kernel() -> Iterator[Realization]:
    with tempfile.TemporaryDirectory(prefix="meshlog-bench-") as folder:
        subprocess.run(["mount", "-t", "bpf", "bpf", folder], check=True)
        realization = Realization(RealKernel(Path(folder) / "meshlog" / OBSERVER, BPF, 0))
        try:
            realization.open()
            yield realization
        finally:
            realization.close()
            subprocess.run(["umount", folder], check=True)


def _state(endpoints: int, services: int = 0) -> State:
    state = State()
    for record in records(world(endpoints, services)):
        state.apply(record)
    assert not state.refused_count, state.refused_events
    return state


def _converge(realization: Realization, desired: Desired) -> None:
    pending = Pending()
    pending.merge(desired)
    report = realization.converge(pending, 0.0)
    assert not report.not_done, report.not_done[:3]


def _limit_s(desired: Desired, tables: tuple[str, ...]) -> float:
    """CPU seconds of a C program for as many rows of the same sizes."""
    return sum(_peer(table, len(desired.tables[table]))["write_s"] for table in tables if desired.tables.get(table))


def _peer(table: str, rows: int) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder:
        program = Path(folder) / "peer"
        subprocess.run(["clang", "-O2", "-o", program, Path(__file__).with_name("peer.c")], check=True)
        sizes = [str(STRUCTS[struct_name(kind)].size) for kind in (TABLES[table].key, TABLES[table].row)]
        kind = "lpm" if table == "ipcache" else "hash"
        runs = [
            json.loads(subprocess.run([program, kind, *sizes, str(rows)], check=True, capture_output=True).stdout)
            for _ in range(3)
        ]
    return {name: statistics.median(run[name] for run in runs) for name in ("write_s", "dump_s")}


def _cold_start() -> Row:
    batches = list(records(world(50_000, 5_000)))
    gc.collect()
    with _kernel() as realization:
        start = time.process_time()
        state = State()
        for record in batches:
            state.apply(record)
        desired = Deriver(CLUSTER, OBSERVER).full(state)
        _converge(realization, desired)
        spent = time.process_time() - start
    limit = _limit_s(desired, ("ipcache", "services", "backends"))
    return Row(
        "cold start to a full kernel, 50,000 endpoints, 5,000 services: fold, derive, write",
        f"{spent:.2f} s of CPU",
        f"the same rows by a C program in batches: {limit:.3f} s",
        f"{spent / limit:.1f}",
        "<= 10x, < 3 s",
        spent / limit <= 10 and spent < 3,
    )


def _write_row(
    what: str, endpoints: int, services: int, tables: tuple[str, ...], cilium_s: float, limit_s: float
) -> Row:
    base, full = _state(1), _state(max(endpoints, 1), services)
    with _kernel() as realization:
        deriver = Deriver(CLUSTER, OBSERVER)
        _converge(realization, deriver.full(base))
        start = time.perf_counter()
        desired = deriver.full(full)
        _converge(realization, desired)
        spent = time.perf_counter() - start
    assert all(desired.tables[table] for table in tables)
    return Row(
        what,
        f"{spent:.3f} s",
        f"Cilium 1.19.4: {cilium_s} s",
        f"{spent / cilium_s:.2f}",
        f"< {limit_s} s",
        spent < limit_s,
    )


def _services() -> Row:
    what = "5,000 services of 3 backends into the maps"
    return _write_row(what, 0, 5_000, ("services", "backends"), 1.24, 0.6)


def _ipcache() -> Row:
    return _write_row("20,000 remote addresses into ipcache", 20_000, 0, ("ipcache",), 2.46, 0.4)


def _p99_ms(endpoints: int) -> float:
    """One endpoint leaves: from the record to the kernel."""
    state = _state(endpoints)
    gc.collect()
    gc.freeze()
    spent = []
    with _kernel() as realization:
        deriver = Deriver(CLUSTER, OBSERVER)
        _converge(realization, deriver.full(state))
        gone = (
            Written(f"node.{node_name(n)}", (EndpointDeleted(node_name(n), place),))
            for n in range(5)
            for place in range(1, 101)
        )
        for record in list(records(gone, state.revision))[:CHANGES]:
            start = time.process_time()
            _converge(realization, deriver.update(state, (state.apply(record),)))
            spent.append(time.process_time() - start)
    gc.unfreeze()
    return statistics.quantiles(spent, n=100)[98] * 1e3


def _one_change() -> Row:
    few, many = (min(_p99_ms(endpoints) for _ in range(ROUNDS)) for endpoints in (500, 50_000))
    return Row(
        "one event to the kernel, p99 of the least of three rounds, at 50,000 endpoints",
        f"{many:.3f} ms of CPU",
        f"the same at 500 endpoints: {few:.3f} ms",
        f"{many / few:.2f}",
        "<= 1.5x",
        many / few <= 1.5,
    )


def _slice_ms(services: int) -> float:
    """The backends of one service change: from the record to the kernel, median."""
    state = _state(1, services)
    gc.collect()
    gc.freeze()
    spent = []
    with _kernel() as realization:
        deriver = Deriver(CLUSTER, OBSERVER)
        _converge(realization, deriver.full(state))
        ports = (ServicePort("http", 80, "TCP", 8080),)
        moved = (
            Written("other", (BackendsReported("shop", f"s{n}-slice", f"s{n}", (Backend(f"100.99.0.{n}"),), ports),))
            for n in range(SLICES)
        )
        for record in list(records(moved, state.revision)):
            start = time.process_time()
            _converge(realization, deriver.update(state, (state.apply(record),)))
            spent.append(time.process_time() - start)
    gc.unfreeze()
    return statistics.median(spent) * 1e3


def _one_slice() -> Row:
    few, many = _slice_ms(SLICES), _slice_ms(5_000)
    return Row(
        "backends of one service to the kernel, median, among 5,000 services",
        f"{many:.3f} ms of CPU",
        f"the same among {SLICES} services: {few:.3f} ms",
        f"{many / few:.2f}",
        "< 1 ms",
        many < 1,
    )


def _lookup_table() -> Row:
    names = [number.to_bytes(18, "big") for number in range(1_000)]
    spent = []
    for _ in range(5):
        start = time.process_time()
        lookup_table(names, [1] * len(names), 16_381, b"twelve bytes")
        spent.append(time.process_time() - start)
    found, cilium = statistics.median(spent) * 1e3, 28.5
    return Row(
        "Maglev table of 16,381 slots for 1,000 backends",
        f"{found:.1f} ms of CPU",
        f"Cilium 1.19.4: {cilium} ms",
        f"{found / cilium:.2f}",
        f"< {cilium} ms",
        found < cilium,
    )


def _audit() -> Row:
    """A restart after which every row has to be written: dump (empty), difference, batches; then dump it all again."""
    state = _state(100_000)
    desired = Deriver(CLUSTER, OBSERVER).full(state)
    rows = len(desired.tables["ipcache"])
    gc.collect()
    with _kernel() as realization:
        start = time.process_time()
        _converge(realization, desired)
        realization.verify()
        spent = time.process_time() - start
    peer = _peer("ipcache", rows)
    limit = peer["write_s"] + peer["dump_s"]
    return Row(
        f"map dump + difference + apply, {rows:,} rows",
        f"{rows / spent:,.0f} rows per CPU second",
        f"C batches, no difference: {rows / limit:,.0f}",
        f"{limit / spent:.2f}",
        ">= 0.5",
        limit / spent >= 0.5,
    )
