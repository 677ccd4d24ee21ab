"""Programs at a device itself, before its packets have an skb: a link per device, pinned at
`<pin root>/xdp/<ifindex>-<hook>`.

Belongs here: the ways to attach there, each a hook of its own, and whether the kernel has such links. Does not belong
here: which device gets which program.

A device has one of these hooks at a time: a link at another one ends first, and until the new one stands packets go
the longer way, by the programs at the other hooks of the device. Within a hook a program is replaced in place.
"""

import errno
import os

from datapath.errors import KernelError, NotRoot
from datapath.kernel import libbpf, uapi
from datapath.kernel.links import LOOPBACK_IFINDEX, Links
from datapath.kernel.programs import Program
from datapath.tables import XDP_HOOKS, AttachmentKey

FLAGS = {"xdp": uapi.XDP_NATIVE, "xdp-generic": uapi.XDP_GENERIC, "xdp-best-effort": 0}
"""By hook. In the driver, or not at all; before the host stack, whatever the driver can do; the former where the driver
can, else the latter."""
assert FLAGS.keys() == set(XDP_HOOKS)


class XdpLinks(Links):
    """A form of attachment (attachments.py)."""

    def put(self, key: AttachmentKey, program: Program) -> None:
        """Makes the link or puts the program behind the one that is there; what the device has at another of these
        hooks ends. Raises KernelError: with errno EOPNOTSUPP where the driver cannot, ERANGE where the device's MTU is
        too large for it."""
        for hook in XDP_HOOKS:
            if hook != key.hook:
                self.delete(AttachmentKey(key.ifindex, hook))
        super().put(key, program)

    def _make(self, key: AttachmentKey, program: Program) -> int:
        return libbpf.link_create(program.fd, key.ifindex, uapi.XDP, FLAGS[key.hook])


def has_xdp_links() -> bool:
    """Whether this kernel makes a link of an XDP program. Nothing is attached: the loopback device has no driver that
    could, and a kernel that has no such links says so first. Raises NotRoot."""
    fd, code = libbpf.program_load(uapi.PROG_TYPE_XDP, libbpf.RETURN_ZERO, uapi.XDP)
    if code == errno.EPERM:
        raise NotRoot("loading a program needs root (CAP_BPF and CAP_NET_ADMIN)")
    if code:
        return False
    try:
        os.close(libbpf.link_create(fd, LOOPBACK_IFINDEX, uapi.XDP, uapi.XDP_NATIVE))
    except KernelError as error:
        return error.errno in (errno.EOPNOTSUPP, errno.EEXIST, errno.EBUSY)
    finally:
        os.close(fd)
    return True
