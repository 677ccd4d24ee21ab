"""`meshlog monitor`: notifications of the datapath, one line each, as `cilium-dbg monitor` prints them."""

import argparse
import json
import sys
from typing import Any

from controlplane.api.quickclient import ApiRefused, ApiUnavailable
from controlplane.cli.errors import OK
from controlplane.cli.listing import address_and_port
from controlplane.cli.output import RED, coloured
from controlplane.cli.parsing import whole_number
from controlplane.cli.target import add_target, connect, refused, unanswered

TYPES = {"drop": "drop", "policy-verdict": "verdict", "trace": "trace"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of monitor."""
    parser.description = "Drops and policy verdicts of one node as they happen, until Ctrl-C."
    parser.epilog = "Example: meshlog monitor -t drop"
    parser.add_argument("-t", "--type", action="append", choices=sorted(TYPES), help="only these; may be repeated")
    parser.add_argument("--related-to", type=whole_number, metavar="ENDPOINT", help="only of this endpoint's number")
    parser.add_argument("-o", "--output", choices=("table", "json"), default="table", help="lines or one JSON each")
    add_target(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Until the stream ends or the user stops it."""
    wanted = {TYPES[name] for name in arguments.type or TYPES}
    try:
        notifications = connect(arguments).lines("/v1/monitor")
        print("Listening for notifications; press Ctrl-C to quit", file=sys.stderr, flush=True)
        for notification in notifications:
            if notification["type"] == "lost":
                print(f"NOTIFICATIONS LOST: {notification['lost']}", file=sys.stderr, flush=True)
                continue
            if notification["type"] not in wanted:
                continue
            if arguments.related_to and notification.get("endpoint_id") != arguments.related_to:
                continue
            print(json.dumps(notification) if arguments.output == "json" else line(notification), flush=True)
    except ApiUnavailable as error:
        raise unanswered(error) from None
    except ApiRefused as error:
        raise refused(error) from None
    except KeyboardInterrupt:
        pass
    return OK


def line(notification: dict[str, Any]) -> str:
    """One notification for people."""
    get = notification.get
    flow = f"{_side(notification, 'source')} -> {_side(notification, 'target')} {get('protocol', '').lower()}"
    flow = f"{flow} {get('tcp_flags', '')}".rstrip()
    epoch = f"epoch {notification['policy_epoch']}, " if get("policy_epoch") else ""
    identities = f"{epoch}identity {get('source_identity', 0)}->{get('target_identity', 0)}"
    if notification["type"] == "drop":
        place = f", file {get('file')}:{get('line', 0)}" if get("file") else ""
        return coloured(f"xx drop ({get('reason', '')})", RED) + (
            f" to endpoint {get('endpoint_id', 0)}, ifindex {get('ifindex', 0)}{place}, {identities}: {flow}"
        )
    if notification["type"] == "verdict":
        return (
            f"Policy verdict log: local EP ID {get('endpoint_id', 0)}, {get('direction', '')}, "
            f"action {get('verdict', '')}, match {get('match') or 'none'}, {identities}: {flow}"
        )
    return f"-> endpoint {get('endpoint_id', 0)}, {identities}: {flow}"


def _side(notification: dict[str, Any], side: str) -> str:
    address = address_and_port(notification.get(side, ""), notification.get(f"{side}_port", 0))
    name = notification.get(f"{side}_name", "")
    return f"{address} ({name})" if name else address
