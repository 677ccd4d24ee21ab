"""Two endpoints of one node whose sockets may be joined: namespaces, programs, rows, and connections between them.

Belongs here: making them, and what was counted. Does not belong here: what should come of a connection.
"""

import socket
import struct
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from datapath import codec, conntrack
from datapath.abi import types as abi
from datapath.kernel.real import RealKernel
from datapath.notifications import Notification, decode_records
from datapath.tables import (
    NO_ADDRESS,
    AttachmentKey,
    AttachmentRow,
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
    PolicySubjectKey,
    PolicySubjectRow,
    ServiceKey,
    ServiceRow,
    SocketHookKey,
    SocketHookRow,
)
from tests.bpf.node import CLIENT, FRONTEND, SERVER, Endpoint
from tests.bpf.sockets import BACKEND_PORT, FAMILIES, PORT, TIMEOUT_S, Maker
from tests.bpf.test_wire import GATEWAY, ifindex, mac_text
from tests.conftest import Namespace

DEVICES = {CLIENT: "lxc1", SERVER: "lxc2"}
STREAM = socket.SOCK_STREAM
HOOK = SocketHookKey("sockops")


class Neighbours:
    """CLIENT and SERVER, their node, and its cgroup."""

    def __init__(
        self, make: Callable[[], Namespace], bpffs: Path, objects_dir: Path, cgroup: Path, stack: ExitStack
    ) -> None:
        self.node, self.cgroup = make(), cgroup
        self.namespaces = {CLIENT: make(), SERVER: make()}
        self._pin_root, self._objects_dir, self._stack = bpffs / "meshlog" / "n1", objects_dir, stack
        for endpoint, device in DEVICES.items():
            self._plug(endpoint, device)
        self.makers = {
            endpoint: stack.enter_context(Maker(namespace, cgroup)) for endpoint, namespace in self.namespaces.items()
        }
        self.kernel = self.open()
        self.epoch = 1
        self._counted_before: dict[int, tuple[int, int]] = {}

    def begin(self, stack: ExitStack) -> None:
        """Rows as they are at first, and no connection; those that are made go with `stack`."""
        self._stack = stack
        maps = self.kernel.objects.maps
        for name in ("conntrack", "socket_ends"):
            maps[name].delete(list(maps[name].dump()))
        self.rows()
        self.hook()
        self.notifications()
        self._counted_before = {reason: self._counted(reason) for reason in (abi.FORWARDED_AT_SOCKET, abi.SOCKETS_FULL)}

    def _plug(self, endpoint: Endpoint, device: str) -> None:
        place = self.namespaces[endpoint]
        self.node.run("ip", "link", "add", device, "type", "veth", "peer", "name", "eth0", "netns", place.name)
        self.node.run("ip", "link", "set", device, "address", mac_text(endpoint.host_mac), "up")
        place.run("ip", "link", "set", "lo", "up")
        place.run("ip", "link", "set", "eth0", "address", mac_text(endpoint.mac), "up")
        for family in FAMILIES:
            place.add_address(endpoint.address(family), "eth0")
            link = ("lladdr", mac_text(endpoint.host_mac), "dev", "eth0", "nud", "permanent")
            place.run("ip", f"-{family}", "neigh", "add", GATEWAY[family], *link)
            onlink = ("via", GATEWAY[family], "dev", "eth0", "onlink")
            place.run("ip", f"-{family}", "route", "add", "default", *onlink)

    def open(self, **constants: int | bytes) -> RealKernel:
        """As a new agent does; the caller closes the one before."""
        self.kernel = RealKernel(
            self._pin_root, self._objects_dir, 0, constants=constants, joining_cgroup=str(self.cgroup)
        )
        self.node.call(self.kernel.open)
        return self.kernel

    def reopen(self, **constants: int | bytes) -> None:
        """A restart, perhaps with other constants."""
        self.kernel.close()
        self.open(**constants)

    def put(self, table: str, rows: Mapping[Any, Any]) -> None:
        failures = self.node.call(self.kernel.put, table, list(codec.encode_rows(table, rows).items()))
        assert not failures, failures

    def rows(self) -> None:
        """Everything that the node knows; a frontend of SERVER among it."""
        for number, (endpoint, device) in enumerate(DEVICES.items(), 1):
            index = ifindex(self.node, device)
            ends = [codec.address_bytes(endpoint.address(family)) for family in (4, 6)]
            self.put("devices", {DeviceKey(index): DeviceRow(*ends, endpoint.identity, number, endpoint.mac)})
            self.put("ipcache", {IpcacheKey(128, end): IpcacheRow(NO_ADDRESS, endpoint.identity, 0) for end in ends})
            self.endpoint(endpoint, abi.ENDPOINT_JOINED)
            self.subject(endpoint)
            programs = {"ingress": "from_endpoint", "egress": "to_endpoint"}
            self.put(
                "attachments",
                {AttachmentKey(index, hook): AttachmentRow(program) for hook, program in programs.items()},
            )
        for family in (4, 6):
            backend = BackendRow(codec.address_bytes(SERVER.address(family)), BACKEND_PORT, 0)
            self.put("backends", {BackendKey(family, 0): backend})
            key = ServiceKey(codec.address_bytes(FRONTEND.address(family)), PORT, socket.IPPROTO_TCP)
            self.put("services", {key: ServiceRow(family, 1, abi.SERVICE_CLUSTER_IP)})
        self.move_epoch()

    def hook(self) -> None:
        """Sockets that are made from now on are joined."""
        self.put("socket_hooks", {HOOK: SocketHookRow("socket_life", str(self.cgroup))})

    def unhook(self) -> None:
        """No more."""
        failures = self.node.call(self.kernel.delete, "socket_hooks", list(self.kernel.dump("socket_hooks")))
        assert not failures, failures

    def endpoint(self, endpoint: Endpoint, flags: int) -> None:
        """Its addresses, with these flags."""
        number, device = list(DEVICES).index(endpoint) + 1, ifindex(self.node, DEVICES[endpoint])
        row = EndpointRow(device, endpoint.identity, number, flags, endpoint.mac, endpoint.host_mac)
        ends = [codec.address_bytes(endpoint.address(family)) for family in (4, 6)]
        self.put("endpoints", {EndpointKey(end): row for end in ends})

    def subject(self, endpoint: Endpoint, ingress: bool = False, flags: int = 0) -> None:
        """Whether what comes to it needs a row; there is none."""
        self.put(
            "policy_subjects", {PolicySubjectKey(endpoint.identity): PolicySubjectRow(int(ingress), 0, 0, 0, flags)}
        )

    def move_epoch(self) -> None:
        """Some row of a policy has changed."""
        self.epoch += 1
        self.put("node_state", {NodeStateKey(0): NodeStateRow(self.epoch)})

    def connect(
        self, family: int, *, asked: str = "", port: int = BACKEND_PORT, kind: int = 0, bound: int = 0
    ) -> tuple[socket.socket, socket.socket]:
        """Both ends of a new connection; `kind`: the family of the client's socket, if another; `bound`: its port."""
        listening = self.makers[SERVER].socket(family, STREAM)
        with listening:
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listening.bind((SERVER.address(family), BACKEND_PORT))
            listening.listen()
            asking = self.makers[CLIENT].socket(kind or family, STREAM)
            if bound:
                asking.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                asking.bind((CLIENT.address(family), bound))
            asking.connect((asked or SERVER.address(family), port))
            answering, _ = listening.accept()
        answering.settimeout(TIMEOUT_S)
        self._stack.enter_context(asking)
        self._stack.enter_context(answering)
        return asking, answering

    def counted(self, reason: int) -> tuple[int, int]:
        """Messages or sockets, and bytes, that were counted under a reason since the beginning."""
        (count, size), (count_before, size_before) = self._counted(reason), self._counted_before[reason]
        return count - count_before, size - size_before

    def _counted(self, reason: int) -> tuple[int, int]:
        key = struct.pack("=I", reason << 2 | abi.TRAFFIC_EGRESS)
        value = self.kernel.objects.maps["metrics"].lookup(key)
        assert value is not None
        rows = list(struct.iter_unpack("=QQ", value))
        return sum(count for count, _ in rows), sum(size for _, size in rows)

    @property
    def joined(self) -> tuple[int, int]:
        """Messages and bytes that went from socket to socket."""
        return self.counted(abi.FORWARDED_AT_SOCKET)

    def entries(self) -> list[conntrack.ConntrackEntry]:
        """Of conntrack."""
        return [conntrack.decode_entry(*each) for each in self.kernel.dump_runtime("conntrack")]

    def notifications(self) -> list[Notification]:
        """What the programs told since the last call."""
        ring = self.kernel.read_notifications()
        try:
            return decode_records(ring.read().tobytes())
        finally:
            ring.close()

    def impostor(self, make: Callable[[], Namespace], family: int) -> Maker:
        """Another namespace that gives itself both addresses; its sockets are of the same cgroup."""
        place = make()
        place.run("ip", "link", "set", "lo", "up")
        for endpoint in (CLIENT, SERVER):
            place.add_address(endpoint.address(family), "lo")
        return self._stack.enter_context(Maker(place, self.cgroup))

    def close(self) -> None:
        """Links go with the pins, some time later; hence now."""
        for table in ("socket_hooks", "attachments"):
            self.node.call(self.kernel.delete, table, list(self.node.call(self.kernel.dump, table)))
        self.kernel.close()
