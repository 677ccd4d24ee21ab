"""Kubernetes documents as commands: Namespace, Pod, policies, removal, and every refusal of theirs."""

from typing import Any

import msgspec
import pytest

from controlplane.commands.namespace import ApplyNamespace, RemoveNamespace
from controlplane.commands.policy import ApplyPolicy, RemovePolicy
from controlplane.commands.service import RemoveService, WithdrawBackends
from controlplane.commands.workload import ApplyWorkload, RemoveWorkload
from controlplane.kubernetes_objects import command_of, name_of, removal_of
from tests.controlplane.kubernetes_documents import (
    CLUSTER,
    endpoint_slice,
    namespace,
    pod,
    policy,
    refusals,
    service,
)


def test_a_namespace_carries_its_name_as_a_label() -> None:
    """As the API server puts it there; policies select namespaces by it."""
    found = command_of(namespace(", labels: {team: a}"), CLUSTER)
    assert found == ApplyNamespace("shop", {"team": "a", "kubernetes.io/metadata.name": "shop"})


@pytest.mark.parametrize(
    ("text", "bits_s"),
    [("10M", 10**7), ("1Gi", 2**30), ("1.5k", 1500), ("2e6", 2 * 10**6), ("1000", 1000), ("1P", 10**15)],
)
def test_a_pods_bandwidth_is_read(text: str, bits_s: int) -> None:
    """As a Kubernetes quantity of bits per second, for both directions."""
    document = pod("{containers: []}")
    for direction in ("egress", "ingress"):
        document["metadata"]["annotations"] = {f"kubernetes.io/{direction}-bandwidth": text}
        found = command_of(document, CLUSTER)
        assert isinstance(found, ApplyWorkload)
        assert (found.egress_bits_s, found.ingress_bits_s) == (
            (bits_s, 0) if direction == "egress" else (0, bits_s)
        )


@pytest.mark.parametrize("text", ["", "10 M", "10m", "-1M", "999", "2P", "1e99", "fast", "9" * 40])
def test_a_bandwidth_that_is_none_is_refused(text: str) -> None:
    """With the annotation, its value, and what would be right."""
    document = pod("{containers: []}")
    document["metadata"]["annotations"] = {"kubernetes.io/egress-bandwidth": text}
    ((field, reason),) = refusals(command_of(document, CLUSTER))
    assert field == "metadata.annotations[kubernetes.io/egress-bandwidth]"
    assert "bits per second between 1k and 1P" in reason


def test_a_pod_may_keep_its_sockets_apart() -> None:
    """By its annotation; anything but on and off is refused with what would be right."""
    document = pod("{containers: []}")
    for text, joins in (("off", False), ("on", True)):
        document["metadata"]["annotations"] = {"pod.meshlog.io/sockops": text}
        found = command_of(document, CLUSTER)
        assert isinstance(found, ApplyWorkload)
        assert found.joins_sockets is joins
    document["metadata"]["annotations"] = {"pod.meshlog.io/sockops": "no"}
    assert refusals(command_of(document, CLUSTER)) == [
        ("metadata.annotations[pod.meshlog.io/sockops]", "must be on or off")
    ]


def test_a_pod_is_a_workload() -> None:
    """Labels, named ports, service account and node; unnamed ports and the platform's fields say nothing."""
    spec = """
      nodeName: east-1
      serviceAccountName: seller
      restartPolicy: Never
      containers:
        - {name: a, image: x, ports: [{name: http, containerPort: 8080}, {containerPort: 9}]}
        - {name: b, ports: [{name: dns, containerPort: 53, protocol: UDP}]}
    """
    assert command_of(pod(spec), CLUSTER) == ApplyWorkload(
        namespace="shop",
        name="web",
        labels={"app": "web"},
        ready=True,
        service_account="seller",
        ports={"http": (8080, "TCP"), "dns": (53, "UDP")},
        node="east-1",
    )


@pytest.mark.parametrize(
    ("conditions", "ready"),
    [
        ("[]", True),
        ("[{type: Initialized, status: 'False'}]", True),
        ("[{type: Ready, status: 'True'}]", True),
        ("[{type: Ready, status: 'False'}]", False),
        ("[{type: Ready, status: Unknown}]", False),
    ],
)
def test_readiness_is_what_the_condition_says(conditions: str, ready: bool) -> None:
    """A pod without condition Ready counts as ready."""
    found = command_of(pod(status=f"{{conditions: {conditions}}}"), CLUSTER)
    assert isinstance(found, ApplyWorkload)
    assert found.ready is ready


@pytest.mark.parametrize(("policy_of_restart", "ports"), [("Always", {"http": (80, "TCP")}), ("OnFailure", {})])
def test_only_init_containers_that_stay_have_ports(policy_of_restart: str, ports: dict[str, Any]) -> None:
    """A sidecar serves as long as the pod lives; another init container is gone before."""
    container = f"{{restartPolicy: {policy_of_restart}, ports: [{{name: http, containerPort: 80}}]}}"
    found = command_of(pod(f"{{initContainers: [{container}]}}"), CLUSTER)
    assert isinstance(found, ApplyWorkload)
    assert found.ports == ports


def test_a_policy_is_kept_as_canonical_text() -> None:
    """Without what the API server adds, and the same whatever the order of the fields was."""
    plain = policy()
    served = {
        "status": {},
        "spec": {"podSelector": {}},
        "metadata": {"uid": "1", "resourceVersion": "2", "namespace": "shop", "name": "closed"},
        "kind": "NetworkPolicy",
        "apiVersion": "networking.k8s.io/v1",
    }
    found = command_of(plain, CLUSTER)
    assert found == command_of(served, CLUSTER)
    assert isinstance(found, ApplyPolicy)
    assert (found.kind, found.namespace, found.name, found.parser) == ("NetworkPolicy", "shop", "closed", 1)
    assert msgspec.json.decode(found.manifest) == plain


