"""The least roles: what they cover, and how they read."""

import pytest

from controlplane.commands.cluster import cluster_claim
from controlplane.commands.identity import labels_claim, number_claim
from controlplane.commands.node import block_claim, node_claim
from controlplane.commands.service import address_claim, name_claim
from kvstore import keys
from kvstore.roles import READWRITE, Role, agent_role, commands, operator_role, reader_role


def may_write(role: Role, key: bytes) -> bool:
    """As etcd judges it."""
    return any(
        grant.kind == READWRITE and (grant.key <= key < grant.range_end if grant.range_end else key == grant.key)
        for grant in role.grants
    )


def test_an_agent_writes_its_own_keys_and_no_others():
    """Log, session, cursor, report and claims of its own; nothing of another node, cluster, or of the operator."""
    role = agent_role("east", "n1")
    own = (
        keys.log_key("east", "node.n1", 1),
        keys.session_key("east", "node.n1"),
        keys.cursor_key("east", "node.n1"),
        keys.side_key("report/east/n1"),
        keys.side_key("flow/east/n1"),
        keys.claim_key(cluster_claim(1)),
        keys.claim_key(number_claim("east", 1)),
        keys.claim_key(labels_claim("east", ())),
        keys.claim_key(node_claim("east", "n1")),
        keys.claim_key(block_claim("east", "10.1.0.0/24")),
        keys.claim_key(name_claim("east", "shop", "web")),
        keys.claim_key(address_claim("east", "10.96.0.1")),
    )
    others = (
        keys.log_key("west", "node.n1", 1),
        keys.log_key("east2", "node.n1", 1),
        keys.log_key("east", "node.n10", 1),
        keys.log_key("east", "operator", 1),
        keys.session_key("east", "node.n10"),
        keys.cursor_key("east", "operator"),
        keys.low_key("east"),
        keys.duty_key("operator-east"),
        keys.side_key("report/east/n2"),
        keys.side_key("flow/east/n2"),
        keys.side_key("manifest/east"),
        keys.sealed_key("east"),
        keys.segment_key("east", 1, 1, 9),
        keys.pack_part_key("east", 1, b"digest", 0),
        keys.side_key("checkpoint/east/1/0"),
        keys.side_key("retention/east"),
        keys.claim_key(number_claim("west", 1)),
    )
    assert [key for key in own if not may_write(role, key)] == []
    assert [key for key in others if may_write(role, key)] == []


def test_an_operator_keeps_its_clusters_history():
    """Packs, checkpoints, and where history begins; of its own cluster only."""
    role = operator_role("east")
    for cluster, right in (("east", True), ("west", False), ("east2", False)):
        for key in (
            keys.low_key(cluster),
            keys.sealed_key(cluster),
            keys.segment_key(cluster, 1, 1, 9),
            keys.pack_part_key(cluster, 1, b"digest", 0),
            keys.log_key(cluster, "node.n1", 1),
            keys.side_key(f"checkpoint/{cluster}/1/0"),
            keys.side_key(f"manifest/{cluster}"),
            keys.side_key(f"retention/{cluster}"),
            keys.duty_key(f"operator-{cluster}"),
            keys.session_key(cluster, "operator"),
        ):
            assert may_write(role, key) is right, key


def test_a_reader_writes_nothing():
    """All its grants are to read, and cover every key of ours."""
    (grant,) = reader_role().grants
    assert grant.kind == "read"
    assert grant.key <= keys.log_key("east", "n", 1) < grant.range_end


def test_commands_are_what_an_administrator_types():
    """A role, each grant, the user of its name."""
    lines = commands(reader_role())
    assert lines[1:] == [
        "etcdctl role add meshlog-reader",
        "etcdctl role grant-permission meshlog-reader read /meshlog/1/ /meshlog/10",
        "etcdctl user add meshlog-reader",
        "etcdctl user grant-role meshlog-reader meshlog-reader",
    ]


@pytest.mark.parametrize(("cluster", "node"), [("East", "n1"), ("east", "n/1"), ("", "n1"), ("east", "")])
def test_malformed_names_are_refused(cluster, node):
    """They would become other keys."""
    with pytest.raises(ValueError, match="name"):
        agent_role(cluster, node)
