"""What the running kernel can do, tried once and not guessed from its release number.

Belongs here: one probe per feature, and the first kernel that has it. Does not belong here: what is done
without it.
"""

import errno
import functools
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

from datapath.errors import FeatureUnsupported, KernelError, NotRoot
from datapath.kernel import libbpf, uapi
from datapath.kernel.clsact import has_clsact
from datapath.kernel.joined_sockets import has_joined_sockets
from datapath.kernel.libbpf import CALL, EXIT, MOVE_IMMEDIATE, instruction
from datapath.kernel.links import has_tcx
from datapath.kernel.socket_hooks import has_socket_errors, has_socket_hooks
from datapath.kernel.xdp_links import has_xdp_links

KERNEL_BTF = Path("/sys/kernel/btf/vmlinux")
FUNCTION_REDIRECT_NEIGH, FUNCTION_REDIRECT_PEER = 152, 155

MINIMUM_KERNEL = "5.15"
"""The oldest kernel that is promised to do: every required feature is older."""

ATTACH_FORMS = {"tcx": "TCX links", "clsact": "clsact filters"}
"""How programs can be attached, and the feature that it takes; the better one first. What a link adds: it is
replaced in 10 us instead of 1 ms, and it cannot be removed without its pin."""

AUTO = "auto"

SOCKET_HOOKS = "socket hooks of cgroups"
SOCKET_ERRORS = "errors of socket hooks"
JOINED_SOCKETS = "joined sockets"
XDP_LINKS = "XDP links"


class FeatureState(NamedTuple):
    """`minimum` is the first kernel that has it; `required`: without it nothing works."""

    is_supported: bool
    minimum: str
    required: bool


def has_function(number: int, arguments: tuple[int, ...]) -> bool:
    """Loads a program that calls a function of the kernel with constant arguments."""
    moves = b"".join(instruction(MOVE_IMMEDIATE, i + 1, argument) for i, argument in enumerate(arguments))
    body = moves + instruction(CALL, 0, number) + instruction(MOVE_IMMEDIATE, 0, 0) + instruction(EXIT)
    fd, code = libbpf.program_load(uapi.PROG_TYPE_SCHED_CLS, body)
    if code == errno.EPERM:
        raise NotRoot("loading a program needs root (CAP_BPF and CAP_NET_ADMIN)")
    if fd >= 0:
        os.close(fd)
    return fd >= 0


def _has_map(map_type: int, key_size: int, value_size: int, max_entries: int, flags: int = 0) -> bool:
    try:
        os.close(libbpf.map_create(map_type, key_size, value_size, max_entries, flags))
    except KernelError as error:
        if error.errno == errno.EPERM:
            raise NotRoot("creating a map needs root (CAP_BPF)") from error
        return False
    return True


def _has_batches() -> bool:
    fd = libbpf.map_create(uapi.MAP_TYPE_LPM_TRIE, 8, 4, 2, uapi.F_NO_PREALLOC)
    try:
        return libbpf.map_update_batch(fd, bytes(8), bytes(4), 1)[1] == 0
    finally:
        os.close(fd)


class _Feature(NamedTuple):
    minimum: str
    required: bool
    probe: Callable[[], bool]


FEATURES: Mapping[str, _Feature] = {
    "TCX links": _Feature("6.6", False, has_tcx),
    "clsact filters": _Feature("4.13", False, has_clsact),
    "bpf_redirect_peer": _Feature("5.10", True, lambda: has_function(FUNCTION_REDIRECT_PEER, (1, 0))),
    "bpf_redirect_neigh": _Feature("5.10", True, lambda: has_function(FUNCTION_REDIRECT_NEIGH, (1, 0, 0, 0))),
    "LPM trie maps": _Feature(
        "4.11", True, lambda: _has_map(uapi.MAP_TYPE_LPM_TRIE, 8, 4, 1, uapi.F_NO_PREALLOC)
    ),
    "LRU hash maps": _Feature("4.10", True, lambda: _has_map(uapi.MAP_TYPE_LRU_HASH, 4, 4, 1)),
    "ring buffers": _Feature(
        "5.8", True, lambda: _has_map(uapi.MAP_TYPE_RINGBUF, 0, 0, os.sysconf("SC_PAGE_SIZE"))
    ),
    "map batches": _Feature("5.13", False, _has_batches),
    XDP_LINKS: _Feature("5.9", False, has_xdp_links),
    SOCKET_HOOKS: _Feature("5.8", False, has_socket_hooks),
    SOCKET_ERRORS: _Feature("6.1", False, has_socket_errors),
    JOINED_SOCKETS: _Feature("6.13", False, has_joined_sockets),
    "kernel BTF": _Feature("5.2", False, KERNEL_BTF.exists),
}


@functools.cache
def probe() -> Mapping[str, FeatureState]:
    """Every feature by name. Costs a few ms, once per run. Raises NotRoot."""
    return {
        name: FeatureState(feature.probe(), feature.minimum, feature.required)
        for name, feature in FEATURES.items()
    }


def require() -> None:
    """Raises FeatureUnsupported for the first feature that is missing and needed. Which form of attachment
    there is, attach_mode says."""
    for name, found in probe().items():
        if found.required and not found.is_supported:
            raise FeatureUnsupported(name, found.minimum)


def require_feature(name: str) -> None:
    """One that is asked for. Raises FeatureUnsupported where it is missing."""
    found = probe()[name]
    if not found.is_supported:
        raise FeatureUnsupported(name, found.minimum)


def attach_mode(wanted: str = AUTO) -> str:
    """The form of attachment to use, a key of ATTACH_FORMS: `wanted`, or with "auto" the best that this kernel
    has. Raises FeatureUnsupported where there is none."""
    found = probe()
    if wanted != AUTO:
        require_feature(ATTACH_FORMS[wanted])
        return wanted
    for mode, name in ATTACH_FORMS.items():
        if found[name].is_supported:
            return mode
    both = " or ".join(ATTACH_FORMS.values())
    raise FeatureUnsupported(f"hook for programs ({both})", found[ATTACH_FORMS["clsact"]].minimum)
