"""The two forms of attachment on one node: the hand-over from one to the other, and real packets behind each.

What both promise alone is in test_kernel.py.
"""

import itertools
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from datapath import codec, conntrack
from datapath.kernel import libbpf, uapi
from datapath.kernel.attachments import Form
from datapath.kernel.clsact import Filters
from datapath.kernel.links import Links
from datapath.kernel.netlink import Netlink
from datapath.kernel.programs import Program
from datapath.kernel.real import RealKernel
from datapath.tables import AttachmentKey, AttachmentRow
from tests.bpf.node import CLIENT, FRONTEND, REMOTE, REMOTE_NODE
from tests.bpf.test_wire import BACKEND_PORT, TIMEOUT_S, Wire, ifindex, open_socket, received
from tests.conftest import Namespace

pytestmark = [
    pytest.mark.kernel("bpf_redirect_peer"),
    pytest.mark.kernel("TCX links"),
    pytest.mark.kernel("clsact filters"),
]
ROUNDS = 50
OTHER = {"tcx": "clsact", "clsact": "tcx"}
Rows = dict[bytes, bytes]


@pytest.fixture(params=OTHER)
def before(request: pytest.FixtureRequest) -> str:
    """The form of the agent before; the one after it has the other."""
    return str(request.param)


@pytest.fixture(params=[4, 6], ids=["ipv4", "ipv6"])
def family(request: pytest.FixtureRequest) -> int:
    """Both families in turn."""
    return int(request.param)


class Attached:
    """A Wire whose node is held by one RealKernel after another."""

    def __init__(self, wire: Wire, bpffs: Path, objects_dir: Path) -> None:
        self.wire, self.objects_dir = wire, objects_dir
        self.pin_root = bpffs / "meshlog" / "n1"
        self.rows = attachment_rows(wire)
        self._kernel: RealKernel | None = None

    def open(self, form: str, **settings: Any) -> None:
        """As a new agent of this form does, after the one before is gone."""
        self.close()
        underlay = ifindex(self.wire.node, "und")
        kernel = RealKernel(self.pin_root, self.objects_dir, underlay, attach=form, **settings)
        self.wire.node.call(kernel.open)
        self._kernel = kernel

    @property
    def kernel(self) -> RealKernel:
        """The one that is open."""
        assert self._kernel is not None
        return self._kernel

    def dump(self) -> Rows:
        """The attachments that this node is said to have."""
        return dict(self.wire.node.call(self.kernel.dump, "attachments"))

    def put(self, rows: Rows) -> None:
        """Every one of them."""
        assert self.wire.node.call(self.kernel.put, "attachments", list(rows.items())) == []

    def put_beside(self, form: str) -> None:
        """Every one of them in this form, and no word to the other: a hand-over that is broken off."""
        rows = {codec.decode_key("attachments", key): codec.decode_row("attachments", row)
                for key, row in self.rows.items()}  # fmt: skip
        programs = {key: self.kernel.objects.programs[row.program] for key, row in rows.items()}
        self.wire.node.call(put_in_form, form, self.pin_root / "links", programs)

    def counts(self) -> dict[str, int]:
        """How many attachments the kernel has in each form, of ours or not."""
        devices = (ifindex(self.wire.node, name) for name in ("lxc", "und"))
        hooks = [(device, hook) for device in devices for hook in (uapi.TCX_INGRESS, uapi.TCX_EGRESS)]
        links = sum(len(self.wire.node.call(libbpf.program_query, *hook)) for hook in hooks)
        return {"tcx": links, "clsact": len(self.filters())}

    def filters(self) -> list[Any]:
        """Our clsact filters."""
        return self.wire.node.call(list_filters)

    def close(self) -> None:
        """The agent ends; what it attached stays."""
        if self._kernel is not None:
            self._kernel.close()
            self._kernel = None


def list_filters() -> list[Any]:
    """Of the calling thread's namespace."""
    netlink = Netlink()
    try:
        return netlink.list_filters()
    finally:
        netlink.close()


def put_in_form(form: str, links_dir: Path, programs: Mapping[AttachmentKey, Program]) -> None:
    """Attaches in the calling thread's namespace."""
    netlink = Netlink()
    try:
        chosen: Form = Links(links_dir) if form == "tcx" else Filters(netlink)
        for key, program in programs.items():
            chosen.put(key, program)
    finally:
        netlink.close()


def attachment_rows(wire: Wire) -> Rows:
    """What the wire's node needs."""
    wanted = (
        ("from_endpoint", "lxc", "ingress"), ("to_endpoint", "lxc", "egress"), ("from_network", "und", "ingress"),
    )  # fmt: skip
    rows = {AttachmentKey(ifindex(wire.node, device), hook): AttachmentRow(name) for name, device, hook in wanted}
    return dict(codec.encode_rows("attachments", rows))


