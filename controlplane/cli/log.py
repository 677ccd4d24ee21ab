"""`meshlog log`: the history, as the one order of all clusters.

Belongs here: how records read, and pages. Does not belong here: what a record means, nor the replay itself
(controlplane.history.replay).
"""

import argparse
from collections.abc import Iterable, Iterator
from typing import Any

from controlplane.api.connection import Connection
from controlplane.api.quickclient import ApiRefused, ApiUnavailable
from controlplane.cli.errors import OK, CommandFailed
from controlplane.cli.output import FORMATS, add_output, print_document, print_table
from controlplane.cli.target import add_target, ask, connect

HEADER = ("REVISION", "TIME", "CLUSTER", "WRITER", "EVENTS")
WIDE = ("SEQUENCE", "BYTES", "CAUSE")
PAGE_RECORDS = 5000
NAMING_FIELDS = ("node", "namespace", "name", "workload", "endpoint_id", "number", "identity", "ipv4", "ipv6", "blocks")
"""Fields that tell one event from another of its kind, in the order they are shown."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verbs."""
    parser.description = "The history of the mesh: every record, in the one order that all clusters share."
    verbs = parser.add_subparsers(metavar="VERB", title="verbs")
    listing = _verb(verbs, "list", "records, oldest first", "meshlog log list --after 40 -o wide", ["ls"])
    listing.add_argument("--after", type=int, default=0, metavar="REV", help="only later ones (default: all)")
    listing.add_argument("--limit", type=int, metavar="N", help="at most so many")
    listing.set_defaults(run=run_list)
    following = _verb(verbs, "follow", "records as they come, until Ctrl-C", "meshlog log follow", [])
    following.add_argument("--after", type=int, metavar="REV", help="begin after this one (default: now)")
    following.set_defaults(run=run_follow)
    showing = _verb(verbs, "show", "one record, whole", "meshlog log show 42", [])
    showing.add_argument("revision", type=int)
    showing.set_defaults(run=run_show, output="yaml")
    replaying = _verb(
        verbs, "replay", "fold the log from its first record; digests of what each node's kernel must hold",
        "meshlog log replay --through 40", [],
    )
    replaying.add_argument("--through", type=int, metavar="REV", help="up to this one (default: the newest)")
    replaying.add_argument("--etcd", action="append", metavar="ENDPOINT",
                           help="read the log there (default: where the agent reads it); may be repeated")
    replaying.set_defaults(run=run_replay)


def _verb(verbs: Any, name: str, text: str, example: str, aliases: list[str]) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = verbs.add_parser(
        name, aliases=aliases, help=text, description=text[0].upper() + text[1:] + ".", epilog=f"Example: {example}",
        allow_abbrev=False,
    )
    if name == "show":
        parser.add_argument("-o", "--output", choices=FORMATS, default="yaml", help="how to print (default: yaml)")
    else:
        add_output(parser)
    add_target(parser)
    return parser


def run_list(arguments: argparse.Namespace) -> int:
    """Fetched page by page."""
    records = list(_pages(connect(arguments), arguments.after, arguments.limit))
    if arguments.output in ("json", "yaml"):
        print_document(arguments.output, records)
        return OK
    wide = arguments.output == "wide"
    print_table([(*HEADER, *WIDE) if wide else HEADER], [_row(record, wide) for record in records])
    return OK


def _pages(connection: Connection, after: int, limit: int | None) -> Iterator[dict[str, Any]]:
    remaining = limit
    while remaining is None or remaining > 0:
        size = PAGE_RECORDS if remaining is None else min(PAGE_RECORDS, remaining)
        page = list(_lines(connection, f"/v1/log?after={after}&limit={size}"))
        yield from page
        if len(page) < size:
            return
        after = page[-1]["revision"]
        remaining = None if remaining is None else remaining - len(page)


def run_follow(arguments: argparse.Namespace) -> int:
    """Until the user stops it."""
    connection = connect(arguments)
    after = arguments.after
    if after is None:
        after = ask(connection, "/v1/status")["log"]["applied_revision"]
    try:
        for record in _lines(connection, f"/v1/log?after={after}&follow=1"):
            _print_one(arguments.output, record)
    except KeyboardInterrupt:
        pass
    return OK


def _print_one(form: str, record: dict[str, Any]) -> None:
    import json
    import sys

    if form == "json":
        print(json.dumps(record))
    elif form == "yaml":
        print("---")
        print_document("yaml", record)
    else:
        revision, moment, cluster, writer, events, *more = _row(record, form == "wide")
        print(f"{revision}  {moment}  {cluster}/{writer}  {'; '.join(events)}", *more)
    sys.stdout.flush()


def run_show(arguments: argparse.Namespace) -> int:
    """As YAML unless asked otherwise."""
    record = ask(connect(arguments), f"/v1/log/{arguments.revision}")
    if arguments.output in ("json", "yaml"):
        print_document(arguments.output, record)
    else:
        print_table([(*HEADER, *WIDE)], [_row(record, True)])
    return OK


def run_replay(arguments: argparse.Namespace) -> int:
    """In this process, from etcd itself, without asking any agent for what it believes."""
    from controlplane.cli.replay import replay_digests

    endpoints = arguments.etcd or ask(connect(arguments), "/v1/status")["log"]["endpoints"]
    replayed = replay_digests(endpoints, arguments.through)
    if arguments.output in ("json", "yaml"):
        print_document(arguments.output, replayed)
        return OK
    rows = [[node, table, digest] for node, tables in replayed["nodes"].items() for table, digest in tables.items()]
    print_table([("NODE", "TABLE", "DIGEST")], rows)
    return OK


def _lines(connection: Connection, target: str) -> Iterator[dict[str, Any]]:
    try:
        yield from connection.lines(target)
    except (ApiUnavailable, ApiRefused) as error:
        raise CommandFailed(str(error)) from None


def _row(record: dict[str, Any], wide: bool) -> list[Any]:
    events = [summary(event) for event in record["events"]] or [record.get("error", "")]
    row = [record["revision"], record["time"], record["cluster"], record["writer"], events]
    return [*row, record["sequence"], record["bytes"], record["cause"] or "-"] if wide else row


def summary(event: dict[str, Any]) -> str:
    """An event in one line: its name and what it is about."""
    parts = [_plain(event[field]) for field in NAMING_FIELDS if event.get(field)]
    return " ".join([event["event"], *parts])


def _plain(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, Iterable) and not isinstance(value, str) else str(value)
