"""TCX links: which program runs at which hook of which device, pinned at `<pin root>/links/<ifindex>-<hook>`.

Belongs here: making, replacing, finding and ending links. Does not belong here: which device gets which
program.

A link is replaced in place, so that no packet meets a hook without a program. It lives by its pin: without
one it would end with the agent. A link to another version of a program is dumped under a name that no
program has.
"""

import errno
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

from datapath.errors import FeatureUnsupported, KernelError
from datapath.kernel import libbpf, uapi
from datapath.kernel.programs import Program
from datapath.tables import AttachmentKey, AttachmentRow

ATTACH_TYPES = {"ingress": uapi.TCX_INGRESS, "egress": uapi.TCX_EGRESS}
LOOPBACK_IFINDEX = 1
OTHER_VERSION = "other version of "


class Links:
    """The links of one node. `programs` are those that are wanted now, by name."""

    def __init__(self, links_dir: Path, programs: Mapping[str, Program]) -> None:
        self._dir = links_dir
        self._programs = programs
        self._dir.mkdir(parents=True, exist_ok=True)

    def dump(self) -> dict[AttachmentKey, AttachmentRow]:
        """Every link of ours to a device that exists. The pins of the others are removed."""
        names = {program.id: name for name, program in self._programs.items()}
        rows = {}
        for key, program_id in self._walk():
            name = names.get(program_id)
            rows[key] = AttachmentRow(name if name is not None else f"{OTHER_VERSION}{program_id}")
        return rows

    def program_ids(self) -> set[int]:
        """The programs that some link of ours uses."""
        return {program_id for _, program_id in self._walk()}

    def put(self, key: AttachmentKey, row: AttachmentRow) -> None:
        """Makes the link or puts the program behind the one that is there. Raises KernelError.

        The first program on a hook costs some 8 ms, in which the kernel waits for its readers.
        """
        if key.hook not in ATTACH_TYPES or row.program not in self._programs:
            known = f"hooks are {', '.join(ATTACH_TYPES)}; programs are {', '.join(self._programs)}"
            raise KernelError(f"no hook {key.hook!r} or no program {row.program!r}; {known}", errno.EINVAL)
        program = self._programs[row.program]
        path = self._path(key)
        fd = self._open(path)
        if fd is None:
            fd = self._create(program, key)
            try:
                libbpf.pin(fd, path)
            finally:
                os.close(fd)
            return
        try:
            if libbpf.link_info(fd).program_id != program.id:
                libbpf.link_update(fd, program.fd)
        finally:
            os.close(fd)

    def delete(self, key: AttachmentKey) -> None:
        """Ends a link; at return the hook is free."""
        path = self._path(key)
        fd = self._open(path)
        if fd is None:
            return
        try:
            # Removing the pin alone ends the link some time later, and until then the hook refuses the same
            # program.
            libbpf.link_detach(fd)
            path.unlink()
        finally:
            os.close(fd)

    def _path(self, key: AttachmentKey) -> Path:
        return self._dir / f"{key.ifindex}-{key.hook}"

    def _create(self, program: Program, key: AttachmentKey) -> int:
        try:
            return libbpf.link_create(program.fd, key.ifindex, ATTACH_TYPES[key.hook])
        except KernelError as error:
            if error.errno == errno.EINVAL and not has_tcx():
                raise FeatureUnsupported("TCX links", "6.6") from error
            raise

    def _open(self, path: Path) -> int | None:
        """A descriptor of the pinned link, or None; the pin of a link without a device is removed."""
        try:
            fd = libbpf.open_pin(path)
        except KernelError as error:
            if error.errno == errno.ENOENT:
                return None
            raise
        if libbpf.link_info(fd).ifindex:
            return fd
        os.close(fd)
        path.unlink()
        return None

    def _walk(self) -> Iterator[tuple[AttachmentKey, int]]:
        for path in sorted(self._dir.iterdir()):
            ifindex, _, hook = path.name.partition("-")
            fd = self._open(path)
            if fd is None:
                continue
            try:
                yield AttachmentKey(int(ifindex), hook), libbpf.link_info(fd).program_id
            finally:
                os.close(fd)


def has_tcx() -> bool:
    """Whether this kernel knows TCX hooks. Raises NotRoot."""
    try:
        libbpf.program_query(LOOPBACK_IFINDEX, uapi.TCX_INGRESS)
    except KernelError as error:
        if error.errno == errno.EINVAL:
            return False
        raise
    return True
