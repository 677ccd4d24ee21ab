"""What a bench row is, and how rows are printed and written to the docs. No measuring here."""

import os
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple


class Row(NamedTuple):
    """One line of the table: what was measured, both sides of the ratio, and the target of the design.

    `met` is None where the row states a figure without a target. `reason`: why a target is missed, where that is known.
    """

    what: str
    ours: str
    against: str
    ratio: str
    target: str
    met: bool | None
    reason: str = ""


def machine() -> str:
    """The machine in one line: processor, cores, memory, kernel, Python."""
    model = next(
        (
            line.split(":", 1)[1].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        platform.machine(),
    )
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return (
        f"{os.cpu_count()} cores of {model}, {memory:.0f} GiB, Linux {platform.release()}, "
        f"Python {platform.python_version()}"
    )


def markdown(rows: Sequence[Row]) -> str:
    """The table as Markdown."""
    lines = ["| what | Meshlog | against | ratio | target | met |", "|---|---|---|---|---|---|"]
    for row in rows:
        met = {True: "yes", False: "no", None: ""}[row.met] + (f": {row.reason}" if row.reason else "")
        lines.append(f"| {row.what} | {row.ours} | {row.against} | {row.ratio} | {row.target} | {met} |")
    return "\n".join(lines)


def page(rows: Sequence[Row]) -> str:
    """The page of docs/bench.md."""
    return (
        "# What it costs\n\n"
        "`make bench` measures these rows and writes this page: both sides of each ratio in one run on one machine.\n"
        "Times of a shared machine move by up to a factor of two from run to run; read the ratios. Figures of Cilium\n"
        "are of 1.19.4, measured on a machine of the same kind, and stand for comparison only. Rows that begin with\n"
        "`this machine` are what it charges for single steps, in this very run; beside a path that misses its target stands\n"
        "what the steps that it cannot be without cost here. Packets are measured alone, by test runs, and live, in network\n"
        "namespaces beside iptables and nftables where those are installed.\n\n"
        f"Machine: {machine()}.\n\n{markdown(rows)}\n"
    )
