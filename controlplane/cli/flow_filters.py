"""Which flows `observe` shows: filters as Hubble's users write them. Pure.

Belongs here: what a filter's value means, and choosing. Does not belong here: where flows come from (observe.py).
Filters of one kind are alternatives, those of different kinds must all hold; what a filter behind --not matches is left
out. A filter without a direction holds for either end.
"""

import argparse
import re
from collections.abc import Callable, Mapping, Sequence
from fnmatch import fnmatchcase
from ipaddress import ip_address, ip_network
from typing import Any, NamedTuple

from controlplane.cli.flow_shape import POLICY_VERDICT, TRACE, TYPES, Flow, layer4
from controlplane.model import RESERVED_IDENTITIES

Matches = Callable[[Flow], bool]
ENDS = ("source", "destination")
VERDICTS = ("FORWARDED", "DROPPED", "AUDIT", "REDIRECTED")
PROTOCOLS = ("TCP", "UDP", "SCTP", "ICMP", "ICMPv4", "ICMPv6")
EVENT_TYPES = {"drop": TYPES["drop"], "policy-verdict": POLICY_VERDICT, "trace": TRACE}
PORT_MAX = 65535
REQUIREMENT = re.compile(r"(?P<key>[^\s!=]+?)\s*(?P<sign>!=|==?)\s*(?P<value>[^\s!=]*)")


class Chosen(NamedTuple):
    """One filter of the command line, read. `kind`: its flag."""

    kind: str
    matches: Matches
    is_not: bool = False


def keeps(chosen: Sequence[Chosen], flow: Flow) -> bool:
    """Whether the flow is one of those asked for."""
    wanted: dict[str, bool] = {}
    for each in chosen:
        if each.is_not:
            if each.matches(flow):
                return False
        elif not wanted.get(each.kind):
            wanted[each.kind] = each.matches(flow)
    return all(wanted.values())


def _pod(text: str) -> Callable[[dict[str, Any]], bool]:
    """[namespace/]prefix of the name, in "default" where no namespace is named, as Hubble has it."""
    namespace, slash, prefix = text.rpartition("/")
    if not slash:
        namespace = "default"
    if not (namespace or prefix) or "/" in namespace:
        raise argparse.ArgumentTypeError(f"{text!r}: right is POD, NAMESPACE/POD or NAMESPACE/")
    return lambda end: (
        bool(end.get("pod_name"))
        and namespace in ("", end.get("namespace"))
        and str(end["pod_name"]).startswith(prefix)
    )


def _namespace(text: str) -> Callable[[dict[str, Any]], bool]:
    if not text or "/" in text:
        raise argparse.ArgumentTypeError(f"{text!r}: right is the name of a namespace")
    return lambda end: end.get("namespace") == text


def _cluster(text: str) -> Callable[[dict[str, Any]], bool]:
    return lambda end: end.get("cluster_name") == text


def _label(text: str) -> Callable[[dict[str, Any]], bool]:
    """app=shop, k8s:app=shop, app!=shop, app, !app; several joined by a comma must all hold."""
    required = [_requirement(each.strip(), text) for each in text.split(",")]
    return lambda end: all(each(_labels(end.get("labels") or ())) for each in required)


def _requirement(written: str, whole: str) -> Callable[[Mapping[str, str]], bool]:
    match = REQUIREMENT.fullmatch(written)
    if match is not None:
        key, value, is_equal = _key(match["key"]), match["value"], match["sign"] != "!="
        return lambda labels: (labels.get(key) == value) is is_equal
    absent = written.startswith("!")
    key = _key(written.removeprefix("!"))
    if not key or re.search(r"[\s!=]", key):
        raise argparse.ArgumentTypeError(f"{whole!r}: right is KEY=VALUE, KEY!=VALUE, KEY or !KEY, joined by commas")
    return lambda labels: (key not in labels) is absent


def _key(written: str) -> str:
    return written.removeprefix("any:")


