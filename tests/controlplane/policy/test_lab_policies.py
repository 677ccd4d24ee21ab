"""The lab's shop under its own policies: the flows that `make mesh` shows, as the model judges them."""

import io
from pathlib import Path

import pytest

from controlplane.commands.namespace import ApplyNamespace
from controlplane.commands.policy import ApplyPolicy
from controlplane.commands.workload import ApplyWorkload
from controlplane.kubernetes import Document, read_paths
from controlplane.kubernetes_objects import command_of
from controlplane.model import Labels
from controlplane.policy.identity_labels import identity_labels
from controlplane.policy.manifests import parse_text
from controlplane.policy.rules import ParsedPolicy
from controlplane.policy.verdict import Flow, judge
from tests.controlplane.policy.worlds import TCP, UDP

LAB = Path(__file__).parents[3] / "deploy" / "lab"


def shop() -> tuple[dict[str, Labels], list[ParsedPolicy]]:
    """The labels of every pod by "cluster/namespace/name", and all policies."""
    labels: dict[str, Labels] = {}
    policies: list[ParsedPolicy] = []
    for cluster in ("east", "west"):
        namespaces: dict[str, dict[str, str]] = {}
        for item in read_paths([str(LAB / cluster)], io.StringIO()):
            assert isinstance(item, Document)
            command = command_of(item.document, cluster)
            if isinstance(command, ApplyNamespace):
                namespaces[command.namespace] = command.labels
            elif isinstance(command, ApplyWorkload):
                title = f"{cluster}/{command.namespace}/{command.name}"
                labels[title] = identity_labels(
                    cluster, command.namespace, namespaces[command.namespace], command.labels, ""
                )
            elif isinstance(command, ApplyPolicy):
                parsed = parse_text(command.kind, command.manifest, cluster, command.parser)
                assert isinstance(parsed, ParsedPolicy)
                policies.append(parsed)
    return labels, policies


@pytest.mark.parametrize(
    ("source", "dest", "protocol", "verdict", "by"),
    [
        ("east/shop/frontend", "east/shop/cart", TCP, "allow", "CiliumNetworkPolicy/shop/cart-without-guests"),
        ("east/shop/frontend", "east/shop/catalog", TCP, "allow", "NetworkPolicy/shop/catalog-from-frontend"),
        ("east/shop/frontend", "east/shop/catalog", UDP, "deny", "NetworkPolicy/shop/catalog-from-frontend"),
        ("east/shop/cart", "east/shop/catalog", TCP, "deny", "NetworkPolicy/shop/catalog-from-frontend"),
        ("east/guest/intruder", "east/shop/catalog", TCP, "deny", "NetworkPolicy/shop/catalog-from-frontend"),
        ("east/guest/intruder", "east/shop/cart", TCP, "deny", "CiliumNetworkPolicy/shop/cart-without-guests"),
        ("east/shop/frontend", "west/shop/ledger", UDP, "allow", ""),
        ("east/shop/frontend", "west/shop/payment", TCP, "allow", "CiliumNetworkPolicy/shop/payment-from-east"),
        ("east/shop/cart", "west/shop/payment", TCP, "deny", "CiliumNetworkPolicy/shop/payment-from-east"),
        ("west/shop/cart", "west/shop/payment", TCP, "deny", "CiliumNetworkPolicy/shop/payment-from-east"),
        ("west/shop/payment", "west/shop/ledger", TCP, "allow", "CiliumNetworkPolicy/shop/payment-from-east"),
        ("west/shop/payment", "west/shop/cart", TCP, "deny", "CiliumNetworkPolicy/shop/payment-from-east"),
    ],
)
def test_flow_of_the_shop(source: str, dest: str, protocol: int, verdict: str, by: str) -> None:
    """Port 8080, with the policy that decides."""
    labels, policies = shop()
    found = judge(Flow(labels[source], labels[dest], protocol, 8080), policies)
    assert (found.verdict, ",".join(found.by)) == (verdict, by)
