"""One node as the programs see it: its own maps, two local endpoints, another node, and packets run through.

Belongs here: addresses, rows, and how a packet is run. Does not belong here: what should come out.
Every device is the loopback device of the test run, so that a sender is chosen by what `devices` says of it.
"""

import ctypes
import os
import platform
import struct
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, Self

from datapath import codec, conntrack
from datapath.abi import types as abi
from datapath.abi.types import STRUCTS
from datapath.kernel import libbpf, row_changes, uapi
from datapath.kernel.programs import Loaded, PacketRun, load_private
from datapath.kernel.ringbuf import RingReader
from datapath.notifications import Notification, decode_records
from datapath.tables import (
    NO_ADDRESS,
    BackendKey,
    BackendRow,
    DeviceKey,
    DeviceRow,
    EndpointKey,
    EndpointRow,
    IpcacheKey,
    IpcacheRow,
    NodeStateKey,
    NodeStateRow,
    PolicyKey,
    PolicyRow,
    PolicySubjectKey,
    PolicySubjectRow,
    ServiceKey,
    ServiceRow,
)
from tests.bpf import packets

LOOPBACK = 1
UNDERLAY = 5
OK, SHOT, REDIRECT = 0, 2, 7
TEST_SUMMED = 4
"""BPF_F_TEST_SKB_CHECKSUM_COMPLETE, which older headers lack."""
NS_PER_S = 1_000_000_000
L3_SHAPE, ANY_PORT_SHAPE, PORT_SHAPE = (
    abi.POLICY_SHAPE_L3,
    abi.POLICY_SHAPE_PORT_0,
    abi.POLICY_SHAPE_PORT_0 << 16,
)
MAX_ENTRIES = dict.fromkeys(
    ("conntrack", "nat", "ipcache", "policy", "backends", "services", "socket_flows"), 1024
)
GATEWAY_MAC = bytes.fromhex("020000000001")
LOOPBACK_MAC = bytes(6)
CLUSTER_IP = ServiceRow(99, 0, abi.SERVICE_CLUSTER_IP)


class Endpoint(NamedTuple):
    """A workload, on this node or another; `host_mac` is the host side of its veth."""

    ipv4: str
    ipv6: str
    identity: int
    endpoint_id: int
    ifindex: int
    mac: bytes
    host_mac: bytes

    def address(self, family: int) -> str:
        return self.ipv4 if family == 4 else self.ipv6


CLIENT = Endpoint("10.1.0.5", "fd00:1::5", 1001, 11, 70, bytes.fromhex("0a0000000005"), bytes.fromhex("0e0000000005"))
SERVER = Endpoint("10.1.0.6", "fd00:1::6", 1002, 12, 71, bytes.fromhex("0a0000000006"), bytes.fromhex("0e0000000006"))
HOST = Endpoint("10.1.0.1", "fd00:1::1", abi.IDENTITY_HOST, 0, 0, GATEWAY_MAC, GATEWAY_MAC)
REMOTE = Endpoint("10.2.0.7", "fd00:2::7", 1003, 0, 0, GATEWAY_MAC, GATEWAY_MAC)
WORLD = Endpoint("198.51.100.9", "2001:db8::9", abi.IDENTITY_WORLD, 0, 0, GATEWAY_MAC, GATEWAY_MAC)
FRONTEND = Endpoint("10.96.0.10", "fd00:96::10", 0, 0, 0, GATEWAY_MAC, GATEWAY_MAC)
REMOTE_NODE = {4: "192.168.9.2", 6: "fd00:9::2"}
LOCAL = (CLIENT, SERVER)


