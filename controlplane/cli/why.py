"""`meshlog why`: why a flow is allowed or denied, why a row of a kernel table is there, and the records behind it.

Belongs here: how an explanation reads, and reading a line of the monitor. Does not belong here: explaining
(controlplane.history.why).
"""

import argparse
import json
import re
import sys
from typing import Any
from urllib.parse import quote

from controlplane.api.quickclient import ApiRefused, ApiUnavailable
from controlplane.cli.at import add_at, asked, say_at
from controlplane.cli.errors import CANNOT_SAY, FAILED, OK, CommandFailed, UsageError
from controlplane.cli.flow_shape import layer4, own
from controlplane.cli.output import GREEN, RED, YELLOW, add_output, coloured, print_document, print_table
from controlplane.cli.target import add_target, ask, connect

MIXED = "mixed"
COLOURS = {"allow": GREEN, "deny": RED}
HEADER = ("REVISION", "EVENT", "WRITER", "TIME", "ABOUT")
SIDE = r"(?:\[(?P<{0}6>[0-9a-f:.]+)\]|(?P<{0}4>[0-9.]+)):(?P<{0}port>\d+)(?: \((?P<{0}name>[^)]*)\))?"
FLOW = re.compile(SIDE.format("a") + " -> " + SIDE.format("b") + r" (?P<protocol>[a-z0-9]+)")
BARE = r"(?P<{0}>[0-9a-f:.]+)"
ICMP_FLOW = re.compile(BARE.format("a") + " -> " + BARE.format("b") + r" (?P<protocol>icmp|icmpv6) type (?P<type>\d+)")
DROP = re.compile(r"drop \((?P<reason>.*?)\)(?: to endpoint|,| flow)")
IDENTITIES = re.compile(r"identity (?P<source>\d+)->(?P<target>\d+)")
EPOCH = re.compile(r"epoch (?P<epoch>\d+)")
ICMP_NAMES = ("ICMP", "ICMPV6")
NOT_FOUND = 404
EXAMPLES = """Examples:
  meshlog why --from shop/frontend --to shop/payment --port 8080/TCP
  meshlog why --from west:shop/client --to service:shop/payment --port 80/TCP --at=-10m
  meshlog why --from entity:world --to ip:10.1.0.5 --port 443/TCP
  meshlog monitor -t drop -o json | head -1 | meshlog why -
  meshlog observe --verdict DROPPED --last 1 -o json | meshlog why -
  meshlog why --from shop/frontend --to service:shop/payment --port 80/TCP --datapath --at=-10m
  meshlog why map ipcache 10.1.0.5/32"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of why."""
    parser.description = (
        "Why a flow is allowed or denied, with the records behind it: `why --from END --to END --port PORT/PROTOCOL`; "
        "the same of a line of the monitor, as text or JSON: `why LINE`, or `-` for standard input; "
        "or why a row of a kernel table is there: `why map TABLE KEY`. "
        "An END is NS/POD, CLUSTER:NS/POD, service:NS/NAME, node:NAME, ip:ADDRESS or entity:NAME."
    )
    parser.epilog = EXAMPLES
    parser.add_argument("words", nargs="*", metavar="LINE | map TABLE KEY", help="instead of the flags")
    parser.add_argument("--from", dest="source", default="", metavar="END", help="who sends")
    parser.add_argument("--to", dest="target", default="", metavar="END", help="to whom")
    parser.add_argument("--port", default="", metavar="PORT/PROTOCOL", help="80/TCP, 53/UDP, 8/ICMP")
    parser.add_argument("--of", default="", metavar="NODE", help="of `map`: whose kernel (default: the node asked)")
    parser.add_argument("--datapath", action="store_true",
                        help="run the flow's first packet through the programs too, on copies of the nodes' rows; "
                        "exit status 1 where they do something else than is explained")
    parser.add_argument("-q", "--quiet", action="store_true",
                        help="print nothing; exit status 0 allow, 1 otherwise, 125 where an end was not there")
    add_output(parser)
    add_at(parser)
    add_target(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Explaining a denial is no failure, but under --quiet, for scripts; programs that do otherwise are one."""
    if arguments.datapath and (arguments.quiet or arguments.words[:1] == ["map"]):
        raise UsageError("--datapath is about a flow, and prints: leave out `map` and --quiet")
    if arguments.words[:1] == ["map"]:
        return _run_map(arguments)
    query = flow_of(arguments)
    target = asked("/v1/why", {**query, "at": arguments.at})
    if arguments.quiet:
        return _quietly(arguments, target)
    answer = ask(connect(arguments, 120.0), target)
    if arguments.datapath:
        answer |= _of_programs(arguments, query, answer)
    if arguments.output in ("json", "yaml"):
        print_document(arguments.output, answer)
    else:
        say_at(arguments, answer)
        _print(answer)
        if arguments.datapath:
            _print_programs(answer)
    return OK if answer.get("agrees", True) else FAILED


def _of_programs(arguments: argparse.Namespace, query: dict[str, str], answer: dict[str, Any]) -> dict[str, Any]:
    """What the programs did with the flow's first packet at the revision that was explained: "datapath", "agrees"."""
    ends = [_as_of_flow(query[name], answer[side]) for name, side in (("from", "source"), ("to", "target"))]
    port, _, protocol = answer["port"].partition("/")
    flow = {"from": ends[0], "to": ends[1], "l4": f"{protocol}/{port}"}
    target = asked("/v1/verdict/datapath", {"at": str(answer["revision"])})
    (found,) = ask(connect(arguments, 120.0), target, "POST", {"flows": [flow]})["answers"]
    if "error" in found or "error" in found["datapath"]:
        return {"datapath": {"error": found.get("error") or found["datapath"]["error"]}}
    # Of a service without such a port nothing is explained that programs could do otherwise.
    is_compared = answer["target"]["what"] != "service" or bool(answer["sides"]) or found["verdict"] == "deny"
    differs = answer["verdict"] not in (MIXED, found["datapath"]["verdict"])
    agrees = found["agrees"] and not (is_compared and differs)
    return {"datapath": found["datapath"], "agrees": agrees, "compared": is_compared}


def _as_of_flow(text: str, end: dict[str, Any]) -> str:
    """A packet goes to an address, and not to a service."""
    return f"ip:{end['address']}" if end["what"] == "service" and end["address"] else text


def _print_programs(answer: dict[str, Any]) -> None:
    found = answer["datapath"]
    if "error" in found:
        print(f"Programs: not asked: {found['error']}")
        return
    verdict = coloured(found["verdict"].capitalize(), COLOURS.get(found["verdict"], YELLOW))
    same = "as explained" if answer["compared"] else "untranslated"
    agreed = same if answer["agrees"] else coloured("NOT as explained", RED)
    print(f"Programs: {verdict}, {agreed}")
    sides = [f"{side} {found[side]}" for side in ("egress", "ingress") if side in found]
    backend = [f"backend {found['backend']}"] if "backend" in found else []
    reason = [found["reason"]["name"]] if "reason" in found else []
    fault = [found["fault"]] if "fault" in found else []
    print(f"  {'; '.join([' -> '.join(found['way']), *backend, *sides, *reason, *fault])}")
    print("Rows that the packet met:")
    rows = [
        [each["node"], each["table"], each["key"], " ".join(f"{name}={value}" for name, value in each["row"].items())]
        for each in found["rows"]
    ]
    print_table([("NODE", "TABLE", "KEY", "ROW")], rows)


def _quietly(arguments: argparse.Namespace, target: str) -> int:
    """For checks: who was not there then can be neither allowed nor denied."""
    try:
        answer = connect(arguments, 120.0).send("GET", target)
    except ApiRefused as error:
        print(f"meshlog: {error}", file=sys.stderr)
        return CANNOT_SAY if error.status == NOT_FOUND else FAILED
    except ApiUnavailable as error:
        raise CommandFailed(str(error)) from None
    return OK if answer["verdict"] == "allow" else FAILED


def _run_map(arguments: argparse.Namespace) -> int:
    if len(arguments.words) < 3:
        raise UsageError("why map needs a table and a key; right is for example: meshlog why map ipcache 10.1.0.5/32")
    table, key = arguments.words[1], " ".join(arguments.words[2:])
    query = {"key": key, "node": arguments.of, "at": arguments.at}
    answer = ask(connect(arguments, 120.0), asked(f"/v1/why/map/{quote(table)}", query))
    if arguments.output in ("json", "yaml"):
        print_document(arguments.output, answer)
        return OK
    say_at(arguments, answer)
    fields = " ".join(f"{name}={value}" for name, value in answer["row"].items())
    print(f"{answer['node']} {answer['table']} {answer['key']}: {fields}")
    for reason in answer["reasons"]:
        print(f"  {reason}")
    _print_evidence(answer["evidence"])
    return OK


def flow_of(arguments: argparse.Namespace) -> dict[str, str]:
    """From the flags, or from a line of the monitor. Raises UsageError."""
    if not arguments.words:
        missing = [f"--{flag}" for flag in ("from", "to", "port") if not getattr(arguments, _PLACES[flag])]
        if missing:
            raise UsageError(f"{', '.join(missing)}: missing; `meshlog why --help` has examples")
        return {"from": arguments.source, "to": arguments.target, "port": arguments.port}
    line = " ".join(arguments.words)
    if line == "-":
        line = next((each for each in sys.stdin if each.strip()), "")
    return flow_of_line(line)


_PLACES = {"from": "source", "to": "target", "port": "port"}


def flow_of_line(line: str) -> dict[str, str]:
    """The flow of a notification, as `meshlog monitor` prints it, and what else it says. Raises UsageError."""
    written = line.strip()
    if written.startswith("{"):
        try:
            found = json.loads(written)
            if "flow" in found:
                return _observed(found["flow"])
            source, target = found["source"], found["target"]
            port, protocol = found.get("target_port", 0), str(found["protocol"])
        except (ValueError, KeyError, TypeError):
            raise UsageError(f"no notification of the monitor: {written[:100]!r}") from None
        told = {name: found[name] for name in ("reason", "source_identity", "target_identity") if found.get(name)}
        told |= {"epoch": found["policy_epoch"]} if found.get("policy_epoch") else {}
        told |= {"node": f"{found['cluster']}/{found['node']}"} if found.get("node") else {}
        return {**_flow(source, target, _icmp_type(port, protocol), protocol), **told}
    bare, match = ICMP_FLOW.search(written), FLOW.search(written)
    if bare is not None:
        return {**_flow(bare["a"], bare["b"], bare["type"], bare["protocol"]), **_told(written)}
    if match is None:
        right = "right is a line with `ADDRESS:PORT -> ADDRESS:PORT tcp`"
        raise UsageError(f"no line of the monitor: {written[:100]!r}; {right}")
    source, target = (match[f"{side}6"] or match[f"{side}4"] for side in "ab")
    port = _icmp_type(int(match["bport"]), match["protocol"])
    return {**_flow(source, target, port, match["protocol"]), **_told(written)}


def _observed(flow: dict[str, Any]) -> dict[str, str]:
    """Of a line of `meshlog observe -o json`."""
    protocol, fields = layer4(flow)
    port = fields.get("destination_port", fields.get("type", 0))
    told = {"reason": own(flow).get("reason", ""), "epoch": own(flow).get("policy_epoch", 0), "node": flow["node_name"]}
    told |= {"source_identity": flow["source"].get("identity"), "target_identity": flow["destination"].get("identity")}
    name = protocol.removesuffix("v4").upper()
    ends = _flow(flow["IP"]["source"], flow["IP"]["destination"], port, name)
    return {**ends, **{key: str(value) for key, value in told.items() if value}}


def _flow(source: str, target: str, port: Any, protocol: str) -> dict[str, str]:
    return {"from": f"ip:{source}", "to": f"ip:{target}", "port": f"{port}/{protocol.upper()}"}


def _icmp_type(port: int, protocol: str) -> int:
    """Of ICMP a notification has type and code where others have the port."""
    return port >> 8 if protocol.upper() in ICMP_NAMES else port


def _told(line: str) -> dict[str, str]:
    """What a line of text says besides its flow."""
    found: dict[str, str] = {}
    for pattern, names in ((DROP, ("reason",)), (EPOCH, ("epoch",))):
        match = pattern.search(line)
        found |= {name: match[name] for name in names} if match else {}
    numbers = IDENTITIES.search(line)
    if numbers:
        found |= {"source_identity": numbers["source"], "target_identity": numbers["target"]}
    return {name: value for name, value in found.items() if value != "0"}


def _print(answer: dict[str, Any]) -> None:
    verdict = coloured(answer["verdict"].capitalize(), COLOURS.get(answer["verdict"], YELLOW))
    print(f"{verdict}: {answer['source']['text']} -> {answer['target']['text']} {answer['port']}")
    for reason in answer["reasons"]:
        print(f"  {reason}")
    for path in answer["paths"]:
        print(f"  backend {path}")
    for note in answer["notes"]:
        print(f"  note: {note}")
    for side in ("source", "target"):
        end = answer[side]
        identity = f"identity {end['identity']}" if end["identity"] else "no identity"
        print(f"  {side}: {end['what']} {end['text']} {end['address']} {identity} {','.join(end['labels'])}".rstrip())
    _print_evidence(answer["evidence"])


def _print_evidence(evidence: list[dict[str, Any]]) -> None:
    rows = [
        [each["revision"] or "-", each["event"], each["writer"], each["time"], each["about"]]
        for each in sorted(evidence, key=lambda each: -each["revision"])
    ]
    if rows:
        print("Records behind it, newest first:")
        print_table([HEADER], rows)
