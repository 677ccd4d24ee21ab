"""`meshlog log`: the history, as the one order of all clusters.

Belongs here: how records read, and pages. Does not belong here: what a record means, nor the replay itself
(controlplane.history.replay).
"""

import argparse
import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from typing import Any

from controlplane.api.connection import Connection
from controlplane.api.quickclient import ApiRefused, ApiUnavailable
from controlplane.cli import lost
from controlplane.cli.at import POINT, asked
from controlplane.cli.diff import print_rows, print_things
from controlplane.cli.errors import OK, CommandFailed, UsageError
from controlplane.cli.etcd_flags import add_etcd
from controlplane.cli.main import AT_ENVIRONMENT
from controlplane.cli.output import FORMATS, add_output, print_document, print_table
from controlplane.cli.parsing import whole_number
from controlplane.cli.target import add_target, ask, connect, refused, unanswered

HEADER = ("REVISION", "TIME", "CLUSTER", "WRITER", "EVENTS")
WIDE = ("SEQUENCE", "BYTES", "CAUSE")
EFFECTS = ("refused", "things", "rows", "nodes")
PAGE_RECORDS = 5000
NAMING_FIELDS = ("node", "namespace", "name", "workload", "endpoint_id", "number", "identity", "ipv4", "ipv6", "blocks")
"""Fields that tell one event from another of its kind, in the order they are shown."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verbs."""
    parser.description = "The history of the mesh: every record, in the one order that all clusters share."
    verbs = parser.add_subparsers(metavar="VERB", title="verbs")
    listing = _verb(verbs, "list", "records, oldest first", "meshlog log list --last 20 -o wide", ["ls"])
    listing.add_argument("--after", type=whole_number, default=0, metavar="REV", help="only later ones (default: all)")
    listing.add_argument("--limit", type=whole_number, metavar="N", help="at most so many, the oldest")
    listing.add_argument("--last", type=whole_number, metavar="N", help="the newest so many")
    _add_filters(listing)
    _add_bounds(listing)
    listing.set_defaults(run=run_list)
    following = _verb(verbs, "follow", "records as they come, until Ctrl-C", "meshlog log follow", [])
    following.add_argument("--after", type=whole_number, metavar="REV", help="begin after this one (default: now)")
    _add_filters(following)
    following.set_defaults(run=run_follow)
    showing = _verb(verbs, "show", "one record, whole", "meshlog log show 42", [])
    showing.add_argument("revision", type=whole_number, metavar="REVISION", help="of the record")
    showing.add_argument("--of", default="", metavar="NODE", help="effects on this node's tables only")
    showing.add_argument("--no-effects", action="store_true", help="the record alone")
    showing.set_defaults(run=run_show, output="yaml")
    _add_bisect(verbs)
    replaying = _verb(
        verbs, "replay", "fold the log from its first record; digests of what each node's kernel must hold",
        "meshlog log replay --through 40", [],
    )
    replaying.add_argument("--through", type=whole_number, metavar="REV", help="up to this one (default: the newest)")
    replaying.add_argument("--archive-dir", default="", metavar="DIR",
                           help="where history is that has left etcd (default: as the operators have recorded it)")
    add_etcd(replaying, "read the log there (default: where the agent reads it)")
    replaying.set_defaults(run=run_replay)
    what = "what is kept where, since when, and what it costs"
    keeping = _verb(verbs, "retention", what, "meshlog log retention", [])
    add_etcd(keeping, "read it there (default: where the agent reads the log)")
    keeping.set_defaults(run=run_kept)
    losing = _verb(
        verbs, "lost", "what was known here, and a log that was put back to a backup does not hold as it was",
        "meshlog log lost --manifests | meshlog apply -f -", [],
    )  # fmt: skip
    lost.add_flags(losing)
    losing.set_defaults(run=lost.run)


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


def _add_bisect(verbs: Any) -> None:
    bisecting = _verb(
        verbs, "bisect", "the first revision at which a check fails",
        "meshlog log bisect --since=-1h --check 'meshlog why -q --from shop/cart --to shop/db --port 80/TCP'", [],
    )  # fmt: skip
    bisecting.add_argument("--check", required=True, metavar="COMMAND",
                           help="run by the shell with MESHLOG_AT set; exit status 0: it holds, 125: it cannot say")
    _add_filters(bisecting)
    _add_bounds(bisecting)
    bisecting.set_defaults(run=run_bisect)


def _add_filters(parser: argparse.ArgumentParser) -> None:
    which = parser.add_argument_group("which records")
    which.add_argument("--kind", default="", help="an event's name or its beginning: policy, EndpointCreated")
    which.add_argument("--object", default="", help="NAME or NAMESPACE/NAME of what an event is about")
    which.add_argument("--namespace", "-n", default="", help="of what an event is about")
    which.add_argument("--writer", default="", help="who wrote it: operator, node.n1, n1")
    which.add_argument("--cluster", default="", help="whose log it is in")
    which.add_argument("--on", default="", metavar="NODE", help="about this node, or written by it")
    which.add_argument("--cause", type=whole_number, metavar="REV", help="that this revision led to")


def _add_bounds(parser: argparse.ArgumentParser) -> None:
    when = parser.add_argument_group("when")
    when.add_argument("--since", default="", metavar="POINT", help=POINT)
    when.add_argument("--until", default=os.environ.get(AT_ENVIRONMENT, ""), metavar="POINT",
                      help=f"the last one (default: {AT_ENVIRONMENT}, else now)")


