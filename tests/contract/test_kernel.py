"""The promises of datapath/kernel/api.py, kept by the fake and by the running kernel alike."""

import errno
import functools
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from datapath import codec, tables
from datapath.errors import KernelError
from datapath.kernel import libbpf, uapi
from datapath.kernel.api import Kernel
from datapath.kernel.fake import FakeKernel, KernelMemory
from datapath.kernel.features import ATTACH_FORMS
from datapath.kernel.netlink import Netlink
from datapath.kernel.real import RealKernel
from datapath.tables import NO_ADDRESS, TABLES
from tests.contract.kernel_rows import address, encoded, other_row, rows_of

REAL = pytest.mark.kernel("bpf_redirect_peer")
FORMS = [pytest.param(form, marks=[REAL, pytest.mark.kernel(name)]) for form, name in ATTACH_FORMS.items()]
"""Both forms of attachment, each forced."""

ABSENT_IFINDEX = 4_000_000
Rows = dict[bytes, bytes]


class InNamespace:
    """A kernel whose methods run in a namespace's thread."""

    def __init__(self, namespace: Any, kernel: RealKernel) -> None:
        self._namespace = namespace
        self.kernel = kernel

    @property
    def attach_mode(self) -> str:
        """The kernel's own word."""
        return self.kernel.attach_mode

    def __getattr__(self, name: str) -> Callable[..., Any]:
        return lambda *arguments: self._namespace.call(getattr(self.kernel, name), *arguments)


class World(NamedTuple):
    """`make` gives an open kernel, each time onto the same memory; two devices; a way to write a runtime
    map."""

    make: Callable[[], Kernel]
    ifindexes: tuple[int, int]
    write_runtime: Callable[[Kernel, str, Rows], None]


@pytest.fixture
def cgroups(make_cgroup: Callable[[str], Path]) -> tuple[Path, Path]:
    """Of one node, and of another."""
    return make_cgroup("one"), make_cgroup("two")


@pytest.fixture
def make_real(
    namespace: Any, bpffs: Path, objects_dir: Path, cgroups: tuple[Path, Path]
) -> Iterator[Callable[..., Any]]:
    """Makes open RealKernels in one namespace; closes them all afterwards."""
    made: list[Any] = []

    def make(**settings: Any) -> Any:
        settings = {"cgroup": str(cgroups[0]), **settings}
        kernel = InNamespace(namespace, RealKernel(bpffs / "meshlog" / "n1", objects_dir, 0, **settings))
        made.append(kernel)
        kernel.open()
        return kernel

    yield make
    for kernel in made:
        kernel.close()


@pytest.fixture(params=FORMS)
def form(request: pytest.FixtureRequest) -> str:
    """Each form of attachment in turn."""
    return str(request.param)


@pytest.fixture
def real_world(make_real: Callable[..., Any], form: str) -> Callable[..., Any]:
    """Makes open RealKernels that attach in this form."""
    return functools.partial(make_real, attach=form)


def add_device(namespace: Any, name: str) -> int:
    """A veth in the namespace, up; its ifindex."""
    namespace.run("ip", "link", "add", "name", name, "type", "veth", "peer", "name", f"{name}x")
    namespace.run("ip", "link", "set", "dev", name, "up")
    return int(namespace.run("ip", "-o", "link", "show", "dev", name).split(":")[0])


@pytest.fixture(params=["fake", *FORMS])
def world(request: pytest.FixtureRequest) -> World:
    """One node, in memory or in the kernel."""
    if request.param == "fake":
        memory = KernelMemory({1, 2, 3})

        def make_fake() -> Kernel:
            kernel = FakeKernel(memory)
            kernel.open()
            return kernel

        return World(make_fake, (2, 3), lambda _, name, rows: memory.runtime[name].update(rows))
    namespace = request.getfixturevalue("namespace")
    ifindexes = add_device(namespace, "a"), add_device(namespace, "b")
    make_real = functools.partial(request.getfixturevalue("make_real"), attach=request.param)
    return World(make_real, ifindexes, write_real_runtime)


def write_real_runtime(kernel: Any, name: str, rows: Rows) -> None:
    assert kernel.kernel.objects.maps[name].put(list(rows.items())) == []


every_table = pytest.mark.parametrize("table", TABLES)


