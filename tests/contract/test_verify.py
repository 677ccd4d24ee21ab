"""What `meshlog verify` sees and `--repair` makes good: every kind of row, in memory and in the running kernel."""

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from datapath import codec
from datapath.delta import Pending
from datapath.kernel import libbpf
from datapath.realization import Realization, TableVerification
from datapath.tables import TABLES, Desired
from tests.contract.kernel_rows import encoded, other_row, rows_of
from tests.contract.test_kernel import (
    REAL,
    World,
    add_device,
    attach,
    cgroups,
    form,
    make_real,
    program_ids_at_ingress,
    real_world,
    world,
)

__all__ = ["cgroups", "form", "make_real", "real_world", "world"]
EMPTY: Mapping[str, Mapping[Any, Any]] = {table: {} for table in TABLES}
NOW_S = 1.0


def wish(realization: Realization, tables: Mapping[str, Mapping[Any, Any]], generation: int) -> None:
    """Every row of every table, and nothing else."""
    pending = Pending()
    pending.merge(Desired(generation, True, tables))
    realization.converge(pending, NOW_S)


def differing(realization: Realization) -> dict[str, list[tuple[str, Any]]]:
    """By table, the kind and the key of what differs."""
    return {
        each.table: [(row.kind, row.key) for row in each.differences]
        for each in realization.verify()
        if each.differences or each.desired != each.kernel
    }


def test_every_kind_of_row_is_found_named_and_repaired(world: World) -> None:
    """A corrupted, an alien and a missing row of each table at once; after the repair nothing differs."""
    kernel = world.make()
    realization = Realization(kernel)
    realization.open()
    rows = {table: rows_of(table, world.ifindexes) for table in TABLES}
    wish(realization, {table: dict(listed[:1]) for table, listed in rows.items()}, 1)
    assert differing(realization) == {}
    for table, (first, *others) in rows.items():
        wrong = codec.encode_row(table, other_row(table, world.ifindexes))
        aliens = encoded(table, world.ifindexes)[1:]
        assert not kernel.put(table, [(codec.encode_key(table, first[0]), wrong), *aliens])
        assert differing(realization).pop(table) == [
            *(("alien", key) for key, _ in others),
            ("corrupted", first[0]),
        ]
    realization.repair(NOW_S)
    assert differing(realization) == {}
    for table, ((key, _), *_) in rows.items():
        kernel.delete(table, [codec.encode_key(table, key)])
        assert differing(realization).pop(table) == [("missing", key)]
    realization.repair(NOW_S)
    assert differing(realization) == {}
    wish(realization, EMPTY, 2)
    for table in ("node_state", "tunnel"):
        kernel.put(table, encoded(table, world.ifindexes))
        assert differing(realization).pop(table) == [("alien", rows[table][0][0])]
    realization.repair(NOW_S)
    assert {table: dict(kernel.dump(table)) for table in TABLES} == EMPTY


def replace_pin(bpffs: Path, name: str) -> None:
    """Puts another, empty map of the same form where the pin of a map is."""
    path = next((bpffs / "meshlog" / "n1" / "maps").glob(f"*/{name}"))
    fd = libbpf.open_pin(path)
    info = libbpf.map_info(fd)
    os.close(fd)
    path.unlink()
    fd = libbpf.map_create(info.type, info.key_size, info.value_size, info.max_entries, info.flags)
    libbpf.pin(fd, path)
    os.close(fd)


def errors(realization: Realization) -> list[TableVerification]:
    """The tables of which verify says that something is the matter beside their rows."""
    return [each for each in realization.verify() if each.error]


@REAL
@pytest.mark.parametrize("how", ["replaced", "removed"])
@pytest.mark.parametrize("name", ["policy", "conntrack"])
def test_a_pin_that_no_longer_names_the_map_in_use_is_said_and_restored(
    make_real: Callable[..., Any], bpffs: Path, how: str, name: str
) -> None:
    """The rows are those of the map that the programs use, whatever is pinned; after the repair the next start takes up
    the same programs with the same maps."""
    kernel = make_real()
    realization = Realization(kernel)
    realization.open()
    policy = dict(rows_of("policy", (1, 1)))
    wish(realization, {**EMPTY, "policy": policy}, 1)
    in_use = kernel.kernel.objects.maps[name].info.id
    if how == "replaced":
        replace_pin(bpffs, name)
    else:
        next((bpffs / "meshlog" / "n1" / "maps").glob(f"*/{name}")).unlink()
    (found,) = errors(realization)
    assert found.table == ("policy" if name == "policy" else "attachments")
    assert found.kernel == ""
    assert found.error.startswith("stray: ") and found.error.endswith(f"/{name} and the programs use map {in_use}")
    assert dict(kernel.dump("policy")) == codec.encode_rows("policy", policy)
    realization.repair(NOW_S)
    assert errors(realization) == [] and differing(realization) == {}
    kernel.close()
    again = make_real()
    assert not again.kernel.objects.loaded
    assert again.kernel.objects.maps[name].info.id == in_use


@REAL
def test_a_program_of_another_content_on_another_map_differs_until_it_is_replaced(
    real_world: Callable[..., Any], namespace: Any, bpffs: Path, form: str
) -> None:
    """The pin of a map was replaced while no agent was there, and the next one has other programs: those attached use
    the old map, and verify names their attachment. After the repair the map that is dumped is the one in use."""
    ifindex = add_device(namespace, "a")
    first = real_world(notify_verdicts=True)
    key, row = attach(first, ifindex)
    assert first.put("policy", encoded("policy", (1, 1))) == []
    first.close()
    replace_pin(bpffs, "policy")
    second = real_world(notify_verdicts=False)
    realization = Realization(second)
    realization.open()
    (found,) = [each for each in realization.verify() if each.table == "attachments"]
    assert [(each.kind, each.key.ifindex) for each in found.differences] == [("alien", ifindex)]
    assert found.differences[0].found.program.startswith("other version of")
    attachment = {codec.decode_key("attachments", key): codec.decode_row("attachments", row)}
    wish(realization, {**EMPTY, "attachments": attachment}, 1)
    (number,) = namespace.call(program_ids_at_ingress, form, ifindex)
    objects = second.kernel.objects
    (running,) = [each for each in objects.programs.values() if each.id == number]
    assert objects.maps["policy"].info.id in libbpf.program_info(running.fd).map_ids
    assert errors(realization) == [] and differing(realization) == {}