class Node:
    """One object in the kernel with private maps. `run` leaves nothing behind but conntrack and counters."""

    def __init__(self, loaded: Loaded) -> None:
        self._loaded = loaded
        self.maps = loaded.maps
        self.programs = tuple(loaded.programs)
        self.audited: list[Endpoint] = []
        """Whose own configuration is audit."""
        self.family = 4
        self.protocol = packets.TCP

    def put(self, table: str, rows: Mapping[Any, Any]) -> None:
        """Writes rows of a derived table."""
        with row_changes.announced(self.maps, table):
            failures = self.maps[table].put(list(codec.encode_rows(table, rows).items()))
        assert not failures, failures

    def remove(self, table: str, key: Any) -> None:
        """Takes away a row of a derived table."""
        with row_changes.announced(self.maps, table):
            self.maps[table].delete([codec.encode_key(table, key)])

    def settle(self) -> None:
        """The rows of the node: endpoints, ipcache, and no policy enforced."""
        self.audited.clear()
        for each in LOCAL:
            self.endpoint(each)
            self.subject(each)
        host = EndpointRow(0, abi.IDENTITY_HOST, 0, abi.ENDPOINT_HOST, bytes(6), bytes(6))
        self.put("endpoints", {EndpointKey(_bytes(address)): host for address in (HOST.ipv4, HOST.ipv6)})
        for family in (4, 6):
            node = _bytes(REMOTE_NODE[family])
            remote = IpcacheRow(node, REMOTE.identity, abi.IPCACHE_REMOTE_ENDPOINT)
            self.ipcache(REMOTE.address(family), remote)
            self.ipcache(REMOTE_NODE[family], IpcacheRow(NO_ADDRESS, abi.IDENTITY_REMOTE_NODE, 0))
            for each in LOCAL:
                self.ipcache(each.address(family), IpcacheRow(NO_ADDRESS, each.identity, 0))
        self.epoch(1)

    def endpoint(self, endpoint: Endpoint) -> None:
        """Its addresses lead to it."""
        flags = abi.ENDPOINT_AUDITED if endpoint in self.audited else 0
        found = EndpointRow(
            endpoint.ifindex, endpoint.identity, endpoint.endpoint_id, flags, endpoint.mac, endpoint.host_mac
        )
        self.put("endpoints", {EndpointKey(_bytes(address)): found for address in (endpoint.ipv4, endpoint.ipv6)})

    def audit(self, *endpoints: Endpoint) -> None:
        """What the policies of these would deny passes, and of no others."""
        self.audited[:] = endpoints
        for each in LOCAL:
            self.endpoint(each)

    def ipcache(self, prefix: str, row: IpcacheRow) -> None:
        self.put("ipcache", {IpcacheKey(*codec.prefix_bytes(prefix)): row})

    def epoch(self, epoch: int) -> None:
        self.put("node_state", {NodeStateKey(0): NodeStateRow(epoch)})

    def device(self, endpoint: Endpoint) -> None:
        """From now on the packets of the test run are seen on this endpoint's device."""
        row = DeviceRow(
            _bytes(endpoint.ipv4),
            _bytes(endpoint.ipv6),
            endpoint.identity,
            endpoint.endpoint_id,
            endpoint.mac,
            abi.DEVICE_AUDITED if endpoint in self.audited else 0,
        )
        self.put("devices", {DeviceKey(LOOPBACK): row})

    def subject(
        self, endpoint: Endpoint, *, ingress: bool = False, egress: bool = False, shapes: int = 0, flags: int = 0
    ) -> None:
        """What is enforced for the endpoint's identity; the shapes are those of both directions."""
        row = PolicySubjectRow(int(ingress), int(egress), shapes, shapes, flags)
        self.put("policy_subjects", {PolicySubjectKey(endpoint.identity): row})

    def policy(
        self,
        subject: Endpoint,
        direction: int,
        remote: int,
        *,
        port: int = 0,
        prefix: int = 0,
        protocol: int = 0,
        verdict: int = abi.POLICY_VERDICT_ALLOW,
    ) -> None:
        """One policy row."""
        key = PolicyKey(subject.identity, remote, port, prefix, protocol, direction)
        self.put("policy", {key: PolicyRow(verdict)})

    def service(
        self,
        backends: Iterable[tuple[Endpoint, int]],
        protocol: int,
        port: int = 80,
        *,
        frontend: Endpoint = FRONTEND,
        row: ServiceRow = CLUSTER_IP,
        scope: int = abi.SERVICE_SCOPE_INTERNAL,
    ) -> None:
        """frontend:port of the node's family, with these backends; `row` tells all but their number."""
        found = list(backends)
        rows = {
            BackendKey(row.backend_set, i): BackendRow(_bytes(each.address(self.family)), to, 0)
            for i, (each, to) in enumerate(found)
        }
        self.put("backends", rows)
        key = ServiceKey(_bytes(frontend.address(self.family)), port, protocol, scope)
        self.put("services", {key: row._replace(count=len(found))})

    def frame(
        self, source: Endpoint, dest: Endpoint, segment: bytes, protocol: int | None = None, **named: Any
    ) -> bytes:
        """A frame of the node's family as `source` sends it to its gateway."""
        named.setdefault("source_mac", source.mac)
        named.setdefault("dest_mac", source.host_mac)
        ends = source.address(self.family), dest.address(self.family)
        return packets.frame(*ends, self.protocol if protocol is None else protocol, segment, **named)

    def send(self, source: Endpoint, raw: bytes) -> PacketRun:
        """The endpoint sends a frame: from_endpoint."""
        self.device(source)
        return self.run("from_endpoint", raw)

    def deliver(self, dest: Endpoint, raw: bytes) -> PacketRun:
        """The node's stack sends a frame to the endpoint: to_endpoint."""
        self.device(dest)
        return self.run("to_endpoint", raw)

    def receive(self, raw: bytes) -> PacketRun:
        """A frame comes in from the network: from_network."""
        return self.run("from_network", raw)

    def run(self, program: str, raw: bytes) -> PacketRun:
        """Runs a program on a frame, as the rows are."""
        return self._loaded.test_run(program, raw)

    def run_summed(self, program: str, raw: bytes) -> int:
        """Runs it on a frame whose sum the device has computed (CHECKSUM_COMPLETE); the errno, or 0.

        EBADMSG: the program left a sum that does not fit the packet any more. EINVAL: this kernel cannot tell.
        """
        out = ctypes.create_string_buffer(len(raw) + 512)
        given = ctypes.create_string_buffer(raw, len(raw))
        attr = struct.pack(
            "=IIIIQQIIIIQQIIII", self._loaded.programs[program].fd, 0, len(raw), len(out), ctypes.addressof(given),
            ctypes.addressof(out), 1, 0, 0, 0, 0, 0, TEST_SUMMED, 0, 0, 0,
        )  # fmt: skip
        number = libbpf.SYSCALL_NUMBERS[platform.machine()]
        libc = ctypes.CDLL(None, use_errno=True)
        result = libc.syscall(number, uapi.PROG_TEST_RUN, ctypes.create_string_buffer(attr, len(attr)), len(attr))
        return ctypes.get_errno() if result < 0 else 0

    def repeat(self, program: str, raw: bytes, times: int) -> None:
        """Runs a packet that the program leaves as it is, so many times."""
        self._loaded.test_run(program, raw, repeat=times)

    def program_fd(self, program: str) -> int:
        """The program itself, for whoever runs packets otherwise."""
        return self._loaded.programs[program].fd

    def entries(self) -> list[conntrack.ConntrackEntry]:
        """All conntrack entries, in the order of their keys."""
        return [conntrack.decode_entry(*each) for each in sorted(self.maps["conntrack"].dump().items())]

    def put_entry(self, entry: conntrack.ConntrackEntry) -> None:
        """Writes a conntrack entry back."""
        failures = self.maps["conntrack"].put([conntrack.encode_entry(entry)])
        assert not failures, failures

    def expire(self) -> None:
        """Makes every conntrack entry's time pass."""
        for entry in self.entries():
            self.put_entry(entry._replace(row=entry.row._replace(expires_ns=1)))

    def is_dropped(self, run: PacketRun, reason: int) -> bool:
        """Whether the packet was dropped, and told so once with this reason. Takes the notifications."""
        return run.retval == SHOT and self.drops() == [reason]

    def packets_counted(self, reason: int, direction: int) -> tuple[int, int]:
        """Packets and bytes under a reason and direction, of all CPUs."""
        value = self.maps["metrics"].lookup(struct.pack("=I", reason << 2 | direction))
        assert value is not None
        counted = list(struct.iter_unpack("=QQ", value))
        return sum(packets for packets, _ in counted), sum(size for _, size in counted)

    def notifications(self) -> list[Notification]:
        """What the programs told since the last call."""
        return decode_records(self._ring.read().tobytes())

    def drops(self) -> list[int]:
        """Reasons of the drops told since the last call."""
        return [each.drop_reason for each in self.notifications() if each.type == abi.NOTIFICATION_DROP]

    def __enter__(self) -> Self:
        self._ring = RingReader(os.dup(self.maps["notifications"].fd), STRUCTS["notification"])
        return self

    def __exit__(self, *_: object) -> None:
        self._ring.close()
        self._loaded.close()


def load(path: Path, **constants: int | bytes) -> Node:
    """A node whose programs are this object's."""
    return Node(loaded(path, **constants))


def loaded(path: Path, **constants: int | bytes) -> Loaded:
    """The object with small maps of its own."""
    return load_private(path, {"config_underlay_ifindex": UNDERLAY, **constants}, _sizes(path))


def _sizes(path: Path) -> dict[str, int]:
    # Not every object has every map.
    elf = path.read_bytes()
    return {name: count for name, count in MAX_ENTRIES.items() if f"\0{name}\0".encode() in elf}


def _bytes(address: str) -> bytes:
    return codec.address_bytes(address)