def _labels(labels: Sequence[str]) -> dict[str, str]:
    """With and without the source: whoever writes app=shop means k8s:app=shop."""
    found: dict[str, str] = {}
    for label in labels:
        name, _, value = label.partition("=")
        found[name] = value
        found.setdefault(name.partition(":")[2], value)
    return found


def _identity(text: str) -> Callable[[dict[str, Any]], bool]:
    number = RESERVED_IDENTITIES.get(text.removeprefix("reserved:"))
    if number is None:
        if not (text.isascii() and text.isdigit()):
            right = f"right is a number, or one of {', '.join(RESERVED_IDENTITIES)}"
            raise argparse.ArgumentTypeError(f"{text!r}: {right}")
        number = int(text)
    return lambda end: end.get("identity", 0) == number


def _address(text: str) -> Callable[[str], bool]:
    try:
        network = ip_network(text, strict=False)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}: right is an address or a prefix, such as 10.1.0.0/24") from None

    def matches(address: str) -> bool:
        try:
            return ip_address(address) in network
        except ValueError:
            return False

    return matches


def _port(text: str) -> Callable[[int | None], bool]:
    if not (text.isascii() and text.isdigit() and 1 <= int(text) <= PORT_MAX):
        raise argparse.ArgumentTypeError(f"{text!r}: right is 1 to {PORT_MAX}")
    return lambda port: port == int(text)


def _protocol(text: str) -> Matches:
    wanted = {"ICMPV4": "ICMPv4", "ICMPV6": "ICMPv6"}.get(text.upper(), text.upper())
    if wanted not in PROTOCOLS:
        raise argparse.ArgumentTypeError(f"{text!r}: right is one of {', '.join(PROTOCOLS).lower()}")
    names = ("ICMPv4", "ICMPv6") if wanted == "ICMP" else (wanted,)
    return lambda flow: layer4(flow)[0] in names


def _one_of(right: Sequence[str], field: str) -> Callable[[str], Matches]:
    def read(text: str) -> Matches:
        if text.upper() not in right:
            raise argparse.ArgumentTypeError(f"{text!r}: right is one of {', '.join(right)}")
        return lambda flow: flow.get(field) == text.upper()

    return read


def _type(text: str) -> Matches:
    """drop, policy-verdict or trace, and of drops perhaps the reason: drop:133."""
    name, colon, number = text.partition(":")
    if name not in EVENT_TYPES or (colon and not (number.isascii() and number.isdigit())):
        raise argparse.ArgumentTypeError(f"{text!r}: right is one of {', '.join(EVENT_TYPES)}, or drop:NUMBER")

    def matches(flow: Flow) -> bool:
        told = flow.get("event_type") or {}
        return told.get("type") == EVENT_TYPES[name] and (not colon or told.get("sub_type") == int(number))

    return matches


def _reason(text: str) -> Matches:
    """By Hubble's name, in any spelling, or by number."""
    wanted = text.upper().replace(" ", "_").replace("-", "_")
    return lambda flow: wanted in (flow.get("drop_reason_desc"), str(flow.get("drop_reason", "")))


def _node(text: str) -> Matches:
    """[cluster/]name with * and ?, as Hubble has it: "n1" is that node of any cluster, "east/" all of a cluster."""
    cluster, slash, name = text.rpartition("/")

    def matches(flow: Flow) -> bool:
        own_cluster, _, own = str(flow.get("node_name", "")).rpartition("/")
        return fnmatchcase(own, name or "*") and (not slash or fnmatchcase(own_cluster, cluster))

    return matches


def _either(end: Callable[[str], Callable[[dict[str, Any]], bool]], sides: Sequence[str]) -> Callable[[str], Matches]:
    def read(text: str) -> Matches:
        matches = end(text)
        return lambda flow: any(matches(flow.get(side) or {}) for side in sides)

    return read


def _either_address(sides: Sequence[str]) -> Callable[[str], Matches]:
    def read(text: str) -> Matches:
        matches = _address(text)
        return lambda flow: any(matches((flow.get("IP") or {}).get(side, "")) for side in sides)

    return read


