"""From one layout of the maps to another and back, with real connections through the node all the while.

The earlier version is this one with other structs: a field more at the beginning of a service's row and of a flow's
entry, and another size of conntrack. Its Python side is this one with those structs.
"""

import shutil
import socket
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest
from msgspec import msgpack

from datapath import codec, conntrack
from datapath.abi import btf, structs, types
from datapath.kernel import layouts
from datapath.kernel.real import RealKernel
from datapath.tables import RUNTIME_MAPS, TABLES, SocketHookKey, SocketHookRow
from tests.bpf.node import FRONTEND, REMOTE
from tests.bpf.test_wire import BACKEND_PORT, TIMEOUT_S, Wire, open_socket, received
from tests.conftest import Namespace
from tests.contract.test_attach import Attached, ask_service

pytestmark = [pytest.mark.kernel("bpf_redirect_peer"), pytest.mark.kernel("TCX links")]
FORMER = ("service_row", "conntrack_row")
MAPS_OF_FORMER = {"services", "conntrack"}
FORMER_BYTES = 8


@pytest.fixture(params=[4, 6], ids=["ipv4", "ipv6"])
def family(request: pytest.FixtureRequest) -> int:
    """Both families in turn."""
    return int(request.param)


@pytest.fixture(scope="module")
def former_objects(objects_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The objects of the earlier version."""
    built = tmp_path_factory.mktemp("former") / "bpf"
    shutil.copytree(objects_dir, built, ignore=shutil.ignore_patterns("*.o"))
    header = built / "abi.h"
    text = header.read_text()
    for name in FORMER:
        size = types.STRUCTS[name].size
        text = text.replace(f"struct {name} {{\n", f"struct {name} {{\n\t__u64 reserved_former;\n")
        text = text.replace(f"ABI_SIZE({name}, {size})", f"ABI_SIZE({name}, {size + FORMER_BYTES})")
    text = text.replace("CONNTRACK_MAX = 262144", "CONNTRACK_MAX = 65536")
    header.write_text(text)
    done = subprocess.run(["make", "-C", str(built)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return built


class Versions:
    """A node that is held by agents of the one version and of the other."""

    def __init__(self, attached: Attached, now: Path, former: Path) -> None:
        self._attached = attached
        self._now, self._former = now, former
        self._structs = {
            each.name: each for each in structs.read_structs(btf.parse((former / "abi_types.bpf.o").read_bytes()))
        }
        self.wire = attached.wire

    @property
    def kernel(self) -> RealKernel:
        return self._attached.kernel

    @property
    def maps_root(self) -> Path:
        return self._attached.pin_root / "maps"

    def open(self, cgroup: str = "") -> None:
        """An agent of this version starts; the one before is gone. `cgroup`: whose sockets are translated."""
        self._attached.objects_dir = self._now
        self._attached.open("tcx", cgroup=cgroup)

    @contextmanager
    def as_former(self, cgroup: str = "") -> Iterator[None]:
        """An agent of the earlier version starts; within, its structs are those of this process."""
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(types, "STRUCTS", self._structs)
            self._attached.objects_dir = self._former
            self._attached.open("tcx", cgroup=cgroup)
            yield

    def attach(self) -> None:
        """The programs move to those of the agent that is there."""
        self._attached.put(self._attached.rows)

    def fill_former(self) -> None:
        """The node's rows in the earlier layout: those of now, with eight zeros in front where it has them."""
        rows: dict[str, list[tuple[bytes, bytes]]] = {}

        recorders = {table: _Recorder(rows.setdefault(table, [])) for table in TABLES}
        self.wire.rows(SimpleNamespace(maps=recorders))  # type: ignore[arg-type]
        for table, listed in rows.items():
            front = bytes(FORMER_BYTES) if table in MAPS_OF_FORMER else b""
            assert not self.kernel.put(table, [(key, front + row) for key, row in listed])

    def flows(self) -> dict[tuple[bytes, int], int]:
        """Of TCP: by the key, the packets of the initiator."""
        entries = [conntrack.decode_entry(*entry) for entry in self.kernel.dump_runtime("conntrack")]
        return {
            (codec.struct_codec(conntrack.ConntrackKey).encode(entry.key), entry.row.flags & types.CONNTRACK_DNAT):
                entry.row.forward_packets
            for entry in entries
            if entry.key.protocol == socket.IPPROTO_TCP
        }  # fmt: skip


class _Recorder:
    """Takes rows as a map would."""

    def __init__(self, rows: list[tuple[bytes, bytes]]) -> None:
        self._rows = rows

    def put(self, rows: list[tuple[bytes, bytes]]) -> list[object]:
        self._rows += rows
        return []


@pytest.fixture
def versions(
    make_namespace: Callable[[], Namespace], bpffs: Path, objects_dir: Path, former_objects: Path
) -> Iterator[Versions]:
    """Nothing runs yet."""
    attached = Attached(Wire(make_namespace), bpffs, objects_dir)
    yield Versions(attached, objects_dir, former_objects)
    attached.close()


Echo = Callable[[bytes], None]


@contextmanager
def connecting(wire: Wire, family: int) -> Iterator[Callable[[], Echo]]:
    """Opens connections to the frontend: what is sent through one comes back, or its caller fails."""
    bound = (REMOTE.address(family), BACKEND_PORT)
    with ExitStack() as stack:
        listener = stack.enter_context(wire.remote.call(open_socket, family, socket.SOCK_STREAM, bound))

        def connect() -> Echo:
            asking = stack.enter_context(wire.client.call(open_socket, family, socket.SOCK_STREAM, None))
            asking.connect((FRONTEND.address(family), 80))
            answering = stack.enter_context(listener.accept()[0])
            answering.settimeout(TIMEOUT_S)

            def echo(sent: bytes) -> None:
                asking.sendall(sent)
                assert received(answering, len(sent)) == sent
                answering.sendall(sent)
                assert received(asking, len(sent)) == sent

            return echo

        yield connect


def test_connections_outlive_another_layout(versions: Versions, family: int) -> None:
    """A connection goes on before, within and after the move; its entry and the node's rows have come over, and a
    connection that began while both layouts were there is not cut either."""
    with versions.as_former():
        versions.fill_former()
        versions.attach()
        ask_service(versions.wire, family, b"the first, which finds the neighbours")
    with connecting(versions.wire, family) as connect:
        early = connect()
        early(b"before" * 1000)
        versions.open()
        rows = {table: versions.kernel.dump(table) for table in ("services", "ipcache", "endpoints", "backends")}
        assert all(rows.values())
        assert all(codec.decode_row("services", row).count == 1 for row in rows["services"].values())
        early(b"between" * 1000)
        late = connect()
        late(b"began between")
        versions.attach()
        before = versions.flows()
        early(b"after" * 1000)
        late(b"after")
        counted = versions.flows()
        assert len(before) == 4 and counted.keys() == before.keys()
        assert sum(counted.values()) > sum(before.values())
    assert not versions.kernel.objects.has_unused


def test_what_has_not_changed_is_shared(versions: Versions) -> None:
    """The very maps stay; only those with another layout are new, and the ring, whose records have no type."""
    with versions.as_former():
        versions.fill_former()
        before = {name: held.info.id for name, held in versions.kernel.objects.maps.items()}
    versions.open()
    after = {name: held.info.id for name, held in versions.kernel.objects.maps.items()}
    changed = {name for name, number in after.items() if before[name] != number}
    assert changed & {*TABLES, *RUNTIME_MAPS} == {*MAPS_OF_FORMER, "notifications"}


def test_the_way_back_is_the_same(versions: Versions, family: int) -> None:
    """A connection outlives the earlier version's return."""
    versions.open()
    versions.wire.rows(versions.kernel.objects)
    versions.attach()
    with connecting(versions.wire, family) as connect:
        echo = connect()
        echo(b"before")
        with versions.as_former():
            echo(b"between")
            versions.attach()
            echo(b"after")
            assert not versions.kernel.objects.has_unused


@pytest.mark.parametrize("deaths", [1, 3])
def test_an_agent_that_dies_within_the_move_is_followed_by_one_that_ends_it(versions: Versions, deaths: int) -> None:
    """However often: what is attached goes on, and the last one leaves one layout behind."""
    family = 4
    with versions.as_former():
        versions.fill_former()
        versions.attach()
        ask_service(versions.wire, family, b"the first, which finds the neighbours")
    with connecting(versions.wire, family) as connect:
        echo = connect()
        for _ in range(deaths):
            versions.open()
            echo(b"not moved yet")
        assert len(list(versions.maps_root.iterdir())) == 2
        versions.attach()
        echo(b"moved")
    assert len(list(versions.maps_root.iterdir())) == 1


def test_a_start_that_was_cut_off_half_way_is_made_good(versions: Versions, family: int) -> None:
    """Maps of the new layout without programs, as a crash while loading leaves them: they are filled at the next start."""
    with versions.as_former():
        versions.fill_former()
        versions.attach()
    versions.open()
    pins = versions.kernel.objects.pins
    for path in pins.iterdir():
        path.unlink()
    pins.rename(pins.with_name(f"{pins.name}-partial"))
    (key, row), *_ = versions.kernel.dump("services").items()
    versions.kernel.delete("services", [key])
    versions.open()
    assert versions.kernel.dump("services")[key] == row
    versions.attach()
    ask_service(versions.wire, family, b"it works")


@pytest.mark.kernel("socket hooks of cgroups")
def test_a_layout_that_only_sockets_use_is_the_one_to_take_rows_from(
    versions: Versions, make_cgroup: Callable[[str], Path]
) -> None:
    """Not another that was made since and that nothing uses."""
    cgroup = str(make_cgroup("one"))
    key, row = SocketHookKey("connect4"), SocketHookRow("socket_connect4", cgroup)
    hook = msgpack.encode(key), msgpack.encode(row)
    with versions.as_former(cgroup):
        versions.fill_former()
        assert not versions.kernel.put("socket_hooks", [hook])
    (versions.maps_root / ("0" * layouts.ID_CHARACTERS)).mkdir()
    versions.open(cgroup)
    assert versions.kernel.dump("services")
    assert not versions.kernel.put("socket_hooks", [hook])
    assert len(list(versions.maps_root.iterdir())) == 1
