"""`meshlog bpf`: what the kernel's maps hold, with the columns of `cilium-dbg bpf`."""

import argparse
from collections.abc import Callable
from typing import Any

from controlplane.cli.at import add_at, asked, say_at
from controlplane.cli.errors import OK
from controlplane.cli.listing import address_and_port
from controlplane.cli.output import add_output, print_document, print_table
from controlplane.cli.target import add_target, ask, connect

KINDS = {
    "endpoint": "local addresses and where their packets go",
    "ipcache": "prefixes and their identities",
    "policy": "allowed and denied peers of each identity",
    "lb": "frontends and their backends",
    "ct": "tracked flows",
    "nat": "ports of flows that leave the mesh with the node's address",
    "affinity": "the backend that each client of a service with session affinity was sent to last",
    "metrics": "packets and bytes by reason and direction",
}
FLAG_TEXTS = {
    "cluster_ip": "ClusterIP",
    "node_port": "NodePort",
    "load_balancer": "LoadBalancer",
    "external_ip": "ExternalIPs",
    "host_port": "HostPort",
    "local_backends": "Local",
    "dsr": "dsr",
    "source_ranges_deny": "deny",
}
Row = dict[str, Any]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """One noun per map, each with the verb list."""
    parser.description = "What the kernel really holds now, read from its maps; with --at, what it had to hold then."
    nouns = parser.add_subparsers(metavar="MAP", title="maps")
    for kind, text in KINDS.items():
        noun = nouns.add_parser(kind, help=text, description=text, allow_abbrev=False)
        verbs = noun.add_subparsers(metavar="VERB", title="verbs", required=True)
        listing = verbs.add_parser(
            "list", aliases=["ls"], help=text, description=text, epilog=f"Example: meshlog bpf {kind} list -o json",
            allow_abbrev=False,
        )
        add_output(listing)
        listing.add_argument("--no-headers", action="store_true", help="print rows only")
        add_at(listing)
        add_target(listing)
        listing.set_defaults(run=run, kind=kind)


def run(arguments: argparse.Namespace) -> int:
    """One map."""
    answer = ask(connect(arguments), asked(f"/v1/bpf/{arguments.kind}", {"at": arguments.at}))
    say_at(arguments, answer)
    if arguments.output in ("json", "yaml"):
        print_document(arguments.output, answer["rows"])
        return OK
    header, row_of = LAYOUTS[arguments.kind]
    headers = [header] if header and not arguments.no_headers else []
    print_table(headers, [row_of(row) for row in answer["rows"]])
    return OK


def _endpoint(row: Row) -> list[Any]:
    flags = ",".join(row["flags"]) or "none"
    place = f"ifindex={row['ifindex']} mac={row['mac']} nodemac={row['host_mac']}"
    return [row["address"], f"id={row['endpoint_id']} identity={row['identity']} flags={flags} {place}"]


def _ipcache(row: Row) -> list[Any]:
    flags = ",".join(row["flags"]) or "<none>"
    node = row["node"] or "0.0.0.0"
    return [row["prefix"], f"identity={row['identity']} encryptkey=0 tunnelendpoint={node} flags={flags}"]


def _policy(row: Row) -> list[Any]:
    verdict = {"allow": "Allow", "deny": "Deny"}.get(row["verdict"], row["verdict"].capitalize())
    width = row["port_prefix"]
    port = "ANY" if width == 0 else f"{row['port']}" if width == 16 else f"{row['port']}/{width}"
    remote = row["remote_identity"] or "ANY"
    return [row["subject_identity"], verdict, row["direction"].capitalize(), remote, f"{port}/{row['protocol']}", width]


