"""The numbers, layouts and error codes of linux/bpf.h that we use.

Belongs here: values that the kernel never changes. Does not belong here: the calls that take them
(libbpf.py).
"""

import errno
import os
import struct
from typing import NamedTuple

MAP_LOOKUP_ELEM, MAP_UPDATE_ELEM, MAP_DELETE_ELEM, MAP_GET_NEXT_KEY = 1, 2, 3, 4
MAP_CREATE, PROG_LOAD, OBJ_PIN, OBJ_GET, PROG_ATTACH, PROG_TEST_RUN = 0, 5, 6, 7, 8, 10
PROG_GET_FD_BY_ID, MAP_GET_FD_BY_ID, OBJ_GET_INFO_BY_FD, PROG_QUERY, BTF_GET_FD_BY_ID = 13, 14, 15, 16, 19
MAP_LOOKUP_BATCH, MAP_UPDATE_BATCH, MAP_DELETE_BATCH = 24, 26, 27
LINK_CREATE, LINK_UPDATE, LINK_DETACH = 28, 29, 34

COMMAND_NAMES = {
    MAP_LOOKUP_ELEM: "BPF_MAP_LOOKUP_ELEM", MAP_UPDATE_ELEM: "BPF_MAP_UPDATE_ELEM",
    MAP_DELETE_ELEM: "BPF_MAP_DELETE_ELEM", MAP_GET_NEXT_KEY: "BPF_MAP_GET_NEXT_KEY",
    MAP_CREATE: "BPF_MAP_CREATE", PROG_LOAD: "BPF_PROG_LOAD", OBJ_PIN: "BPF_OBJ_PIN", OBJ_GET: "BPF_OBJ_GET",
    PROG_ATTACH: "BPF_PROG_ATTACH", PROG_TEST_RUN: "BPF_PROG_TEST_RUN", PROG_GET_FD_BY_ID: "BPF_PROG_GET_FD_BY_ID",
    MAP_GET_FD_BY_ID: "BPF_MAP_GET_FD_BY_ID", OBJ_GET_INFO_BY_FD: "BPF_OBJ_GET_INFO_BY_FD",
    PROG_QUERY: "BPF_PROG_QUERY", BTF_GET_FD_BY_ID: "BPF_BTF_GET_FD_BY_ID", MAP_LOOKUP_BATCH: "BPF_MAP_LOOKUP_BATCH",
    MAP_UPDATE_BATCH: "BPF_MAP_UPDATE_BATCH", MAP_DELETE_BATCH: "BPF_MAP_DELETE_BATCH",
    LINK_CREATE: "BPF_LINK_CREATE", LINK_UPDATE: "BPF_LINK_UPDATE", LINK_DETACH: "BPF_LINK_DETACH",
}  # fmt: skip

MAP_TYPE_HASH, MAP_TYPE_ARRAY, MAP_TYPE_PERCPU_HASH, MAP_TYPE_PERCPU_ARRAY = 1, 2, 5, 6
MAP_TYPE_LRU_HASH, MAP_TYPE_LRU_PERCPU_HASH, MAP_TYPE_LPM_TRIE, MAP_TYPE_SOCKMAP, MAP_TYPE_RINGBUF = 9, 10, 11, 15, 27
PROG_TYPE_SCHED_CLS, PROG_TYPE_XDP, PROG_TYPE_SK_MSG, PROG_TYPE_CGROUP_SOCK_ADDR = 3, 6, 16, 18
CGROUP_SOCK_OPS, SK_MSG_VERDICT = 3, 7
XDP, TCX_INGRESS, TCX_EGRESS = 37, 46, 47
XDP_GENERIC, XDP_NATIVE = 2, 4
"""XDP_FLAGS_SKB_MODE and XDP_FLAGS_DRV_MODE, of a link."""
CGROUP_INET4_CONNECT, CGROUP_INET6_CONNECT = 10, 11
CGROUP_UDP4_SENDMSG, CGROUP_UDP6_SENDMSG = 14, 15
CGROUP_UDP4_RECVMSG, CGROUP_UDP6_RECVMSG = 19, 20
CGROUP_INET4_GETPEERNAME, CGROUP_INET6_GETPEERNAME = 29, 30
F_NO_PREALLOC = 1
ENOTSUPP = 524
"""What the kernel answers for a batch operation that a map type lacks; no name in the errno module."""

SK_BUFF_BYTES = 192


class MapInfo(NamedTuple):
    """What the kernel says of a map; sizes in bytes. `btf_id` 0: it knows no types; else those of key and value."""

    type: int
    id: int
    key_size: int
    value_size: int
    max_entries: int
    flags: int
    name: str
    btf_id: int
    key_type: int
    value_type: int


class ProgramInfo(NamedTuple):
    """`tag` names the code, whatever the load-time configuration; `map_ids` are the maps that it uses."""

    type: int
    id: int
    tag: str
    name: str
    map_ids: tuple[int, ...]


class LinkInfo(NamedTuple):
    """`ifindex` is of a TCX or XDP link, `attach_type` of the former, `cgroup_id` of one to a cgroup; 0: the device or
    the cgroup is gone."""

    type: int
    id: int
    program_id: int
    ifindex: int
    attach_type: int
    cgroup_id: int


class TestRun(NamedTuple):
    """What a program did with one packet: its verdict, the packet and struct __sk_buff afterwards."""

    retval: int
    packet: bytes
    duration_ns: int
    context: bytes


def describe(code: int) -> str:
    """An errno in words."""
    if code == ENOTSUPP:
        return "ENOTSUPP: this kind of map does not support it"
    return f"{errno.errorcode.get(code, code)}: {os.strerror(code)}"


def sk_buff(ifindex: int = 0, ingress_ifindex: int = 0, mark: int = 0, cb: tuple[int, ...] = ()) -> bytes:
    """A struct __sk_buff for a test run."""
    raw = bytearray(SK_BUFF_BYTES)
    struct.pack_into("<I", raw, 8, mark)
    struct.pack_into("<II", raw, 36, ingress_ifindex, ifindex)
    struct.pack_into(f"<{len(cb)}I", raw, 48, *cb)
    return bytes(raw)
