"""The kernel's network objects: endpoint devices, routes and neighbours, in the caller's network namespace.

Belongs here: every use of pyroute2, clsact filters too, and the mark by which ours are told from others'. Does not belong here:
which routes there should be, and who gets which device. Addresses are the 16 bytes of datapath/tables.py.

Ours are: routes and permanent neighbours with protocol number 77 ("M", unused in /etc/iproute2/rt_protos),
devices whose ifalias begins with "meshlog:", and clsact filters whose name does. Nothing else is changed or
removed.

Each Netlink has a thread that lives in its namespace and owns the sockets: entering one by thread costs 0.1
ms, by process 5. In that thread runs a plain event loop, whatever the policy of the program is: pyroute2
needs one.
"""

import asyncio
import errno
import hashlib
import os
import socket
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from pyroute2 import AsyncIPRoute, netns
from pyroute2.netlink.exceptions import NetlinkError
from pyroute2.protocols import ETH_P_ALL

from datapath.codec import address_bytes, address_text, prefix_text
from datapath.errors import KernelError, NotRoot
from datapath.kernel import libbpf, uapi
from datapath.tables import IPV4_PREFIX, NO_ADDRESS, NeighbourKey, NeighbourRow, RouteKey, RouteRow

PROTOCOL = 77
MAIN_TABLE = 254
SCOPE_UNIVERSE, SCOPE_LINK, SCOPE_ANY = 0, 253, 255
PERMANENT = 0x80
ALIAS_PREFIX = "meshlog:"
DEVICE_PREFIX = "ml"
DEVICE_NAME_CHARACTERS_MAX = 15
GATEWAY_IPV4 = "169.254.1.1"
GATEWAY_IPV6 = "fe80::1"
"""An endpoint's next hops. No device has these addresses: a permanent neighbour entry leads to the host
side."""

CLSACT_PARENTS = {"ingress": 0xFFFFFFF2, "egress": 0xFFFFFFF3}
FILTER_PREFIX = "meshlog:"
FILTER_PRIORITY, FILTER_HANDLE = 1, PROTOCOL
"""Our place among the filters of a hook: the first, as one before ours could let packets by; and the same at
every start."""

FILTER_ID, DIRECT_ACTION = 11, 1
"""TCA_BPF_ID and TCA_BPF_FLAG_ACT_DIRECT of linux/pkt_cls.h."""

NODAD = 0x02
"""IFA_F_NODAD: usable at once. With duplicate detection an address waits 2 s."""

SYSCTL = Path("/proc/sys/net")
NODE_SYSCTLS = {"ipv4/ip_forward": "1", "ipv6/conf/all/forwarding": "1"}
QUIET_IPV6 = {"accept_ra": "0", "addr_gen_mode": "1", "dad_transmits": "0"}
"""addr_gen_mode 1: no link-local address of the kernel's own, so that nothing unknown is ever sent from
one."""

Result = TypeVar("Result")


class DeviceFacts(NamedTuple):
    """An endpoint's veth pair, seen from the node: `mac` is of the endpoint's side, `host_mac` of the
    node's."""

    ifname: str
    ifindex: int
    mac: bytes
    host_mac: bytes


class Device(NamedTuple):
    """A device of ours in this namespace; `owner` is the ifalias after "meshlog:", such as
    "node-1:default/web"."""

    ifname: str
    ifindex: int
    host_mac: bytes
    owner: str
    mtu: int


class Filter(NamedTuple):
    """A clsact filter of ours. `program_id` is what the kernel says, 0 where the program's word would not
    count."""

    ifindex: int
    hook: str
    program_id: int


def device_name(key: str) -> str:
    """The host side's name for an endpoint key: "ml" and 10 hex digits. The same key gives the same name."""
    return DEVICE_PREFIX + hashlib.sha256(key.encode()).hexdigest()[:10]


def device_mac(ifname: str, side: str) -> bytes:
    """A locally administered address for one side ("host" or "endpoint") of a pair; the same for the same
    name."""
    return b"\x02" + hashlib.sha256(f"{ifname} {side}".encode()).digest()[:5]


