"""The inside of an endpoint: what its own network namespace needs to reach the node.

Belongs here: addresses, next hops and default routes of the endpoint's device. Does not belong here: the pair of
devices and the node's side of it (netlink.py), who gets which address. Addresses are the 16 bytes of
datapath/tables.py.
"""

import errno
import socket
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Self

from datapath.codec import address_text
from datapath.errors import KernelError
from datapath.kernel import netlink, rtnetlink

GATEWAY_IPV4 = "169.254.1.1"
GATEWAY_IPV6 = "fe80::1"
"""An endpoint's next hops. No device has these addresses: a permanent neighbour entry leads to the host
side."""

TAKEN_WITHIN_S, LOOK_AGAIN_S = 5.0, 0.001
"""The kernel makes an IPv6 address's own route in a work queue: mostly at once, on a busy machine up to 15 ms later."""


class EndpointSide:
    """The device `ifname` in the namespace at a path, set up at once. Each call raises KernelError, NotRoot."""

    def __init__(self, netns_path: str, ifname: str) -> None:
        self._netns_path, self._ifname = netns_path, ifname
        # A thread that has entered the namespace opens the socket, which then serves any thread.
        with ThreadPoolExecutor(1, thread_name_prefix="endpoint-side") as thread:
            thread.submit(self._open).result()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Lets go of the namespace."""
        self._requests.close()

    def configure(self, addresses: Sequence[bytes], gateway_mac: bytes) -> None:
        """Its addresses (/32 and /128), and default routes by way of a device whose MAC is `gateway_mac`. Returns when
        packets to each address are taken. Can be called again."""
        for address in addresses:
            code = self._requests.put_address(self._ifindex, netlink.kernel_address(address)[0])
            netlink.require(f"address {address_text(address)}", code)
        for gateway, family in ((GATEWAY_IPV4, socket.AF_INET), (GATEWAY_IPV6, socket.AF_INET6)):
            if any(netlink.is_ipv4(address) == (family == socket.AF_INET) for address in addresses):
                self._put_gateway(gateway, family, gateway_mac)
        self._wait_until_taken(addresses)

    def _wait_until_taken(self, addresses: Sequence[bytes]) -> None:
        wanted = {address for address in addresses if not netlink.is_ipv4(address)}
        deadline = time.monotonic() + TAKEN_WITHIN_S
        while wanted and (missing := wanted - self._requests.local_addresses(socket.AF_INET6)):
            if time.monotonic() > deadline:
                texts = ", ".join(map(address_text, sorted(missing)))
                raise KernelError(f"packets to {texts} are not taken after {TAKEN_WITHIN_S:.0f} s", errno.ETIMEDOUT)
            time.sleep(LOOK_AGAIN_S)

    def _put_gateway(self, gateway: str, family: int, mac: bytes) -> None:
        packed = socket.inet_pton(family, gateway)
        code = self._requests.put_neighbour(self._ifindex, packed, mac, netlink.PROTOCOL)
        netlink.require(f"neighbour {gateway}", code)
        flags = rtnetlink.ONLINK if family == socket.AF_INET else 0
        code = self._requests.put_route(
            rtnetlink.CREATE | rtnetlink.REPLACE, bytes(len(packed)), 0, self._ifindex, packed,
            netlink.SCOPE_UNIVERSE, netlink.PROTOCOL, flags,
        )  # fmt: skip
        netlink.require(f"default route by {gateway}", code)

    def _open(self) -> None:
        netlink.enter_netns(self._netns_path)
        netlink.write_sysctls(
            {f"ipv6/conf/{self._ifname}/{key}": value for key, value in netlink.QUIET_IPV6.items()}
        )
        try:
            self._ifindex = socket.if_nametoindex(self._ifname)
        except OSError as error:
            raise KernelError(f"{self._netns_path} has no device {self._ifname}", errno.ENODEV) from error
        self._requests = rtnetlink.Requests()
        try:
            for name in ("lo", self._ifname):
                netlink.require(f"set up {name}", self._requests.set_up(socket.if_nametoindex(name)))
        except BaseException:
            self._requests.close()
            raise
