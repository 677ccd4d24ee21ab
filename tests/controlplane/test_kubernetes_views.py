"""The mesh's nouns as Kubernetes documents: applying what is printed changes nothing."""

import msgspec
import pytest

from controlplane.cli.output import print_document
from controlplane.commands.namespace import ApplyNamespace
from controlplane.commands.policy import ApplyPolicy
from controlplane.commands.service import ApplyService, ReportBackends
from controlplane.commands.workload import ApplyWorkload
from controlplane.kubernetes import Document, read_text
from controlplane.kubernetes_objects import command_of
from controlplane.kubernetes_views import manifest_of
from controlplane.model import (
    Backend,
    BackendSlice,
    Device,
    Namespace,
    Node,
    Policy,
    Service,
    ServicePort,
    Workload,
)
from tests.controlplane.kubernetes_documents import (
    CLUSTER,
    namespace,
    pod,
    policy,
    refusals,
)


def test_a_namespace_comes_back() -> None:
    """Applying what `get` prints changes nothing."""
    labels = {"kubernetes.io/metadata.name": "shop", "team": "a"}
    found = manifest_of("Namespace", Namespace(CLUSTER, "shop", labels))
    assert command_of(found, CLUSTER) == ApplyNamespace("shop", labels)


@pytest.mark.parametrize("ready", [True, False])
def test_a_pod_comes_back(ready: bool) -> None:
    """Readiness, named ports, a limit of bandwidth and whether its sockets are joined included."""
    workload = Workload(
        CLUSTER, "shop", "web", {"app": "web"}, ready, "seller", {"http": (80, "TCP")}, "east-1", egress_bits_s=10**7,
        joins_sockets=ready,
    )  # fmt: skip
    fields = msgspec.structs.asdict(workload)
    del fields["cluster"]
    assert command_of(manifest_of("Pod", workload), CLUSTER) == ApplyWorkload(**fields)


@pytest.mark.parametrize(
    "found",
    [
        Service(CLUSTER, "shop", "web", ("10.96.0.1", "fd00::1"), (ServicePort("", 80, "TCP", "http"),), {"a": "b"}),
        Service(CLUSTER, "shop", "web", (), (), None, headless=True),
        Service(
            CLUSTER, "shop", "web", ("10.96.0.1",), (ServicePort("a", 80, "UDP", 81),), None,
            is_global=True, shared=False, labels={"x": "y"},
            annotations={"service.cilium.io/global": "true", "io.cilium/shared-service": "false"},
        ),
    ],
)  # fmt: skip
def test_a_service_comes_back(found: Service) -> None:
    """With the addresses that it was given."""
    command = command_of(manifest_of("Service", found), CLUSTER)
    assert isinstance(command, ApplyService)
    for field in Service.__struct_fields__[1:]:
        assert getattr(command, field) == getattr(found, field), field


def test_backends_come_back() -> None:
    """As an EndpointSlice of their family."""
    ports = (ServicePort("http", 80, "TCP", 80),)
    found = BackendSlice(CLUSTER, "shop", "web-1", "web", (Backend("fd00::1", False, "east-1"),), ports)
    assert command_of(manifest_of("EndpointSlice", found), CLUSTER) == ReportBackends(
        "shop", "web-1", "web", found.backends, ports
    )


def test_a_policy_comes_back_as_written() -> None:
    """The stored text is the manifest."""
    command = command_of(policy(), CLUSTER)
    assert isinstance(command, ApplyPolicy)
    stored = Policy(CLUSTER, command.kind, command.namespace, command.name, command.manifest)
    assert manifest_of("NetworkPolicy", stored) == policy()


def test_a_node_is_shown() -> None:
    """Addresses and blocks; a Node is not applied, agents report it."""
    found = Node(CLUSTER, "east-1", ("192.0.2.1",), Device("", 0, ""), ("k8s:zone=a",), ("10.1.0.0/24", ""))
    shown = manifest_of("Node", found)
    assert shown["metadata"] == {"name": "east-1", "labels": {"zone": "a"}}
    assert shown["spec"] == {"podCIDR": "10.1.0.0/24", "podCIDRs": ["10.1.0.0/24"]}
    assert refusals(command_of(shown, CLUSTER))[0][0] == "kind"


def test_yaml_reads_back(capsys: pytest.CaptureFixture[str]) -> None:
    """What `get -o yaml` prints can be piped into apply."""
    documents = [namespace(), pod()]
    print_document("yaml", {"apiVersion": "v1", "kind": "List", "items": documents})
    found = read_text(capsys.readouterr().out, "x")
    assert [item.document for item in found if isinstance(item, Document)] == documents
