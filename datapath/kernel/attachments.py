"""Which program runs at which hook of which device, whatever the form: TCX links (links.py) or clsact filters
(clsact.py); at the device itself XDP links (xdp_links.py), the only form there.

Belongs here: the rows of the table, and the hand-over from one form to the other. Does not belong here: which
device gets which program.

After a change of form both may be on one hook for a moment. The kernel then runs the link, and as our
programs always decide, the filter never sees the packet: it meets one program, not two and not none.
"""

import errno
from collections.abc import Iterable, Mapping
from typing import Protocol

from datapath.errors import KernelError
from datapath.kernel.programs import Program
from datapath.tables import XDP_HOOKS, AttachmentKey, AttachmentRow

HOOKS = ("ingress", "egress", *XDP_HOOKS)
OTHER_VERSION = "other version of "
OTHER_FORM = "other form of "


class Form(Protocol):
    """A way to attach programs, such that they stay when the agent is gone. Each raises KernelError."""

    def walk(self) -> Iterable[tuple[AttachmentKey, int]]:
        """Every attachment of ours in this form, with the number of its program."""
        ...

    def put(self, key: AttachmentKey, program: Program) -> None:
        """Attach, or replace in place."""
        ...

    def delete(self, key: AttachmentKey) -> None:
        """Detach; what is absent is no failure."""
        ...


class Attachments:
    """The attachments of one node, made in the form `chosen`. `former` is the other form, in which an earlier
    agent may have made them; each of those ends when its row is put or deleted. `xdp`: the form of XDP_HOOKS.

    `programs` are those that are wanted now, by name.
    """

    def __init__(self, chosen: Form, former: Form, xdp: Form, programs: Mapping[str, Program]) -> None:
        self._chosen, self._former, self._xdp, self._programs = chosen, former, xdp, programs
        self._left = {key for key, _ in former.walk()}

    def dump(self) -> dict[AttachmentKey, AttachmentRow]:
        """Every attachment of ours. What is to be replaced is shown under a name that no program has: one of
        another version, and one in the former form."""
        names = {program.id: name for name, program in self._programs.items()}
        rows = {}
        for key, program_id in (*self._chosen.walk(), *self._xdp.walk()):
            name = names.get(program_id)
            rows[key] = AttachmentRow(name if name is not None else f"{OTHER_VERSION}{program_id}")
        for key, program_id in self._walk_left():
            rows[key] = AttachmentRow(f"{OTHER_FORM}{program_id}")
        return rows

    def program_ids(self) -> set[int]:
        """The programs that some attachment of ours uses."""
        return {program_id for _, program_id in (*self._chosen.walk(), *self._walk_left(), *self._xdp.walk())}

    def put(self, key: AttachmentKey, row: AttachmentRow) -> None:
        """Attaches or replaces; then what is there in the former form ends. Raises KernelError."""
        if key.hook not in HOOKS or row.program not in self._programs:
            known = f"hooks are {', '.join(HOOKS)}; programs are {', '.join(self._programs)}"
            raise KernelError(f"no hook {key.hook!r} or no program {row.program!r}; {known}", errno.EINVAL)
        self._form_of(key).put(key, self._programs[row.program])
        self._end_left(key)

    def delete(self, key: AttachmentKey) -> None:
        """Detaches in both forms; at return the hook is free. Raises KernelError."""
        self._form_of(key).delete(key)
        self._end_left(key)

    def _form_of(self, key: AttachmentKey) -> Form:
        return self._xdp if key.hook in XDP_HOOKS else self._chosen

    def _end_left(self, key: AttachmentKey) -> None:
        if key in self._left:
            self._former.delete(key)
            self._left.remove(key)

    def _walk_left(self) -> list[tuple[AttachmentKey, int]]:
        """Nobody attaches in the former form any more, so that once nothing is left it need not be asked."""
        if not self._left:
            return []
        found = list(self._former.walk())
        self._left = {key for key, _ in found}
        return found
