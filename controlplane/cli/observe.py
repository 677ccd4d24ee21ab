"""`meshlog observe`: the flows that the nodes of this machine saw and see, as `hubble observe` shows them.

Belongs here: where flows come from, in which order, and how many. Does not belong here: which are shown
(flow_filters.py), how they read (flow_forms.py).
"""

import argparse
import json
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from queue import SimpleQueue
from typing import Any, NamedTuple

from controlplane.api.connection import Connection
from controlplane.api.quickclient import ApiRefused, ApiUnavailable
from controlplane.cli.errors import FAILED, OK, CommandFailed, UsageError, reason_of
from controlplane.cli.flow_filters import add_filters, keeps
from controlplane.cli.flow_forms import HEADER, Form, add_form, row, written
from controlplane.cli.flow_shape import TYPES, Flow, flow_of, time_ns
from controlplane.cli.output import print_table
from controlplane.cli.parsing import whole_number
from controlplane.cli.target import add_target, refused, sockets_of, unanswered

LAST_DEFAULT = 20
ALL = 2**31 - 1
"""More than any agent keeps."""
TIME = "so long ago (10m, 1h30m) or a time (RFC 3339)"
HINT = "meshlog: why a flow was dropped: meshlog observe --verdict DROPPED --last 1 -o json | meshlog why -"
EPILOG = """A flow is told once per connection and direction of policy, a denied one once per packet. Its revision
is that of the last record which the node's policy rows had taken in.

Examples:
  meshlog observe --last 50
  meshlog observe -f --verdict DROPPED
  meshlog observe --from-pod shop/frontend --to-port 8080 --protocol tcp
  meshlog observe -n shop --not --to-ip 10.96.0.0/16 -o table
  meshlog observe --since 10m -o json
  meshlog observe --input-file flows.json -l app=payment"""


class Window(NamedTuple):
    """Of what is known already: the time it lies in, in ns since the epoch (None: open), and how many are shown."""

    since_ns: int | None
    until_ns: int | None
    first: int | None
    last: int | None

    def holds(self, told_ns: int) -> bool:
        """Whether a time lies in it."""
        since_ns, until_ns = self.since_ns, self.until_ns
        return (since_ns is None or told_ns >= since_ns) and (until_ns is None or told_ns <= until_ns)

    def cut(self, flows: Iterable[Flow]) -> list[Flow]:
        """At most so many of the flows, which are in order."""
        if self.first is not None:
            return [flow for _, flow in zip(range(self.first), flows, strict=False)]
        return list(flows if self.last is None else deque(flows, maxlen=self.last))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of observe."""
    parser.description = (
        "Flows that the agents of this machine told, oldest first, in the manner of `hubble observe`: the last "
        f"{LAST_DEFAULT}, or with -f those to come, until Ctrl-C."
    )
    parser.epilog = EPILOG
    which = parser.add_argument_group("how many")
    which.add_argument("-f", "--follow", action="store_true", help="go on with what happens")
    which.add_argument("--last", type=whole_number, metavar="N", help=f"the last N (default {LAST_DEFAULT} without -f)")
    which.add_argument("--first", type=whole_number, metavar="N", help="the first N that are kept")
    which.add_argument("--all", action="store_true", help="all that are kept")
    which.add_argument("--since", default="", metavar="TIME", help=f"told since then: {TIME}")
    which.add_argument("--until", default="", metavar="TIME", help="told until then")
    which.add_argument("--input-file", metavar="FILE|-", help="flows of a file, as -o json or Hubble wrote them")
    add_filters(parser)
    add_form(parser)
    add_target(parser)
    parser.set_defaults(run=run, families=[])


def run(arguments: argparse.Namespace) -> int:
    """Until all is shown, or the user stops it; 1 where an agent could not be asked to the end."""
    _check(arguments)
    shown = _Shown(arguments)
    try:
        if arguments.input_file:
            shown.known(_of_file(arguments.input_file))
            return OK
        return _of_agents([Connection(path) for path in sockets_of(arguments)], shown, arguments.follow)
    except KeyboardInterrupt:
        return OK


def _check(arguments: argparse.Namespace) -> None:
    if arguments.is_not:
        raise UsageError("--not: leaves out what the filter behind it matches; there is none behind it")
    if sum(given is not None for given in (arguments.last, arguments.first)) + arguments.all > 1:
        raise UsageError("--last, --first and --all say the same thing twice; give one of them")
    if arguments.follow and (arguments.input_file or arguments.until or arguments.first is not None):
        raise UsageError("--follow has no end: leave out --input-file, --until and --first")
    if arguments.follow and arguments.output == "table":
        raise UsageError("-o table needs all rows before it can align them; with --follow use -o compact")


def window_of(arguments: argparse.Namespace, now_ns: int) -> Window:
    """What is asked of the flows that are known already. Raises UsageError."""
    since_ns, until_ns = (_time_ns(name, getattr(arguments, name), now_ns) for name in ("since", "until"))
    last = arguments.last
    is_bounded = arguments.first is not None or arguments.all or since_ns is not None or until_ns is not None
    if last is None and not is_bounded:
        last = 0 if arguments.follow else LAST_DEFAULT
    if arguments.input_file and arguments.last is None:
        last = None
    return Window(since_ns, until_ns, arguments.first, last)


def _time_ns(flag: str, text: str, now_ns: int) -> int | None:
    from controlplane.history.points import PointError, parse_point

    if not text:
        return None
    try:
        point = parse_point(f"-{text}" if text[0].isdigit() and text[-1:].isalpha() and text[-1:] != "Z" else text)
    except PointError:
        raise UsageError(f"--{flag} {text}: right is {TIME}") from None
    if point.revision is not None:
        raise UsageError(f"--{flag} {text}: flows have times and no revisions; right is {TIME}")
    return point.time_at(now_ns)


class _Shown:
    """What goes to standard output, and what is said beside it."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.window = window_of(arguments, time.time_ns())
        self._filters = [*arguments.filters, *arguments.families]
        self._form = Form(arguments.output, arguments.numeric, arguments.print_node_name)
        self._has_hinted = arguments.output in ("json", "jsonpb") or bool(arguments.input_file)

    @property
    def wanted(self) -> int:
        """How many an agent has to send so that none is missed; 0: only what is to come."""
        if self._filters or self.window.last is None or self.window.until_ns is not None:
            return ALL
        return self.window.last

    def known(self, flows: Iterable[Flow]) -> None:
        """Those that are known already, in the order of their times."""
        found = sorted((flow for flow in flows if self._is_wanted(flow)), key=time_ns)
        found = self.window.cut(found)
        if self._form.output == "table":
            print_table([HEADER], [row(flow, self._form) for flow in found])
            sys.stdout.flush()
        for flow in found:
            if self._form.output != "table":
                print(written(flow, self._form), flush=flow is found[-1])
            self._hint(flow)

    def one(self, flow: Flow) -> None:
        """One that has just happened."""
        if keeps(self._filters, flow):
            print(written(flow, self._form), flush=True)
            self._hint(flow)

    def _is_wanted(self, flow: Flow) -> bool:
        return self.window.holds(time_ns(flow)) and keeps(self._filters, flow)

    def _hint(self, flow: Flow) -> None:
        if flow.get("verdict") == "DROPPED" and not self._has_hinted:
            self._has_hinted = True
            print(HINT, file=sys.stderr, flush=True)


