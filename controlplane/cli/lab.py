"""`meshlog lab`: a whole mesh on this machine.

Belongs here: arguments and what is printed. Does not belong here: the lab (controlplane.lab).
"""

import argparse
import os
import sys
from collections.abc import Callable
from typing import Any

from controlplane.cli.errors import FAILED, OK, CommandFailed, UsageError
from controlplane.cli.output import GREEN, RED, add_output, coloured, print_document, print_table

DESCRIPTION = """Two clusters of two nodes on this machine, in namespaces: real etcd, real agents, real packets.
Everything it makes is named mlab-... or lies below /run/meshlog-lab; `lab down` removes all of it."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verbs."""
    parser.description = DESCRIPTION
    parser.epilog = "Example: meshlog lab up && meshlog lab exec shop/frontend -- ip address"
    verbs = parser.add_subparsers(metavar="VERB", title="verbs")
    up = _verb(verbs, "up", "build it; a second run fills what is missing", "meshlog lab up", run_up)
    up.add_argument("--no-pods", action="store_true", help="nodes and agents only, without the shop")
    _add_tunnel(up)
    _verb(verbs, "down", "remove every trace, also of a broken one", "meshlog lab down", run_down)
    status = _verb(verbs, "status", "what of it runs", "meshlog lab status", run_status)
    add_output(status)
    story = _verb(verbs, "story", "show the mesh at work, with a verdict for each step", "meshlog lab story", run_story)
    add_output(story)
    _add_tunnel(story)
    text = "run a command in a node, in a pod or outside the mesh"
    execute = _verb(verbs, "exec", text, "meshlog lab exec east-1 -- ip route", run_exec)
    execute.add_argument("place", help="a node (east-1), a pod (east/shop/frontend, shop/frontend), or outside")
    execute.add_argument("command", nargs="+", help="after --")


def _add_tunnel(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--tunnel", choices=("off", "vxlan", "geneve"),
        help="how nodes wrap packets for each other; a running lab is switched over; off in a new one",
    )  # fmt: skip


def _tunnel(arguments: argparse.Namespace) -> str | None:
    return "" if arguments.tunnel == "off" else arguments.tunnel


def _verb(verbs: Any, name: str, text: str, example: str, run: Any) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = verbs.add_parser(
        name, help=text, description=text[0].upper() + text[1:] + ".", epilog=f"Example: {example}", allow_abbrev=False
    )
    parser.set_defaults(run=with_system_programs(run))
    return parser


def with_system_programs(run: Callable[[argparse.Namespace], int]) -> Callable[[argparse.Namespace], int]:
    """`su` without a login shell leaves root without /usr/sbin, where ip, ethtool and sysctl are."""

    def prepared(arguments: argparse.Namespace) -> int:
        os.environ["PATH"] = f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin"
        return run(arguments)

    return prepared


def run_up(arguments: argparse.Namespace) -> int:
    """Build, or fill what is missing."""
    from controlplane.lab.machine import LabFailure
    from controlplane.lab.up import build, progress_to_stderr

    try:
        built = build(progress_to_stderr(), with_pods=not arguments.no_pods, tunnel=_tunnel(arguments))
    except LabFailure as error:
        raise _failure(error) from None
    print(f"The lab runs: {len(built.nodes)} nodes, {len(built.pods)} pods.")
    return OK


def _failure(error: Exception) -> CommandFailed:
    from controlplane.lab.topology import ROOT

    hint = "\n`meshlog lab down` removes what was built" if os.path.exists(ROOT) else ""
    return CommandFailed(f"{error}{hint}")


def run_down(arguments: argparse.Namespace) -> int:
    """Exit status 1 if something is left."""
    from controlplane.lab.down import tear_down
    from controlplane.lab.machine import LabFailure

    if os.geteuid() != 0:
        raise CommandFailed("namespaces and mounts are removed here: run it as root")
    try:
        left = tear_down(lambda text: print(f"  {text}", file=sys.stderr, flush=True))
    except LabFailure as error:
        raise CommandFailed(str(error)) from None
    for trace in left:
        print(f"still there: {trace}", file=sys.stderr)
    if not left:
        print("No trace of a lab is left.")
    return FAILED if left else OK


def run_status(arguments: argparse.Namespace) -> int:
    """Exit status 1 unless everything runs and is well."""
    from controlplane.lab.machine import LabFailure
    from controlplane.lab.state import describe

    try:
        rows = describe()
    except LabFailure as error:
        raise CommandFailed(str(error)) from None
    if arguments.output in ("json", "yaml"):
        print_document(arguments.output, rows)
    else:
        print_table([("NAME", "KIND", "PID", "STATUS", "WHERE")], [[
            row["name"], row["kind"], row["pid"] or "-",
            coloured(row["status"], GREEN if row["well"] else RED), row["where"],
        ] for row in rows])
    return OK if all(row["well"] for row in rows) else FAILED


def run_exec(arguments: argparse.Namespace) -> int:
    """Replaces this process; its exit status is the command's."""
    from controlplane.lab.machine import LabFailure
    from controlplane.lab.state import command_in

    try:
        argv, env = command_in(arguments.place, arguments.command)
    except LabFailure as error:
        raise UsageError(str(error)) from None
    try:
        os.execvpe(argv[0], argv, env)
    except OSError as error:
        raise CommandFailed(f"{argv[0]}: {error.strerror}") from None


def run_story(arguments: argparse.Namespace) -> int:
    """Builds the lab first where it is missing. Exit status 1 if a step failed."""
    from controlplane.lab.machine import LabFailure
    from controlplane.lab.story import tell

    for_people = arguments.output in ("table", "wide")
    try:
        told = tell(sys.stdout if for_people else sys.stderr, _tunnel(arguments))
    except LabFailure as error:
        raise _failure(error) from None
    if not for_people:
        print_document(arguments.output, told)
    return OK if told["ok"] else FAILED