class Netlink:
    """The door to a network namespace: the one at `netns_path`, or the one that the calling thread is in.

    May be called from any thread; calls wait for one another. Each raises KernelError, NotRoot.
    """

    def __init__(self, netns_path: str | None = None) -> None:
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="netlink")
        try:
            self._call(self._open, netns_path)
        except BaseException:
            self._thread.shutdown()
            raise

    def close(self) -> None:
        """Lets go of the sockets and ends the thread."""
        self._call(self._close)
        self._thread.shutdown()

    def _open(self, netns_path: str | None) -> None:
        if netns_path is not None:
            fd = open_netns(netns_path)
            try:
                netns.setns(fd)
            finally:
                os.close(fd)
        self._loop = asyncio.SelectorEventLoop()
        self._route = self._loop.run_until_complete(_open_route())

    def _close(self) -> None:
        self._route.close()
        self._loop.close()

    def _call(self, function: Callable[..., Result], *arguments: Any) -> Result:
        """Calls in the namespace's thread."""
        return self._thread.submit(function, *arguments).result()

    def _request(self, method: str, arguments: tuple[Any, ...], named: dict[str, Any]) -> list[Any]:
        return self._loop.run_until_complete(_collect(getattr(self._route, method)(*arguments, **named)))

    # The node

    def configure_node(self) -> None:
        """Lets the node forward, which bpf_fib_lookup needs too, and sets the loopback device up."""
        self._call(write_sysctls, NODE_SYSCTLS)
        self._ask("set up lo", "link", "set", index=self.device_ifindex("lo"), state="up")

    # Devices

    def create_endpoint_device(
        self, name: str, pod_netns_path: str, pod_ifname: str, mtu: int, owner: str
    ) -> DeviceFacts:
        """A veth pair, up at the node's side: `name` here, `pod_ifname` in the other namespace.

        `owner`, such as "node-1:default/web", is written to the device, so that a later run knows whose it
        is. Raises KernelError with errno EEXIST where a device of either name is there.
        """
        if len(name) > DEVICE_NAME_CHARACTERS_MAX or not name.startswith(DEVICE_PREFIX):
            raise KernelError(
                f"device name {name!r}: must begin with {DEVICE_PREFIX} "
                f"and have up to {DEVICE_NAME_CHARACTERS_MAX} characters",
                errno.EINVAL,
            )
        mac, host_mac = device_mac(name, "endpoint"), device_mac(name, "host")
        fd = open_netns(pod_netns_path)
        try:
            other_side = {"ifname": pod_ifname, "net_ns_fd": fd, "address": _mac_text(mac), "mtu": mtu}
            self._ask(
                f"create {name}", "link", "add",
                ifname=name, kind="veth", address=_mac_text(host_mac), mtu=mtu, peer=other_side,
            )  # fmt: skip
        finally:
            os.close(fd)
        ifindex = self.device_ifindex(name)
        self._call(write_sysctls, {f"ipv6/conf/{name}/{key}": value for key, value in QUIET_IPV6.items()})
        alias = ALIAS_PREFIX + owner
        self._ask(f"set up {name}", "link", "set", index=ifindex, ifalias=alias, state="up")
        return DeviceFacts(name, ifindex, mac, host_mac)

    def delete_device(self, name: str) -> bool:
        """Removes a device of ours, its other side with it; False if there was none."""
        try:
            found = self._ask(f"get {name}", "link", "get", ifname=name)
        except KernelError as error:
            if error.errno == errno.ENODEV:
                return False
            raise
        if not (found[0].get("ifalias") or "").startswith(ALIAS_PREFIX):
            return False
        code = self._try("link", "del", index=found[0]["index"])
        if code not in (0, errno.ENODEV):
            raise libbpf.kernel_error("netlink: delete", name, code)
        return code == 0

    def list_devices(self, prefix: str = DEVICE_PREFIX) -> list[Device]:
        """Devices of ours whose names begin with `prefix`."""
        devices = []
        for link in self._ask("list devices", "get_links"):
            name, alias = link.get("ifname"), link.get("ifalias") or ""
            if name.startswith(prefix) and alias.startswith(ALIAS_PREFIX):
                owner = alias.removeprefix(ALIAS_PREFIX)
                devices.append(
                    Device(name, link["index"], _mac_bytes(link.get("address")), owner, link.get("mtu"))
                )
        return devices

    def device_ifindex(self, name: str) -> int:
        """The number of any device here, such as the underlay's. Raises KernelError if there is none."""
        try:
            return self._call(socket.if_nametoindex, name)
        except OSError as error:
            raise KernelError(f"this network namespace has no device {name}", errno.ENODEV) from error

    # Routes

    def dump_routes(self) -> dict[RouteKey, RouteRow]:
        """Our routes of the main table."""
        rows = {}
        for family in (socket.AF_INET, socket.AF_INET6):
            for route in self._ask("list routes", "get_routes", family=family, table=MAIN_TABLE):
                if route["proto"] == PROTOCOL:
                    length = route["dst_len"] + (96 if family == socket.AF_INET else 0)
                    address = route.get("dst") or ("0.0.0.0" if family == socket.AF_INET else "::")
                    gateway = route.get("gateway")
                    packed_gateway = address_bytes(gateway) if gateway else NO_ADDRESS
                    rows[RouteKey(length, address_bytes(address))] = RouteRow(
                        route.get("oif") or 0, packed_gateway
                    )
        return rows

    def put_route(self, key: RouteKey, row: RouteRow) -> int:
        """Makes or replaces a route of ours; the errno, or 0. EEXIST: one of another owner is there."""
        arguments = _route_arguments(key) | {"oif": row.ifindex, "scope": SCOPE_UNIVERSE}
        if row.gateway != NO_ADDRESS:
            arguments["gateway"] = address_text(row.gateway)
        elif _is_ipv4(key.address):
            arguments["scope"] = SCOPE_LINK
        code = self._try("route", "add", **arguments)
        if code == errno.EEXIST:
            held = self.dump_routes().get(key)
            if held == row:
                return 0
            if held is not None:
                return self._try("route", "replace", **arguments)
        return code

    def delete_route(self, key: RouteKey) -> int:
        """Removes a route of ours; the errno, or 0. What is absent is no failure."""
        code = self._try("route", "del", scope=SCOPE_ANY, **_route_arguments(key))
        return 0 if code in (errno.ESRCH, errno.ENODEV) else code

    # Neighbours

    def dump_neighbours(self) -> dict[NeighbourKey, NeighbourRow]:
        """Our permanent neighbours."""
        rows = {}
        for family in (socket.AF_INET, socket.AF_INET6):
            for found in self._ask("list neighbours", "get_neighbours", family=family):
                if found["state"] & PERMANENT and found.get("NDA_PROTOCOL") == PROTOCOL:
                    key = NeighbourKey(found["ifindex"], address_bytes(found.get("dst")))
                    rows[key] = NeighbourRow(_mac_bytes(found.get("lladdr")))
        return rows

    def put_neighbour(self, key: NeighbourKey, row: NeighbourRow) -> int:
        """Makes or replaces a permanent neighbour; the errno, or 0."""
        return self._try(
            "neigh", "replace", family=_family(key.address), dst=address_text(key.address),
            ifindex=key.ifindex, lladdr=_mac_text(row.mac), state=PERMANENT, protocol=PROTOCOL,
        )  # fmt: skip

    def delete_neighbours(self, keys: Sequence[NeighbourKey]) -> list[tuple[NeighbourKey, int]]:
        """Removes neighbours of ours; those that failed, with the errno. What is absent is no failure."""
        failures = []
        held = self.dump_neighbours()
        for key in keys:
            if key in held:
                code = self._try(
                    "neigh", "del", family=_family(key.address), dst=address_text(key.address),
                    ifindex=key.ifindex,
                )  # fmt: skip
                if code not in (0, errno.ENOENT, errno.ENODEV, errno.ENXIO):
                    failures.append((key, code))
        return failures

    # Filters

    def list_filters(self) -> list[Filter]:
        """Our clsact filters of every device."""
        return [
            Filter(ifindex, hook, _filter_program_id(found))
            for ifindex in self._clsact_ifindexes()
            for hook in CLSACT_PARENTS
            if (found := self._filter(ifindex, hook)) is not None and _is_our_filter(found)
        ]

    def put_filter(self, ifindex: int, hook: str, name: str, program_fd: int, program_id: int) -> int:
        """Makes a filter of ours, or puts another program behind it, with no moment without one; the errno, or
        0. EEXIST: one of another owner has our place, or the device has another qdisc there."""
        held = self._filter(ifindex, hook)
        if held is not None:
            if not _is_our_filter(held):
                return errno.EEXIST
            if _filter_program_id(held) == program_id:
                return 0
            return self._set_filter("replace-filter", ifindex, hook, name, program_fd)
        code = self._try("tc", "add", "clsact", index=ifindex)
        if code == errno.EEXIST and ifindex in self._clsact_ifindexes():
            code = 0
        return code or self._set_filter("add-filter", ifindex, hook, name, program_fd)

    def delete_filter(self, ifindex: int, hook: str) -> int:
        """Removes a filter of ours; the errno, or 0. What is absent is no failure."""
        held = self._filter(ifindex, hook)
        if held is None or not _is_our_filter(held):
            return 0
        code = self._try("tc", "del-filter", "bpf", **_filter_place(ifindex, hook))
        return 0 if code in (errno.ENOENT, errno.ENODEV) else code

    def _set_filter(self, how: str, ifindex: int, hook: str, name: str, program_fd: int) -> int:
        return self._try(
            "tc", how, "bpf", fd=program_fd, name=FILTER_PREFIX + name, direct_action=True,
            **_filter_place(ifindex, hook),
        )  # fmt: skip

    def _filter(self, ifindex: int, hook: str) -> Any | None:
        """What is at our place of a hook, whoever's."""
        parent = CLSACT_PARENTS[hook]
        for found in self._ask("list filters", "get_filters", index=ifindex, parent=parent):
            if (found["info"] >> 16, found["handle"]) == (FILTER_PRIORITY, FILTER_HANDLE):
                return found
        return None

    def _clsact_ifindexes(self) -> list[int]:
        qdiscs = self._ask("list qdiscs", "get_qdiscs")
        return sorted(found["index"] for found in qdiscs if found.get_attr("TCA_KIND") == "clsact")

    # Inside an endpoint's namespace

    def configure_endpoint_side(self, ifname: str, addresses: Sequence[bytes], gateway_mac: bytes) -> None:
        """What configure_endpoint does, in the namespace that this thread is in."""
        self._call(write_sysctls, {f"ipv6/conf/{ifname}/{key}": value for key, value in QUIET_IPV6.items()})
        ifindex = self.device_ifindex(ifname)
        self._ask("set up lo", "link", "set", index=self.device_ifindex("lo"), state="up")
        self._ask(f"set up {ifname}", "link", "set", index=ifindex, state="up")
        for address in addresses:
            self._put_endpoint_address(ifindex, address)
        for gateway, is_ipv4 in ((GATEWAY_IPV4, True), (GATEWAY_IPV6, False)):
            if any(_is_ipv4(address) == is_ipv4 for address in addresses):
                self._put_gateway(ifindex, gateway, gateway_mac, is_ipv4)

    def _put_endpoint_address(self, ifindex: int, address: bytes) -> None:
        text = address_text(address)
        ipv6 = {} if _is_ipv4(address) else {"flags": NODAD}
        length = 32 if _is_ipv4(address) else 128
        self._ask(f"address {text}", "addr", "replace", index=ifindex, address=text, prefixlen=length, **ipv6)

    def _put_gateway(self, ifindex: int, gateway: str, mac: bytes, is_ipv4: bool) -> None:
        family = socket.AF_INET if is_ipv4 else socket.AF_INET6
        self._ask(
            f"neighbour {gateway}", "neigh", "replace", family=family, dst=gateway, ifindex=ifindex,
            lladdr=_mac_text(mac), state=PERMANENT, protocol=PROTOCOL,
        )  # fmt: skip
        onlink = {"flags": ["onlink"]} if is_ipv4 else {}
        self._ask(
            f"default route by {gateway}", "route", "replace", family=family,
            dst="0.0.0.0/0" if is_ipv4 else "::/0", gateway=gateway, oif=ifindex, proto=PROTOCOL, **onlink,
        )  # fmt: skip

    def _ask(self, what: str, method: str, *arguments: Any, **named: Any) -> list[Any]:
        """A request that must succeed; what it answers."""
        try:
            return self._call(self._request, method, arguments, named)
        except NetlinkError as error:
            if error.code == errno.EPERM and libbpf.lacks_privilege():
                raise NotRoot(f"netlink: {what}: needs root (CAP_NET_ADMIN)") from error
            raise KernelError(f"netlink: {what}: {uapi.describe(error.code)}", error.code) from error

    def _try(self, method: str, *arguments: Any, **named: Any) -> int:
        """A request that may fail: the errno, or 0."""
        try:
            self._call(self._request, method, arguments, named)
        except NetlinkError as error:
            return int(error.code)
        return 0


