"""Another node gets another label while packets flow between it and a pod, whose policies know nodes by their labels.

Belongs here: what takes two agents and sockets. Does not belong here: which rows such a policy becomes
(tests/controlplane/policy/test_nodes.py), what a tunnel's receiver takes for the sender (tests/bpf/test_wire_overlay.py).
"""

import signal
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.conftest import Namespace, mounted_bpffs
from tests.integration.test_agent import Machine, made_machine, pytestmark
from tests.integration.test_policy_live import (
    AFTER,
    BEFORE,
    ROUNDS,
    SETTLED_S,
    Document,
    Spans,
    check,
    closing,
    document,
    listed,
    pod,
)
from tests.integration.traffic import CLOSED, GRANTED, KEPT, REVOKED, Datagrams, Pod

__all__ = ["pytestmark"]

UNDERLAY = {"n1": {4: "192.168.77.1", 6: "fd77::1"}, "n2": {4: "192.168.77.2", 6: "fd77::2"}}
OLD, NEW = "role=old", "role=new"
SETTING = {"enable-node-selector-labels": True}


class Place(NamedTuple):
    """The agent of n1, which judges its pod's packets, and that of n2, the other node."""

    machine: Machine
    other: Machine
    node: Pod
    stack: ExitStack

    def apply(self, *documents: Document) -> None:
        answer = self.machine.ask("POST", "/v1/apply", {"documents": [{"document": each} for each in documents]})
        assert all(each["accepted"] for each in answer["results"]), answer
        self.settle(answer["revision"])

    def set(self, settings: dict[str, Any]) -> None:
        self.settle(self.machine.ask("POST", "/v1/policy/settings", settings)["revision"])

    def settle(self, revision: int) -> None:
        """Until the kernel of n1 holds what comes of it."""
        self.machine.ask("GET", f"/v1/wait?revision={revision}&timeout_s={SETTLED_S}")

    def make_pod(self, name: str) -> Pod:
        """One of the test's own, whose address no flow has had."""
        inner = Namespace()
        self.stack.callback(inner.close)
        self.machine.ask("POST", "/v1/apply", {"documents": [{"document": pod(name, app="server")}]})
        made = self.machine.ask("POST", "/v1/endpoints", {
            "container_id": name, "interface": "eth0", "netns": inner.path, "namespace": "shop", "workload": name,
        })  # fmt: skip
        addresses = [each["address"].partition("/")[0] for each in made["addresses"]]
        return Pod(inner, {6 if ":" in each else 4: each for each in addresses})

    def label(self, label: str) -> None:
        """A node's labels are its agent's: this one is started anew, while what it has pinned goes on."""
        if "agent" in self.other.processes:
            self.other.end("agent", signal.SIGTERM)
        flags = self.other.agent_flags
        self.other.agent_flags = [*flags, "--labels", label]
        try:
            self.settle(self.other.start_agent()["log"]["applied_revision"])
        finally:
            self.other.agent_flags = flags


def second_of(machine: Machine, bpffs: Path, netns: str) -> Machine:
    """Another node's agent on the same etcd."""
    made = Machine(machine.where, bpffs, Path(), netns)
    changed = {"--node": "n2", "--netns": netns, "--bpffs": str(bpffs),
               "--runtime-dir": str(machine.where / "n2"), "--state-dir": str(machine.where / "n2-state")}  # fmt: skip
    pairs = zip(machine.agent_flags[::2], machine.agent_flags[1::2], strict=True)
    made.agent_flags = [word for name, value in pairs for word in (name, changed.get(name, value))]
    made.agent_socket = str(machine.where / "n2" / "agent.sock")
    return made


