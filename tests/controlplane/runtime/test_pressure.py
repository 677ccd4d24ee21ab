"""How full the maps are in which the kernel makes room by itself, and when that is a problem."""

from types import SimpleNamespace

import pytest

from controlplane.runtime.status import CONNTRACK_MAX, collector_problems, collector_samples
from datapath.abi.types import ENUMS
from datapath.conntrack_gc import CollectionCount

NAT_MAX = ENUMS["limit"]["NAT_MAX"]


def collector(entries: int, nat_entries: int, unjoined_anew: int = 0) -> SimpleNamespace:
    """One whose last reading found so many."""
    count = CollectionCount(1, 0, entries, 0, 0, 0, nat_entries, 0, 9, unjoined_anew)
    return SimpleNamespace(count=lambda: count)


def test_pressure_is_a_share_by_map() -> None:
    """Under Cilium's name for it."""
    samples = collector_samples(collector(CONNTRACK_MAX // 4, NAT_MAX // 2))  # type: ignore[arg-type]
    found = {labels: value for name, labels, value in samples if name == "bpf_map_pressure"}
    assert found == {(("map_name", "conntrack"),): 0.25, (("map_name", "nat"),): 0.5}


@pytest.mark.parametrize(
    ("entries", "nat_entries", "named"),
    [(0, 0, []), (CONNTRACK_MAX * 9 // 10 + 1, 0, ["conntrack"]), (CONNTRACK_MAX, NAT_MAX, ["conntrack", "nat"])],
)
def test_a_map_nearly_full_is_a_problem(entries: int, nat_entries: int, named: list[str]) -> None:
    """Named with its share."""
    problems = collector_problems(collector(entries, nat_entries))  # type: ignore[arg-type]
    assert [problem.split()[0] for problem in problems] == named


def test_sockets_without_room_are_a_problem_while_there_are_more() -> None:
    """A reading that finds more of them than the one before says how many."""
    assert collector_problems(collector(0, 0)) == []  # type: ignore[arg-type]
    (problem,) = collector_problems(collector(0, 0, 7))  # type: ignore[arg-type]
    assert problem.startswith("sockets is full") and "7 more" in problem
