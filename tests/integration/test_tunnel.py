"""A mesh whose nodes wrap packets for each other, and that is switched over while a stream flows.

Belongs here: what takes running operators and agents. Does not belong here: what wrapped packets meet
(tests/bpf/test_wire_overlay.py).
"""

import json
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from controlplane.lab.flows import CLIENT, OUTSIDE, POD_PORT
from tests.integration import lab

pytestmark = [pytest.mark.kernel("TCX links"), pytest.mark.kernel("bpf_redirect_peer")]

NODES = ("east-1", "east-2", "west-1", "west-2")
ASKING, ANSWERING, DEVICE = "east/shop/frontend", "catalog", "mesh_vxlan"
WAIT_S = 20.0


@pytest.fixture(autouse=True)
def no_lab() -> Iterator[None]:
    """No lab before, none after."""
    lab.well("lab", "down")
    yield
    lab.well("lab", "down")


def routing_modes() -> set[str]:
    return {lab.answer("status", "--socket", lab.socket_of(node))["routing_mode"] for node in NODES}


def has_device(node: str) -> bool:
    return DEVICE in lab.well("lab", "exec", node, "--", "ip", "-br", "link")


def answered_outside(address: str, port: int) -> str:
    """Who answers a client that is no part of the mesh."""
    words = (sys.executable, "-I", "-S", CLIENT, "http", address, str(port))
    return str(json.loads(lab.well("lab", "exec", "outside", "--", *words)).get("answer", {}).get("name"))


def test_a_stream_outlives_the_switch_to_native_routing() -> None:
    """Operators started with another mode are all that it takes: no byte is lost, and the tunnels are gone after it.
    The port of a node leads through them too."""
    lab.well("lab", "up", "--tunnel", "vxlan")
    assert routing_modes() == {"tunnel [vxlan]"}
    assert [answered_outside(node, OUTSIDE.port) for node in ("172.31.77.12", "fd77::12")] == ["frontend"] * 2
    listed = lab.answer("endpoint", "list", "-A", "--socket", lab.socket_of("east-1"))
    (address,) = (each["ipv6"] for each in listed if each["workload"] == ANSWERING)
    asking = ("lab", "exec", ASKING, "--", sys.executable, "-I", "-S", CLIENT, "stream", address, str(POD_PORT))
    with subprocess.Popen(
        [lab.PROGRAM, *asking], env=lab.ENVIRONMENT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as stream:
        assert stream.stdout
        assert "flowing" in stream.stdout.readline()
        lab.well("lab", "up", "--tunnel", "off")
        assert routing_modes() == {"native"}
        end = time.monotonic() + WAIT_S
        while any(map(has_device, NODES)) and time.monotonic() < end:
            time.sleep(0.1)
        assert not any(map(has_device, NODES))
        count = json.loads(stream.communicate(timeout=WAIT_S)[0].splitlines()[-1])
    assert (count["bytes_lost"], count["broken"]) == (0, "")
