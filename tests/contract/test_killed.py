"""An agent that dies at any step of attaching, of a swap, of another layout or of removing: what runs goes on, and the
next agent ends what was begun.

A death is an exception in place of the n-th call of bpf(2), so that every step between two of them is tried.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from datapath import codec
from datapath.kernel import libbpf
from tests.bpf.test_wire import Wire, ifindex
from tests.conftest import Namespace
from tests.contract.test_attach import Attached, Rows

pytestmark = [pytest.mark.kernel("bpf_redirect_peer"), pytest.mark.kernel("TCX links")]
LOAD_STEPS = (0, 9, 27)
"""Of a load, which is slow to repeat: some are enough."""
ATTEMPTS = 50


class Killed(BaseException):
    """Nothing catches it."""


@contextmanager
def dying(monkeypatch: pytest.MonkeyPatch, steps: int) -> Iterator[list[bool]]:
    """Within, the agent makes so many calls and then dies; whether it did is in the list afterwards."""
    real, left, died = libbpf._bpf, [steps], [False]

    def call(*arguments: Any, **named: Any) -> int:
        if not left[0]:
            died[0] = True
            raise Killed
        left[0] -= 1
        return real(*arguments, **named)

    with monkeypatch.context() as patch:
        patch.setattr(libbpf, "_bpf", call)
        try:
            yield died
        except Killed:
            assert died[0]


@pytest.fixture
def attached(make_namespace: Callable[[], Namespace], bpffs: Path, objects_dir: Path) -> Iterator[Attached]:
    """A client, its node without an agent, and a backend's machine."""
    made = Attached(Wire(make_namespace), bpffs, objects_dir)
    made.open("tcx", notify_verdicts=False)
    yield made
    made.close()


def converge(attached: Attached, rows: Rows, **settings: Any) -> None:
    """What a new agent does until nothing differs. A link without a pin ends some ms after its maker, and refuses the
    same program until then: hence more than one attempt."""
    attached.open("tcx", **settings)
    node, kernel = attached.wire.node, attached.kernel
    for _ in range(ATTEMPTS):
        found = attached.dump()
        if found == rows:
            break
        gone = [key for key in found if key not in rows]
        node.call(kernel.delete, "attachments", gone)
        node.call(kernel.put, "attachments", [each for each in rows.items() if found.get(each[0]) != each[1]])
    assert attached.dump() == rows
    assert attached.counts() == {"tcx": len(rows), "clsact": 0}
    assert not kernel.objects.has_unused


def test_killed_while_attaching(attached: Attached, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before each step of three attachments: the next agent makes the rest, and no hook has two programs."""
    node, step, died = attached.wire.node, 0, [True]
    while died[0]:
        with dying(monkeypatch, step) as died:
            node.call(attached.kernel.put, "attachments", list(attached.rows.items()))
        converge(attached, attached.rows, notify_verdicts=False)
        assert node.call(attached.kernel.delete, "attachments", list(attached.rows)) == []
        step += 1
    assert step > 2 * len(attached.rows)


def test_killed_while_removing(attached: Attached, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before each step: the next agent ends the rest, and no pin is left."""
    node, step, died = attached.wire.node, 0, [True]
    links = attached.pin_root / "links"
    while died[0]:
        attached.put(attached.rows)
        with dying(monkeypatch, step) as died:
            node.call(attached.kernel.delete, "attachments", list(attached.rows))
        converge(attached, {}, notify_verdicts=False)
        assert list(links.iterdir()) == []
        step += 1
    assert step > 2 * len(attached.rows)


def test_killed_while_swapping(attached: Attached, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before some steps of loading another content and of moving to it: every hook always has one program,
    and once moved the former content is gone."""
    attached.put(attached.rows)
    for step in LOAD_STEPS:
        with dying(monkeypatch, step):
            attached.open("tcx", notify_verdicts=True)
        assert attached.counts() == {"tcx": 3, "clsact": 0}
    step, died, former = 0, [True], False
    while died[0]:
        attached.open("tcx", notify_verdicts=not former)
        with dying(monkeypatch, step) as died:
            attached.put(attached.rows)
        assert attached.counts() == {"tcx": 3, "clsact": 0}
        converge(attached, attached.rows, notify_verdicts=not former)
        former, step = not former, 2 * step or 1
    assert step > 2 * len(attached.rows)


def test_devices_that_vanish_leave_nothing(attached: Attached, monkeypatch: pytest.MonkeyPatch) -> None:
    """A device goes after an agent died in the midst of removing its links: the next one keeps neither rows nor pins of
    it, and the other device's are as they were."""
    node, links = attached.wire.node, attached.pin_root / "links"
    attached.put(attached.rows)
    with dying(monkeypatch, 3):
        node.call(attached.kernel.delete, "attachments", list(attached.rows))
    node.run("ip", "link", "del", "dev", "lxc")
    attached.open("tcx", notify_verdicts=False)
    (kept,) = attached.dump()
    assert codec.decode_key("attachments", kept).ifindex == ifindex(node, "und")
    assert len(list(links.iterdir())) == 1
    assert not attached.kernel.objects.has_unused