@every_table
def test_rows_come_back_as_they_were_put(world: World, table: str) -> None:
    """What is put is what is dumped, byte for byte, in every table."""
    kernel = world.make()
    rows = encoded(table, world.ifindexes)
    assert list(kernel.put(table, rows)) == []
    assert dict(kernel.dump(table)) == dict(rows)


@every_table
def test_put_twice_is_put_once(world: World, table: str) -> None:
    """A second put of the same rows fails in nothing and changes nothing."""
    kernel = world.make()
    rows = encoded(table, world.ifindexes)
    kernel.put(table, rows)
    assert list(kernel.put(table, rows)) == []
    assert dict(kernel.dump(table)) == dict(rows)


@every_table
def test_put_replaces_the_row_of_a_key(world: World, table: str) -> None:
    """A key has one row: the last one put."""
    kernel = world.make()
    rows = encoded(table, world.ifindexes)
    kernel.put(table, rows)
    other = codec.encode_row(table, other_row(table, world.ifindexes))
    assert list(kernel.put(table, [(rows[0][0], other)])) == []
    assert dict(kernel.dump(table)) == dict(rows) | {rows[0][0]: other}


@every_table
def test_delete_removes_the_named_rows_only(world: World, table: str) -> None:
    """The other rows stay."""
    kernel = world.make()
    rows = encoded(table, world.ifindexes)
    kernel.put(table, rows)
    assert list(kernel.delete(table, [rows[0][0]])) == []
    assert dict(kernel.dump(table)) == dict(rows[1:])


@every_table
def test_deleting_what_is_absent_is_no_failure(world: World, table: str) -> None:
    """Removal can be repeated, and an absent key in front does not keep the others from going."""
    kernel = world.make()
    rows = encoded(table, world.ifindexes)
    kernel.put(table, rows[1:])
    assert list(kernel.delete(table, [key for key, _ in rows])) == []
    assert list(kernel.delete(table, [key for key, _ in rows])) == []
    assert dict(kernel.dump(table)) == {}


@every_table
def test_contents_survive_close_and_open(world: World, table: str) -> None:
    """Another agent on the same node finds what the one before it left."""
    first = world.make()
    rows = encoded(table, world.ifindexes)
    first.put(table, rows)
    first.close()
    assert dict(world.make().dump(table)) == dict(rows)


@pytest.mark.parametrize("table", ["attachments", "routes", "neighbours", "shapers"])
def test_a_row_with_a_missing_device_fails_alone(world: World, table: str) -> None:
    """The row that names no device is reported with its reason; those before and after it are written."""
    kernel = world.make()
    rows = rows_of(table, world.ifindexes)
    key, row = rows[0]
    if table == "routes":
        bad = key._replace(address=address("10.0.0.9")), row._replace(ifindex=ABSENT_IFINDEX)
    else:
        bad = key._replace(ifindex=ABSENT_IFINDEX), row
    bad_key = codec.encode_key(table, bad[0])
    good = encoded(table, world.ifindexes)
    failures = kernel.put(table, [good[0], (bad_key, codec.encode_row(table, bad[1])), good[1]])
    assert [(failure.key, failure.errno) for failure in failures] == [(bad_key, errno.ENODEV)]
    assert dict(kernel.dump(table)) == dict(good)


def test_a_full_table_refuses_the_rows_over_its_size(world: World) -> None:
    """The rows that fit are written, the others named, and a row that is there already can still be
    replaced."""
    kernel = world.make()
    row = tables.DeviceRow(NO_ADDRESS, NO_ADDRESS, 1, 1, bytes(6))
    rows = [
        (codec.encode_key("devices", tables.DeviceKey(i)), codec.encode_row("devices", row))
        for i in range(4098)
    ]
    failures = kernel.put("devices", [*rows, rows[0]])
    assert [(failure.key, failure.errno) for failure in failures] == [
        (key, errno.E2BIG) for key, _ in rows[4096:]
    ]
    assert len(kernel.dump("devices")) == 4096


def test_a_row_of_zeros_in_node_state_is_no_row(world: World) -> None:
    """The kernel's array cannot tell it from none: it can be put, takes the place of the row there, and is not
    dumped."""
    kernel = world.make()
    key = codec.encode_key("node_state", tables.NodeStateKey(0))
    for epoch in (0, 42, 0):
        row = codec.encode_row("node_state", tables.NodeStateRow(epoch))
        assert list(kernel.put("node_state", [(key, row)])) == []
        assert dict(kernel.dump("node_state")) == ({key: row} if epoch else {})