def _either_port(sides: Sequence[str]) -> Callable[[str], Matches]:
    def read(text: str) -> Matches:
        matches = _port(text)
        return lambda flow: any(matches(layer4(flow)[1].get(f"{side}_port")) for side in sides)

    return read


def _of_family(version: str) -> Matches:
    return lambda flow: (flow.get("IP") or {}).get("ipVersion") == version


BY_END: Mapping[str, tuple[Callable[[Sequence[str]], Callable[[str], Matches]], str, str]] = {
    "pod": (lambda sides: _either(_pod, sides), "[NAMESPACE/]POD", "whose name begins so"),
    "namespace": (lambda sides: _either(_namespace, sides), "NAMESPACE", "of this namespace"),
    "label": (lambda sides: _either(_label, sides), "LABELS", "with these labels: app=shop,!tier"),
    "identity": (lambda sides: _either(_identity, sides), "IDENTITY", "number or reserved name"),
    "cluster": (lambda sides: _either(_cluster, sides), "CLUSTER", "of this cluster"),
    "ip": (_either_address, "ADDRESS|PREFIX", "at this address"),
    "port": (_either_port, "PORT", "at this port"),
}
"""Each as --NAME, --from-NAME and --to-NAME: by the sides that may match, how a value is read; and its help."""
BY_FLOW: Mapping[str, tuple[Callable[[str], Matches], str, str]] = {
    "protocol": (_protocol, "PROTOCOL", ", ".join(PROTOCOLS).lower()),
    "verdict": (_one_of(VERDICTS, "verdict"), "VERDICT", ", ".join(VERDICTS)),
    "type": (_type, "TYPE", f"{', '.join(EVENT_TYPES)}, drop:NUMBER"),
    "traffic-direction": (_one_of(("INGRESS", "EGRESS"), "traffic_direction"), "DIRECTION", "whose policy spoke"),
    "drop-reason-desc": (_reason, "REASON", "name or number, such as POLICY_DENIED"),
    "node-name": (_node, "[CLUSTER/]NODE", "told by this node; * and ? stand for anything"),
}
SHORT = {"namespace": "-n", "label": "-l", "type": "-t"}


class _Filter(argparse.Action):
    """Adds a filter; behind --not one that leaves out."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        namespace.filters = [*namespace.filters, Chosen(self.metavar_kind, values, namespace.is_not)]
        namespace.is_not = False

    @property
    def metavar_kind(self) -> str:
        """The long flag: the alternatives are those of one flag."""
        return next(flag for flag in self.option_strings if flag.startswith("--"))


def add_filters(parser: argparse.ArgumentParser) -> None:
    """The flags. What was chosen stands in `filters`; `is_not` is left over where --not has nothing behind it."""
    parser.set_defaults(filters=[], is_not=False)
    group = parser.add_argument_group("which flows (each may be repeated: then any of them)")
    group.add_argument("--not", dest="is_not", action="store_true", help="leave out what the next filter matches")
    for name, (by_sides, metavar, text) in BY_END.items():
        short = [SHORT[name]] if name in SHORT else []
        for flags, sides, end in (
            ([*short, f"--{name}"], ENDS, "either end"), ([f"--from-{name}"], ENDS[:1], "the sender"),
            ([f"--to-{name}"], ENDS[1:], "the receiver"),
        ):  # fmt: skip
            group.add_argument(*flags, action=_Filter, type=by_sides(sides), metavar=metavar, help=f"{end} {text}")
    for name, (read, metavar, text) in BY_FLOW.items():
        short = [SHORT[name]] if name in SHORT else []
        group.add_argument(*short, f"--{name}", action=_Filter, type=read, metavar=metavar, help=text)
    for flag, version in (("-4", "IPv4"), ("-6", "IPv6")):
        group.add_argument(flag, f"--{version.lower()}", action="append_const", dest="families", help=f"{version} only",
                           const=Chosen("family", _of_family(version)))
