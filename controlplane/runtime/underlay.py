"""What a node's agent must know about the machine it runs on: its network namespace and the device to other nodes.

Belongs here: entering the namespace, finding the device, reading its facts. Does not belong here: changing anything.
"""

import fcntl
import ipaddress
import socket
import struct
import sys
from pathlib import Path

import msgspec

from controlplane.model import Device
from datapath.errors import KernelError
from datapath.kernel import netlink

SIOCGIFADDR = 0x8915
SIOCGIFMTU = 0x8921
SIOCGIFHWADDR = 0x8927
SO_NETNS_COOKIE = 71
"""Linux 5.14; the socket module has no name for it."""
NET = Path("/proc/thread-self/net")
"""Of the calling thread's namespace, unlike /sys/class/net, which shows the namespace of its mount."""

LOCAL_PORTS = Path("/proc/sys/net/ipv4/ip_local_port_range")
"""Of both families, and of the calling thread's namespace."""
SCOPE_GLOBAL = "00"
ROUTE_FLAG_UP = 1


class UnderlayError(Exception):
    """The device cannot be used; names the flag to set."""


class Underlay(msgspec.Struct, frozen=True):
    """The device that leads to the other nodes, and the node's addresses on it."""

    device: Device
    addresses: tuple[str, ...]
    mtu_bytes: int
    local_ports: tuple[int, int] = (32768, 60999)
    """First and last port that the node's own stack hands out; the kernel's default."""
    netns_cookie: int = 0
    """The kernel's name for the node's network namespace; 0 where it is not known."""


def enter_netns(path: str) -> None:
    """Move this process into a namespace; call it before any thread is started. Raises UnderlayError."""
    try:
        netlink.enter_netns(path)
    except KernelError as error:
        raise UnderlayError(f"--netns: {error}") from None


def find_underlay(name: str) -> Underlay:
    """The facts of the device called so; of the default route's device for "". Raises UnderlayError."""
    chosen = name or _default_device()
    if not chosen:
        raise UnderlayError(
            "there is no default route to find the device of other nodes by; name it with --device"
        )
    try:
        ifindex = socket.if_nametoindex(chosen)
    except OSError:
        here = ", ".join(sorted(device for _, device in socket.if_nameindex()))
        raise UnderlayError(f"--device: there is no device {chosen!r} here; there are: {here}") from None
    addresses = tuple(address for address in (_ipv4(chosen), _ipv6(chosen)) if address)
    if not addresses:
        raise UnderlayError(f"--device: {chosen!r} has no address by which other nodes could reach this one")
    mac = ":".join(f"{octet:02x}" for octet in _ask(chosen, SIOCGIFHWADDR)[18:24])
    mtu_bytes = struct.unpack_from("=i", _ask(chosen, SIOCGIFMTU), 16)[0]
    return Underlay(Device(chosen, ifindex, mac), addresses, mtu_bytes, _local_ports(), _netns_cookie())


def _ask(device: str, request: int) -> bytes:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as asking:
        return fcntl.ioctl(asking, request, struct.pack("256s", device.encode()))


def _ipv4(device: str) -> str:
    try:
        return socket.inet_ntoa(_ask(device, SIOCGIFADDR)[20:24])
    except OSError:
        return ""


def _ipv6(device: str) -> str:
    """The lowest global address: the same one after every restart."""
    found = []
    for line in _lines("if_inet6"):
        address, _, _, scope, _, name = line.split()
        if name == device and scope == SCOPE_GLOBAL:
            found.append(ipaddress.IPv6Address(bytes.fromhex(address)))
    return str(min(found)) if found else ""


def _local_ports() -> tuple[int, int]:
    first, last = LOCAL_PORTS.read_text().split()
    return int(first), int(last)


def _netns_cookie() -> int:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as asking:
        return int.from_bytes(asking.getsockopt(socket.SOL_SOCKET, SO_NETNS_COOKIE, 8), sys.byteorder)


def _default_device() -> str:
    for line in _lines("route")[1:]:
        device, target, _, flags, *_, mask, _, _, _ = line.split()
        if target == mask == "00000000" and int(flags, 16) & ROUTE_FLAG_UP:
            return device
    for line in _lines("ipv6_route"):
        fields = line.split()
        if fields[1] == "00" and fields[9] != "lo" and int(fields[8], 16) & ROUTE_FLAG_UP:
            return fields[9]
    return ""


def _lines(name: str) -> list[str]:
    try:
        return (NET / name).read_text().splitlines()
    except FileNotFoundError:
        return []
