"""One map: which rows fail, and what arrays, per-CPU maps and maps without batches need."""

import errno
from collections.abc import Callable, Iterator

import pytest

from datapath.kernel import libbpf, uapi
from datapath.kernel.maps import Map, possible_cpus

pytestmark = pytest.mark.kernel("LPM trie maps")


BATCHES = (uapi.MAP_LOOKUP_BATCH, uapi.MAP_UPDATE_BATCH, uapi.MAP_DELETE_BATCH)


REFUSALS = {"batches": 0, "not of this map": uapi.ENOTSUPP, "not of this kernel": errno.EINVAL}


@pytest.fixture(params=REFUSALS.values(), ids=REFUSALS, autouse=True)
def batches(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """With this kernel's batches, and with the two answers of an older one to each of them."""
    ask = libbpf._bpf_or_errno

    def refuse(command: int, attr: bytearray) -> tuple[int, int]:
        return (-1, request.param) if command in BATCHES else ask(command, attr)

    if request.param:
        monkeypatch.setattr(libbpf, "_bpf_or_errno", refuse)


@pytest.fixture
def make() -> Iterator[Callable[..., Map]]:
    """Makes maps, and closes them."""
    made: list[Map] = []

    def make_map(map_type: int, key: int = 4, value: int = 8, size: int = 4, flags: int = 0) -> Map:
        made.append(Map(libbpf.map_create(map_type, key, value, size, flags)))
        return made[-1]

    yield make_map
    for each in made:
        each.close()


def key(number: int) -> bytes:
    """A key of 4 bytes."""
    return number.to_bytes(4, "little")


def test_a_row_refused_in_the_middle_does_not_stop_the_others(make: Callable[..., Map]) -> None:
    """The one with an impossible prefix is named; those around it are written."""
    trie = make(uapi.MAP_TYPE_LPM_TRIE, 8, 8, 8, uapi.F_NO_PREALLOC)
    rows = [(key(length) + bytes([length]) * 4, b"\1" * 8) for length in (8, 33, 16, 34, 24)]
    assert [failure.key[0] for failure in trie.put(rows)] == [33, 34]
    assert {found[0] for found in trie.dump()} == {8, 16, 24}


@pytest.mark.parametrize("bad", [(b"\1", b"\1" * 8), (key(7), b"\1" * 9), (b"", b"")])
def test_a_row_of_the_wrong_size_never_reaches_the_kernel(
    make: Callable[..., Map], bad: tuple[bytes, bytes]
) -> None:
    """It would shift all rows behind it in the batch."""
    table = make(uapi.MAP_TYPE_HASH)
    failures = table.put([(key(7), b"\7" * 8), bad, (key(8), b"\x08" * 8)])
    assert [failure.key for failure in failures] == [bad[0]]
    assert table.dump() == {key(7): b"\7" * 8, key(8): b"\x08" * 8}


def test_removing_counts_what_was_there_between_absent_keys(make: Callable[..., Map]) -> None:
    """Keys that are absent, first, last and in a row, stop nothing; one of the wrong size is named."""
    table = make(uapi.MAP_TYPE_HASH, size=16)
    assert table.put([(key(number), bytes(8)) for number in (2, 5, 6, 9)]) == []
    removed, failures = table.delete([*(key(number) for number in range(9)), b"\1"])
    assert (removed, [failure.key for failure in failures]) == (3, [b"\1"])
    assert table.dump() == {key(9): bytes(8)}


def test_a_full_map_says_so(make: Callable[..., Map]) -> None:
    """In words that name the map's size."""
    table = make(uapi.MAP_TYPE_HASH, size=2)
    failures = table.put([(key(number), bytes(8)) for number in range(3)])
    assert [(failure.key, failure.reason) for failure in failures] == [(key(2), "map  with 2 rows is full")]


def test_more_rows_than_one_read_takes(make: Callable[..., Map]) -> None:
    """A dump goes on until the last row."""
    table = make(uapi.MAP_TYPE_HASH, size=20000)
    rows = {key(number): bytes(8) for number in range(20000)}
    assert table.put(list(rows.items())) == []
    assert table.dump() == rows


def test_a_zero_row_of_an_array_counts_as_absent(make: Callable[..., Map]) -> None:
    """An array cannot lose a row, so that removal writes zeros, and zeros are not dumped."""
    array = make(uapi.MAP_TYPE_ARRAY)
    assert array.dump() == {}
    assert array.put([(key(0), b"\1" * 8), (key(3), b"\3" * 8)]) == []
    assert array.delete([key(0), key(1)]) == (1, [])
    assert array.dump() == {key(3): b"\3" * 8}


def test_a_per_cpu_value_pads_each_cpu_to_8_bytes(make: Callable[..., Map]) -> None:
    """As the kernel copies them."""
    table = make(uapi.MAP_TYPE_PERCPU_HASH, value=4)
    assert table.value_bytes == 8 * possible_cpus()
    value = b"".join((number + 1).to_bytes(8, "little") for number in range(possible_cpus()))
    assert table.put([(key(1), value)]) == []
    assert table.dump() == {key(1): value}


def test_without_batches_each_row_costs_one_call(
    make: Callable[..., Map], request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a map has refused once is not asked again: three rows, three calls (with batches one)."""
    table = make(uapi.MAP_TYPE_HASH, size=16)
    rows = [(key(number), bytes(8)) for number in range(3)]
    table.put(rows)
    calls, ask = [], libbpf._bpf_or_errno

    def count(command: int, attr: bytearray) -> tuple[int, int]:
        calls.append(command)
        return ask(command, attr)

    monkeypatch.setattr(libbpf, "_bpf_or_errno", count)
    table.put(rows)
    has_batches = request.node.callspec.id == "batches"
    assert calls == ([uapi.MAP_UPDATE_BATCH] if has_batches else [uapi.MAP_UPDATE_ELEM] * 3)


def test_a_map_without_batches_is_written_row_by_row(make: Callable[..., Map]) -> None:
    """A program array knows no batch: each row gets the kernel's own answer."""
    table = make(MAP_TYPE_PROG_ARRAY, value=4)
    failures = table.put([(key(0), key(999999)), (key(1), key(999999))])
    assert [failure.key for failure in failures] == [key(0), key(1)]
    assert all(failure.errno != uapi.ENOTSUPP for failure in failures)


MAP_TYPE_PROG_ARRAY = 3