def _lb(row: Row) -> list[Any]:
    backends = [f"{address_and_port(b['address'], b['port'], row['protocol'])} ({row['backend_set'][:8]}) ({slot})"
                f"{'' if b['state'] == 'active' else ' [' + b['state'] + ']'}"
                for slot, b in enumerate(row["backends"], 1)]
    missing = [f"{row['backends_missing']} backends not found"] if row["backends_missing"] else []
    nowhere = address_and_port("::" if ":" in row["address"] else "0.0.0.0", 0)
    header = f"{nowhere} ({row['backend_set'][:8]}) (0) [{_lb_flags(row)}]"
    scope = "/e" if row["scope"] == "external" else ""
    frontend = address_and_port(row["address"], row["port"], row["protocol"]) + scope
    return [frontend, [header, *backends, *missing]]


def _lb_flags(row: Row) -> str:
    """As Cilium writes them: the type first."""
    names = [FLAG_TEXTS[flag] for flag in row["flags"]] or ["ClusterIP"]
    names += [f"sessionAffinity({row['affinity_s']}s)"] if row["affinity_s"] else []
    names += [f"maglev({row['maglev_slots']})"] if row["maglev_slots"] else []
    names += [f"check source-range({','.join(row['source_ranges'])})"] if row["source_ranges"] else []
    return ", ".join(names)


def _affinity(row: Row) -> list[Any]:
    frontend = address_and_port(row["address"], row["port"], row["protocol"])
    backend = address_and_port(row["backend"], row["backend_port"], row["protocol"])
    return [row["client"], frontend, backend, f"{row['idle_s']}s"]


def _ct(row: Row) -> list[Any]:
    """Packets and Bytes are those of the flow's initiator; Tx is its side, Rx the other's."""
    source = address_and_port(row["source"], row["source_port"])
    target = address_and_port(row["target"], row["target_port"])
    parts = [
        f"{row['protocol']} {source} -> {target} expires={row['expires_s']}",
        f"Packets={row['forward_packets']} Bytes={row['forward_bytes']} TxFlagsSeen={row['forward_tcp_flags'] or '-'}",
        f"ReplyPackets={row['reply_packets']} ReplyBytes={row['reply_bytes']}",
        f"RxFlagsSeen={row['reply_tcp_flags'] or '-'} Flags=[ {' '.join(row['flags'])} ]",
        f"SourceSecurityID={row['source_identity']} Epoch={row['policy_epoch']}",
    ]
    if row["translated"]:
        parts.append(f"Backend={address_and_port(row['translated'], row['translated_port'])}")
    return [" ".join(parts)]


def _nat(row: Row) -> list[Any]:
    """As the flow's first packet, or an answer to it, is rewritten."""
    near = address_and_port(row["near"], row["near_port"])
    far = address_and_port(row["far"], row["far_port"])
    translated = address_and_port(row["translated"], row["translated_port"])
    if row["direction"] == "outbound":
        return [f"{row['protocol']} OUT {near} -> {far} XLATE_SRC {translated}"]
    return [f"{row['protocol']} IN {far} -> {near} XLATE_DST {translated}"]


def _metrics(row: Row) -> list[Any]:
    return [row["reason"].capitalize(), row["direction"].upper(), row["packets"], row["bytes"]]


LAYOUTS: dict[str, tuple[tuple[str, ...], Callable[[Row], list[Any]]]] = {
    "endpoint": (("IP ADDRESS", "LOCAL ENDPOINT INFO"), _endpoint),
    "ipcache": (("IP PREFIX/ADDRESS", "IDENTITY"), _ipcache),
    "policy": (("IDENTITY", "POLICY", "DIRECTION", "REMOTE", "PORT/PROTO", "PREFIX"), _policy),
    "lb": (("SERVICE ADDRESS", "BACKEND ADDRESS (SET) (SLOT)"), _lb),
    "ct": ((), _ct),
    "nat": ((), _nat),
    "affinity": (("CLIENT", "SERVICE ADDRESS", "BACKEND ADDRESS", "IDLE"), _affinity),
    "metrics": (("REASON", "DIRECTION", "PACKETS", "BYTES"), _metrics),
}