async def _open_route() -> AsyncIPRoute:
    route = AsyncIPRoute()
    await route.setup_endpoint()
    return route


async def _collect(request: Any) -> list[Any]:
    answer = await request
    return [each async for each in answer] if hasattr(answer, "__aiter__") else list(answer)


def configure_endpoint(
    pod_netns_path: str, pod_ifname: str, addresses: Sequence[bytes], gateway_mac: bytes
) -> None:
    """Gives an endpoint its addresses (/32 and /128) and default routes, by way of a device whose MAC is
    `gateway_mac`.

    Can be called again. Raises KernelError, NotRoot.
    """
    inside = Netlink(pod_netns_path)
    try:
        inside.configure_endpoint_side(pod_ifname, addresses, gateway_mac)
    finally:
        inside.close()


def write_sysctls(values: dict[str, str]) -> None:
    """Writes settings under /proc/sys/net of the calling thread's namespace; those that hold already are
    left alone.

    IPv6 settings are passed over where IPv6 is off. Raises KernelError.
    """
    for name, value in values.items():
        path = SYSCTL / name
        try:
            if path.read_text().strip() != value:
                path.write_text(value)
        except OSError as error:
            if error.errno == errno.ENOENT and name.startswith("ipv6/"):
                continue
            raise KernelError(
                f"{path} cannot be set to {value}: {error.strerror}", error.errno or 0
            ) from error


