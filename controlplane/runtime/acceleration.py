"""Balancing at the underlay device itself (XDP), from settings to the words for `status`.

Belongs here: what the node records of it, and how that reads. Does not belong here: which program that means
(desired/endpoints.py), and how it is attached (datapath/kernel/xdp_links.py).
"""

from controlplane.model import Node
from controlplane.settings import AgentSettings

DISABLED = "disabled"


def acceleration(settings: AgentSettings) -> str:
    """What the log is told: one of ACCELERATIONS (projections/nodes.py), "" for none."""
    return "" if settings.bpf_lb_acceleration == DISABLED else settings.bpf_lb_acceleration


def acceleration_text(own: Node | None) -> str:
    """What `status` says of the node as the log has it."""
    return f"{own.acceleration} on {own.device.name}" if own is not None and own.acceleration else "off"
