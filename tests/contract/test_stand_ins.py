"""Filters that stand in for TCX links: what a hook has at first, what it has in the end, and that no packet notices."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.bpf.node import FRONTEND, REMOTE_NODE
from tests.bpf.test_wire import BACKEND_PORT, Wire
from tests.conftest import Namespace
from tests.contract.test_attach import Attached, ask_service, family, questions

__all__ = ["family"]
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
    """The rows are right from the start; after settling there are links only."""
    attached.put(attached.rows)
    assert attached.counts() == {"tcx": 1, "clsact": 2}
    assert attached.dump() == attached.rows
    assert settle(attached) == 2
    assert attached.counts() == {"tcx": 3, "clsact": 0}
    assert attached.dump() == attached.rows


def test_stand_ins_of_an_agent_that_was_killed_are_right_and_settle(attached: Attached) -> None:
    """The next one has nothing to write, and makes the links in its turn."""
    attached.put(attached.rows)
    attached.open("tcx", stand_ins=True)
    assert attached.dump() == attached.rows
    assert settle(attached) == 2
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
    for steps in (0, 2):
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
    assert attached.counts() == {"tcx": 3, "clsact": 0}
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


def test_no_packet_is_lost_while_hooks_settle(attached: Attached, family: int) -> None:
    """Questions to a service and its answers go on behind filters, on the way, and behind links: each one arrives."""
    wire = attached.wire
    wire.rows(attached.kernel.objects)
    attached.put(attached.rows)
    ask_service(wire, family, b"the first, which finds the neighbours")
    with questions(wire, wire.client, family, (FRONTEND.address(family), 80)) as pass_rounds:
        pass_rounds()
        while wire.node.call(attached.kernel.settle):
            pass_rounds()


def test_no_packet_of_the_node_is_lost_when_its_programs_come(attached: Attached, family: int) -> None:
    """What it says to another node goes through a device that is in use before the first agent starts."""
    wire = attached.wire
    with questions(wire, wire.node, family, (REMOTE_NODE[family], BACKEND_PORT)) as pass_rounds:
        pass_rounds()
        attached.put(attached.rows)
        pass_rounds()
        settle(attached)
