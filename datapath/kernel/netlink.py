"""The kernel's network objects: endpoint devices, routes and neighbours, in the caller's network namespace.

Belongs here: every use of pyroute2, clsact filters too, and the mark by which ours are told from others'. Does
not belong here: which routes there should be, and who gets which device. Addresses are the 16 bytes of
datapath/tables.py.

Ours are: routes and permanent neighbours with protocol number 77 ("M", unused in /etc/iproute2/rt_protos),
devices whose ifalias begins with "meshlog:", and clsact filters whose name does. Nothing else is changed or
removed.

Each Netlink has a thread that lives in its namespace: entering one by thread costs 0.1 ms, by process 5. What is
written or read often goes by rtnetlink.py, the rest by pyroute2 in that thread. There runs a plain event loop,
whatever the policy of the program is: pyroute2 needs one.
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

from datapath.codec import address_text, prefix_text
from datapath.errors import KernelError, NotRoot
from datapath.kernel import libbpf, rtnetlink, uapi
from datapath.tables import IPV4_PREFIX, NO_ADDRESS, NeighbourKey, NeighbourRow, RouteKey, RouteRow

PROTOCOL = 77
MAIN_TABLE = 254
SCOPE_UNIVERSE, SCOPE_LINK, SCOPE_ANY = 0, 253, 255
ALIAS_PREFIX = "meshlog:"
DEVICE_PREFIX = "ml"
DEVICE_NAME_CHARACTERS_MAX = 15
CLSACT_PARENTS = {"ingress": 0xFFFFFFF2, "egress": 0xFFFFFFF3}
FILTER_PREFIX = "meshlog:"
FILTER_PRIORITY, FILTER_HANDLE = 1, PROTOCOL
"""Our place among the filters of a hook: the first, as one before ours could let packets by; and the same at
every start."""

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
        self._clsact_made: set[int] = set()
        self._opened: tuple[asyncio.AbstractEventLoop, Any] | None = None
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
            enter_netns(netns_path)
        self._requests = rtnetlink.Requests()

    def _close(self) -> None:
        self._requests.close()
        if self._opened is not None:
            loop, route = self._opened
            route.close()
            loop.close()

    def _call(self, function: Callable[..., Result], *arguments: Any) -> Result:
        """Calls in the namespace's thread."""
        return self._thread.submit(function, *arguments).result()

    def _request(self, method: str, arguments: tuple[Any, ...], named: dict[str, Any]) -> list[Any]:
        if self._opened is None:
            plain = asyncio.SelectorEventLoop()
            self._opened = plain, plain.run_until_complete(_open_route())
        loop, route = self._opened
        return loop.run_until_complete(_collect(getattr(route, method)(*arguments, **named)))

    # The node

    def configure_node(self) -> None:
        """Lets the node forward, which bpf_fib_lookup needs too, and sets the loopback device up."""
        self.set_sysctls(NODE_SYSCTLS)
        require("set up lo", self._requests.set_up(self.device_ifindex("lo")))

    def set_sysctls(self, values: dict[str, str]) -> None:
        """See write_sysctls; of this namespace."""
        self._call(write_sysctls, values)

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
            code = self._requests.create_pair(name, host_mac, mtu, fd, pod_ifname, mac)
            require(f"create {name}", code)
        finally:
            os.close(fd)
        ifindex = self.device_ifindex(name)
        self.set_sysctls({f"ipv6/conf/{name}/{key}": value for key, value in QUIET_IPV6.items()})
        require(f"set up {name}", self._requests.set_up(ifindex, ALIAS_PREFIX + owner))
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
        for ifindex, held in self._requests.links():
            name, alias = _text(held[rtnetlink.NAME]), _text(held.get(rtnetlink.ALIAS, b""))
            if name.startswith(prefix) and alias.startswith(ALIAS_PREFIX):
                mtu = int.from_bytes(held[rtnetlink.MTU], sys.byteorder)
                owner = alias.removeprefix(ALIAS_PREFIX)
                devices.append(Device(name, ifindex, held[rtnetlink.MAC], owner, mtu))
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
            any_address = bytes(4 if family == socket.AF_INET else 16)
            for length, held in self._requests.routes(family, PROTOCOL):
                address = tables_address(held.get(rtnetlink.PREFIX, any_address))
                gateway = held.get(rtnetlink.GATEWAY)
                key = RouteKey(length + (96 if family == socket.AF_INET else 0), address)
                ifindex = int.from_bytes(held.get(rtnetlink.DEVICE, b""), sys.byteorder)
                rows[key] = RouteRow(ifindex, tables_address(gateway) if gateway else NO_ADDRESS)
        return rows

    def put_route(self, key: RouteKey, row: RouteRow) -> int:
        """Makes or replaces a route of ours; the errno, or 0. EEXIST: one of another owner is there."""
        address, skipped = kernel_address(key.address)
        gateway = b"" if row.gateway == NO_ADDRESS else kernel_address(row.gateway)[0]
        scope = SCOPE_LINK if skipped and not gateway else SCOPE_UNIVERSE
        wanted = address, key.prefix_length - skipped, row.ifindex, gateway, scope, PROTOCOL
        code = self._requests.put_route(rtnetlink.CREATE | rtnetlink.EXCLUSIVE, *wanted)
        if code == errno.EEXIST:
            held = self.dump_routes().get(key)
            if held == row:
                return 0
            if held is not None:
                return self._requests.put_route(rtnetlink.CREATE | rtnetlink.REPLACE, *wanted)
        return code

    def delete_route(self, key: RouteKey) -> int:
        """Removes a route of ours; the errno, or 0. What is absent is no failure."""
        code = self._try("route", "del", scope=SCOPE_ANY, **_route_arguments(key))
        return 0 if code in (errno.ESRCH, errno.ENODEV) else code

    # Neighbours

    def dump_neighbours(self) -> dict[NeighbourKey, NeighbourRow]:
        """Our permanent neighbours."""
        return {
            NeighbourKey(ifindex, tables_address(held[rtnetlink.NEXT])): NeighbourRow(held[rtnetlink.NEXT_MAC])
            for family in (socket.AF_INET, socket.AF_INET6)
            for ifindex, held in self._requests.neighbours(family, PROTOCOL)
        }

    def put_neighbour(self, key: NeighbourKey, row: NeighbourRow) -> int:
        """Makes or replaces a permanent neighbour; the errno, or 0."""
        return self._requests.put_neighbour(key.ifindex, kernel_address(key.address)[0], row.mac, PROTOCOL)

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
        if ifindex not in self._clsact_made and self._requests.add_clsact(ifindex) == 0:
            self._clsact_made.add(ifindex)
        if ifindex in self._clsact_made:
            code = self._set_filter(rtnetlink.EXCLUSIVE, ifindex, hook, name, program_fd)
            if code != errno.EEXIST:
                return code
        held = self._filter(ifindex, hook)
        if held is not None:
            if not _is_our_filter(held):
                return errno.EEXIST
            if _filter_program_id(held) == program_id:
                return 0
            return self._set_filter(rtnetlink.REPLACE, ifindex, hook, name, program_fd)
        code = self._requests.add_clsact(ifindex)
        if code == errno.EEXIST and ifindex in self._clsact_ifindexes():
            code = 0
        return code or self._set_filter(rtnetlink.EXCLUSIVE, ifindex, hook, name, program_fd)

    def delete_filter(self, ifindex: int, hook: str) -> int:
        """Removes a filter of ours; the errno, or 0. What is absent is no failure."""
        held = self._filter(ifindex, hook)
        if held is None or not _is_our_filter(held):
            return 0
        code = self._try("tc", "del-filter", "bpf", **_filter_place(ifindex, hook))
        return 0 if code in (errno.ENOENT, errno.ENODEV) else code

    def _set_filter(self, how: int, ifindex: int, hook: str, name: str, program_fd: int) -> int:
        return self._requests.put_filter(
            rtnetlink.CREATE | how, ifindex, CLSACT_PARENTS[hook], FILTER_PRIORITY, FILTER_HANDLE,
            FILTER_PREFIX + name, program_fd,
        )  # fmt: skip

    def _filter(self, ifindex: int, hook: str) -> rtnetlink.Attributes | None:
        """The options of the program at our place of a hook, whoever's; empty for what is no program."""
        for priority, handle, options in self._requests.filters(ifindex, CLSACT_PARENTS[hook]):
            if (priority, handle) == (FILTER_PRIORITY, FILTER_HANDLE):
                return options
        return None

    def _clsact_ifindexes(self) -> list[int]:
        return sorted(ifindex for ifindex, kind in self._requests.qdiscs() if kind == "clsact")

    def _ask(self, what: str, method: str, *arguments: Any, **named: Any) -> list[Any]:
        """A request that must succeed; what it answers."""
        try:
            return self._call(self._request, method, arguments, named)
        except _Refused as error:
            require(what, error.code)
            raise

    def _try(self, method: str, *arguments: Any, **named: Any) -> int:
        """A request that may fail: the errno, or 0."""
        try:
            self._call(self._request, method, arguments, named)
        except _Refused as error:
            return error.code
        return 0


