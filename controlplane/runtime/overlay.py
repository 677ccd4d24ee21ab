"""Keeps this node's tunnel device what its cluster's routing mode asks for, and the log told of it.

Belongs here: when the device is made, told of and removed. Does not belong here: which mode the cluster has
(commands/cluster.py), which way a packet takes (desired/underlay.py), system calls (devices.py).

The order of a change: the device is there before the log speaks of it, and stays until no row leads into it and what
other nodes sent before they knew has come through.
"""

from collections.abc import Awaitable, Callable

import structlog

from controlplane.desired.underlay import natively_reached, tunnel_mtu, tunnel_wish
from controlplane.model import NodeKey, Tunnel
from controlplane.runtime.clock import Clock
from controlplane.runtime.devices import Devices
from controlplane.runtime.follower import Follower
from controlplane.runtime.underlay import Underlay
from controlplane.runtime.writer import WriterFailed
from controlplane.settings import AgentSettings
from datapath.errors import DatapathError, FeatureUnsupported
from datapath.reconciler import Reconciler

SHOWN_MAX = 5


class Overlay:
    """One node's."""

    def __init__(
        self,
        settings: AgentSettings,
        underlay: Underlay,
        follower: Follower,
        reconciler: Reconciler,
        devices: Devices,
        clock: Clock,
    ) -> None:
        self._settings = settings
        self._underlay = underlay
        self._where = NodeKey(settings.cluster, settings.node)
        self._follower = follower
        self._reconciler = reconciler
        self._devices = devices
        self._clock = clock
        self._lacking: tuple[str, int] | None = None
        """What this kernel turned out to lack."""
        self._problem = ""
        self._is_swept = False
        self._logger = structlog.get_logger()

    def mtu_bytes(self) -> int:
        """Of a new endpoint's device: what fits the underlay once it is wrapped, in a cluster that wraps."""
        if self._settings.mtu_bytes:
            return self._settings.mtu_bytes
        wraps = tunnel_wish(self._follower.state, self._settings.cluster) is not None
        return self._tunnel_mtu() if wraps else self._underlay.mtu_bytes

    def problems(self) -> list[str]:
        """Why packets do not go as the routing mode says, in words."""
        found = [f"no tunnel: {self._problem}"] if self._problem else []
        natively = ["/".join(key) for key in natively_reached(self._follower.state, self._where)]
        if natively:
            shown = ", ".join(natively[:SHOWN_MAX]) + (", ..." if natively[SHOWN_MAX:] else "")
            found.append(f"{len(natively)} nodes have no tunnel like this one's, and are routed natively: {shown}")
        return found

    def mode(self) -> str:
        """How this node sends to others: "native", or "tunnel" with the protocol."""
        node = self._follower.state.nodes.get(self._where)
        return f"tunnel [{node.tunnel.protocol}]" if node and node.tunnel else "native"

    async def tunnel(self) -> Tunnel | None:
        """The device that the cluster asks for, made where it is missing; None where it asks for none, or this kernel
        has none. Raises KernelError."""
        wish = tunnel_wish(self._follower.state, self._settings.cluster)
        if wish is None or wish == self._lacking:
            return None
        protocol, port = wish
        try:
            device = await self._devices.ensure_tunnel(protocol, port, self._tunnel_mtu())
        except FeatureUnsupported as error:
            self._lacking, self._problem = wish, str(error)
            self._logger.error("no tunnel", reason=self._problem)
            return None
        self._problem = ""
        return Tunnel(protocol, port, device)

    async def run(self, join: Callable[[], Awaitable[int]]) -> None:
        """For ever. `join` tells the log what this node is now, with what `tunnel` gives."""
        while True:
            try:
                await self._settle(join)
            except (WriterFailed, TimeoutError, DatapathError) as error:
                self._problem = str(error) or "the log is away"
                self._logger.warning("the routing mode is not settled", reason=self._problem)
                await self._clock.sleep_s(self._clock.jitter(self._settings.retry_s_max))
                continue
            await self._follower.wait_moved()

    async def _settle(self, join: Callable[[], Awaitable[int]]) -> None:
        state = self._follower.state
        node = state.nodes.get(self._where)
        if node is None:
            return
        wish = tunnel_wish(state, self._settings.cluster)
        told = (node.tunnel.protocol, node.tunnel.port) if node.tunnel else None
        if told != (None if wish == self._lacking else wish):
            self._is_swept = False
            await join()
            return
        if self._is_swept:
            return
        await self._reconciler.wait_realized(state.revision, self._settings.endpoint_ready_s)
        await self._clock.sleep_s(self._settings.tunnel_drain_s)
        gone = await self._devices.remove_tunnels(but=node.tunnel.device.name if node.tunnel else "")
        self._is_swept, self._problem = True, "" if self._lacking is None else self._problem
        if gone:
            self._logger.info("removed tunnels", devices=gone)

    def _tunnel_mtu(self) -> int:
        return tunnel_mtu(self._underlay.mtu_bytes, self._underlay.addresses)
