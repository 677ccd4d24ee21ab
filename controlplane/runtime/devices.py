"""The endpoint devices of this node and its tunnel, off the event loop.

Belongs here: asyncio around datapath/kernel/netlink.py for these devices. Does not belong here: which endpoint gets
which device (endpoints.py).
"""

from collections.abc import Awaitable, Sequence
from typing import Protocol

from controlplane.model import Device
from datapath.codec import address_bytes
from datapath.kernel import netlink
from datapath.kernel.endpoint_side import EndpointSide
from datapath.kernel.tunnels import TunnelDevices
from datapath.reconciler import KernelWorker


class Devices(Protocol):
    """What the lifecycle of endpoints needs of a node's devices. Calls raise datapath.errors.KernelError."""

    async def create(self, key: str, netns: str, interface: str, mtu_bytes: int, owner: str) -> Device:
        """A pair of devices: one here, one in the namespace."""
        ...

    async def configure(
        self, netns: str, interface: str, host_mac: str, addresses: Awaitable[Sequence[str]]
    ) -> None:
        """Addresses and routes inside the namespace. What needs no address is done before they are known."""
        ...

    async def delete(self, name: str) -> bool:
        """True if there was one."""
        ...

    async def list(self) -> dict[str, int]:
        """Our devices here: name -> ifindex."""
        ...

    async def ensure_tunnel(self, protocol: str, port: int, mtu_bytes: int) -> Device:
        """The device that wraps packets for other nodes. Raises FeatureUnsupported where the kernel has none."""
        ...

    async def remove_tunnels(self, but: str) -> Sequence[str]:
        """Those of ours, all but the one of this name; the names of those that went."""
        ...

    async def close(self) -> None:
        """Let go of what calls need."""
        ...


def device_name(key: str) -> str:
    """The name of the device here, of an endpoint's key."""
    return netlink.device_name(key)


class NetlinkDevices:
    """The devices of the network namespace that the process is in. One thread makes all calls."""

    def __init__(self, owner_prefix: str) -> None:
        self._owner_prefix = owner_prefix
        self._worker = KernelWorker()
        self._opened: netlink.Netlink | None = None

    async def create(self, key: str, netns: str, interface: str, mtu_bytes: int, owner: str) -> Device:
        """See Devices."""
        return await self._worker.call(self._create, key, netns, interface, mtu_bytes, owner)

    async def configure(
        self, netns: str, interface: str, host_mac: str, addresses: Awaitable[Sequence[str]]
    ) -> None:
        """See Devices."""
        side = await self._worker.call(EndpointSide, netns, interface)
        try:
            packed = [address_bytes(address) for address in await addresses]
            await self._worker.call(side.configure, packed, bytes.fromhex(host_mac.replace(":", "")))
        finally:
            side.close()

    async def delete(self, name: str) -> bool:
        """See Devices."""
        return await self._worker.call(lambda: self._netlink().delete_device(name))

    async def list(self) -> dict[str, int]:
        """See Devices."""
        found = await self._worker.call(lambda: self._netlink().list_devices())
        prefix = f"{self._owner_prefix}:"
        return {device.ifname: device.ifindex for device in found if device.owner.startswith(prefix)}

    async def ensure_tunnel(self, protocol: str, port: int, mtu_bytes: int) -> Device:
        """See Devices."""

        def ensure() -> Device:
            with TunnelDevices() as tunnels:
                return Device(*tunnels.ensure(protocol, port, mtu_bytes, self._owner_prefix))

        return await self._worker.call(ensure)

    async def remove_tunnels(self, but: str) -> Sequence[str]:
        """See Devices."""

        def remove() -> Sequence[str]:
            with TunnelDevices() as tunnels:
                return tunnels.remove(but)

        return await self._worker.call(remove)

    async def configure_node(self) -> None:
        """Forwarding on, loopback up."""
        await self._worker.call(lambda: self._netlink().configure_node())

    async def close(self) -> None:
        """See Devices."""
        if self._opened is not None:
            await self._worker.call(self._opened.close)
        self._worker.close()

    def _netlink(self) -> netlink.Netlink:
        """Made in the thread that uses it."""
        if self._opened is None:
            self._opened = netlink.Netlink()
        return self._opened

    def _create(self, key: str, netns: str, interface: str, mtu_bytes: int, owner: str) -> Device:
        name = netlink.device_name(key)
        facts = self._netlink().create_endpoint_device(
            name, netns, interface, mtu_bytes, f"{self._owner_prefix}:{owner}"
        )
        return Device(facts.ifname, facts.ifindex, facts.mac.hex(":"), facts.host_mac.hex(":"))
