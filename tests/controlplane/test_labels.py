"""Which labels make an identity."""

import pytest

from controlplane.labels import identity_fault, identity_labels, is_identity_relevant, label_fault


def test_identity_labels_are_those_that_users_know() -> None:
    """Namespace, its labels, cluster, service account, and the workload's own, sorted."""
    labels = identity_labels("east", "shop", {"team": "a"}, {"app": "web", "pod-template-hash": "5d9"}, "")
    assert labels == (
        "k8s:app=web",
        "k8s:io.cilium.k8s.namespace.labels.team=a",
        "k8s:io.cilium.k8s.policy.cluster=east",
        "k8s:io.cilium.k8s.policy.serviceaccount=default",
        "k8s:io.kubernetes.pod.namespace=shop",
    )
    assert identity_fault("east", labels) == ""


@pytest.mark.parametrize(
    "key",
    [
        "pod-template-hash",
        "pod-template-generation",
        "controller-revision-hash",
        "statefulset.kubernetes.io/pod-name",
        "apps.kubernetes.io/pod-index",
        "batch.kubernetes.io/job-completion-index",
        "batch.kubernetes.io/controller-uid",
        "controller-uid",
        "kubernetes.io/arch",
        "beta.kubernetes.io/os",
        "node.beta.kubernetes.io/x",
        "k8s.io/x",
        "annotation.x",
        "etcd_node",
    ],
)
def test_labels_of_one_pod_or_rollout_make_no_identity(key: str) -> None:
    """Cilium's default exclusions."""
    assert not is_identity_relevant(key)


@pytest.mark.parametrize(
    "key", ["app", "app.kubernetes.io/name", "job-name", "topology.kubernetes.io/zone", "my-pod-template-hash"]
)
def test_other_labels_do(key: str) -> None:
    """What Cilium takes by default is taken here."""
    assert is_identity_relevant(key)


@pytest.mark.parametrize(
    "key",
    [
        "io.kubernetes.pod.namespace",
        "io.cilium.k8s.policy.cluster",
        "io.cilium.k8s.namespace.labels.team",
        "io.cilium.k8s.policy.serviceaccount",
    ],
)
def test_a_workload_cannot_name_its_own_place(key: str) -> None:
    """Namespace, cluster and account are the platform's to say: a policy trusts them."""
    right = identity_labels("east", "shop", {}, {}, "")
    assert identity_labels("east", "shop", {}, {key: "bank"}, "") == right


@pytest.mark.parametrize(
    "labels", [("k8s:b=1", "k8s:a=1"), ("k8s:a=1", "k8s:a=1"), ("app=web",), (":app=web",), ("k8s:",), ("k8s:=1",)]
)
def test_wrong_label_sets_are_named(labels: tuple[str, ...]) -> None:
    """Unsorted, doubled, without source or key."""
    assert label_fault(labels)


@pytest.mark.parametrize(
    "labels",
    [
        (),
        ("k8s:app=web",),
        ("k8s:io.cilium.k8s.policy.cluster=west",),
        ("k8s:io.cilium.k8s.policy.cluster=east", "reserved:host"),
        ("k8s:io.cilium.k8s.policy.cluster=east", "k8s:io.cilium.k8s.policy.cluster=west"),
    ],
)
def test_only_a_clusters_own_labels_get_its_numbers(labels: tuple[str, ...]) -> None:
    """With its own cluster's label, no other's, and none that is reserved."""
    assert identity_fault("east", labels)
