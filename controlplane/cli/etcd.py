"""`meshlog etcd`: what an administrator of the log's store does for Meshlog.

Belongs here: the flags, and how roles are shown. Does not belong here: which roles there are (kvstore/roles.py).
"""

import argparse
import asyncio
from collections.abc import Sequence

from controlplane.cli.errors import OK, CommandFailed, UsageError
from controlplane.cli.etcd_flags import add_etcd, read_password, tls_and_login
from controlplane.cli.output import add_output, print_document
from kvstore.errors import LogError
from kvstore.etcd_client import TLS, Client, Limits, Login
from kvstore.etcd_roles import apply_roles
from kvstore.roles import Role, agent_role, commands, operator_role, reader_role


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verbs."""
    parser.description = "The store that the log is in."
    verbs = parser.add_subparsers(metavar="VERB", title="verbs")
    roles = verbs.add_parser(
        "roles", help="print or make the least roles for agents, operators and readers", allow_abbrev=False,
        description="Print the least roles as etcdctl commands, or make them with --apply. Each has a user of its "
        "name: the common name of a client certificate, or one with the password given.",
        epilog="Example: meshlog etcd roles --cluster east --node n1 --node n2 --operator --reader",
    )  # fmt: skip
    which = roles.add_argument_group("which roles")
    which.add_argument("--cluster", default="", metavar="NAME", help="whose agents and operator")
    which.add_argument("--node", action="append", default=[], metavar="NAME", help="a node's agent; may be repeated")
    which.add_argument("--operator", action="store_true", help="the cluster's operator")
    which.add_argument("--reader", action="store_true", help="somebody who reads the log and changes nothing")
    making = roles.add_argument_group("making them")
    making.add_argument("--apply", action="store_true", help="make them in etcd instead of printing; again is harmless")
    making.add_argument("--password-file", default="", metavar="FILE",
                        help="file with the password of the users made (default: none, by certificate only)")
    add_etcd(roles, "where, with a user that has etcd's role root")
    add_output(roles)
    roles.set_defaults(run=run_roles)


def run_roles(arguments: argparse.Namespace) -> int:
    """Prints, or applies."""
    roles = _roles(arguments)
    if arguments.apply:
        _apply(arguments, roles)
        for role in roles:
            print(f"{role.name}: role and user are there ({role.why})")
        return OK
    if arguments.output in ("json", "yaml"):
        print_document(arguments.output, [_document(role) for role in roles])
    else:
        for role in roles:
            print("\n".join(commands(role)), end="\n\n")
        print("# then, once: etcdctl user add root && etcdctl auth enable")
    return OK


def _roles(arguments: argparse.Namespace) -> Sequence[Role]:
    if (arguments.node or arguments.operator) and not arguments.cluster:
        raise UsageError("--cluster: whose agents and operator is not said; give its name")
    try:
        found = [agent_role(arguments.cluster, node) for node in arguments.node]
        found += [operator_role(arguments.cluster)] if arguments.operator else []
    except ValueError as error:
        raise UsageError(str(error)) from None
    found += [reader_role()] if arguments.reader else []
    if not found:
        raise UsageError("no role is asked for; give --cluster with --node or --operator, or --reader")
    return found


def _document(role: Role) -> dict[str, object]:
    grants = [
        {"permission": grant.kind, "key": grant.key.decode(), "range_end": grant.range_end.decode()}
        for grant in role.grants
    ]
    return {"role": role.name, "for": role.why, "grants": grants}


def _apply(arguments: argparse.Namespace, roles: Sequence[Role]) -> None:
    if not arguments.etcd:
        raise UsageError("--apply: no endpoint is given; add --etcd ENDPOINT")
    tls, login = tls_and_login(arguments)
    password = read_password(arguments.password_file, "--password-file") if arguments.password_file else ""
    try:
        asyncio.run(_applied(arguments.etcd, tls, login, roles, password))
    except (ValueError, OSError) as error:
        raise UsageError(f"--etcd: {error}") from None
    except LogError as error:
        raise CommandFailed(str(error)) from None


async def _applied(
    endpoints: Sequence[str], tls: TLS | None, login: Login | None, roles: Sequence[Role], password: str
) -> None:
    client = Client(endpoints, tls, Limits(), login)
    try:
        await apply_roles(client, roles, password)
    finally:
        await client.close()

