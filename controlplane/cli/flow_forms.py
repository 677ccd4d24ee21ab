"""How a flow reads: Hubble's compact lines, its dictionaries, its table and its JSON. Pure.

Belongs here: layout. Does not belong here: choosing flows (flow_filters.py), their shape (flow_shape.py).
"""

import argparse
import json
from collections.abc import Sequence
from datetime import datetime
from typing import NamedTuple

from controlplane.cli.flow_shape import DROP, MATCHES, POLICY_VERDICT, Flow, layer4, own, summary, time_ns
from controlplane.cli.listing import address_and_port
from controlplane.cli.output import GREEN, RED, YELLOW, coloured
from controlplane.model import RESERVED_IDENTITIES

FORMS = ("compact", "dict", "json", "jsonpb", "table")
RESERVED_NAMES = {number: name for name, number in RESERVED_IDENTITIES.items()}
MATCH_NAMES = {number: name for name, number in MATCHES.items()}
COLOURS = {"FORWARDED": GREEN, "DROPPED": RED, "AUDIT": YELLOW}
OF_VERDICT = {"FORWARDED": "ALLOWED", "REDIRECTED": "ALLOWED", "DROPPED": "DENIED", "AUDIT": "AUDITED"}
"""What Hubble calls a verdict where the line is about a policy's."""
HEADER = ("TIMESTAMP", "NODE", "SOURCE", "DESTINATION", "TYPE", "VERDICT", "SUMMARY", "REVISION")
UNKNOWN_DROP = "unknown"


class Form(NamedTuple):
    """What a person asked for. `numeric`: addresses instead of names; `node`: lines name the node that told."""

    output: str = "compact"
    numeric: bool = False
    node: bool = False


def add_form(parser: argparse.ArgumentParser) -> None:
    """The flags that say how flows are printed."""
    parser.add_argument("-o", "--output", choices=FORMS, default="compact",
                        help="jsonpb and json are the same: one object a line, as Hubble has it")
    parser.add_argument("--numeric", action="store_true", help="addresses instead of names")
    parser.add_argument("--print-node-name", action="store_true", help="name the node that told, in lines")


def written(flow: Flow, form: Form) -> str:
    """One flow, in every form but the table."""
    if form.output in ("json", "jsonpb"):
        return json.dumps({"flow": flow, "node_name": flow.get("node_name", ""), "time": flow.get("time", "")})
    return _dictionary(flow, form) if form.output == "dict" else _line(flow, form)


def row(flow: Flow, form: Form) -> Sequence[str]:
    """Of a table with HEADER."""
    source, target = (_end(flow, side, form) for side in ("source", "destination"))
    return (_time(flow), flow.get("node_name", ""), source, target, _type(flow), _verdict(flow), _summary(flow),
            str(own(flow).get("policy_epoch", "")))  # fmt: skip


def _line(flow: Flow, form: Form) -> str:
    node = f" [{flow.get('node_name', '')}]" if form.node else ""
    source, target = (f"{_end(flow, side, form)} {_whose(flow, side)}" for side in ("source", "destination"))
    revision = own(flow).get("policy_epoch")
    told = f"{_type(flow)} {_verdict(flow)} ({_summary(flow)})" + (f" revision {revision}" if revision else "")
    return f"{_time(flow)}{node}: {source} {_arrow(flow)} {target} {told}"


def _dictionary(flow: Flow, form: Form) -> str:
    found = dict(zip(HEADER, row(flow, form), strict=True))
    if "drop_reason" in flow:
        found["DROP REASON"] = f"{flow['drop_reason']} {flow.get('drop_reason_desc', '')}"
    width = max(map(len, found))
    return "\n".join([*(f"{name:>{width}}: {value}" for name, value in found.items()), "-" * width])


def _time(flow: Flow) -> str:
    """May  4 12:47:08.811, in the zone of whoever looks."""
    told_ns = time_ns(flow)
    moment = datetime.fromtimestamp(told_ns // 1_000_000_000)
    return f"{moment:%b} {moment.day:>2} {moment:%H:%M:%S}.{told_ns // 1_000_000 % 1000:03d}"


def _end(flow: Flow, side: str, form: Form) -> str:
    """shop/frontend:53875, or the address."""
    end, address = flow.get(side) or {}, (flow.get("IP") or {}).get(side, "")
    port = layer4(flow)[1].get(f"{side}_port", 0)
    name = f"{end.get('namespace', '')}/{end['pod_name']}" if end.get("pod_name") and not form.numeric else ""
    if name:
        return f"{name}:{port}" if port else name
    return address_and_port(address, port) if port else address


def _whose(flow: Flow, side: str) -> str:
    """(ID:65792), (world)"""
    number = (flow.get(side) or {}).get("identity", 0)
    return f"({RESERVED_NAMES[number]})" if number in RESERVED_NAMES else f"(ID:{number})"


def _arrow(flow: Flow) -> str:
    if flow.get("is_reply") is None:
        return "<>"
    return "<-" if flow["is_reply"] else "->"


def _type(flow: Flow) -> str:
    """What told it: of a drop the reason with its number, of a verdict what matched and whose policy it was."""
    told = flow.get("event_type") or {}
    if told.get("type") == DROP:
        words = own(flow).get("reason") or flow.get("drop_reason_desc", UNKNOWN_DROP).replace("_", " ").capitalize()
        return f"{words} ({flow.get('drop_reason', told.get('sub_type', 0))})"
    if told.get("type") == POLICY_VERDICT:
        match = MATCH_NAMES.get(flow.get("policy_match_type", 0), "none")
        return f"policy-verdict:{match} {flow.get('traffic_direction', '')}"
    return str(flow.get("trace_observation_point", "trace")).lower().replace("_", "-")


def _verdict(flow: Flow) -> str:
    verdict = str(flow.get("verdict", ""))
    is_policy = (flow.get("event_type") or {}).get("type") == POLICY_VERDICT
    return coloured(OF_VERDICT.get(verdict, verdict) if is_policy else verdict, COLOURS.get(verdict, YELLOW))


def _summary(flow: Flow) -> str:
    return str(flow.get("Summary") or summary(flow))
