"""Flows run as packets through the programs of the nodes on their way, on copies of their rows.

Belongs here: filling the copies and running them, node by node. Does not belong here: which packets
(history/packets.py), what their outcome means (history/packet_verdicts.py), the kernel's part
(datapath/kernel/rehearsal.py). Rows are a function of the log, so that any node can try what any other would do, at any
revision.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from controlplane.desired.derive import Deriver
from controlplane.desired.policy_mesh import mesh_of
from controlplane.desired.services import ServiceCompiler
from controlplane.desired.underlay import address_of_family
from controlplane.history.packet_verdicts import Passage, agrees, model_of, refusal_of, service_fault, verdict_of
from controlplane.history.packets import NoPacket, PacketWays, Step
from controlplane.history.rows_hit import Tables, rows_hit
from controlplane.model import NodeKey
from controlplane.policy.answers import answer, question_of, shown
from controlplane.policy.mesh import FlowFault, Judge, Question
from controlplane.policy.verdict import DENY
from controlplane.projections.state import State
from datapath.codec import encode_rows
from datapath.kernel.rehearsal import NodeRows, Rehearsal
from datapath.notifications import DROP_REASON_TEXTS

STEPS_MAX = 4
"""Programs that a packet passes: its sender's, that of a node which answers for a frontend, its receiver's."""


def rehearse(state: State, cluster: str, flows: Sequence[Any], objects_dir: Path) -> list[dict[str, Any]]:
    """As rehearse_on, on a copy that is made for it: some 50 ms more."""
    with Rehearsal(objects_dir) as copy:
        return rehearse_on(copy, state, cluster, flows)


def rehearse_on(copy: Rehearsal, state: State, cluster: str, flows: Sequence[Any]) -> list[dict[str, Any]]:
    """To each flow the model's answer, and beside it "datapath": what the programs did, and "agrees".

    "datapath" has "error" alone where no packet can be sent for the flow; else also "rows": what the programs found for
    the packet, node by node (history/rows_hit.py), and "fault" where they led it elsewhere than its service says. Where
    a frontend is asked for, the model's answer is about the backend that the packet was led to. Blocks: a few
    milliseconds for each node and less than one for each flow. Raises KernelError where the kernel does not let packets
    be tried.
    """
    judge, nodes = Judge(mesh_of(state, cluster)), _Nodes(state)
    ways = PacketWays(state, cluster, judge, nodes.services)
    answers = [answer(judge, flow, number) for number, flow in enumerate(flows)]
    tries: dict[int, _Try] = {}
    for number, flow in enumerate(flows):
        if "error" in answers[number]:
            continue
        question = question_of(flow)
        try:
            tries[number] = _Try(question, ways.first(question))
        except (NoPacket, FlowFault) as fault:
            answers[number]["datapath"] = {"error": str(fault)}
    _run(nodes, ways, tries.values(), copy)
    for number, tried in tries.items():
        answers[number] = _compared(judge, tried, nodes)
    return answers


class _Try:
    """One flow's packets so far."""

    def __init__(self, question: Question, first: Step) -> None:
        self.question = question
        self.step: Step | None = first
        self.way: list[Passage] = []


class _Nodes:
    """What the nodes' kernels should hold, derived when a packet comes by."""

    def __init__(self, state: State) -> None:
        self._state = state
        self._derived: dict[NodeKey, _Node] = {}

    def at(self, key: NodeKey) -> "_Node":
        if key not in self._derived:
            deriver = Deriver(*key)
            typed = deriver.full(self._state).tables
            node = self._state.nodes[key]
            own = [address_of_family(node, ipv6) for ipv6 in (False, True)]
            encoded = {table: encode_rows(table, rows) for table, rows in typed.items()}
            self._derived[key] = _Node(deriver.services, typed, NodeRows(encoded, own[0], own[1]))
        return self._derived[key]

    def services(self, key: NodeKey) -> ServiceCompiler:
        return self.at(key).services


class _Node(NamedTuple):
    services: ServiceCompiler
    typed: Tables
    rows: NodeRows


def _run(nodes: _Nodes, ways: PacketWays, tries: Iterable[_Try], copy: Rehearsal) -> None:
    """Every packet as far as it comes."""
    waiting = list(tries)
    for _ in range(STEPS_MAX):
        # By node, because filling a copy costs more than running packets.
        for tried in sorted(waiting, key=lambda each: each.step.node if each.step else NodeKey("", "")):
            step = tried.step
            assert step is not None, "only such tries wait"
            node = nodes.at(step.node)
            outcome = copy.run(node.rows, step.program, step.frame, step.device, step.sender)
            tried.way.append(Passage(step, outcome, node.services))
            tried.step = ways.following(step, outcome)
        waiting = [tried for tried in waiting if tried.step is not None]


def _compared(judge: Judge, tried: _Try, nodes: _Nodes) -> dict[str, Any]:
    found = verdict_of(tried.way)
    refusal = next(filter(None, map(refusal_of, tried.way)), 0)
    if refusal:
        model: dict[str, Any] = {"verdict": DENY, "reason": {"code": refusal, "name": DROP_REASON_TEXTS[refusal]}}
        is_done = found["verdict"] == DENY
    else:
        model = shown(model_of(judge, tried.question, tried.way))
        is_done = agrees(model, found)
    fault = next(filter(None, map(service_fault, tried.way)), "")
    found |= {"fault": fault} if fault else {}
    found["rows"] = [
        {"node": "/".join(passage.step.node), **hit}
        for passage in tried.way
        for hit in rows_hit(passage.step, passage.outcome, nodes.at(passage.step.node).typed)
    ]
    return {**model, "datapath": found, "agrees": is_done and not fault}
