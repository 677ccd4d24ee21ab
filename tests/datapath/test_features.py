"""The feature probes: what they say on this kernel, and what they say without the privilege."""

import multiprocessing
import os
from multiprocessing.connection import Connection
from typing import Any

import pytest

from datapath.errors import FeatureUnsupported, NotRoot
from datapath.kernel import features

NOBODY = 65534


@pytest.mark.kernel("LPM trie maps")
def test_every_feature_is_probed_with_its_first_kernel() -> None:
    """Each answer names the release that brought it."""
    found = features.probe()
    assert found.keys() == features.FEATURES.keys()
    assert all(state.minimum[0].isdigit() for state in found.values())


@pytest.mark.kernel("LPM trie maps")
def test_a_function_that_no_kernel_has_is_missing() -> None:
    """The probe can say no."""
    assert not features.has_function(9999, ())


@pytest.mark.kernel("LPM trie maps")
def test_a_missing_required_feature_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """The error says what is missing and which kernel has it."""
    missing = {"ring buffers": features.FeatureState(False, "5.8", True)}
    monkeypatch.setattr(features, "probe", lambda: missing)
    with pytest.raises(
        FeatureUnsupported, match=r"this kernel has no ring buffers; the first that has it is Linux 5\.8"
    ):
        features.require()


@pytest.mark.kernel("LPM trie maps")
def test_a_missing_optional_feature_is_no_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only what nothing works without stops the start."""
    missing = {"kernel BTF": features.FeatureState(False, "5.2", False)}
    monkeypatch.setattr(features, "probe", lambda: missing)
    features.require()


def test_the_minimum_kernel_has_all_that_is_needed() -> None:
    """Whatever is required, and a form of attachment, are no younger than the kernel that is promised; TCX links, the
    errors of sockets' calls and joined sockets are all that a newer one adds."""
    minimum = release(features.MINIMUM_KERNEL)
    assert all(release(each.minimum) <= minimum for each in features.FEATURES.values() if each.required)
    newer = {name for name, each in features.FEATURES.items() if release(each.minimum) > minimum}
    assert newer == {features.ATTACH_FORMS["tcx"], features.SOCKET_ERRORS, features.JOINED_SOCKETS}


def release(text: str) -> tuple[int, ...]:
    """5.15 is after 5.8."""
    return tuple(int(part) for part in text.split("."))


def kernel_with(monkeypatch: pytest.MonkeyPatch, *forms: str) -> None:
    """A kernel that can attach in these forms only."""
    found = {
        name: features.FeatureState(form in forms, features.FEATURES[name].minimum, False)
        for form, name in features.ATTACH_FORMS.items()
    }
    monkeypatch.setattr(features, "probe", lambda: found)


@pytest.mark.parametrize(("forms", "wanted", "chosen"), [
    (("tcx", "clsact"), "auto", "tcx"), (("clsact",), "auto", "clsact"), (("tcx",), "auto", "tcx"),
    (("tcx", "clsact"), "clsact", "clsact"), (("tcx", "clsact"), "tcx", "tcx"),
])  # fmt: skip
def test_form_of_attachment(
    monkeypatch: pytest.MonkeyPatch, forms: tuple[str, ...], wanted: str, chosen: str
) -> None:
    """The best that there is, or the one that is asked for."""
    kernel_with(monkeypatch, *forms)
    assert features.attach_mode(wanted) == chosen


@pytest.mark.parametrize(("forms", "wanted", "said"), [
    ((), "auto", r"no hook for programs \(TCX links or clsact filters\); the first that has it is Linux 4\.13"),
    (("clsact",), "tcx", r"no TCX links; the first that has it is Linux 6\.6"),
    (("tcx",), "clsact", r"no clsact filters; the first that has it is Linux 4\.13"),
])  # fmt: skip
def test_a_form_that_is_missing_is_named(
    monkeypatch: pytest.MonkeyPatch, forms: tuple[str, ...], wanted: str, said: str
) -> None:
    """One that was asked for is never replaced by another, and none at all is an error."""
    kernel_with(monkeypatch, *forms)
    with pytest.raises(FeatureUnsupported, match=said):
        features.attach_mode(wanted)


@pytest.mark.kernel("clsact filters")
def test_the_probe_of_filters_leaves_this_namespace_alone(namespace: Any) -> None:
    """It is made in a namespace of its own."""

    def qdiscs() -> str:
        return namespace.run("tc", "qdisc", "show")

    before = qdiscs()
    assert namespace.call(features.has_clsact)
    assert qdiscs() == before


def probe_as_nobody(answer: Connection) -> None:
    """In a process of its own: the type of what a probe raises there."""
    os.setuid(NOBODY)
    features.probe.cache_clear()
    try:
        features.probe()
        answer.send("nothing")
    except NotRoot as error:
        answer.send(f"NotRoot: {error}")


@pytest.mark.kernel("LPM trie maps")
def test_without_root_it_says_so() -> None:
    """A missing privilege is not taken for a missing feature."""
    context = multiprocessing.get_context("fork")
    here, there = context.Pipe()
    process = context.Process(target=probe_as_nobody, args=(there,))
    process.start()
    assert here.poll(30)
    assert "NotRoot: " in here.recv()
    process.join()
