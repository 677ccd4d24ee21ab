"""Endpoint devices: what stands on both sides of a pair, and that others' devices are left alone."""

import errno
import os
import socket
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from datapath.codec import address_bytes
from datapath.errors import KernelError
from datapath.kernel import endpoint_side
from datapath.kernel.endpoint_side import EndpointSide
from datapath.kernel.netlink import (
    DeviceFacts,
    Netlink,
    device_mac,
    device_name,
)
from datapath.kernel.rtnetlink import Requests

pytestmark = pytest.mark.kernel("TCX links")

ADDRESSES = [address_bytes("10.0.0.5"), address_bytes("fd00::5")]
NAME = device_name("default/web")


def configure_endpoint(netns_path: str, ifname: str, addresses: list[bytes], gateway_mac: bytes) -> None:
    """Once, from setting the device up to its routes."""
    with EndpointSide(netns_path, ifname) as side:
        side.configure(addresses, gateway_mac)


class Pair:
    """A node's namespace, an endpoint's namespace, and the node's door."""

    def __init__(self, node: Any, endpoint: Any) -> None:
        self.node, self.endpoint = node, endpoint
        self.netlink = Netlink(node.path)

    def create(self, name: str = NAME, ifname: str = "eth0") -> DeviceFacts:
        return self.netlink.create_endpoint_device(name, self.endpoint.path, ifname, 1400, "n1:default/web")


def open_udp(address: str) -> socket.socket:
    """A bound socket in the calling thread's namespace, which gives up after 5 s."""
    opened = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_DGRAM)
    opened.settimeout(5)
    opened.bind((address, 7000))
    return opened


def exchange(pair: Pair, address: str) -> tuple[bytes, bytes]:
    """A datagram from the node to the endpoint, and one back; what each side received."""
    node_address = "fd00:1::1" if ":" in address else "192.0.2.1"
    with pair.node.call(open_udp, node_address) as asker, pair.endpoint.call(open_udp, address) as answerer:
        asker.sendto(b"asked", (address, 7000))
        question, sender = answerer.recvfrom(100)
        answerer.sendto(b"answered", sender)
        return question, asker.recv(100)


@pytest.fixture
def pair(make_namespace: Callable[[], Any]) -> Iterator[Pair]:
    """Two empty namespaces."""
    pair = Pair(make_namespace(), make_namespace())
    yield pair
    pair.netlink.close()


def test_names_are_stable_and_short() -> None:
    """The same key gives the same name in every run, and the kernel takes it."""
    assert device_name("default/web") == "ml82b3ade9d0"
    assert device_name("default/other") != NAME


def test_the_two_sides_have_different_unicast_addresses() -> None:
    """Locally administered, not multicast."""
    host, endpoint = device_mac(NAME, "host"), device_mac(NAME, "endpoint")
    assert host != endpoint
    assert host[0] == endpoint[0] == 0x02


def test_facts_are_those_of_the_devices(pair: Pair) -> None:
    """Number, addresses and MTU as the kernel shows them, on both sides."""
    facts = pair.create()
    host = pair.node.run("ip", "-o", "link", "show", "dev", NAME)
    inside = pair.endpoint.run("ip", "-o", "link", "show", "dev", "eth0")
    assert host.startswith(f"{facts.ifindex}: {NAME}@")
    assert facts.host_mac.hex(":") in host
    assert facts.mac.hex(":") in inside
    assert "mtu 1400" in host
    assert "mtu 1400" in inside


def test_a_new_device_says_whose_it_is(pair: Pair) -> None:
    """A later run reads name, number and owner from the kernel."""
    facts = pair.create()
    (device,) = pair.netlink.list_devices()
    assert device == (NAME, facts.ifindex, facts.host_mac, "n1:default/web", 1400)


def test_creating_twice_is_refused(pair: Pair) -> None:
    """The caller decides whether the one that is there will do."""
    pair.create()
    with pytest.raises(KernelError, match=f"create {NAME}") as caught:
        pair.create(ifname="eth1")
    assert caught.value.errno == errno.EEXIST


def test_a_name_that_is_taken_inside_leaves_nothing(pair: Pair) -> None:
    """The pair is made in one step: without the endpoint's side there is no node's side."""
    pair.create()
    with pytest.raises(KernelError):
        pair.create(name=device_name("default/other"))
    assert [device.ifname for device in pair.netlink.list_devices()] == [NAME]


def test_a_missing_namespace_is_named(pair: Pair) -> None:
    """The error holds the path."""
    with pytest.raises(KernelError, match="network namespace /run/netns/mlt-absent: No such file"):
        pair.netlink.create_endpoint_device(NAME, "/run/netns/mlt-absent", "eth0", 1400, "n1:x")


@pytest.mark.parametrize("name", ["eth0", "ml" + 14 * "0"])
def test_other_names_are_refused(pair: Pair, name: str) -> None:
    """A device of ours has our prefix and a length that the kernel takes."""
    with pytest.raises(KernelError, match="must begin with ml and have up to 15 characters"):
        pair.create(name=name)


def test_devices_of_others_are_neither_listed_nor_removed(pair: Pair) -> None:
    """A device with our prefix but without our alias stays."""
    pair.node.run("ip", "link", "add", "name", "mlfake", "type", "veth", "peer", "name", "mlfake2")
    assert pair.netlink.list_devices() == []
    assert not pair.netlink.delete_device("mlfake")
    assert "mlfake" in pair.node.run("ip", "-o", "link")


def test_deleting_takes_both_sides(pair: Pair) -> None:
    """True for the one that was there, False the second time."""
    pair.create()
    assert pair.netlink.delete_device(NAME)
    assert not pair.netlink.delete_device(NAME)
    assert "eth0" not in pair.endpoint.run("ip", "-o", "link")


