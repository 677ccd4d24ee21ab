"""The device that wraps packets: made once, found again, made anew where it differs, and others' left alone."""

from collections.abc import Callable, Iterator

import pytest

from datapath.errors import FeatureUnsupported, KernelError
from datapath.kernel.tunnels import TunnelDevices
from tests.conftest import Namespace

pytestmark = pytest.mark.kernel("TCX links")

OWNER, PORT = "east/n1", 8472


@pytest.fixture
def place(make_namespace: Callable[[], Namespace]) -> Namespace:
    """An empty namespace."""
    return make_namespace()


@pytest.fixture
def devices(place: Namespace) -> Iterator[TunnelDevices]:
    """The door to its tunnel devices."""
    with place.call(TunnelDevices) as opened:
        yield opened


def test_a_device_is_made_once(place: Namespace, devices: TunnelDevices) -> None:
    """It takes its keys from programs, needs no neighbours, and a second call finds it."""
    made = place.call(devices.ensure, "vxlan", PORT, 1450, OWNER)
    shown = place.run("ip", "-d", "link", "show", "mesh_vxlan")
    for word in ("NOARP", "UP", "mtu 1450", "external", "dstport 8472", "nolearning", "alias meshlog:east/n1"):
        assert word in shown
    assert place.call(devices.ensure, "vxlan", PORT, 1450, OWNER) == made


def test_a_device_follows_its_settings(place: Namespace, devices: TunnelDevices) -> None:
    """The MTU changes in place; another port takes another device."""
    made = place.call(devices.ensure, "vxlan", PORT, 1450, OWNER)
    assert place.call(devices.ensure, "vxlan", PORT, 1400, OWNER) == made
    other = place.call(devices.ensure, "vxlan", 4789, 1400, OWNER)
    assert other.ifindex != made.ifindex
    assert "dstport 4789" in place.run("ip", "-d", "link", "show", "mesh_vxlan")


def test_only_ours_are_removed(place: Namespace, devices: TunnelDevices) -> None:
    """One of the same kind that is not marked stays."""
    place.call(devices.ensure, "vxlan", PORT, 1450, OWNER)
    place.run("ip", "link", "add", "mesh_other", "type", "vxlan", "external", "dstport", "4790")
    assert devices.remove(but="mesh_vxlan") == []
    assert devices.remove() == ["mesh_vxlan"]
    assert "mesh_other" in place.run("ip", "link")


def test_a_name_that_is_anothers_is_refused(place: Namespace, devices: TunnelDevices) -> None:
    """Nothing of another owner is touched."""
    place.run("ip", "link", "add", "mesh_vxlan", "type", "veth", "peer", "name", "far")
    with pytest.raises(KernelError, match="create mesh_vxlan"):
        place.call(devices.ensure, "vxlan", PORT, 1450, OWNER)


def test_geneve_works_or_is_named_as_missing(place: Namespace, devices: TunnelDevices) -> None:
    """Where the kernel has it, the same device; where it has not, the error says what is missing."""
    try:
        made = place.call(devices.ensure, "geneve", 6081, 1450, OWNER)
    except FeatureUnsupported as error:
        assert "geneve devices (CONFIG_GENEVE)" in str(error)
    else:
        assert place.call(devices.ensure, "geneve", 6081, 1450, OWNER) == made
