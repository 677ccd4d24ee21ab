"""The device that wraps packets for other nodes: VXLAN or Geneve, whose keys the programs set.

Belongs here: making it, finding it again after a restart, removing it. Does not belong here: whether there should be
one, and what runs on it. Every call blocks. The network namespace is that of the thread that calls.
"""

import errno
import socket
import sys
from typing import NamedTuple, Self

from datapath.errors import FeatureUnsupported
from datapath.kernel import netlink, rtnetlink

PREFIX = "mesh_"
"""Of the device's name, which ends with its kind."""

MINIMUM_KERNEL = "4.3"
"""The first whose tunnels take their keys from programs; an older one that has the device at all refuses the option."""


class TunnelDevice(NamedTuple):
    """What stands in the namespace; `mac` is text."""

    ifname: str
    ifindex: int
    mac: str


class TunnelDevices:
    """The tunnel devices of ours in one namespace: at most one of each kind. A context manager."""

    def __init__(self) -> None:
        self._requests = rtnetlink.Requests()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._requests.close()

    def ensure(self, kind: str, port: int, mtu: int, owner: str) -> TunnelDevice:
        """The device of this kind and UDP port, up; made where it is missing, and made anew where ours is another.

        Raises FeatureUnsupported where the kernel lacks the kind, KernelError EEXIST where the name is another's, or
        EADDRINUSE where the port is.
        """
        name, form = PREFIX + kind, rtnetlink.TUNNEL_FORMS[kind]
        for found in self._ours():
            if found.ifname == name and found.options == (kind, port, True):
                if found.mtu != mtu:
                    netlink.require(f"MTU of {name}", self._requests.set_mtu(found.ifindex, mtu))
                return TunnelDevice(name, found.ifindex, found.mac)
        self.remove()
        code = self._requests.create_tunnel(name, form, port, mtu)
        if code == errno.EOPNOTSUPP:
            raise FeatureUnsupported(f"{kind} devices (CONFIG_{kind.upper()})", MINIMUM_KERNEL)
        netlink.require(f"create {name}", code)
        ifindex = socket.if_nametoindex(name)
        netlink.write_sysctls({f"ipv6/conf/{name}/{key}": value for key, value in netlink.QUIET_IPV6.items()})
        netlink.require(f"set up {name}", self._requests.set_up(ifindex, netlink.ALIAS_PREFIX + owner))
        (made,) = (each for each in self._ours() if each.ifindex == ifindex)
        return TunnelDevice(name, ifindex, made.mac)

    def remove(self, but: str = "") -> list[str]:
        """Removes those of ours, all but the one of this name; the names of those that went."""
        gone = []
        for found in self._ours():
            if found.ifname != but:
                code = self._requests.delete_link(found.ifindex)
                if code != errno.ENODEV:
                    netlink.require(f"delete {found.ifname}", code)
                gone.append(found.ifname)
        return gone

    def _ours(self) -> list["_Found"]:
        found = []
        for ifindex, held in self._requests.links():
            name = held[rtnetlink.NAME].rstrip(b"\0").decode()
            alias = held.get(rtnetlink.ALIAS, b"").decode(errors="replace")
            if name.startswith(PREFIX) and alias.startswith(netlink.ALIAS_PREFIX) and rtnetlink.LINK_INFO in held:
                found.append(
                    _Found(
                        name,
                        ifindex,
                        held[rtnetlink.MAC].hex(":"),
                        int.from_bytes(held[rtnetlink.MTU], sys.byteorder),
                        rtnetlink.tunnel_options(held[rtnetlink.LINK_INFO]),
                    )
                )
        return found


class _Found(NamedTuple):
    """`options`: kind, port, and whether programs set its keys."""

    ifname: str
    ifindex: int
    mac: str
    mtu: int
    options: tuple[str, int, bool]
