"""Load-time configuration of masquerade: which address and which ports endpoints take on their way out of the mesh, and
clients of a service on their way to a backend of another node.

Belongs here: from settings to the constants of bpf/config.h. Does not belong here: reading the settings, or the
system's port range. Pure.
"""

from collections.abc import Sequence

from datapath import codec
from datapath.abi.types import ENUMS
from datapath.tables import IPV4_PREFIX, IpcacheKey

PORT_FIRST, PORT_LAST = 10000, 65535
"""Below are ports that programs are known to listen at."""
NODE_PORTS = (30000, 32767)
"""Where Kubernetes puts node ports; none of them is taken either."""
PREFIXES_MAX = ENUMS["limit"]["UNMASQUERADED_MAX"]

Span = tuple[int, int]
"""First and last port."""


def spare_ports(local_ports: Span) -> Span:
    """The largest span of ports that neither the node's own stack hands out nor node ports are in."""
    taken = sorted((local_ports, NODE_PORTS))
    spans = []
    first = PORT_FIRST
    for start, end in taken:
        spans.append((first, start - 1))
        first = max(first, end + 1)
    spans.append((first, PORT_LAST))
    return max(spans, key=lambda span: span[1] - span[0])


def masquerade_constants(
    addresses: Sequence[str], ports: Span, excluded: Sequence[str]
) -> dict[str, int | bytes]:
    """`addresses` of the node, one of a family or none; to `excluded`, prefixes, endpoints keep their own.
    Raises ValueError for what is no address or prefix, and for too many prefixes."""
    if len(excluded) > PREFIXES_MAX:
        raise ValueError(f"{len(excluded)} prefixes are given; right are up to {PREFIXES_MAX}")
    constants: dict[str, int | bytes] = {
        "config_masquerade_port_first": ports[0],
        "config_masquerade_port_count": ports[1] - ports[0] + 1,
        "config_unmasqueraded_count": len(excluded),
        "config_unmasqueraded": b"".join(
            codec.encode_key("ipcache", IpcacheKey(*codec.prefix_bytes(prefix))) for prefix in excluded
        ),
    }
    return constants | _by_family("config_masquerade", addresses)


def node_constants(addresses: Sequence[str]) -> dict[str, int | bytes]:
    """The node's own addresses, one of a family or none. Raises ValueError for what is no address."""
    return dict(_by_family("config_node", addresses))


def _by_family(name: str, addresses: Sequence[str]) -> dict[str, int | bytes]:
    """The first address of each family."""
    found: dict[str, int | bytes] = {}
    for address in addresses:
        packed = codec.address_bytes(address)
        family = 4 if packed.startswith(IPV4_PREFIX) else 6
        found.setdefault(f"{name}_ipv{family}", packed)
    return found
