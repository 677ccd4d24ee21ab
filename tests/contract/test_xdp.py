"""Attachments at the device itself: what the fake and the running kernel promise alike, then what only the latter can
show."""

import errno
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from datapath import codec
from datapath.kernel import libbpf
from datapath.kernel.api import Kernel
from datapath.kernel.fake import FakeKernel, KernelMemory
from datapath.kernel.real import RealKernel
from datapath.tables import XDP_HOOKS, AttachmentKey, AttachmentRow
from tests.conftest import Namespace
from tests.contract.test_kernel import InNamespace

REAL = [pytest.mark.kernel("bpf_redirect_peer"), pytest.mark.kernel("XDP links")]
LOOPBACK = 1
PROGRAM = "xdp_from_network"

MakeKernel = Callable[..., Any]


@pytest.fixture
def make_real(make_namespace: Callable[[], Namespace], bpffs: Path, objects_dir: Path) -> Iterator[MakeKernel]:
    """Makes open RealKernels of one node, whose device `a` is the one with the number 2."""
    namespace = make_namespace()
    namespace.run("ip", "link", "add", "ax", "index", "3", "type", "veth", "peer", "name", "a", "index", "2")
    made: list[InNamespace] = []

    def make(**settings: Any) -> InNamespace:
        kernel = RealKernel(bpffs / "meshlog" / "n1", objects_dir, 0, **{"xdp": True, **settings})
        made.append(InNamespace(namespace, kernel))
        made[-1].open()
        return made[-1]

    yield make
    for kernel in made:
        kernel.close()


@pytest.fixture(params=["fake", pytest.param("real", marks=REAL)])
def kernel(request: pytest.FixtureRequest) -> Kernel:
    """One node with a device of the number 2, in memory or in the kernel."""
    if request.param == "fake":
        fake = FakeKernel(KernelMemory({1, 2}))
        fake.open()
        return fake
    made: Kernel = request.getfixturevalue("make_real")()
    return made


def row_at(hook: str, ifindex: int = 2) -> tuple[bytes, bytes]:
    """The program at a hook, in bytes."""
    key = codec.encode_key("attachments", AttachmentKey(ifindex, hook))
    return key, codec.encode_row("attachments", AttachmentRow(PROGRAM))


def put(kernel: Any, hook: str) -> tuple[bytes, bytes]:
    """Attaches to the device 2."""
    row = row_at(hook)
    assert list(kernel.put("attachments", [row])) == []
    return row


def test_row_comes_back_and_goes(kernel: Kernel) -> None:
    """At each of the hooks, beside one at ingress."""
    other = codec.encode_key("attachments", AttachmentKey(2, "ingress"))
    beside = other, codec.encode_row("attachments", AttachmentRow("from_network"))
    assert list(kernel.put("attachments", [beside])) == []
    for hook in XDP_HOOKS:
        row = put(kernel, hook)
        assert put(kernel, hook) == row
        assert dict(kernel.dump("attachments")) == dict((beside, row))
        assert list(kernel.delete("attachments", [row[0]])) == []
        assert dict(kernel.dump("attachments")) == dict((beside,))


def test_device_has_one_hook_at_a_time(kernel: Kernel) -> None:
    """A row at another ends the one that is there; to remove that is no failure then."""
    before = put(kernel, "xdp")
    for hook in ("xdp-generic", "xdp", "xdp-best-effort"):
        row = put(kernel, hook)
        assert dict(kernel.dump("attachments")) == dict((row,))
    assert list(kernel.delete("attachments", [before[0]])) == []
    assert dict(kernel.dump("attachments")) == dict((row,))


def link_ids(make_pins: Path) -> list[int]:
    """The numbers of the pinned links."""
    return [libbpf.link_info(libbpf.open_pin(path)).id for path in sorted(make_pins.iterdir())]


@pytest.mark.kernel("bpf_redirect_peer")
@pytest.mark.kernel("XDP links")
def test_link_is_found_after_a_restart_and_its_program_replaced_in_place(make_real: MakeKernel, bpffs: Path) -> None:
    """The same programs: nothing is written. Others: the row differs until it is put, and the link stays the same."""
    pins = bpffs / "meshlog" / "n1" / "xdp"
    first = make_real()
    row = put(first, "xdp")
    link = link_ids(pins)
    first.close()
    second = make_real()
    assert (second.kernel.objects.loaded, second.dump("attachments")) == (False, dict((row,)))
    second.close()
    third = make_real(notify_verdicts=False)
    assert third.dump("attachments") != dict((row,))
    put(third, "xdp")
    assert (third.dump("attachments"), link_ids(pins)) == (dict((row,)), link)
    assert not third.kernel.objects.has_unused


@pytest.mark.kernel("bpf_redirect_peer")
@pytest.mark.kernel("XDP links")
def test_agent_without_the_program_can_remove_it(make_real: MakeKernel, bpffs: Path) -> None:
    """It was turned off: what is attached is seen, and goes with its program."""
    first = make_real()
    key, _ = put(first, "xdp")
    first.close()
    second = make_real(xdp=False)
    assert second.dump("attachments").keys() == {key}
    assert second.kernel.objects.has_unused
    assert second.delete("attachments", [key]) == []
    assert (second.dump("attachments"), second.kernel.objects.has_unused) == ({}, False)
    assert list((bpffs / "meshlog" / "n1" / "xdp").iterdir()) == []


@pytest.mark.kernel("bpf_redirect_peer")
@pytest.mark.kernel("XDP links")
def test_driver_that_cannot_refuses_native_only(make_real: MakeKernel) -> None:
    """The loopback device: the row says so, and at best effort it is attached before the host stack."""
    kernel = make_real()
    (failure,) = kernel.put("attachments", [row_at("xdp", LOOPBACK)])
    assert failure.errno == errno.EOPNOTSUPP
    for hook in ("xdp-generic", "xdp-best-effort"):
        assert kernel.put("attachments", [row_at(hook, LOOPBACK)]) == []
