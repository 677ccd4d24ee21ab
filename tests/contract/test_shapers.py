"""Limits of bandwidth on real devices: what an endpoint sends out of its node, and what it receives."""

import errno
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from datapath import codec
from datapath.abi import types as abi
from datapath.tables import DeviceKey, DeviceRow, EndpointKey, EndpointRow, ShaperKey, ShaperRow
from tests.bpf.node import CLIENT, REMOTE
from tests.bpf.test_wire import BACKEND_PORT, Wire, ifindex, open_socket
from tests.conftest import Namespace
from tests.contract.test_attach import Attached

pytestmark = [pytest.mark.kernel("bpf_redirect_peer"), pytest.mark.kernel("TCX links")]

RATE_BYTES_S = 4_000_000
SENT_BYTES = 4_000_000
AT_ONCE_BYTES = 1 << 19
"""What may pass before the limit is felt: the burst, and the queues of both ends."""


@pytest.fixture(params=[4, 6], ids=["ipv4", "ipv6"])
def family(request: pytest.FixtureRequest) -> int:
    """Both families in turn."""
    return int(request.param)


@pytest.fixture
def attached(make_namespace: Callable[[], Namespace], bpffs: Path, objects_dir: Path) -> Iterator[Attached]:
    """A client, its node with programs and rows, and another machine."""
    made = Attached(Wire(make_namespace), bpffs, objects_dir)
    made.open("tcx")
    made.wire.rows(made.kernel.objects)
    made.put(made.rows)
    yield made
    made.close()


def limit(attached: Attached, flags: int, device: str) -> None:
    """The client's packets in one direction."""
    own = ifindex(attached.wire.node, "lxc")
    addresses = [codec.address_bytes(each) for each in (CLIENT.ipv4, CLIENT.ipv6)]
    row = DeviceRow(*addresses, CLIENT.identity, CLIENT.endpoint_id, CLIENT.mac, flags)
    put(attached, "devices", {DeviceKey(own): row})
    shaped = abi.ENDPOINT_SHAPED if flags & abi.DEVICE_SHAPED_INGRESS else 0
    endpoint = EndpointRow(own, CLIENT.identity, CLIENT.endpoint_id, shaped, CLIENT.mac, CLIENT.host_mac)
    put(attached, "endpoints", dict.fromkeys(map(EndpointKey, addresses), endpoint))
    key = ShaperKey(ifindex(attached.wire.node, device), CLIENT.endpoint_id)
    put(attached, "shapers", {key: ShaperRow(RATE_BYTES_S)})


def put(attached: Attached, table: str, rows: dict[object, object]) -> None:
    encoded = list(codec.encode_rows(table, rows).items())
    assert attached.wire.node.call(attached.kernel.put, table, encoded) == []


def transfer_s(attached: Attached, family: int, *, up: bool) -> float:
    """How long SENT_BYTES take from the client to the other machine, or back."""
    wire = attached.wire
    bound = (REMOTE.address(family), BACKEND_PORT)
    with (
        wire.remote.call(open_socket, family, socket.SOCK_STREAM, bound) as listener,
        wire.client.call(open_socket, family, socket.SOCK_STREAM, None) as asking,
    ):
        asking.connect(bound)
        answering, _ = listener.accept()
        with answering:
            source, target = (asking, answering) if up else (answering, asking)
            sending = threading.Thread(target=source.sendall, args=(bytes(SENT_BYTES),))
            start = time.monotonic()
            sending.start()
            left = SENT_BYTES
            while left:
                left -= len(target.recv(min(left, 1 << 16)))
            elapsed_s = time.monotonic() - start
            sending.join()
    return elapsed_s


@pytest.mark.parametrize(
    ("flags", "device", "up"),
    [(abi.DEVICE_SHAPED_EGRESS, "und", True), (abi.DEVICE_SHAPED_INGRESS, "lxc", False)],
    ids=["egress", "ingress"],
)
def test_a_stream_is_no_faster_than_its_limit(
    attached: Attached, family: int, flags: int, device: str, up: bool
) -> None:
    """All of it arrives, not before its time. How near to the limit it comes, a loaded machine cannot tell."""
    limit(attached, flags, device)
    elapsed_s = transfer_s(attached, family, up=up)
    assert elapsed_s > 0.9 * (SENT_BYTES - AT_ONCE_BYTES) / RATE_BYTES_S


def test_the_queue_goes_with_its_last_class(attached: Attached) -> None:
    """Rows of one device share a queue, which stays while one of them does."""
    node = attached.wire.node
    keys = [ShaperKey(ifindex(node, "und"), number) for number in (7, 8)]
    put(attached, "shapers", dict.fromkeys(keys, ShaperRow(RATE_BYTES_S)))
    for key, left in zip(keys, (1, 0), strict=True):
        encoded = codec.encode_key("shapers", key)
        assert node.call(attached.kernel.delete, "shapers", [encoded]) == []
        assert ("htb" in node.run("tc", "qdisc", "show", "dev", "und")) == bool(left)


def test_a_queue_of_another_owner_is_left_alone(attached: Attached) -> None:
    """The row fails, and says that the place is taken."""
    node = attached.wire.node
    node.run("tc", "qdisc", "add", "dev", "und", "root", "handle", "1:", "tbf", "rate", "1gbit", "burst", "1mb",
             "latency", "50ms")  # fmt: skip
    key, row = ShaperKey(ifindex(node, "und"), 7), ShaperRow(RATE_BYTES_S)
    rows = list(codec.encode_rows("shapers", {key: row}).items())
    assert [each.errno for each in node.call(attached.kernel.put, "shapers", rows)] == [errno.EEXIST]
    assert "tbf 1:" in node.run("tc", "qdisc", "show", "dev", "und")
