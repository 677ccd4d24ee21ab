"""The feature probes: what they say on this kernel, and what they say without the privilege."""

import multiprocessing
import os
from multiprocessing.connection import Connection

import pytest

from datapath.errors import FeatureUnsupported, NotRoot
from datapath.kernel import features

NOBODY = 65534


@pytest.mark.kernel("TCX links")
def test_every_feature_is_probed_with_its_first_kernel() -> None:
    """Each answer names the release that brought it."""
    found = features.probe()
    assert found.keys() == features.FEATURES.keys()
    assert all(state.minimum[0].isdigit() for state in found.values())


@pytest.mark.kernel("TCX links")
def test_a_function_that_no_kernel_has_is_missing() -> None:
    """The probe can say no."""
    assert not features.has_function(9999, ())


@pytest.mark.kernel("TCX links")
def test_a_missing_required_feature_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """The error says what is missing and which kernel has it."""
    missing = {"TCX links": features.FeatureState(False, "6.6", True)}
    monkeypatch.setattr(features, "probe", lambda: missing)
    with pytest.raises(
        FeatureUnsupported, match=r"this kernel has no TCX links; the first that has it is Linux 6\.6"
    ):
        features.require()


@pytest.mark.kernel("TCX links")
def test_a_missing_optional_feature_is_no_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only what nothing works without stops the start."""
    missing = {"kernel BTF": features.FeatureState(False, "5.2", False)}
    monkeypatch.setattr(features, "probe", lambda: missing)
    features.require()


def probe_as_nobody(answer: Connection) -> None:
    """In a process of its own: the type of what a probe raises there."""
    os.setuid(NOBODY)
    features.probe.cache_clear()
    try:
        features.probe()
        answer.send("nothing")
    except NotRoot as error:
        answer.send(f"NotRoot: {error}")


@pytest.mark.kernel("TCX links")
def test_without_root_it_says_so() -> None:
    """A missing privilege is not taken for a missing feature."""
    context = multiprocessing.get_context("fork")
    here, there = context.Pipe()
    process = context.Process(target=probe_as_nobody, args=(there,))
    process.start()
    assert here.poll(30)
    assert "NotRoot: " in here.recv()
    process.join()
