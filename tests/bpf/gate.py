"""A node whose routes lead out of the mesh: where endpoints take its address.

Belongs here: the place, and how packets are run there. Does not belong here: what should come out.
"""

from collections.abc import Callable

from datapath import codec
from datapath.abi import types as abi
from datapath.kernel.programs import Loaded, PacketRun
from datapath.tables import EndpointKey, EndpointRow
from tests.bpf.node import GATEWAY_MAC, LOOPBACK_MAC, REMOTE_NODE, Endpoint, Node
from tests.conftest import Namespace

NODE = Endpoint("192.168.9.1", "fd00:9::1", abi.IDENTITY_HOST, 0, 0, LOOPBACK_MAC, LOOPBACK_MAC)
ROUTER = Endpoint("192.168.9.254", "fd00:9::fe", abi.IDENTITY_WORLD, 0, 0, GATEWAY_MAC, GATEWAY_MAC)
OTHER = Endpoint("203.0.113.77", "2001:db8:1::77", abi.IDENTITY_WORLD, 0, 0, GATEWAY_MAC, GATEWAY_MAC)
OWN_MAC, REMOTE_MAC, ROUTER_MAC = (bytes.fromhex(f"0200000000{last}") for last in ("91", "92", "fe"))
PORTS = range(10000, 30000)
CONSTANTS: dict[str, int | bytes] = {
    "config_node_ipv4": codec.address_bytes(NODE.ipv4),
    "config_node_ipv6": codec.address_bytes(NODE.ipv6),
    "config_masquerade_ipv4": codec.address_bytes(NODE.ipv4),
    "config_masquerade_ipv6": codec.address_bytes(NODE.ipv6),
    "config_masquerade_port_first": PORTS.start,
    "config_masquerade_port_count": len(PORTS),
}


class Gate(Node):
    """A node whose programs run where its routes lead to the world."""

    def __init__(self, loaded: Loaded, place: Namespace, family: int) -> None:
        super().__init__(loaded)
        self.place = place
        self.family = family

    def run(self, program: str, raw: bytes) -> PacketRun:
        return self.place.call(super().run, program, raw)

    def settle(self) -> None:
        super().settle()
        host = EndpointRow(0, abi.IDENTITY_HOST, 0, abi.ENDPOINT_HOST, bytes(6), bytes(6))
        self.put("endpoints", {EndpointKey(codec.address_bytes(each)): host for each in (NODE.ipv4, NODE.ipv6)})

    def take_over(self, other: Node) -> None:
        """The flows of another object: the programs of a node share their maps."""
        for name in ("conntrack", "nat", "fragments"):
            failures = self.maps[name].put(list(other.maps[name].dump().items()))
            assert not failures, failures

    def ports(self) -> int:
        """How many entries `nat` has."""
        return len(self.maps["nat"].dump())


def routed(make: Callable[[], Namespace]) -> Namespace:
    """A namespace with default routes through its device `und`, and a way to OTHER through `aside`."""
    made = make()
    made.run("ip", "link", "set", "lo", "up")
    for device in ("und", "aside"):
        made.run("ip", "link", "add", device, "type", "veth", "peer", "name", f"{device}-far")
        made.run("ip", "link", "set", device, "up")
        made.run("ip", "link", "set", f"{device}-far", "up")
    for flag, end, length in (("-4", 4, 24), ("-6", 6, 64)):
        made.add_address(f"{NODE.address(end)}/{length}", "und")
        made.run("ip", flag, "route", "add", "default", "via", ROUTER.address(end), "dev", "und")
        made.run("ip", flag, "route", "add", OTHER.address(end), "dev", "aside")
    made.run("sysctl", "-qw", "net.ipv4.conf.all.forwarding=1", "net.ipv6.conf.all.forwarding=1")
    return made


def resolve(place: Namespace, family: int) -> None:
    """Gives `und` OWN_MAC, and makes its next hops known."""
    place.run("ip", "link", "set", "und", "address", OWN_MAC.hex(":"))
    for address, mac in ((REMOTE_NODE[family], REMOTE_MAC), (ROUTER.address(family), ROUTER_MAC)):
        place.run("ip", "neigh", "add", address, "lladdr", mac.hex(":"), "dev", "und", "nud", "permanent")


MakeGate = Callable[..., Gate]
