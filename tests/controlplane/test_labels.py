"""What a right label set is."""

import pytest

from controlplane.labels import identity_fault, label_fault


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
