"""The least that etcd must let an agent, an operator and a reader do.

Belongs here: the roles and their key ranges, and how they read as etcdctl commands. Does not belong here: applying them
(etcd_roles.py). Pure.
"""

import shlex
from collections.abc import Sequence

import msgspec

from kvstore import keys

READ, READWRITE = "read", "readwrite"

CLAIMS_OF_A_CLUSTER = ("block", "identity", "node", "service", "service-ip")
"""Kinds of claims whose second part is the cluster's name. A claim on a cluster's number is every cluster's."""


class Grant(msgspec.Struct, frozen=True):
    """One range of keys; `range_end` empty: one key."""

    kind: str
    key: bytes
    range_end: bytes = b""


class Role(msgspec.Struct, frozen=True):
    """A role, and the user of the same name that holds it."""

    name: str
    why: str
    grants: Sequence[Grant]


def reader_role() -> Role:
    """Reads everything that the log is, and changes nothing."""
    return Role("meshlog-reader", "replay, history and capsules", (Grant(READ, *keys.prefix_range(keys.PREFIX)),))


def agent_role(cluster: str, node: str) -> Role:
    """Writes its own records, session, cursor, report and flows: nobody else's are under these keys, so that it can
    destroy its own history and no other. Claims are the cluster's: what one agent takes another may free. Raises
    ValueError on a malformed name."""
    writer = f"node.{keys.checked_name('node', node)}"
    name = keys.checked_name("cluster", cluster)
    return Role(
        f"meshlog-agent.{name}.{node}",
        f"the agent of node {node} in cluster {name}",
        (
            *reader_role().grants,
            *_appending(name, writer),
            Grant(READWRITE, keys.side_key(f"report/{name}/{node}")),
            Grant(READWRITE, keys.side_key(f"flow/{name}/{node}")),
        ),
    )


def operator_role(cluster: str) -> Role:
    """Keeps a cluster's history and duties too: it takes away the records of all writers that it has sealed. Making
    room in a full etcd (defragment, disarm) asks for etcd's role root, which is not given here. Raises ValueError on a
    malformed name."""
    name = keys.checked_name("cluster", cluster)
    return Role(
        f"meshlog-operator.{name}",
        f"the operator of cluster {name}",
        (
            *reader_role().grants,
            *_appending(name, "operator"),
            *(
                Grant(READWRITE, *range_of(name))
                for range_of in (keys.log_cluster, keys.segments_cluster, keys.pack_cluster)
            ),
            Grant(READWRITE, keys.sealed_key(name)),
            Grant(READWRITE, keys.low_key(name)),
            Grant(READWRITE, keys.duty_key(f"operator-{name}")),
            Grant(READWRITE, *keys.prefix_range(keys.side_key(f"checkpoint/{name}") + b"/")),
            Grant(READWRITE, keys.side_key(f"manifest/{name}")),
            Grant(READWRITE, *keys.prefix_range(keys.side_key(f"flow/{name}") + b"/")),
            Grant(READWRITE, keys.side_key(f"retention/{name}")),
        ),
    )


def _appending(cluster: str, writer: str) -> Sequence[Grant]:
    """What a writer of a cluster needs: its own records, session and cursor, and claims."""
    return (
        Grant(READWRITE, *keys.log_writer(cluster, writer)),
        Grant(READWRITE, keys.session_key(cluster, writer)),
        Grant(READWRITE, keys.cursor_key(cluster, writer)),
        *(
            Grant(READWRITE, *keys.prefix_range(keys.claim_key(f"{kind}/{cluster}") + b"/"))
            for kind in CLAIMS_OF_A_CLUSTER
        ),
        Grant(READWRITE, *keys.prefix_range(keys.claim_key("cluster") + b"/")),
    )


def commands(role: Role) -> Sequence[str]:
    """As an administrator types them."""
    lines = [f"# {role.why}", f"etcdctl role add {role.name}"]
    for grant in role.grants:
        words = [grant.key.decode(), *([grant.range_end.decode()] if grant.range_end else [])]
        lines.append(f"etcdctl role grant-permission {role.name} {grant.kind} {shlex.join(words)}")
    return [*lines, f"etcdctl user add {role.name}", f"etcdctl user grant-role {role.name} {role.name}"]
