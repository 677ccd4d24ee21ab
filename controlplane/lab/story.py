"""The story of `make mesh`: six steps, a line and a verdict each.

Belongs here: the steps and their verdicts. Does not belong here: building (up.py), flows (flows.py), the kill
(restart.py), the comparison of histories (controlplane.history).
"""

import json
import os
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TextIO

import msgspec

from controlplane.lab import flows, machine, nodes, pods, restart, topology, up
from controlplane.lab.flows import Flow, NodePortFlow, Places
from controlplane.lab.topology import LabPod
from controlplane.lab.up import LabTopology, Progress, ask
from controlplane.lab.watch import DropWatch

REPLAY_S_MAX = 60.0
POLICY_KINDS = ("networkpolicy", "ciliumnetworkpolicy")
RESTARTED_NODE = "east-1"
STREAM_FROM = "east/shop/frontend"
STREAM_TO = "east/shop/catalog"
DATAGRAMS_TO = "west/shop/ledger"
NEW_TO = "east/shop/cart"
DENIED_COMMAND = "lab exec east/shop/cart -- timeout 1 bash -c '</dev/tcp/{address}/8080'"
TRY_NEXT = (
    ("endpoint list -A -o wide", "every pod, its identity and what is enforced"),
    ("log list", "everything that happened, in the one order of both clusters"),
    ("monitor -t drop --node {node}", "and in another terminal: {meshlog} " + DENIED_COMMAND),
    ("why --from shop/cart --to shop/catalog --port 8080/TCP", "that drop, explained: rule, policy, records"),
    ("verify", "what log, agent and kernel hold of every table; `{meshlog} bpf policy list --at 30` looks back"),
)
DENIED_TARGET = "east/shop/catalog"


class Verdict(msgspec.Struct, frozen=True):
    """One line of the story. `look_at` helps where it is not ok."""

    step: int
    title: str
    ok: bool
    detail: str
    look_at: str = ""


class Story:
    """Collects verdicts and prints each as it falls."""

    def __init__(self, stream: TextIO) -> None:
        self.verdicts: list[Verdict] = []
        self.figures: dict[str, Any] = {}
        self._stream = stream

    def heading(self, step: int, text: str) -> None:
        """The title of a step."""
        print(f"\n{step}. {text}", file=self._stream, flush=True)

    def line(self, text: str) -> None:
        """A line that is no verdict."""
        print(f"  {text}", file=self._stream, flush=True)

    def give(self, step: int, title: str, ok: bool, detail: str, look_at: str = "") -> None:
        """A verdict."""
        self.verdicts.append(Verdict(step, title, ok, detail, look_at))
        self.line(f"{'ok  ' if ok else 'FAIL'}  {title}: {detail}")
        if not ok and look_at:
            self.line(f"      look at: {look_at}")

    @contextmanager
    def failing_as(self, step: int, title: str, look_at: str) -> Iterator[None]:
        """What goes wrong inside becomes a failed verdict, and the story goes on."""
        try:
            yield
        except machine.LabFailure as error:
            self.give(step, title, False, str(error), look_at)


def tell(stream: TextIO, tunnel: str | None = None) -> dict[str, Any]:
    """The whole story as values: {"ok", "seconds", "verdicts", "figures"}; `tunnel` as in up.build. Raises LabFailure
    if nothing can run."""
    started = time.monotonic()
    story = Story(stream)
    story.heading(1, "Two clusters of two nodes, one log")
    progress = Progress(stream)
    built = up.build(progress, tunnel=tunnel)
    _show_nodes(story, built)
    story.heading(2, "A small shop, from Kubernetes manifests")
    _show_pods(story, built)
    steps: tuple[tuple[int, str, Callable[[Story, LabTopology], None]], ...] = (
        (3, "Packets, between real sockets", _show_flows),
        (4, f"The agent of {RESTARTED_NODE} is killed and comes back", _show_restart),
        (5, "The history, and its replay", _show_history),
    )
    for number, title, show in steps:
        story.heading(number, title)
        with story.failing_as(number, title, "`meshlog lab status`, and the logs in " + topology.LOGS):
            show(story, built)
    story.heading(6, "The mesh goes on running. Worth trying next")
    with story.failing_as(6, "commands", "meshlog lab status"):
        _show_commands(story, built)
    failed = sum(not verdict.ok for verdict in story.verdicts)
    seconds = round(time.monotonic() - started, 1)
    outcome = "all is well" if not failed else f"{failed} FAILED"
    print(f"\n{len(story.verdicts)} verdicts, {outcome}, {seconds} s. `make mesh-down` removes the mesh.", file=stream)
    return {"ok": not failed, "seconds": seconds, "verdicts": msgspec.to_builtins(story.verdicts),
            "figures": story.figures}


