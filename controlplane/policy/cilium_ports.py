"""The ports, ICMP types and requests of a rule of cilium.io/v2. Pure.

Belongs here: `toPorts` with `rules` and `serverNames`, and `icmps`, as "Layer 4 Policy" and "Layer 7 Policies" of
Cilium's documentation give them. Does not belong here: peers (cilium_peers.py).
"""

from typing import Any

import msgspec

from controlplane.fields import Reading, path_of
from controlplane.policy.cilium_peers import read_name_or_pattern
from controlplane.policy.clauses import is_port_name, read_port
from controlplane.policy.expressions import expression_fault
from controlplane.policy.names import canonical_name, pattern_fault
from controlplane.policy.requests import (
    DNS,
    HTTP,
    KAFKA,
    SERVER_NAMES,
    HeaderMatch,
    HttpRule,
    KafkaRule,
    RequestRules,
)
from controlplane.policy.rules import ICMP, ICMPV6, PORT_MAX, PROTOCOLS, TCP, NamedPort, PortRange
from controlplane.policy.settings import PolicySettings

PORTS_FIELDS = ("ports",)
ALLOW_FIELDS = ("ports", "rules", "serverNames")
ALLOW_UNSUPPORTED = {
    "listener": "needs a proxy of one's own, which is not supported; remove it",
    "terminatingTLS": "needs a proxy, which is not supported yet; remove it",
    "originatingTLS": "needs a proxy, which is not supported yet; remove it",
}
PORT_FIELDS = ("port", "endPort", "protocol")
ANY = "ANY"
ITEMS_MAX = 40
"""Ports of one entry and ICMP fields of one rule, as in Cilium."""
OTHER_PROTOCOLS = ("ICMP", "ICMPV6", "ICMPv6", "VRRP", "IGMP", "ESP", "AH")

REQUEST_PROTOCOLS = (HTTP, DNS, KAFKA)
REQUEST_UNSUPPORTED = {
    "l7proto": "parsers of one's own are not supported; use http or dns",
    "l7": "parsers of one's own are not supported; use http or dns",
}
HTTP_FIELDS = ("method", "path", "host", "headers", "headerMatches")
HEADER_FIELDS = ("name", "value", "mismatch")
HEADER_UNSUPPORTED = {"secret": "values from secrets are not supported yet; write the value"}
MISMATCHES = ("LOG", "ADD", "DELETE", "REPLACE")
KAFKA_FIELDS = ("role", "apiKey", "apiVersion", "clientID", "topic")

ICMP_TYPE_MAX = 255
ICMP_FAMILIES = {"IPv4": ICMP, "IPv6": ICMPV6}
ICMP_TYPES = {
    ICMP: {
        "EchoReply": 0, "DestinationUnreachable": 3, "Redirect": 5, "Echo": 8, "EchoRequest": 8,
        "RouterAdvertisement": 9, "RouterSelection": 10, "TimeExceeded": 11, "ParameterProblem": 12,
        "Timestamp": 13, "TimestampReply": 14, "Photuris": 40, "ExtendedEchoRequest": 42, "ExtendedEchoReply": 43,
    },
    ICMPV6: {
        "DestinationUnreachable": 1, "PacketTooBig": 2, "TimeExceeded": 3, "ParameterProblem": 4,
        "EchoRequest": 128, "EchoReply": 129, "MulticastListenerQuery": 130, "MulticastListenerReport": 131,
        "MulticastListenerDone": 132, "RouterSolicitation": 133, "RouterAdvertisement": 134,
        "NeighborSolicitation": 135, "NeighborAdvertisement": 136, "RedirectMessage": 137,
        "RouterRenumbering": 138, "ICMPNodeInformationQuery": 139, "ICMPNodeInformationResponse": 140,
        "InverseNeighborDiscoverySolicitation": 141, "InverseNeighborDiscoveryAdvertisement": 142,
        "HomeAgentAddressDiscoveryRequest": 144, "HomeAgentAddressDiscoveryReply": 145,
        "MobilePrefixSolicitation": 146, "MobilePrefixAdvertisement": 147,
        "DuplicateAddressRequestCodeSuffix": 157, "DuplicateAddressConfirmationCodeSuffix": 158,
        "ExtendedEchoRequest": 160, "ExtendedEchoReply": 161,
    },
}  # fmt: skip