def test_an_open_kernel_says_how_programs_are_attached(world: World) -> None:
    """One of the two forms."""
    kernel: Any = world.make()
    assert kernel.attach_mode in ATTACH_FORMS


def test_removing_runtime_rows_counts_those_that_were_there(world: World) -> None:
    """The caller learns how many entries it really removed."""
    kernel = world.make()
    rows = {bytes([i]) * 40: bytes([i]) * 80 for i in (1, 2, 3)}
    world.write_runtime(kernel, "conntrack", rows)
    assert dict(kernel.dump_runtime("conntrack")) == rows
    assert kernel.delete_runtime("conntrack", [b"\x01" * 40, b"\x09" * 40, b"\x03" * 40]) == 2
    assert list(kernel.dump_runtime("conntrack")) == [(b"\x02" * 40, b"\x02" * 80)]


def test_runtime_rows_are_written_over_those_that_were_there(world: World) -> None:
    """Others stay."""
    kernel = world.make()
    rows = {bytes([i]) * 40: bytes([i]) * 80 for i in (1, 2)}
    world.write_runtime(kernel, "conntrack", rows)
    kernel.put_runtime("conntrack", [(b"\x01" * 40, b"\x07" * 80)])
    assert dict(kernel.dump_runtime("conntrack")) == {**rows, b"\x01" * 40: b"\x07" * 80}


# The running kernel only


def attach(kernel: Any, ifindex: int) -> tuple[bytes, bytes]:
    """Attaches from_endpoint to a device's ingress; the row in bytes."""
    key = codec.encode_key("attachments", tables.AttachmentKey(ifindex, "ingress"))
    row = codec.encode_row("attachments", tables.AttachmentRow("from_endpoint"))
    assert kernel.put("attachments", [(key, row)]) == []
    return key, row


def program_ids_at_ingress(form: str, ifindex: int) -> list[int]:
    """What the kernel says runs there in a form. Called in the namespace."""
    if form == "tcx":
        return list(libbpf.program_query(ifindex, uapi.TCX_INGRESS))
    netlink = Netlink()
    try:
        found = netlink.list_filters()
        return [each.program_id for each in found if (each.ifindex, each.hook) == (ifindex, "ingress")]
    finally:
        netlink.close()


@REAL
def test_opening_again_loads_nothing(real_world: Callable[..., Any], namespace: Any) -> None:
    """A restart with the same programs takes up the pinned ones: the same program stays behind the link."""
    ifindex = add_device(namespace, "a")
    first = real_world()
    row = attach(first, ifindex)
    before = {name: program.id for name, program in first.kernel.objects.programs.items()}
    first.close()
    second = real_world()
    assert not second.kernel.objects.loaded
    assert {name: program.id for name, program in second.kernel.objects.programs.items()} == before
    assert second.dump("attachments") == dict([row])


@REAL
def test_links_of_a_device_that_is_gone_are_collected(
    real_world: Callable[..., Any], namespace: Any, bpffs: Path, form: str
) -> None:
    """The attachment is not dumped, and a link's pin goes."""
    ifindex = add_device(namespace, "a")
    kernel = real_world()
    attach(kernel, ifindex)
    links = bpffs / "meshlog" / "n1" / "links"
    assert len(list(links.iterdir())) == (form == "tcx")
    namespace.run("ip", "link", "del", "dev", "a")
    assert kernel.dump("attachments") == {}
    assert list(links.iterdir()) == []


@REAL
def test_a_link_to_other_programs_differs_until_it_is_put(
    real_world: Callable[..., Any], namespace: Any
) -> None:
    """After an upgrade the dump differs from what is wanted, so that the link is updated; then the old pins
    go."""
    ifindex = add_device(namespace, "a")
    first = real_world(notify_verdicts=True)
    row = attach(first, ifindex)
    first.close()
    second = real_world(notify_verdicts=False)
    assert second.kernel.objects.loaded
    assert second.kernel.objects.has_unused
    assert second.dump("attachments") != dict([row])
    assert attach(second, ifindex) == row
    assert second.dump("attachments") == dict([row])
    assert not second.kernel.objects.has_unused


@REAL
def test_maps_keep_their_rows_when_the_programs_change(real_world: Callable[..., Any]) -> None:
    """New programs are loaded onto the maps that are pinned."""
    first = real_world(notify_verdicts=True)
    rows = encoded("ipcache", (1, 1))
    first.put("ipcache", rows)
    first.close()
    assert real_world(notify_verdicts=False).dump("ipcache") == dict(rows)