@pytest.fixture
def attached(make_namespace: Callable[[], Namespace], bpffs: Path, objects_dir: Path) -> Iterator[Attached]:
    """A client, its node without an agent, and a backend's machine."""
    made = Attached(Wire(make_namespace), bpffs, objects_dir)
    yield made
    made.close()


def ask_service(wire: Wire, family: int, question: bytes) -> None:
    """One datagram to the frontend and one back. Fails where a program is missing on the way."""
    bound = (REMOTE.address(family), BACKEND_PORT)
    with (
        wire.remote.call(open_socket, family, socket.SOCK_DGRAM, bound) as answering,
        wire.client.call(open_socket, family, socket.SOCK_DGRAM, None) as asking,
    ):
        asking.sendto(question, (FRONTEND.address(family), 80))
        heard, source = answering.recvfrom(100)
        assert (heard, source[0]) == (question, CLIENT.address(family))
        answering.sendto(heard[::-1], source)
        assert asking.recvfrom(100)[0] == question[::-1]


@contextmanager
def questions(wire: Wire, asker: Namespace, family: int, target: tuple[str, int]) -> Iterator[Callable[[], None]]:
    """Datagrams to a place where the backend answers, one after the other without a pause. Gives what waits for ROUNDS
    more; it raises when one is lost, and so does the end."""
    done, ends = threading.Semaphore(0), threading.Event()
    bound = (REMOTE.address(family) if asker is wire.client else REMOTE_NODE[family], BACKEND_PORT)
    with (
        ThreadPoolExecutor(1) as threads,
        wire.remote.call(open_socket, family, socket.SOCK_DGRAM, bound) as answering,
        asker.call(open_socket, family, socket.SOCK_DGRAM, None) as asking,
    ):

        def ask() -> None:
            for number in itertools.count():
                asking.sendto(b"%d" % number, target)
                heard, source = answering.recvfrom(100)
                answering.sendto(heard, source)
                assert asking.recvfrom(100)[0] == b"%d" % number
                done.release()
                if ends.is_set():
                    return

        def pass_rounds() -> None:
            for _ in range(ROUNDS):
                assert done.acquire(timeout=TIMEOUT_S) or going.result()

        going = threads.submit(ask)
        try:
            yield pass_rounds
        finally:
            ends.set()
        going.result()


def counted(kernel: RealKernel) -> int:
    """Datagrams that the programs of this node have counted to some flow."""
    entries = [conntrack.decode_entry(*entry) for entry in kernel.dump_runtime("conntrack")]
    flows = [entry.row for entry in entries if entry.key.protocol == socket.IPPROTO_UDP]
    return sum(row.forward_packets + row.reply_packets for row in flows)


@pytest.mark.parametrize("tx", ["on", "off"])
def test_a_stream_through_filters(attached: Attached, family: int, tx: str) -> None:
    """On a node that is forced to clsact: TCP to a service and back, in segments as large as the kernel likes."""
    attached.open("clsact")
    wire = attached.wire
    wire.rows(attached.kernel.objects)
    attached.put(attached.rows)
    assert attached.counts() == {"tcx": 0, "clsact": 3}
    wire.set_offload(tx)
    sent = bytes(range(250)) * 80
    with (
        wire.remote.call(open_socket, family, socket.SOCK_STREAM, (REMOTE.address(family), BACKEND_PORT)) as listener,
        wire.client.call(open_socket, family, socket.SOCK_STREAM, None) as asking,
    ):
        asking.connect((FRONTEND.address(family), 80))
        answering, source = listener.accept()
        assert source[0] == CLIENT.address(family)
        with answering:
            answering.settimeout(TIMEOUT_S)
            for sender, receiver in ((asking, answering), (answering, asking)):
                sender.sendall(sent)
                assert received(receiver, len(sent)) == sent


def test_filters_of_an_agent_that_was_killed_are_taken_up(attached: Attached) -> None:
    """The next one finds all rows right, so that it writes none, and the very same programs run on."""
    attached.open("clsact")
    attached.put(attached.rows)
    running = attached.filters()
    attached.open("clsact")
    assert not attached.kernel.objects.loaded
    assert attached.dump() == attached.rows
    assert attached.filters() == running


def test_a_change_of_form_is_seen_and_ends_the_former(attached: Attached, before: str) -> None:
    """After the change every row differs; once put, only the new form is there."""
    attached.open(before)
    attached.put(attached.rows)
    attached.open(OTHER[before])
    assert attached.dump().keys() == attached.rows.keys()
    assert not attached.dump().items() & attached.rows.items()
    attached.put(attached.rows)
    assert attached.dump() == attached.rows
    assert attached.counts() == {before: 0, OTHER[before]: 3}