def _filters(arguments: argparse.Namespace) -> dict[str, Any]:
    names = ("kind", "object", "namespace", "writer", "cluster", "cause")
    return {"node": arguments.on, **{name: getattr(arguments, name) for name in names}}


def run_bisect(arguments: argparse.Namespace) -> int:
    """Asks the check at revisions of the records chosen, and at the one before the first of them."""
    from controlplane.cli.bisect import run_bisect as search

    query = {**_filters(arguments), "since": arguments.since, "until": arguments.until}
    connection = connect(arguments)
    records = [record["revision"] for record in _pages(connection, 0, None, query)]
    before = [records[0] - 1] if records and (arguments.since or _chosen(arguments)) and records[0] > 1 else []

    def described(revision: int) -> str:
        record = ask(connection, f"/v1/log/{revision}")
        events = "; ".join(_row(record, False)[4])
        author = f"{record['cluster']}/{record['writer']}"
        return f"{events}, by {author} at {record['time']}; `meshlog log show {revision}` tells what it changed"

    return search(arguments, [*before, *records], described)


def _chosen(arguments: argparse.Namespace) -> bool:
    return any(value not in ("", None) for value in _filters(arguments).values())


def run_list(arguments: argparse.Namespace) -> int:
    """Fetched page by page; tables are printed as the pages come."""
    query = {**_filters(arguments), "since": arguments.since, "until": arguments.until}
    if arguments.last is not None and arguments.limit is not None:
        raise UsageError("--last and --limit: give one of them")
    if arguments.last is not None:
        query |= {"last": arguments.last}
    limit = arguments.limit if arguments.last is None else arguments.last
    records = _pages(connect(arguments), arguments.after, limit, query)
    if arguments.output in ("json", "yaml"):
        print_document(arguments.output, list(records))
        return OK
    wide = arguments.output == "wide"
    headers = [(*HEADER, *WIDE) if wide else HEADER]
    while True:
        rows = [_row(record, wide) for record in islice(records, PAGE_RECORDS)]
        if rows or headers:
            print_table(headers, rows)
        if headers and not rows:
            _say_unknown_kind(arguments.kind)
        if len(rows) < PAGE_RECORDS:
            return OK
        headers = []


def _say_unknown_kind(kind: str) -> None:
    """Nothing was found, perhaps because no event is called so. Imported late: this costs what a request costs."""
    from controlplane.events import EVENTS

    names = sorted(event.__name__ for event in EVENTS)
    if kind and not any(name.lower().startswith(kind.lower()) for name in names):
        print(f"--kind: no event's name begins with {kind!r}; there are: {', '.join(names)}", file=sys.stderr)


def _pages(
    connection: Connection, after: int, limit: int | None, query: Mapping[str, Any]
) -> Iterator[dict[str, Any]]:
    remaining = limit
    while remaining is None or remaining > 0:
        size = PAGE_RECORDS if remaining is None else min(PAGE_RECORDS, remaining)
        page = list(_lines(connection, asked("/v1/log", {"after": after, "limit": size, **query})))
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
        for record in _lines(connection, asked("/v1/log", {"after": after, "follow": 1, **_filters(arguments)})):
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
    """The record, and what it did in the mesh and in kernels; as YAML unless asked otherwise."""
    connection = connect(arguments, 120.0)
    record = ask(connection, f"/v1/log/{arguments.revision}")
    effects = None
    if not arguments.no_effects:
        try:
            effects = ask(connection, asked(f"/v1/effects/{arguments.revision}", {"node": arguments.of}))
        except CommandFailed as error:
            print(f"what it changed cannot be told: {error}", file=sys.stderr)
    if arguments.output in ("json", "yaml"):
        whole = record if effects is None else {**record, **{name: effects[name] for name in EFFECTS}}
        print_document(arguments.output, whole)
        return OK
    print_table([(*HEADER, *WIDE)], [_row(record, True)])
    if effects is not None:
        for refusal in effects["refused"]:
            print(f"refused: {refusal}")
        print_things(effects["things"])
        print_rows(effects["rows"])
    return OK


def run_replay(arguments: argparse.Namespace) -> int:
    """In this process, from etcd itself, without asking any agent for what it believes."""
    from controlplane.cli.replay import replay_digests

    endpoints = arguments.etcd or ask(connect(arguments), "/v1/status")["log"]["endpoints"]
    print("folding the log ...", file=sys.stderr)
    replayed = replay_digests(arguments, endpoints)
    if arguments.output in ("json", "yaml"):
        print_document(arguments.output, replayed)
        return OK
    rows = [[node, table, digest] for node, tables in replayed["nodes"].items() for table, digest in tables.items()]
    print_table([("NODE", "TABLE", "DIGEST")], rows)
    return OK


def run_kept(arguments: argparse.Namespace) -> int:
    """Imports etcd's client, which the other verbs do without."""
    from controlplane.cli.retention import run_retention

    return run_retention(arguments)


def _lines(connection: Connection, target: str) -> Iterator[dict[str, Any]]:
    try:
        yield from connection.lines(target)
    except ApiUnavailable as error:
        raise unanswered(error) from None
    except ApiRefused as error:
        raise refused(error) from None


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