class PortSet(msgspec.Struct, frozen=True):
    """One entry of `toPorts`, or several whose requests are not looked at. `ranges` None: everything."""

    ranges: tuple[PortRange, ...] | None
    named: tuple[NamedPort, ...] = ()
    requests: RequestRules | None = None


EVERYTHING = PortSet(None)


class PortReader:
    """Reads the ports of one rule after the other; refusals are in `reading`."""

    def __init__(self, reading: Reading, settings: PolicySettings) -> None:
        self.reading = reading
        self.settings = settings

    def read(self, fields: dict[str, Any], origin: str, ingress: bool, deny: bool) -> list[PortSet]:
        """What to allow or deny; [EVERYTHING] where the rule names no port."""
        ports_path, icmps_path = path_of(origin, "toPorts"), path_of(origin, "icmps")
        listed = self.reading.sequence(fields.get("toPorts"), ports_path)
        types = self._icmps(fields.get("icmps"), icmps_path)
        if listed and types:
            self.reading.refuse(icmps_path, fields["icmps"], "cannot be combined with toPorts; write a rule for each")
        if types and not self.settings.icmp:
            self.reading.refuse(icmps_path, fields["icmps"], "needs the setting enable-icmp-rules, which is off")
        if types:
            return [PortSet(tuple(sorted(set(types))))]
        if not listed:
            return [EVERYTHING]
        entries = [self._entry(item, f"{ports_path}[{number}]", ingress, deny) for number, item in enumerate(listed)]
        return _joined(entries)

    def _entry(self, value: Any, path: str, ingress: bool, deny: bool) -> PortSet:
        before = len(self.reading.refusals)
        known, unsupported = (PORTS_FIELDS, {}) if deny else (ALLOW_FIELDS, ALLOW_UNSUPPORTED)
        fields = self.reading.mapping(value, path, known, unsupported)
        ports_path = path_of(path, "ports")
        ports = self.reading.sequence(fields.get("ports"), ports_path)
        if len(ports) > ITEMS_MAX:
            self.reading.refuse(ports_path, len(ports), f"must have at most {ITEMS_MAX} ports")
        if not ports and len(self.reading.refusals) == before and not fields.get("serverNames"):
            self.reading.refuse(ports_path, fields.get("ports"), "needs at least one port")
        ranges: set[PortRange] = set()
        named: set[NamedPort] = set()
        for number, item in enumerate(ports):
            for found in self._port(item, f"{ports_path}[{number}]"):
                if isinstance(found, PortRange):
                    ranges.add(found)
                else:
                    named.add(found)
        if not ports:
            ranges.add(PortRange(TCP))
        requests = self._requests(fields, path, ingress)
        if requests and not self.settings.proxy:
            self.reading.refuse(path, None, "rules about requests need the setting enable-l7-proxy, which is off")
        if requests and requests.protocol != DNS:
            self._check_tcp(ranges, named, path)
        if requests and requests.protocol != SERVER_NAMES and any(each.first == 0 for each in ranges):
            self.reading.refuse(path_of(path, "rules"), fields["rules"], "cannot be used with port 0")
        if requests and requests.protocol == DNS and any(each.first < each.last for each in ranges if each.first):
            self.reading.refuse(path_of(path, "rules"), fields["rules"], "DNS rules take no range of ports")
        return PortSet(tuple(sorted(ranges)), tuple(sorted(named)), requests)

    def _check_tcp(self, ranges: set[PortRange], named: set[NamedPort], path: str) -> None:
        if any(each.protocol != TCP for each in ranges) or any(each.protocol != TCP for each in named):
            self.reading.refuse(path, None, "rules about requests, but for DNS, need protocol TCP on every port")

    def _port(self, value: Any, path: str) -> list[PortRange | NamedPort]:
        fields = self.reading.mapping(value, path, PORT_FIELDS)
        port_path, end_path, protocol_path = (path_of(path, name) for name in PORT_FIELDS)
        written = fields.get("protocol")
        if written in OTHER_PROTOCOLS:
            self.reading.refuse(protocol_path, written, "must be TCP, UDP, SCTP or ANY; for ICMP use icmps")
            return []
        name = self.reading.one_of(written, protocol_path, (*PROTOCOLS, ANY), ANY)
        numbers = tuple(PROTOCOLS.values()) if name == ANY else (PROTOCOLS[name],)
        port = self.reading.text(fields.get("port"), port_path, required=True)
        if not port:
            return []
        if port.isascii() and port.isdigit() and port != str(int(port)):
            self.reading.refuse(port_path, port, "must be a number without zeros before it")
            return []
        if not (port.isascii() and port.isdigit()):
            if fields.get("endPort"):
                self.reading.refuse(end_path, fields["endPort"], "needs a port number")
            lower = port.lower()
            return [NamedPort(each, lower) for each in numbers] if is_port_name(self.reading, lower, port_path) else []
        span = read_port(self.reading, int(port), port_path, fields.get("endPort") or None, end_path)
        if span is None:
            return []
        if span == (0, 0):
            span = (0, PORT_MAX)
        return [PortRange(number, *span) for number in numbers]

    def _icmps(self, value: Any, path: str) -> list[PortRange]:
        found = []
        for number, item in enumerate(self.reading.sequence(value, path)):
            where = f"{path}[{number}]"
            listed = self.reading.mapping(item, where, ("fields",)).get("fields")
            fields = self.reading.sequence(listed, path_of(where, "fields"))
            if not 1 <= len(fields) <= ITEMS_MAX:
                self.reading.refuse(path_of(where, "fields"), listed, f"needs 1 to {ITEMS_MAX} types")
            for place, field in enumerate(fields):
                found += self._icmp(field, f"{path_of(where, 'fields')}[{place}]")
        return found

    def _icmp(self, value: Any, path: str) -> list[PortRange]:
        fields = self.reading.mapping(value, path, ("family", "type"))
        family = self.reading.one_of(fields.get("family"), path_of(path, "family"), tuple(ICMP_FAMILIES), "IPv4")
        protocol, kind = ICMP_FAMILIES[family], fields.get("type")
        where = path_of(path, "type")
        if isinstance(kind, str) and kind.isdigit():
            kind = int(kind)
        if isinstance(kind, str):
            named = self.reading.one_of(kind, where, tuple(ICMP_TYPES[protocol]))
            kind = ICMP_TYPES[protocol].get(named)
        else:
            kind = self.reading.number(kind, where, 0, ICMP_TYPE_MAX)
        return [] if kind is None else [PortRange(protocol, kind, kind)]

    def _requests(self, fields: dict[str, Any], path: str, ingress: bool) -> RequestRules | None:
        names_path, rules_path = path_of(path, "serverNames"), path_of(path, "rules")
        names = self._server_names(fields.get("serverNames"), names_path)
        rules = self.reading.mapping(fields.get("rules"), rules_path, REQUEST_PROTOCOLS, REQUEST_UNSUPPORTED)
        given = [name for name in REQUEST_PROTOCOLS if name in rules]
        if len(given) > 1:
            self.reading.refuse(path_of(rules_path, given[1]), rules[given[1]], f"cannot stand beside {given[0]}")
        filled = [name for name in given if self.reading.sequence(rules[name], path_of(rules_path, name))]
        if names:
            if filled:
                self.reading.refuse(
                    names_path, fields["serverNames"], "cannot stand beside rules: without TLS termination"
                )
            return RequestRules(SERVER_NAMES, names=names)
        if not filled:
            return None
        protocol = filled[0]
        where = path_of(rules_path, protocol)
        items = [(item, f"{where}[{number}]") for number, item in enumerate(rules[protocol])]
        if protocol == HTTP:
            return RequestRules(HTTP, http=tuple(self._http(*item) for item in items))
        if protocol == KAFKA:
            return RequestRules(KAFKA, kafka=tuple(self._kafka(*item) for item in items))
        if ingress:
            self.reading.refuse(where, rules[DNS], "DNS rules are for egress only")
        return RequestRules(DNS, names=tuple(read_name_or_pattern(self.reading, *item) for item in items))

    def _server_names(self, value: Any, path: str) -> tuple[str, ...]:
        found = []
        for number, item in enumerate(self.reading.sequence(value, path)):
            where = f"{path}[{number}]"
            text = self.reading.text(item, where, required=True)
            fault = text and pattern_fault(text)
            if fault:
                self.reading.refuse(where, item, fault)
            found.append(canonical_name(text))
        return tuple(found)

    def _http(self, value: Any, path: str) -> HttpRule:
        fields = self.reading.mapping(value, path, HTTP_FIELDS)
        texts = {}
        for name in ("method", "path", "host"):
            texts[name] = self.reading.text(fields.get(name), path_of(path, name))
            fault = expression_fault(texts[name])
            if fault:
                self.reading.refuse(path_of(path, name), fields[name], fault)
        headers = []
        where = path_of(path, "headers")
        for number, item in enumerate(self.reading.sequence(fields.get("headers"), where)):
            name, space, rest = self.reading.text(item, f"{where}[{number}]", required=True).partition(" ")
            headers.append(HeaderMatch(name.rstrip(":"), rest) if space else HeaderMatch(name.rstrip(":")))
        where = path_of(path, "headerMatches")
        for number, item in enumerate(self.reading.sequence(fields.get("headerMatches"), where)):
            headers.append(self._header(item, f"{where}[{number}]"))
        return HttpRule(texts["method"], texts["path"], texts["host"], tuple(headers))

    def _header(self, value: Any, path: str) -> HeaderMatch:
        fields = self.reading.mapping(value, path, HEADER_FIELDS, HEADER_UNSUPPORTED)
        name = self.reading.text(fields.get("name"), path_of(path, "name"), required=True)
        wanted = self.reading.text(fields.get("value"), path_of(path, "value"))
        mismatch = self.reading.one_of(fields.get("mismatch") or None, path_of(path, "mismatch"), MISMATCHES)
        return HeaderMatch(name, wanted or None, required=not mismatch)

    def _kafka(self, value: Any, path: str) -> KafkaRule:
        fields = self.reading.mapping(value, path, KAFKA_FIELDS)
        texts = {name: self.reading.text(fields.get(name), path_of(path, name)) for name in KAFKA_FIELDS}
        role = self.reading.one_of(fields.get("role"), path_of(path, "role"), ("produce", "consume"))
        if role and texts["apiKey"]:
            self.reading.refuse(path_of(path, "apiKey"), texts["apiKey"], "cannot stand beside role")
        return KafkaRule(role, texts["apiKey"], texts["apiVersion"], texts["clientID"], texts["topic"])


def _joined(entries: list[PortSet]) -> list[PortSet]:
    """Entries without rules about requests are one; each other stays alone."""
    plain = [entry for entry in entries if entry.requests is None]
    found = [entry for entry in entries if entry.requests is not None]
    if plain:
        ranges = {each for entry in plain for each in entry.ranges or ()}
        named = {each for entry in plain for each in entry.named}
        found.insert(0, PortSet(tuple(sorted(ranges)), tuple(sorted(named))))
    return found