def test_nothing_is_sent_from_an_address_of_the_kernels_own(pair: Pair) -> None:
    """Neither side has a link-local address, or waits for duplicate detection."""
    facts = pair.create()
    configure_endpoint(pair.endpoint.path, "eth0", ADDRESSES, facts.host_mac)
    assert "inet6" not in pair.node.run("ip", "-o", "addr", "show", "dev", NAME)
    inside = pair.endpoint.run("ip", "-o", "-6", "addr", "show", "dev", "eth0")
    assert "fd00::5/128" in inside
    assert "fe80" not in inside
    assert "tentative" not in inside


def test_an_endpoint_reaches_its_gateway_without_asking(pair: Pair) -> None:
    """Both default routes lead to next hops whose permanent neighbours have the host side's address."""
    facts = pair.create()
    configure_endpoint(pair.endpoint.path, "eth0", ADDRESSES, facts.host_mac)
    assert "default via 169.254.1.1 dev eth0" in pair.endpoint.run("ip", "route")
    assert "default via fe80::1 dev eth0" in pair.endpoint.run("ip", "-6", "route")
    for gateway in ("169.254.1.1", "fe80::1"):
        entry = pair.endpoint.run("ip", "neigh", "show", gateway, "dev", "eth0")
        assert f"lladdr {facts.host_mac.hex(':')} PERMANENT" in entry


def test_an_endpoint_with_one_family_has_no_route_of_the_other(pair: Pair) -> None:
    """No default route without an address to use it with."""
    facts = pair.create()
    configure_endpoint(pair.endpoint.path, "eth0", ADDRESSES[:1], facts.host_mac)
    assert "default" not in pair.endpoint.run("ip", "-6", "route")


def test_configuring_twice_changes_nothing(pair: Pair) -> None:
    """A repeated call ends as the first did."""
    facts = pair.create()
    configure_endpoint(pair.endpoint.path, "eth0", ADDRESSES, facts.host_mac)
    before = [
        pair.endpoint.run("ip", *what) for what in (["route"], ["-6", "route"], ["neigh"], ["-o", "addr"])
    ]
    configure_endpoint(pair.endpoint.path, "eth0", ADDRESSES, facts.host_mac)
    assert [
        pair.endpoint.run("ip", *what) for what in (["route"], ["-6", "route"], ["neigh"], ["-o", "addr"])
    ] == before


def test_an_address_that_is_configured_takes_packets(pair: Pair) -> None:
    """At once, though the kernel makes an IPv6 address's own route in its own time."""
    facts = pair.create()
    with EndpointSide(pair.endpoint.path, "eth0") as side:
        for number in range(50):
            address = f"fd00::5:{number}"
            side.configure([address_bytes(address)], facts.host_mac)
            assert pair.endpoint.call(local_addresses) >= {socket.inet_pton(socket.AF_INET6, address)}


def local_addresses() -> set[bytes]:
    """Of the calling thread's namespace."""
    requests = Requests()
    try:
        return requests.local_addresses(socket.AF_INET6)
    finally:
        requests.close()


def test_an_endpoint_without_ipv6_asks_nothing_about_it(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel that has no IPv6 would refuse the question."""

    def refused(self: Requests, family: int) -> set[bytes]:
        raise KernelError("no such family", errno.EOPNOTSUPP)

    facts = pair.create()
    monkeypatch.setattr(Requests, "local_addresses", refused)
    configure_endpoint(pair.endpoint.path, "eth0", ADDRESSES[:1], facts.host_mac)


def test_an_address_that_takes_no_packets_is_named(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """An endpoint that is not ready is not said to be."""
    facts = pair.create()
    monkeypatch.setattr(Requests, "local_addresses", lambda self, family: set())
    monkeypatch.setattr(endpoint_side, "TAKEN_WITHIN_S", 0.01)
    with pytest.raises(KernelError, match="packets to fd00::5 are not taken"):
        configure_endpoint(pair.endpoint.path, "eth0", ADDRESSES, facts.host_mac)


def test_packets_pass_between_the_two_sides(pair: Pair) -> None:
    """With a route to the endpoint, the node's stack reaches it in both families."""
    pair.netlink.configure_node()
    facts = pair.create()
    configure_endpoint(pair.endpoint.path, "eth0", ADDRESSES, facts.host_mac)
    pair.node.add_address("192.0.2.1", "lo")
    pair.node.add_address("fd00:1::1", "lo")
    for address in ("10.0.0.5", "fd00::5"):
        length = "/128" if ":" in address else "/32"
        pair.node.run("ip", "route", "add", address + length, "dev", NAME)
        pair.node.run(
            "ip", "neigh", "add", address, "lladdr", facts.mac.hex(":"), "dev", NAME, "nud", "permanent"
        )
        assert exchange(pair, address) == (b"asked", b"answered")


def test_a_node_forwards_after_configuration(pair: Pair) -> None:
    """bpf_fib_lookup refuses without it."""
    pair.netlink.configure_node()
    assert pair.node.run("cat", "/proc/sys/net/ipv4/ip_forward").strip() == "1"
    assert pair.node.run("cat", "/proc/sys/net/ipv6/conf/all/forwarding").strip() == "1"


def test_the_callers_namespace_is_not_changed(pair: Pair) -> None:
    """All entering is done by other threads."""
    before = os.stat("/proc/thread-self/ns/net").st_ino
    facts = pair.create()
    configure_endpoint(pair.endpoint.path, "eth0", ADDRESSES, facts.host_mac)
    assert os.stat("/proc/thread-self/ns/net").st_ino == before