def _of_file(path: str) -> Iterator[Flow]:
    """Raises CommandFailed naming the line."""
    try:
        with sys.stdin if path == "-" else open(path, encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield _flow_of_line(line, f"{path}:{number}")
    except (OSError, UnicodeDecodeError) as error:
        raise CommandFailed(f"{path}: {reason_of(error)}") from None


def _flow_of_line(line: str, where: str) -> Flow:
    try:
        found = json.loads(line)
    except ValueError as error:
        raise CommandFailed(f"{where}: no JSON: {error}") from None
    flow = found.get("flow", found) if isinstance(found, dict) else None
    if not isinstance(flow, dict) or not isinstance(flow.get("IP"), dict):
        raise CommandFailed(f'{where}: no flow; right is a line of `meshlog observe -o json`: {{"flow": {{"IP": …}}}}')
    return flow


def _of_agents(agents: Sequence[Connection], shown: _Shown, follow: bool) -> int:
    """First what is known, all nodes' together by time; then what comes, as it comes."""
    heard: SimpleQueue[tuple[int, Any]] = SimpleQueue()
    target = f"/v1/monitor?recent={shown.wanted}&follow={int(follow)}"
    for number, agent in enumerate(agents):
        threading.Thread(target=_hear, args=(agent, target, number, heard.put), daemon=True).start()
    known: list[Flow] = []
    behind = set(range(len(agents))) if shown.wanted else set()
    open_, failures = set(range(len(agents))), []
    if follow and not behind:
        print("Listening for flows; press Ctrl-C to quit", file=sys.stderr, flush=True)
    while open_:
        number, told = heard.get()
        if told is None or isinstance(told, Exception):
            open_.discard(number)
            failures += [] if told is None else [told]
        elif told["type"] in TYPES:
            flow = flow_of(told)
            if number in behind:
                known.append(flow)
            else:
                shown.one(flow)
        elif told["type"] == "lost":
            print(f"NOTIFICATIONS LOST: {told['lost']}", file=sys.stderr, flush=True)
        if behind and (number not in open_ or told["type"] == "now"):
            behind.discard(number)
            if not behind:
                shown.known(known)
        if isinstance(told, Exception) and open_:
            print(f"meshlog: {told}", file=sys.stderr, flush=True)
    if len(failures) == len(agents):
        raise _failure(failures[0])
    return FAILED if failures else OK


def _failure(error: Exception) -> Exception:
    if isinstance(error, ApiUnavailable):
        return unanswered(error)
    return refused(error) if isinstance(error, ApiRefused) else error


def _hear(agent: Connection, target: str, number: int, put: Callable[[tuple[int, Any]], None]) -> None:
    """Each line of one agent, then how its stream ended: None, or why."""
    try:
        for told in agent.lines(target):
            put((number, told))
        put((number, None))
    except Exception as error:
        put((number, error))
