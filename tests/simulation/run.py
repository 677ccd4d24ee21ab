"""One seed: a mesh, its steps, its end. Belongs here: the course of a run. Does not belong here: which seeds."""

import asyncio
import logging
import tempfile
from collections import Counter
from collections.abc import Sequence
from hashlib import blake2b
from pathlib import Path

import msgspec
import structlog

from kvstore import packed
from tests.simulation.changes import change, populate
from tests.simulation.faults import fault
from tests.simulation.loop import Standstill, run_virtual
from tests.simulation.mesh import SimulatedMesh
from tests.simulation.witness import Broken

STEPS = 60
FAULTS_SHARE = 0.3
SEGMENT_RECORDS = 12
PAST_STEPS = 15
"""How often somebody asks what the mesh was."""


class Course(msgspec.Struct, frozen=True):
    """`broken`: "" or the invariant that did not hold, `what` the particulars. `trace` is a digest of all that happened,
    equal in two runs of one seed."""

    seed: int
    broken: str
    what: str
    trace: str
    virtual_s: float
    records: int
    seen: Counter[str]
    notes: Sequence[str]


def simulate(seed: int, steps: int = STEPS) -> Course:
    """The whole run. Never raises for what a mesh does; KeyboardInterrupt goes through."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    whole = packed.SEGMENT_RECORDS_MAX
    packed.SEGMENT_RECORDS_MAX = SEGMENT_RECORDS
    try:
        with tempfile.TemporaryDirectory() as where:
            return run_virtual(lambda: _run(seed, steps, Path(where)))
    finally:
        packed.SEGMENT_RECORDS_MAX = whole
        structlog.reset_defaults()


async def _run(seed: int, steps: int, where: Path) -> Course:
    mesh = SimulatedMesh(seed, where)
    broken, what = "", ""
    try:
        await mesh.settle()
        await populate(mesh)
        for number in range(steps):
            await _step(mesh)
            if number % PAST_STEPS == PAST_STEPS - 1:
                await mesh.witness.check_past(1)
        while any(each.down_until_s > asyncio.get_running_loop().time() for each in mesh.nodes):
            await asyncio.sleep(0.3)
            mesh.witness.check()
        await mesh.settle()
        await mesh.answer_all()
        mesh.witness.check_living()
        mesh.witness.check_replay()
        await mesh.witness.check_past(5)
    except Broken as error:
        broken, what = error.invariant, str(error)
    except Standstill:
        broken, what = "everything settles", "nothing is due any more"
    trace = blake2b("\n".join([*mesh.notes, mesh.witness.state.digest()]).encode(), digest_size=16).hexdigest()
    now_s = asyncio.get_running_loop().time()
    return Course(seed, broken, what, trace, now_s, len(mesh.witness.records), mesh.seen, list(mesh.notes))


async def _step(mesh: SimulatedMesh) -> None:
    """Something is asked for, or goes wrong, or comes back; time passes; all must hold."""
    if mesh.chance.random() < FAULTS_SHARE:
        fault(mesh)
    else:
        for _ in range(mesh.chance.randrange(1, 3)):
            change(mesh)
    for machine in (*mesh.nodes, *mesh.operators[::2]):
        stays = machine.is_running or machine.down_until_s > asyncio.get_running_loop().time()
        if not stays and mesh.chance.random() < 0.25:
            machine.start()
    for _ in range(mesh.chance.choice((1, 1, 2, 4))):
        await asyncio.sleep(mesh.chance.choice((0.0, 0.003, 0.03, 0.3)))
        mesh.witness.check()
