"""How addresses, ports and protocols are written for people.

Belongs here: text out. Does not belong here: bytes for the kernel (codec.py).
"""

from datapath.codec import address_text

PROTOCOL_NAMES = {1: "ICMP", 6: "TCP", 17: "UDP", 58: "ICMPv6", 132: "SCTP"}


def endpoint_text(address: bytes, port: int) -> str:
    """10.0.0.1:80 or [fd00::1]:80."""
    text = address_text(address)
    return f"[{text}]:{port}" if ":" in text else f"{text}:{port}"


def protocol_name(protocol: int) -> str:
    """TCP for 6; the number where there is no name."""
    return PROTOCOL_NAMES.get(protocol, str(protocol))
