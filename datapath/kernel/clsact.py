"""The clsact form of an attachment: a direct-action filter per hook of a device, for kernels without TCX links.

Belongs here: making, replacing, finding and ending filters, and whether this kernel can. Does not belong
here: netlink itself (netlink.py), which device gets which program, and when this form is used
(attachments.py, features.py).

A filter is replaced in place, so that no packet meets a hook without a program. It needs no pin: it stays
until it is removed or its device goes. The first one on a device makes its clsact qdisc, for which the kernel
stops the device's queues for some ms: what the device was to send then is lost. Hence the qdisc is made once
and never removed.
"""

import os
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

from datapath.kernel import libbpf, uapi
from datapath.kernel.netlink import Netlink
from datapath.kernel.programs import Program
from datapath.tables import AttachmentKey

PROBE_DEVICE = "lo"


class Filters:
    """The filters of one node, in the network namespace of `netlink`, which the caller closes."""

    def __init__(self, netlink: Netlink) -> None:
        self._netlink = netlink

    def walk(self) -> Iterator[tuple[AttachmentKey, int]]:
        """Every filter of ours, with the number of its program."""
        for found in self._netlink.list_filters():
            yield AttachmentKey(found.ifindex, found.hook), found.program_id

    def put(self, key: AttachmentKey, program: Program) -> None:
        """Makes the filter or puts the program behind the one that is there. Raises KernelError; with errno
        EEXIST where another owner's filter has our place."""
        code = self._netlink.put_filter(key.ifindex, key.hook, program.name, program.fd, program.id)
        if code:
            raise libbpf.kernel_error("netlink: put a filter at", f"ifindex {key.ifindex}, {key.hook}", code)

    def delete(self, key: AttachmentKey) -> None:
        """Ends a filter; at return the hook is free. The qdisc stays; another may be using it, too."""
        code = self._netlink.delete_filter(key.ifindex, key.hook)
        if code:
            raise libbpf.kernel_error("netlink: remove the filter at", f"ifindex {key.ifindex}, {key.hook}", code)


def has_clsact() -> bool:
    """Whether this kernel takes a program as a clsact filter. Tried in a network namespace that exists for
    nothing else. Raises NotRoot."""
    with ThreadPoolExecutor(1, thread_name_prefix="clsact-probe", initializer=libbpf.enter_netns) as thread:
        return thread.submit(_takes_filter).result()


def _takes_filter() -> bool:
    fd, code = libbpf.program_load(uapi.PROG_TYPE_SCHED_CLS, libbpf.RETURN_ZERO)
    if code:
        raise libbpf.kernel_error("BPF_PROG_LOAD", "of a probe", code)
    try:
        # Netlink's thread is a new one, and begins where the thread that makes it is.
        netlink = Netlink(f"/proc/self/task/{threading.get_native_id()}/ns/net")
        try:
            ifindex, number = netlink.device_ifindex(PROBE_DEVICE), libbpf.program_info(fd).id
            refused = netlink.put_filter(ifindex, "ingress", "probe", fd, number)
            return not refused and [each.program_id for each in netlink.list_filters()] == [number]
        finally:
            netlink.close()
    finally:
        os.close(fd)
