"""Flows run as packets through the programs of the nodes on their way, on copies of their rows.

Belongs here: filling the copies and running them, node by node. Does not belong here: which packets
(history/packets.py), the kernel's part (datapath/kernel/rehearsal.py). Rows are a function of the log, so that any node
can try what any other would do, at any revision.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from controlplane.desired.policy_mesh import mesh_of
from controlplane.history.packets import NoPacket, PacketWays, Step, agrees, backend_question, verdict_of
from controlplane.history.replay import EncodedRows, encoded_rows
from controlplane.model import NodeKey
from controlplane.policy.answers import answer, question_of, shown
from controlplane.policy.mesh import FlowFault, Judge, Question
from controlplane.projections.state import State
from datapath.frames import Outcome
from datapath.kernel.rehearsal import Rehearsal


def rehearse(state: State, cluster: str, flows: Sequence[Any], objects_dir: Path) -> list[dict[str, Any]]:
    """As rehearse_on, on a copy that is made for it: some 50 ms more."""
    with Rehearsal(objects_dir) as copy:
        return rehearse_on(copy, state, cluster, flows)


def rehearse_on(copy: Rehearsal, state: State, cluster: str, flows: Sequence[Any]) -> list[dict[str, Any]]:
    """To each flow the model's answer, and beside it "datapath": what the programs did, and "agrees".

    "datapath" has "error" alone where no packet can be sent for the flow. Blocks: a few milliseconds for each node and
    less than one for each flow. Raises KernelError where the kernel does not let packets be tried.
    """
    judge = Judge(mesh_of(state, cluster))
    ways = PacketWays(state, judge)
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
    _run(state, ways, list(tries.values()), copy)
    for number, tried in tries.items():
        found = verdict_of(tried.steps, tried.outcomes)
        backend = backend_question(tried.question, tried.steps, tried.outcomes)
        if backend is not None:
            found["backend"] = f"{backend.dest.removeprefix('ip:')} {backend.l4}"
        model = answers[number] if backend is None else shown(judge.answer(backend))
        answers[number]["datapath"] = found
        answers[number]["agrees"] = agrees(model, found)
    return answers


class _Try:
    """One flow's packets so far."""

    def __init__(self, question: Question, first: Step) -> None:
        self.question = question
        self.steps = [first]
        self.outcomes: list[Outcome] = []


def _run(state: State, ways: PacketWays, tries: Sequence[_Try], copy: Rehearsal) -> None:
    rows: dict[NodeKey, EncodedRows] = {}
    waiting = list(tries)
    while waiting:
        going_on = []
        # By node, because filling a copy costs more than running packets.
        for tried in sorted(waiting, key=lambda each: each.steps[-1].node):
            step = tried.steps[-1]
            if step.node not in rows:
                rows[step.node] = encoded_rows(state, *step.node)
            copy.fill(rows[step.node].tables)
            outcome = copy.run(step.program, step.frame, step.device)
            tried.outcomes.append(outcome)
            following = ways.following(step, outcome)
            if following is not None:
                tried.steps.append(following)
                going_on.append(tried)
        waiting = going_on
