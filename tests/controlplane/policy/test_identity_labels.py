"""Which labels make an identity, by default and under setting `labels`.

The cases of the setting are those of "Limiting Identity-Relevant Labels" in Cilium's documentation, and of its filter's
own tests.
"""

import pytest

from controlplane.labels import NAMESPACE_LABEL_PREFIX, identity_fault
from controlplane.policy.identity_labels import LabelFilter, identity_labels, patterns_fault
from controlplane.policy.settings import Settings, read_settings


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
    assert not LabelFilter().takes_of_workload(key)


@pytest.mark.parametrize(
    "key", ["app", "app.kubernetes.io/name", "job-name", "topology.kubernetes.io/zone", "my-pod-template-hash"]
)
def test_other_labels_do(key: str) -> None:
    """What Cilium takes by default is taken here."""
    assert LabelFilter().takes_of_workload(key)


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


def taken(patterns: str, *keys: str, source: str = "k8s") -> list[str]:
    """Which of the keys take part."""
    found = LabelFilter(patterns.split())
    return [key for key in keys if found.takes(key, source)]


DOCUMENTED = r"k8s:io.kubernetes\.pod\.namespace k8s:k8s-app k8s:app k8s:name"


def test_an_including_pattern_leaves_out_what_none_includes() -> None:
    """The documentation's example: labels with these prefixes, and the default inclusions."""
    kept = ("k8s-app", "k8s-app-team", "app-production", "name-defined", "io.kubernetes.pod.namespace",
            NAMESPACE_LABEL_PREFIX + "team", "app.kubernetes.io/name", "io.cilium.k8s.policy.cluster")  # fmt: skip
    assert taken(DOCUMENTED, *kept, "env", "team", "my-app", "io.cilium.k8s.policy.serviceaccount") == list(kept)


def test_excluding_patterns_leave_the_others() -> None:
    """The documentation's second example."""
    assert taken("k8s:!controller-uid k8s:!job-name", "job-name", "job-names", "controller-uid", "app") == ["app"]


def test_patterns_of_both_kinds() -> None:
    """The filter's own test: ignor[eE] out, what begins with id or foo in, the defaults as ever."""
    keys = ("id.lizards", "foo2.lizards", "lizards.foo", "ignore", "ignorE", "annotation.hello", "kubernetes.io/x")
    assert taken(":!ignor[eE] id.* foo", *keys) == ["id.lizards", "foo2.lizards"]


@pytest.mark.parametrize(
    ("patterns", "kept"),
    [
        ("!foo foo.bar", True),  # Included over more of the key.
        ("foo !foo.bar", False),
        ("foo.bar !foo.bar", False),  # In a tie it is excluded.
        ("!foo !foo.bar foo.b", True),  # The shortest exclusion counts.
        ("container:foo", False),  # Includes, but of another source.
        ("container:!foo", True),
        ("any:!foo", False),
        (".*bar", True),
        ("bar", False),
    ],
)
def test_the_longer_match_counts(patterns: str, kept: bool) -> None:
    """Of the key foo.bar."""
    assert taken(patterns, "foo.bar") == (["foo.bar"] if kept else [])


def test_default_exclusions_yield_to_longer_inclusions() -> None:
    """Beside the others nothing is taken any more."""
    assert taken(r"kubernetes\.io/arch", "kubernetes.io/arch", "kubernetes.io/os", "app") == ["kubernetes.io/arch"]


def test_no_pattern_leaves_out_the_namespace() -> None:
    """Its inclusion by default is longer than the default exclusion that it meets, so policies of a namespace hold."""
    for patterns in ("!.*", "!i", r"!io\.kubernetes\.pod\.namespace", "!io.*e"):
        assert taken(patterns, "io.kubernetes.pod.namespace")


def test_namespaces_labels_and_accounts_are_filtered_too() -> None:
    """A workload's identity without the parts that the patterns leave out."""
    patterns = (r"io\.cilium\.k8s\.namespace\.labels\.team", r"!io\.cilium\.k8s\.namespace\.labels", "app")
    found = identity_labels("east", "shop", {"team": "a", "env": "prod"}, {"app": "web", "tier": "x"}, "bot", patterns)
    assert found == (
        "k8s:app=web",
        "k8s:io.cilium.k8s.namespace.labels.team=a",
        "k8s:io.cilium.k8s.policy.cluster=east",
        "k8s:io.kubernetes.pod.namespace=shop",
    )


@pytest.mark.parametrize(
    ("patterns", "reason"),
    [
        ("!k8s:app", "the ! stands before the expression: k8s:!app"),
        ("k8s:", "must be [SOURCE:][!]EXPRESSION"),
        ("k8s:!", "must be [SOURCE:][!]EXPRESSION"),
        ("k8s:app(", "must be a regular expression"),
        ("k8s:(?=app)", "not understood by RE2"),
        ("(a+)+b", "repeats a group"),
        ("k8s:(?:a|aa)*b", "repeats a group"),
        ("(?:app|name)", "right may be k8s:(?:app|name)"),
        ("a?" * 30, "too many"),
        ("(a|aa)" * 30, "too many"),
        (".*.*.*.*b", "too many"),
        ("a" * 600, "longer than"),
        ("!.*", "would leave out io.cilium.k8s.policy.cluster"),
    ],
)
def test_wrong_patterns_are_refused(patterns: str, reason: str) -> None:
    """Naming what would be right: among others what would keep a node's agent busy, or has no number to give."""
    assert reason in patterns_fault(tuple(patterns.split()))[1]
    refused = read_settings({"labels": patterns})
    assert not isinstance(refused, Settings) and refused[0].field == "labels"


@pytest.mark.parametrize("pattern", ["k8s:(?:app|name)-x", "(a+)?b", r"\(a\)+", "[a*]+", ".*x.*", "a{2,3}b*", "a|b|c|d"])
def test_plain_patterns_are_taken(pattern: str) -> None:
    """What costs little."""
    assert patterns_fault((pattern,)) == ("", "")


def test_the_setting_is_a_text_or_a_list() -> None:
    """As a ConfigMap, a Helm chart and a file have it."""
    read = [read_settings(each) for each in (
        {"labels": "k8s:app  k8s:!job-name"}, {"labels": ["k8s:app", "k8s:!job-name"]},
        {"kind": "ConfigMap", "data": {"labels": "k8s:app k8s:!job-name"}},
    )]  # fmt: skip
    for settings in read:
        assert isinstance(settings, Settings) and settings.policy.labels == ("k8s:app", "k8s:!job-name")
    assert not isinstance(read_settings({"labels": ["k8s:app name"]}), Settings)