def test_a_hand_over_broken_off_goes_on_at_the_next_start(attached: Attached, before: str) -> None:
    """A hook with both forms counts as wrong until the former is gone."""
    attached.open(before)
    attached.put(attached.rows)
    attached.open(OTHER[before])
    attached.put_beside(OTHER[before])
    assert attached.counts() == {"tcx": 3, "clsact": 3}
    attached.open(OTHER[before])
    assert not attached.dump().items() & attached.rows.items()
    attached.put(attached.rows)
    assert attached.counts() == {before: 0, OTHER[before]: 3}


def test_deleting_ends_both_forms(attached: Attached, before: str) -> None:
    """A row that is not wanted any more leaves nothing behind, in whichever form it was."""
    attached.open(before)
    attached.put(attached.rows)
    attached.open(OTHER[before])
    assert attached.wire.node.call(attached.kernel.delete, "attachments", list(attached.rows)) == []
    assert attached.counts() == {"tcx": 0, "clsact": 0}
    assert attached.dump() == {}


def test_programs_that_the_former_form_still_runs_stay_pinned(attached: Attached, before: str) -> None:
    """A change of form and of programs at once: the old ones go with the last attachment to them."""
    attached.open(before, notify_verdicts=True)
    attached.put(attached.rows)
    attached.open(OTHER[before], notify_verdicts=False)
    assert attached.kernel.objects.has_unused
    attached.put(attached.rows)
    assert not attached.kernel.objects.has_unused


def test_a_packet_meets_one_program_while_both_forms_are_there(attached: Attached, before: str, family: int) -> None:
    """With links and filters on every hook a packet is counted once by each program on its way, as with one
    form alone."""
    attached.open(before)
    wire = attached.wire
    wire.rows(attached.kernel.objects)
    attached.put(attached.rows)
    ask_service(wire, family, b"the first, which sets up the flow's neighbours")
    start = counted(attached.kernel)
    ask_service(wire, family, b"one form")
    alone = counted(attached.kernel) - start
    assert alone > 0
    attached.open(OTHER[before])
    attached.put_beside(OTHER[before])
    start = counted(attached.kernel)
    ask_service(wire, family, b"both forms")
    assert counted(attached.kernel) - start == alone
    attached.put(attached.rows)
    start = counted(attached.kernel)
    ask_service(wire, family, b"the other form")
    assert counted(attached.kernel) - start == alone


def test_no_packet_is_lost_in_a_hand_over(attached: Attached, family: int) -> None:
    """Questions and answers go on while the node changes from links to filters and back: each one arrives.

    The qdiscs are there before: making one stops its device's queues for a moment, whatever is attached.
    """
    wire = attached.wire
    for form in ("clsact", "tcx"):
        attached.open(form)
        attached.put(attached.rows)
    wire.rows(attached.kernel.objects)
    ask_service(wire, family, b"the first, which finds the neighbours")
    with questions(wire, wire.client, family, (FRONTEND.address(family), 80)) as pass_rounds:
        for form in ("clsact", "tcx", "clsact", "tcx"):
            pass_rounds()
            attached.open(form)
            attached.put(attached.rows)


def test_filters_of_others_are_left_alone(attached: Attached) -> None:
    """Not dumped, not removed; one at our own place is not replaced, and the row says so."""
    node = attached.wire.node
    attached.open("clsact")
    node.run("tc", "qdisc", "add", "dev", "und", "clsact")
    other = ("tc", "filter", "add", "dev", "und", "ingress", "pref", "1", "handle", "0x4d", "bpf", "da")
    pinned = attached.kernel.objects.pins / "from_network"
    node.run(*other, "object-pinned", str(pinned))
    assert attached.dump() == {}
    failures = node.call(attached.kernel.put, "attachments", list(attached.rows.items()))
    assert [failure.reason.startswith("netlink: put a filter at ifindex") for failure in failures] == [True]
    assert "EEXIST" in failures[0].reason
    node.call(attached.kernel.delete, "attachments", list(attached.rows))
    assert "from_network" in node.run("tc", "filter", "show", "dev", "und", "ingress")


def test_an_ingress_qdisc_of_another_is_not_taken_for_clsact(attached: Attached) -> None:
    """It has no egress hook: a filter meant for that would run at ingress."""
    node = attached.wire.node
    attached.open("clsact")
    node.run("tc", "qdisc", "add", "dev", "lxc", "ingress")
    failures = node.call(attached.kernel.put, "attachments", list(attached.rows.items()))
    assert len(failures) == 2
    assert all("EEXIST" in failure.reason for failure in failures)
    assert node.run("tc", "filter", "show", "dev", "lxc", "ingress") == ""
