"""The TCX form of an attachment: a link per hook of a device, pinned at `<pin root>/links/<ifindex>-<hook>`.

Belongs here: making, replacing, finding and ending links. Does not belong here: which device gets which
program, and when this form is used (attachments.py, features.py).

A link is replaced in place, so that no packet meets a hook without a program. It lives by its pin: without
one it would end with the agent.
"""

import errno
import os
from collections.abc import Iterator
from pathlib import Path

from datapath.errors import KernelError
from datapath.kernel import libbpf, uapi
from datapath.kernel.programs import Program
from datapath.tables import AttachmentKey

ATTACH_TYPES = {"ingress": uapi.TCX_INGRESS, "egress": uapi.TCX_EGRESS}
LOOPBACK_IFINDEX = 1


class Links:
    """The links of one node."""

    def __init__(self, links_dir: Path) -> None:
        self._dir = links_dir
        self._dir.mkdir(parents=True, exist_ok=True)

    def walk(self) -> Iterator[tuple[AttachmentKey, int]]:
        """Every link of ours to a device that exists, with the number of its program. The pins of the others
        are removed."""
        for path in sorted(self._dir.iterdir()):
            ifindex, _, hook = path.name.partition("-")
            fd = self._open(path)
            if fd is None:
                continue
            try:
                yield AttachmentKey(int(ifindex), hook), libbpf.link_info(fd).program_id
            finally:
                os.close(fd)

    def put(self, key: AttachmentKey, program: Program) -> None:
        """Makes the link or puts the program behind the one that is there. Raises KernelError.

        The first program on a hook costs some 8 ms, in which the kernel waits for its readers.
        """
        path = self._path(key)
        fd = self._open(path)
        if fd is None:
            fd = self._make(key, program)
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

    def _make(self, key: AttachmentKey, program: Program) -> int:
        return libbpf.link_create(program.fd, key.ifindex, ATTACH_TYPES[key.hook])

    def _path(self, key: AttachmentKey) -> Path:
        return self._dir / f"{key.ifindex}-{key.hook}"

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


def has_tcx() -> bool:
    """Whether this kernel knows TCX hooks. Raises NotRoot."""
    try:
        libbpf.program_query(LOOPBACK_IFINDEX, uapi.TCX_INGRESS)
    except KernelError as error:
        if error.errno == errno.EINVAL:
            return False
        raise
    return True