def _show_nodes(story: Story, built: LabTopology) -> None:
    for node in built.nodes:
        status = ask(node.socket, "GET", "/v1/status")
        rows = sum(status["kernel"]["rows"].values())
        detail = f"{status['health']}, revision {status['kernel']['realized']}, {rows} rows in the kernel"
        well = status["health"] == "ok" and status["ready"]
        problems = "; ".join(status["problems"])
        story.give(1, f"node {node.name}", well, f"{detail} {problems}".strip(), f"meshlog status --node {node.name}")


def _show_pods(story: Story, built: LabTopology) -> None:
    places = _places(built)
    for pod in built.pods:
        with story.failing_as(2, f"pod {pod.title}", "meshlog endpoint list -A -o wide"):
            endpoint = places.endpoint(pod.title)
            detail = f"{endpoint['ipv4']} {endpoint['ipv6']} on {pod.node}, identity {endpoint['identity']}"
            story.give(2, f"pod {pod.title}", True, detail)


# --- 3: flows ---------------------------------------------------------------------------------------------------


def _show_flows(story: Story, built: LabTopology) -> None:
    places = _places(built)
    for flow in flows.ALLOWED:
        for family in flows.FAMILIES:
            _show_allowed(story, built, places, flow, family)
    for family in flows.FAMILIES:
        _show_outside(story, flows.OUTSIDE, family)
    for flow in flows.DENIED:
        for family in flows.FAMILIES:
            _show_denied(story, built, places, flow, family)


def _show_allowed(story: Story, built: LabTopology, places: Places, flow: Flow, family: str) -> None:
    title = f"{flow.title} ({_family_name(family)})"
    source = _pod(built, flow.source)
    look_at = f"meshlog monitor -t drop --node {source.node}"
    with story.failing_as(3, title, look_at):
        address, port = places.address(flow, family)
        if not address:
            raise machine.LabFailure(f"{flow.target} has no {_family_name(family)} address")
        verdict = flows.request(source, address, port)
        _judge_answer(story, title, verdict, flow.answered_by, f"{source.title} -> {address} port {port}", look_at)


def _show_outside(story: Story, flow: NodePortFlow, family: str) -> None:
    title = f"{flow.title} ({_family_name(family)})"
    look_at = f"meshlog service list --node {flow.node}"
    with story.failing_as(3, title, look_at):
        address = topology.node_named(flow.node).address(family)
        verdict = flows.request_outside(address, flow.port)
        _judge_answer(story, title, verdict, flow.answered_by, f"{address} port {flow.port} of {flow.node}", look_at)


def _judge_answer(
    story: Story, title: str, verdict: Mapping[str, Any], expected: str, asked: str, look_at: str
) -> None:
    who = flows.answered_by(verdict)
    said = f"{who} answered in {verdict['ms']} ms" if who else verdict.get("error", "")
    story.give(3, title, who == expected, f"{asked}: {said}", look_at)


def _show_denied(story: Story, built: LabTopology, places: Places, flow: Flow, family: str) -> None:
    title = f"{flow.title} ({_family_name(family)})"
    source, target = _pod(built, flow.source), _pod(built, flow.target)
    look_at = f"meshlog bpf policy list --node {target.node}"
    with story.failing_as(3, title, look_at), DropWatch(topology.node_named(target.node)) as watch:
        address, port = places.address(flow, family)
        verdict = flows.request(source, address, port)
        drop = watch.find(str(places.endpoint(source.title)[family]), address)
        policies = ", ".join(_policies_of(target)) or "no policy"
        if verdict["ok"]:
            story.give(3, title, False, f"{source.title} -> {target.title} was answered", look_at)
        elif drop is None:
            detail = f"no answer ({verdict['error']}) but no drop was notified on {target.node}"
            story.give(3, title, False, detail, look_at)
        else:
            reason = f"{drop['reason']} ({drop['reason_code']}) on {drop.get('node') or target.node}"
            story.give(3, title, True, f"{source.title} -> {target.title}: {reason}, enforced by {policies}")


def _policies_of(pod: LabPod) -> list[str]:
    path = topology.operator_socket(pod.cluster)
    documents: list[Mapping[str, Any]] = []
    for kind in POLICY_KINDS:
        documents += ask(path, "GET", f"/v1/get/{kind}?namespace={pod.namespace}")["documents"]
    return flows.enforcing_policies(documents, pod.labels)


# --- 4: restart -------------------------------------------------------------------------------------------------