class _Refused(Exception):
    """The kernel's answer to a request of pyroute2."""

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


# pyroute2 takes 80 ms to import, and an agent starts without it: only what is rare goes through it.


async def _open_route() -> Any:
    from pyroute2 import AsyncIPRoute

    route = AsyncIPRoute()
    await route.setup_endpoint()
    return route


async def _collect(request: Any) -> list[Any]:
    from pyroute2.netlink.exceptions import NetlinkError

    try:
        answer = await request
        return [each async for each in answer] if hasattr(answer, "__aiter__") else list(answer)
    except NetlinkError as error:
        raise _Refused(int(error.code)) from error


def require(what: str, code: int) -> None:
    """Raises KernelError, NotRoot for an errno that is not 0."""
    if code == errno.EPERM and libbpf.lacks_privilege():
        raise NotRoot(f"netlink: {what}: needs root (CAP_NET_ADMIN)")
    if code:
        raise KernelError(f"netlink: {what}: {uapi.describe(code)}", code)


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


def enter_netns(path: str) -> None:
    """Moves the calling thread into the namespace at a path. Raises KernelError."""
    fd = open_netns(path)
    try:
        libbpf.enter_netns(fd)
    finally:
        os.close(fd)


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
        "protocol": rtnetlink.PROTOCOL_ALL,
    }  # fmt: skip


