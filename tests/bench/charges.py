"""What this machine charges for a lookup, an insertion, a checksum or a call of a program: the floor below which no
path through such things can be.

Belongs here: the single things. Does not belong here: the paths (bench_packets.py).
"""

import atexit
import functools
import shutil
import socket
import subprocess
import sysconfig
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from datapath.kernel.programs import load_private
from tests.bench.report import Row
from tests.bpf import packets
from tests.bpf.gate import resolve, routed
from tests.bpf.node import MAX_ENTRIES
from tests.conftest import Namespace

RUNS = 2000
ROUNDS = 15
INSERTING_RUNS = 100
TIMES_IN_A_RUN = 8
FLOWS_MAX = 2 * ROUNDS * INSERTING_RUNS * TIMES_IN_A_RUN
"""So that no entry has to go for a new one."""
EMPTY, EMPTY_XDP = "empty", "empty_xdp"
SAID: Mapping[str, str] = {
    "call": "a call within a program",
    "clock": "the coarse clock",
    "array_lookup": "a lookup in an array",
    "hash_lookup": "a lookup in a hash, 16 bytes",
    "flow_lookup": "a lookup of a flow, 40 bytes",
    "flow_missed": "a lookup of a flow that is not there",
    "flow_new": "a new flow in its map",
    "prefix_lookup_ipv4": "a longest prefix, IPv4",
    "prefix_lookup_ipv6": "a longest prefix, IPv6",
    "route_lookup": "a question to the kernel's routes",
    "checksum_difference": "a checksum's difference, 16 bytes",
    "checksum_correction": "a correction of a transport checksum",
    "redirect": "a redirection to a neighbour",
}
Charges = Mapping[str, float]
"""Nanoseconds by name: those of SAID each, EMPTY and EMPTY_XDP a whole run."""


@contextmanager
def place() -> Iterator[Namespace]:
    """Where the routes are that programs ask, and the next hops known."""
    made: list[Namespace] = []

    def make() -> Namespace:
        made.append(Namespace())
        return made[-1]

    try:
        found = routed(make)
        resolve(found, 4)
        yield found
    finally:
        for each in made:
            each.close()


@functools.cache
def _runner() -> Path:
    """The compiled run_packet.c."""
    program = Path(tempfile.mkdtemp(prefix="meshlog-bench-")) / "run_packet"
    subprocess.run(["clang", "-O2", "-o", program, Path(__file__).with_name("run_packet.c")], check=True)
    atexit.register(shutil.rmtree, program.parent)
    return program


def median_ns(program_fd: int, raw: bytes, runs: int, port_offset: int = 0, where: Namespace | None = None) -> int:
    """Of one packet through a program; with `port_offset` every run has another source port. `where`: whose routes it
    asks."""
    entered = ["nsenter", f"--net={where.path}"] if where else []
    command = [*entered, _runner(), str(program_fd), str(runs), str(port_offset)]
    return int(subprocess.run(command, input=raw, capture_output=True, check=True, pass_fds=(program_fd,)).stdout)


def compiled(source: str, folder: Path) -> Path:
    """A program of this folder, as an object."""
    found = folder / source.replace(".c", ".o")
    here = Path(__file__).parent
    headers = ("-idirafter", f"/usr/include/{sysconfig.get_config_var('MULTIARCH')}", f"-I{here.parents[1] / 'bpf'}")
    flags = ("-O2", "-g", "-target", "bpf", "-mcpu=v3", *headers)
    subprocess.run(["clang", *flags, "-c", here / source, "-o", found], check=True)
    return found


def measure(where: Namespace) -> Charges:
    """The least of all rounds: what else runs on the machine only adds."""
    underlay = where.call(socket.if_nametoindex, "und")
    ends = {"source_mac": bytes(6), "dest_mac": bytes(6)}
    raw = packets.frame("10.0.0.1", "10.0.0.2", packets.TCP, packets.tcp(1, 2), **ends)
    least: dict[str, int] = {}
    with tempfile.TemporaryDirectory() as folder:
        sizes = {**MAX_ENTRIES, "conntrack": FLOWS_MAX}
        made = compiled("charges.bpf.c", Path(folder))
        with load_private(made, {"charged_ifindex": underlay}, sizes) as loaded:
            loaded.test_run("fill", raw)
            for _ in range(ROUNDS):
                for name in (EMPTY, EMPTY_XDP, *SAID):
                    runs = INSERTING_RUNS if name == "flow_new" else RUNS
                    found = median_ns(loaded.programs[name].fd, raw, runs, where=where)
                    least[name] = min(least.get(name, found), found)
    charges = {name: max(0.0, (least[name] - least[EMPTY]) / TIMES_IN_A_RUN) for name in SAID}
    return {**charges, EMPTY: least[EMPTY], EMPTY_XDP: least[EMPTY_XDP]}


def rows(charges: Charges) -> Iterator[Row]:
    """Of the table: each beside the dearest thing that no program can do without, a call."""
    for name, said in SAID.items():
        calls = f"{charges[name] / charges['call']:.1f}" if charges["call"] else ""
        yield Row(f"this machine: {said}", f"{charges[name]:.1f} ns", SAID["call"], calls, "", None)