@pytest.fixture(scope="module")
def place(objects_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """Two nodes on one link."""
    with ExitStack() as stack:
        near, far = Namespace(), Namespace()
        for each in (near, far):
            stack.callback(each.close)
        where = tmp_path_factory.mktemp("nodes")
        pins = [stack.enter_context(mounted_bpffs(where / name)) for name in UNDERLAY]
        machine = stack.enter_context(made_machine(pins[0], objects_dir, near))
        near.add_address(f"{UNDERLAY['n1'][6]}/64", "up0")
        near.run("ip", "link", "set", "up1", "netns", far.name)
        far.run("ip", "link", "set", "up1", "name", "up0", "up")
        far.add_address(f"{UNDERLAY['n2'][4]}/24", "up0")
        far.add_address(f"{UNDERLAY['n2'][6]}/64", "up0")
        machine.start_agent()
        other = second_of(machine, pins[1], far.path)
        stack.callback(lambda: "agent" in other.processes and other.end("agent", signal.SIGTERM))
        found = Place(machine, other, Pod(far, UNDERLAY["n2"]), stack)
        found.label(OLD)
        yield found


def by_label(way: str, label: str, ports: tuple[int, ...]) -> Document:
    """Between the pod and nodes that have it, on these ports."""
    key, _, value = label.partition("=")
    named = [{"port": str(each["port"]), "protocol": each["protocol"]} for each in listed(ports)]
    peer = "fromNodes" if way == "ingress" else "toNodes"
    rule = {peer: [{"matchLabels": {key: value}}], "toPorts": [{"ports": named}]}
    return document("CiliumNetworkPolicy", value, {"endpointSelector": {}, way: [rule]})


@pytest.mark.parametrize("way", ["ingress", "egress"])
def test_a_node_gets_another_label_under_traffic(place: Place, way: str) -> None:
    """From the node to the pod, and from the pod to the node: nothing is lost that both labels allow, what only the old
    one did ends for good, what only the new one does begins; and back. The other node goes by a number of its own."""
    place.set(SETTING)
    place.apply(closing("shop"), by_label(way, OLD, BEFORE), by_label(way, NEW, AFTER))
    own = place.make_pod(way)
    ends = (place.node, own) if way == "ingress" else (own, place.node)
    run, spans = Datagrams(*ends), Spans()
    run.start()
    try:
        for label in (NEW, OLD):
            run.pass_rounds(ROUNDS)
            before = run.rounds
            place.label(label)
            spans.changed(before, run.rounds + 3)
        run.pass_rounds(ROUNDS)
    finally:
        run.stop()
    check(run, spans, {
        KEPT: (True, True, True), CLOSED: (False, False, False),
        REVOKED: (True, False, True), GRANTED: (False, True, False),
    })  # fmt: skip
    known = {each["number"]: each["labels"] for each in place.machine.ask("GET", "/v1/list/identity")["items"]}
    numbers = {each["prefix"]: each["identity"] for each in place.machine.ask("GET", "/v1/list/ip")["items"]}
    assert "node:role=old" in known[numbers[f"{UNDERLAY['n2'][4]}/32"]]
    assert place.machine.ask("GET", "/v1/verify")["equal"]


def test_the_settings_are_switched_under_traffic(place: Place) -> None:
    """On and off while a policy lets every remote node in: no packet is lost, though the node's identity changes."""
    named = [{"port": str(each["port"]), "protocol": each["protocol"]} for each in listed(BEFORE)]
    rules = [{"fromEntities": ["remote-node"], "toPorts": [{"ports": named}]},
             {"fromCIDR": [f"{UNDERLAY['n2'][4]}/32"], "toPorts": [{"ports": [{"port": str(GRANTED)}]}]}]  # fmt: skip
    documents = [document("CiliumNetworkPolicy", each.partition("=")[2], {"endpointSelector": {}, "ingress": rules})
                 for each in (OLD, NEW)]  # fmt: skip
    place.apply(closing("shop"), *documents)
    place.set({})
    run, spans = Datagrams(place.node, place.make_pod("switched")), Spans()
    run.start()
    try:
        for settings in ({"policy-cidr-match-mode": "nodes"}, {}):
            run.pass_rounds(ROUNDS)
            before = run.rounds
            place.set(settings)
            spans.changed(before, run.rounds + 3)
        run.pass_rounds(ROUNDS)
    finally:
        run.stop()
    arrived = {way: numbers for way, numbers in run.arrived.items() if way.family == 4 or way.port != GRANTED}
    assert [way for way, numbers in run.arrived.items() if way not in arrived and numbers] == []
    run.arrived = arrived
    check(run, spans, {KEPT: (True,) * 3, REVOKED: (True,) * 3, CLOSED: (False,) * 3, GRANTED: (False, True, False)})