def test_a_policy_keeps_absent_and_empty_apart() -> None:
    """`[]`, `{}` and absent mean different things, so the stored text holds each as written."""
    texts = [command_of(policy(spec), CLUSTER) for spec in ("{}", "{ingress: []}", "{ingress: [{}]}")]
    assert len({found.manifest for found in texts if isinstance(found, ApplyPolicy)}) == 3


REFUSALS = [
    ([1], "", "a manifest is a mapping"),
    ({}, "kind", "is required: one of Namespace, Pod"),
    ({"kind": "Node"}, "kind", "a node is what its agent says it is: give labels there, `meshlog agent --labels"),
    ({"kind": "Deployment"}, "kind", "Deployment is not understood; Meshlog takes Namespace, Pod, Service"),
    ({"kind": "Pod", "apiVersion": "v2", "metadata": {"name": "a"}}, "apiVersion", "must be v1 for kind Pod"),
    ({"kind": "Pod", "apiVersion": "v1"}, "metadata.name", "is required"),
    ({"kind": "Pod", "apiVersion": "v1", "metadata": {"name": "A"}}, "metadata.name", "must be a DNS name"),
    (
        {"kind": "Pod", "apiVersion": "v1", "metadata": {"name": "a", "nam": 1}},
        "metadata.nam",
        "did you mean name?",
    ),
    (
        {"kind": "Pod", "apiVersion": "v1", "metadata": {"name": "a", "namespace": "a.b"}},
        "metadata.namespace",
        "must be a DNS label",
    ),
    (namespace(", namespace: x"), "metadata.namespace", "this kind has no namespace"),
    (namespace(", labels: {a: 1}"), "metadata.labels[a]", "must be text; write it in quotes"),
    (namespace(", labels: {'a b': c}"), "metadata.labels[a b]", "must be a label key"),
    (namespace() | {"specs": {}}, "specs", "did you mean spec?"),
    (pod("{nodename: a}"), "spec.nodename", "did you mean nodeName?"),
    (pod("{nodeName: A_b}"), "spec.nodeName", "must be a DNS name"),
    (pod("{containers: {}}"), "spec.containers", "must be a list"),
    (
        pod("{containers: [{ports: [{containerPort: 80, hostPort: 80, hostIP: here}]}]}"),
        "spec.containers[0].ports[0].hostIP",
        "must be an IP address",
    ),
    (
        pod("{containers: [{ports: [{name: a}]}]}"),
        "spec.containers[0].ports[0].containerPort",
        "from 1 to 65535",
    ),
    (
        pod(status="{conditions: [{type: Ready, status: yes}]}"),
        "status.conditions[0].status",
        "one of True, False",
    ),
    (
        policy("{ingress: [{from: [{ipBlock: {cidr: 10.0.0.1}}]}]}"),
        "spec.ingress[0].from[0].ipBlock.cidr",
        "must be a prefix",
    ),
    (policy() | {"apiVersion": "networking.k8s.io/v2"}, "apiVersion", "must be networking.k8s.io/v1"),
    (policy() | {"specs": {}}, "specs", "did you mean spec?"),
    (policy("null"), "spec", "is required"),
]


@pytest.mark.parametrize(("found", "field", "reason"), REFUSALS)
def test_refusal(found: Any, field: str, reason: str) -> None:
    """One field, its path, and what would be right."""
    ((named, why),) = refusals(command_of(found, CLUSTER))
    assert named == field
    assert reason in why


def test_all_refusals_are_told_at_once() -> None:
    """One attempt shows everything that is wrong with an object."""
    found = refusals(command_of(service("{type: Node, externalIPs: [1.2.3]}"), CLUSTER))
    assert sorted(field for field, _ in found) == ["spec.externalIPs[0]", "spec.ports", "spec.type"]


def test_a_refusal_reads_as_one_line() -> None:
    """Field, value, what would be right."""
    (refusal,) = command_of(service("{type: Node, ports: [{port: 80}]}"), CLUSTER)
    assert str(refusal) == 'spec.type: "Node": must be one of ClusterIP, NodePort, LoadBalancer, ExternalName'


@pytest.mark.parametrize(
    ("found", "command"),
    [
        (namespace(), RemoveNamespace("shop")),
        (pod(), RemoveWorkload("shop", "web")),
        (service("{type: NodePort}"), RemoveService("shop", "web")),
        (endpoint_slice(), WithdrawBackends("default", "web-1")),
        (policy("{nonsense: 1}"), RemovePolicy("NetworkPolicy", "shop", "closed")),
    ],
)
def test_removal_needs_only_the_name(found: dict[str, Any], command: Any) -> None:
    """What is in the spec does not matter to `delete -f`."""
    assert removal_of(found) == command


def test_removal_of_an_unknown_kind_is_refused() -> None:
    """As its application would be."""
    assert refusals(removal_of({"kind": "Deployment"}))[0][0] == "kind"


def test_names_are_told_of_anything() -> None:
    """A report names a document even where it is refused."""
    assert name_of(pod()) == ("Pod", "shop", "web")
    assert name_of(namespace()) == ("Namespace", "", "shop")
    assert name_of({"kind": "Pod", "metadata": 1}) == ("Pod", "default", "")
    assert name_of(1) == ("", "default", "")
