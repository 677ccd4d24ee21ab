"""Which agent a command asks. Belongs here: flags and places of sockets. Does not belong here: requests."""

import argparse
import os
import sys
from typing import Any

from controlplane.api.connection import Connection
from controlplane.api.quickclient import ApiRefused, ApiUnavailable
from controlplane.cli.errors import CommandFailed, UsageError

CAPSULE_ROOT = os.environ.get("MESHLOG_CAPSULE", "")
"""Directory of the sockets of a capsule: then no agent of this machine is asked."""
RUNTIME_ROOT = CAPSULE_ROOT or "/run/meshlog"
LAB_ROOT = f"/run/meshlog-lab-{os.environ['MESHLOG_LAB']}" if os.environ.get("MESHLOG_LAB") else "/run/meshlog-lab"
if CAPSULE_ROOT:
    LAB_ROOT = ""


HINTS = {
    "Connection refused": "the process has ended, and its log says why; packets go on by what is pinned in the kernel",
    "Permission denied": "run it as root",
    "timed out": "the process is there and does not answer: it is stopped, or busy; its log says more",
}
"""What to do next, by the reason of no answer."""


def add_target(parser: argparse.ArgumentParser) -> None:
    """The flags --node and --socket."""
    where = parser.add_argument_group("which agent")
    where.add_argument("--node", metavar="NAME", help="the agent of this node on this machine")
    where.add_argument("--socket", metavar="PATH", help="the socket of an agent or operator (or MESHLOG_SOCKET)")


def connect(arguments: argparse.Namespace, timeout_s: float = 30.0) -> Connection:
    """Raises UsageError where the choice is not clear."""
    return Connection(socket_of(arguments), timeout_s)


def ask(connection: Connection, target: str, method: str = "GET", body: Any = None) -> Any:
    """One request. Raises CommandFailed with a message for people."""
    try:
        return connection.send(method, target, body)
    except ApiUnavailable as error:
        raise unanswered(error) from None
    except ApiRefused as error:
        raise refused(error) from None


def unanswered(error: ApiUnavailable) -> CommandFailed:
    """Nobody answers: why, and what to do next."""
    return CommandFailed(f"{error}; {HINTS.get(str(error).rpartition(': ')[2], 'is the agent running?')}")


def refused(error: ApiRefused) -> CommandFailed:
    """The agent's own word, with the field."""
    if error.status == 404 and str(error).endswith(": Not Found"):
        return CommandFailed(f"{error}: the agent does not know this; it is of another version")
    return CommandFailed(f"{error.field}: {error}" if error.field else str(error))


def socket_of(arguments: argparse.Namespace) -> str:
    """Of the flags, the environment, or the only one there is."""
    if arguments.socket and arguments.node:
        raise UsageError("--socket and --node say the same thing twice; give one of them")
    if arguments.socket:
        return str(arguments.socket)
    if arguments.node:
        return _socket_of_node(arguments.node)
    if os.environ.get("MESHLOG_SOCKET"):
        return os.environ["MESHLOG_SOCKET"]
    found = sockets(RUNTIME_ROOT)
    if len(found) == 1:
        return found[0]
    if found:
        raise UsageError(f"several agents run here; choose with --node: {', '.join(map(_node_of, found))}")
    lab = sockets(LAB_ROOT)
    if lab:
        print(f"asking the lab's node {_node_of(lab[0])} (--node chooses another)", file=sys.stderr)
        return lab[0]
    roots = [root for root in (RUNTIME_ROOT, LAB_ROOT) if os.path.isdir(root)]
    hidden = [root for root in roots if not os.access(root, os.R_OK | os.X_OK)]
    if hidden:
        raise CommandFailed(f"no agent can be seen: {' and '.join(hidden)}: permission denied; run it as root")
    raise CommandFailed(f"no agent runs here: no socket below {RUNTIME_ROOT}; start one, or give --socket")


def sockets_of(arguments: argparse.Namespace) -> list[str]:
    """The one that is chosen; else all agents of this machine, those of the lab where there are no others."""
    if arguments.socket or arguments.node or os.environ.get("MESHLOG_SOCKET"):
        return [socket_of(arguments)]
    return sockets(RUNTIME_ROOT) or sockets(LAB_ROOT) or [socket_of(arguments)]


def sockets(root: str, name: str = "agent.sock") -> list[str]:
    """Sockets directly in `root` and one directory below, sorted."""
    try:
        below = [entry.path for entry in os.scandir(root) if entry.is_dir()]
    except OSError:
        return []
    return sorted(path for path in (f"{place}/{name}" for place in [root, *below]) if os.path.exists(path))


def is_here(node: str) -> bool:
    """Whether an agent of this node has a socket on this machine."""
    return any(_node_of(path) == node for path in sockets(RUNTIME_ROOT) + sockets(LAB_ROOT))


def _socket_of_node(node: str) -> str:
    known = sockets(RUNTIME_ROOT) + sockets(LAB_ROOT)
    for path in known:
        if _node_of(path) == node:
            return path
    names = ", ".join(map(_node_of, known)) or "none"
    raise UsageError(f"--node: no agent of node {node!r} on this machine; there are: {names}")


def socket_of_cluster(cluster: str) -> str:
    """The operator's, or that of any agent of the cluster here. Raises UsageError."""
    known = [path for name in ("operator.sock", "agent.sock") for root in (RUNTIME_ROOT, LAB_ROOT)
             for path in sockets(root, name)]
    clusters: dict[str, str] = {}
    for path in known:
        try:
            clusters.setdefault(Connection(path, 5).get("/v1/status")["cluster"], path)
        except (ApiUnavailable, ApiRefused):
            continue
    if cluster not in clusters:
        there = ", ".join(sorted(clusters)) or "none"
        raise UsageError(f"--cluster: nobody of cluster {cluster!r} answers on this machine; there are: {there}")
    return clusters[cluster]


def _node_of(path: str) -> str:
    return os.path.basename(os.path.dirname(path))