@REAL
def test_programs_on_other_maps_than_the_pinned_are_loaded_again(
    real_world: Callable[..., Any], bpffs: Path
) -> None:
    """A map whose pin is lost is made anew, and the programs with it, so that a dump shows what they use."""
    first = real_world()
    first.close()
    next((bpffs / "meshlog" / "n1" / "maps").glob("*/policy")).unlink()
    second = real_world()
    assert second.kernel.objects.loaded
    rows = encoded("policy", (1, 1))
    assert second.put("policy", rows) == []
    assert second.dump("policy") == dict(rows)


@REAL
def test_what_a_crash_left_half_loaded_is_removed(real_world: Callable[..., Any], bpffs: Path) -> None:
    """Program pins are complete or not there: what was not renamed in time goes at the next start."""
    partial = bpffs / "meshlog" / "n1" / "programs" / "0123456789abcdef-partial"
    partial.mkdir(parents=True)
    kernel = real_world()
    assert not partial.exists()
    assert not kernel.kernel.objects.has_unused


@REAL
def test_close_lets_go_of_every_descriptor(real_world: Callable[..., Any], namespace: Any) -> None:
    """Opening (twice too), loading, attaching, dumping and closing leaves no descriptor behind."""
    ifindex = add_device(namespace, "a")
    real_world(notify_verdicts=False).close()
    before = len(os.listdir("/proc/self/fd"))
    kernel = real_world(notify_verdicts=True)
    kernel.open()
    attach(kernel, ifindex)
    for table in TABLES:
        kernel.dump(table)
    kernel.read_notifications().close()
    kernel.close()
    assert len(os.listdir("/proc/self/fd")) == before


@REAL
def test_a_pin_root_outside_a_bpffs_is_refused(namespace: Any, tmp_path: Path, objects_dir: Path) -> None:
    """The error says what is mounted there and how to mount the right thing."""
    kernel = RealKernel(tmp_path / "pins", objects_dir, 0)
    with pytest.raises(KernelError, match="not a BPF filesystem; mount one above it"):
        namespace.call(kernel.open)
    assert not (tmp_path / "pins").exists()


@REAL
def test_routes_and_neighbours_of_others_are_left_alone(
    real_world: Callable[..., Any], namespace: Any
) -> None:
    """They are not dumped, not replaced and not removed."""
    ifindex = add_device(namespace, "a")
    namespace.run("ip", "route", "add", "10.0.0.1/32", "dev", "a", "proto", "static")
    namespace.run(
        "ip", "neigh", "add", "10.0.0.1", "lladdr", "02:00:00:00:00:77", "dev", "a", "nud", "permanent"
    )
    kernel = real_world()
    route, neighbour = (encoded(table, (ifindex, ifindex))[0] for table in ("routes", "neighbours"))
    assert kernel.dump("routes") == kernel.dump("neighbours") == {}
    assert [failure.errno for failure in kernel.put("routes", [route])] == [errno.EEXIST]
    kernel.delete("routes", [route[0]])
    kernel.delete("neighbours", [neighbour[0]])
    assert "proto static" in namespace.run("ip", "route", "show", "10.0.0.1/32")
    assert "02:00:00:00:00:77" in namespace.run("ip", "neigh", "show", "dev", "a")


@REAL
def test_a_per_cpu_row_holds_every_cpu(real_world: Callable[..., Any]) -> None:
    """The value is as long as one counter for each possible CPU."""
    kernel = real_world()
    metrics = kernel.kernel.objects.maps["metrics"]
    key, value = bytes(4), b"\x01" * metrics.value_bytes
    assert metrics.put([(key, value)]) == []
    assert list(kernel.dump_runtime("metrics")) == [(key, value)]
    assert metrics.value_bytes >= 16 * (os.cpu_count() or 1)


@REAL
def test_packets_go_through_the_attached_program_after_the_agent_is_gone(
    real_world: Callable[..., Any], namespace: Any, form: str
) -> None:
    """A pinned link, and a filter, stay when every descriptor is closed."""
    ifindex = add_device(namespace, "a")
    kernel = real_world()
    attach(kernel, ifindex)
    programs = {program.id for program in kernel.kernel.objects.programs.values()}
    kernel.close()
    attached = namespace.call(program_ids_at_ingress, form, ifindex)
    assert len(attached) == 1
    assert set(attached) <= programs