def open_netns(path: str) -> int:
    """A descriptor of the namespace at a path. Raises KernelError."""
    try:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise KernelError(f"network namespace {path}: {error.strerror}", error.errno or 0) from error


def _route_arguments(key: RouteKey) -> dict[str, Any]:
    prefix = prefix_text(key.prefix_length, key.address)
    return {"family": _family(key.address), "dst": prefix, "table": MAIN_TABLE, "proto": PROTOCOL}


def _filter_place(ifindex: int, hook: str) -> dict[str, Any]:
    return {
        "index": ifindex, "parent": CLSACT_PARENTS[hook], "handle": FILTER_HANDLE, "prio": FILTER_PRIORITY,
        "protocol": ETH_P_ALL,
    }  # fmt: skip


def _is_our_filter(found: Any) -> bool:
    options = found.get_attr("TCA_OPTIONS")
    if found.get_attr("TCA_KIND") != "bpf" or not options:
        return False
    return (options.get_attr("TCA_BPF_NAME") or "").startswith(FILTER_PREFIX)


def _filter_program_id(found: Any) -> int:
    options = found.get_attr("TCA_OPTIONS")
    if not (options.get_attr("TCA_BPF_FLAGS") or 0) & DIRECT_ACTION:
        return 0
    for attribute in options["attrs"]:
        # pyroute2 has no name for the program's number and keeps its bytes.
        if attribute[0] == "UNKNOWN" and attribute[1]["header"]["type"] == FILTER_ID:
            raw = attribute[1]
            return int.from_bytes(raw.data[raw.offset + 4 : raw.offset + 8], sys.byteorder)
    return 0


def _is_ipv4(address: bytes) -> bool:
    return address.startswith(IPV4_PREFIX)


def _family(address: bytes) -> int:
    return socket.AF_INET if _is_ipv4(address) else socket.AF_INET6


def _mac_text(mac: bytes) -> str:
    return mac.hex(":")


def _mac_bytes(text: str) -> bytes:
    return bytes.fromhex(text.replace(":", ""))
