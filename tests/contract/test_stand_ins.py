"""Filters that stand in for TCX links: what a hook has at first, what it has in the end, and that no packet notices."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.bpf.test_wire import Wire
from tests.conftest import Namespace
from tests.contract.test_attach import Attached, ask_service

pytestmark = [
    pytest.mark.kernel("bpf_redirect_peer"),
    pytest.mark.kernel("TCX links"),
    pytest.mark.kernel("clsact filters"),
]


@pytest.fixture
def attached(make_namespace: Callable[[], Namespace], bpffs: Path, objects_dir: Path) -> Iterator[Attached]:
    """A client, its node held by a kernel with stand-ins, and a backend's machine."""
    made = Attached(Wire(make_namespace), bpffs, objects_dir)
    made.open("tcx", stand_ins=True)
    yield made
    made.close()


def settle(attached: Attached) -> int:
    """Until nothing is left to settle; the number of steps."""
    steps = 0
    while attached.wire.node.call(attached.kernel.settle):
        steps += 1
        assert steps < 10, "settling does not end"
    return steps


def test_a_new_hook_gets_a_filter_and_then_its_link(attached: Attached) -> None:
    """The rows are right from the start; after settling there are links only, and no qdisc is left behind."""
    attached.put(attached.rows)
    assert attached.counts() == {"tcx": 0, "clsact": 3}
    assert attached.dump() == attached.rows
    assert settle(attached) == 3
    assert attached.counts() == {"tcx": 3, "clsact": 0}
    assert attached.dump() == attached.rows
    assert "clsact" not in attached.wire.node.run("tc", "qdisc", "show")


def test_stand_ins_of_an_agent_that_was_killed_are_right_and_settle(attached: Attached) -> None:
    """The next one has nothing to write, and makes the links in its turn."""
    attached.put(attached.rows)
    attached.open("tcx", stand_ins=True)
    assert attached.dump() == attached.rows
    assert settle(attached) == 3
    assert attached.counts() == {"tcx": 3, "clsact": 0}


def test_a_settling_broken_off_counts_as_right(attached: Attached) -> None:
    """A hook with both is one row; the next agent ends the filter."""
    attached.put(attached.rows)
    attached.put_beside("tcx")
    attached.open("tcx", stand_ins=True)
    assert attached.dump() == attached.rows
    settle(attached)
    assert attached.counts() == {"tcx": 3, "clsact": 0}


def test_deleting_ends_a_stand_in(attached: Attached) -> None:
    """Before and after settling nothing of a row that goes is left."""
    for steps in (0, 3):
        attached.put(attached.rows)
        if steps:
            settle(attached)
        assert attached.wire.node.call(attached.kernel.delete, "attachments", list(attached.rows)) == []
        assert attached.counts() == {"tcx": 0, "clsact": 0}
        assert attached.dump() == {}


def test_settling_passes_over_a_device_that_is_gone(attached: Attached) -> None:
    """The hooks of the others get their links."""
    attached.put(attached.rows)
    attached.wire.node.run("ip", "link", "del", "dev", "lxc")
    settle(attached)
    assert not attached.wire.node.call(attached.kernel.settle)
    assert len(attached.dump()) == 1


def test_another_owner_at_the_place_of_the_filter_gets_a_link_beside_it(attached: Attached) -> None:
    """A stand-in that cannot be made is not waited for: the link is made at once."""
    node = attached.wire.node
    node.run("tc", "qdisc", "add", "dev", "lxc", "ingress")
    attached.put(attached.rows)
    assert attached.counts() == {"tcx": 2, "clsact": 1}
    assert attached.dump() == attached.rows


def test_new_programs_reach_stand_ins(attached: Attached) -> None:
    """Of another version, a stand-in differs; once put it runs the new program, and settles."""
    attached.put(attached.rows)
    attached.open("tcx", stand_ins=True, notify_verdicts=False)
    assert not attached.dump().items() & attached.rows.items()
    attached.put(attached.rows)
    assert attached.dump() == attached.rows
    assert not attached.kernel.objects.has_unused
    settle(attached)
    assert attached.counts() == {"tcx": 3, "clsact": 0}


@pytest.mark.parametrize("family", [4, 6], ids=["ipv4", "ipv6"])
def test_packets_before_between_and_after(attached: Attached, family: int) -> None:
    """A service answers behind filters, with some hooks settled, and behind links."""
    wire = attached.wire
    wire.rows(attached.kernel.objects)
    attached.put(attached.rows)
    ask_service(wire, family, b"behind filters")
    while wire.node.call(attached.kernel.settle):
        ask_service(wire, family, b"on the way")
    ask_service(wire, family, b"behind links")