def _is_our_filter(options: rtnetlink.Attributes) -> bool:
    return _text(options.get(rtnetlink.PROGRAM_NAME, b"")).startswith(FILTER_PREFIX)


def _filter_program_id(options: rtnetlink.Attributes) -> int:
    flags = int.from_bytes(options.get(rtnetlink.PROGRAM_FLAGS, b""), sys.byteorder)
    is_direct = flags & rtnetlink.DIRECT_ACTION
    return int.from_bytes(options.get(rtnetlink.PROGRAM_ID, b""), sys.byteorder) if is_direct else 0


def is_ipv4(address: bytes) -> bool:
    return address.startswith(IPV4_PREFIX)


def kernel_address(address: bytes) -> tuple[bytes, int]:
    """As the kernel wants it, 4 or 16 bytes, and how many bits of the 128-bit form it leaves out."""
    return (address[12:], 96) if is_ipv4(address) else (address, 0)


def tables_address(address: bytes) -> bytes:
    """The 16 bytes of datapath/tables.py, of what the kernel gives."""
    return IPV4_PREFIX + address if len(address) == 4 else address


def _text(value: bytes) -> str:
    return value.rstrip(b"\0").decode(errors="replace")


def _family(address: bytes) -> int:
    return socket.AF_INET if is_ipv4(address) else socket.AF_INET6