def _show_restart(story: Story, built: LabTopology) -> None:
    places = _places(built)
    node = topology.node_named(RESTARTED_NODE)
    targets = [str(places.endpoint(name)["ipv4"]) for name in (STREAM_TO, DATAGRAMS_TO, NEW_TO)]
    found = restart.kill_and_return(node, _pod(built, STREAM_FROM), *targets)
    story.figures["restart"] = msgspec.to_builtins(found)
    look_at = f"meshlog status --node {node.name} -o wide"
    stream, datagrams = found.stream, found.datagrams
    story.give(4, "TCP stream", found.stream_is_whole, f"{stream['bytes']} bytes, {stream['bytes_lost']} lost, "
               f"longest pause {stream['longest_pause_ms']} ms {stream['broken']}".rstrip(), look_at)
    detail = f"{datagrams['sent']} packets, {datagrams['lost']} lost"
    story.give(4, "UDP stream", found.datagrams_are_whole, detail, look_at)
    story.give(4, "new connection without an agent", found.new_connection_while_away,
               "answered" if found.new_connection_while_away else "failed", look_at)
    story.give(4, "map writes at restart", not found.map_writes, str(found.map_writes), look_at)
    story.give(4, "time to ready", True, f"{found.ready_s} s from exec, of which {found.ready_after_s} s in the agent")


# --- 5: history -------------------------------------------------------------------------------------------------


def _show_history(story: Story, built: LabTopology) -> None:
    revision = up.wait_realized()
    story.line(f"{_history_line(built)}")
    replayed = _replay(built)
    story.figures["replay"] = replayed
    for node in built.nodes:
        verification = ask(node.socket, "GET", "/v1/verify")
        theirs = replayed["nodes"].get(f"{node.cluster}/{node.name}", {})
        tables = {table["table"]: table["kernel"] for table in verification["tables"]}
        different = sorted(name for name in tables if tables[name] != theirs.get(name))
        rows = sum(table["rows"] for table in verification["tables"])
        detail = f"{len(tables)} tables, {rows} rows, at revision {revision}: "
        detail += "every kernel digest equals the replay's" if not different else f"differ: {', '.join(different)}"
        look_at = f"meshlog verify --node {node.name}"
        story.give(5, f"replay against the kernel of {node.name}", bool(tables) and not different, detail, look_at)


def _history_line(built: LabTopology) -> str:
    argv = [nodes.meshlog_program(), "log", "list", "-o", "json", "--socket", built.nodes[0].socket]
    records = json.loads(_output(argv))
    counts: dict[str, int] = {}
    for record in records:
        for event in record["events"]:
            counts[event["event"]] = counts.get(event["event"], 0) + 1
    ordered = sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))
    return f"{len(records)} records so far: " + ", ".join(f"{count} {name}" for name, count in ordered)


def _replay(built: LabTopology) -> dict[str, Any]:
    """In a process of its own, from the first record."""
    argv = [nodes.meshlog_program(), "log", "replay", "-o", "json", "--etcd", nodes.etcd_endpoint()]
    replayed: dict[str, Any] = json.loads(_output(argv))
    return replayed


def _output(argv: list[str]) -> str:
    done = subprocess.run(argv, check=False, capture_output=True, text=True, timeout=REPLAY_S_MAX)
    if done.returncode:
        raise machine.LabFailure(f"`{' '.join(argv[1:4])}` failed: {done.stderr.strip()[-300:]}")
    return done.stdout


# --- 6: what to try ---------------------------------------------------------------------------------------------


def _show_commands(story: Story, built: LabTopology) -> None:
    """With the program's own path: it is not on the PATH outside the lab."""
    program = os.path.relpath(nodes.meshlog_program())
    target = _pod(built, DENIED_TARGET)
    address = _places(built).endpoint(target.title)["ipv4"]
    for command, text in TRY_NEXT:
        said = f"{{meshlog}} {command}\n      {text}"
        story.line(said.format(meshlog=program, node=target.node, address=address))


# --- names ------------------------------------------------------------------------------------------------------


def _places(built: LabTopology) -> Places:
    path = built.nodes[0].socket
    return Places(ask(path, "GET", "/v1/list/endpoint")["items"], ask(path, "GET", "/v1/list/service")["items"])


def _pod(built: LabTopology, title: str) -> LabPod:
    pod = pods.resolve(title, built.pods)
    if pod is None:
        raise machine.LabFailure(f"the manifests in {pods.MANIFESTS} have no pod {title}")
    return pod


def _family_name(family: str) -> str:
    return {"ipv4": "IPv4", "ipv6": "IPv6"}[family]
