"""Random keys, rows and whole states, for every table, drawn from the layouts themselves.

Belongs here: hypothesis strategies, and the small states that tests share. Does not belong here: assertions.
"""

from typing import Any

from hypothesis import strategies as st

from datapath import codec
from datapath.abi.types import STRUCTS
from datapath.tables import (
    NO_ADDRESS,
    TABLES,
    AttachmentKey,
    AttachmentRow,
    BackendKey,
    BackendRow,
    Desired,
    DeviceKey,
    DeviceRow,
    EndpointKey,
    EndpointRow,
    NeighbourKey,
    NeighbourRow,
    NodeStateRow,
    RouteKey,
    RouteRow,
    ServiceKey,
    ServiceRow,
    ShaperKey,
    ShaperRow,
    SocketHookKey,
    SocketHookRow,
    TunnelRow,
)

MAC = b"\x02\x00\x00\x00\x00\x01"
ADDRESSES = st.binary(min_size=16, max_size=16)
UNMAPPED = {
    AttachmentKey: st.builds(AttachmentKey, st.integers(1, 9), st.sampled_from(["ingress", "egress"])),
    AttachmentRow: st.builds(AttachmentRow, st.sampled_from(["from_endpoint", "to_endpoint"])),
    SocketHookKey: st.builds(SocketHookKey, st.sampled_from(["connect4", "sendmsg6"])),
    SocketHookRow: st.builds(SocketHookRow, st.just("socket_p"), st.sampled_from(["/a", "/b"])),
    ShaperKey: st.builds(ShaperKey, st.integers(1, 9), st.integers(1, 99)),
    ShaperRow: st.builds(ShaperRow, st.integers(1, 1 << 40)),
    RouteKey: st.builds(RouteKey, st.integers(0, 128), ADDRESSES),
    RouteRow: st.builds(RouteRow, st.integers(1, 9), ADDRESSES),
    NeighbourKey: st.builds(NeighbourKey, st.integers(1, 9), ADDRESSES),
    NeighbourRow: st.builds(NeighbourRow, st.binary(min_size=6, max_size=6)),
    # Of the tables that are arrays: never zeros, which are no row there.
    NodeStateRow: st.builds(NodeStateRow, st.integers(1, 2**62)),
    TunnelRow: st.builds(TunnelRow, st.integers(1, 2**32 - 1)),
}

Tables = dict[str, dict[Any, Any]]


def typed(kind: type[Any]) -> st.SearchStrategy[Any]:
    """Any value of a key or row type."""
    if kind in UNMAPPED:
        return UNMAPPED[kind]
    fields = [
        field for field in STRUCTS[codec.struct_name(kind)].fields if not field.name.startswith("reserved")
    ]
    return st.builds(
        kind,
        *(
            st.binary(min_size=field.size, max_size=field.size)
            if field.kind == "bytes"
            else st.integers(0, 256**field.size - 1)
            for field in fields
        ),
    )


@st.composite
def table_rows(draw: st.DrawFn) -> tuple[str, Any, Any]:
    """A table, a key and a row of it."""
    table = TABLES[draw(st.sampled_from(sorted(TABLES)))]
    return table.name, draw(typed(table.key)), draw(typed(table.row))


@st.composite
def state_sequences(draw: st.DrawFn, length: int, size: int = 3) -> list[Tables]:
    """States that share keys and rows, so that one follows from the other by puts, changes and deletes."""
    names = draw(st.lists(st.sampled_from(sorted(TABLES)), min_size=1, max_size=5, unique=True))
    pools = {
        name: (
            draw(st.lists(typed(TABLES[name].key), min_size=1, max_size=size, unique=True)),
            draw(st.lists(typed(TABLES[name].row), min_size=1, max_size=size)),
        )
        for name in names
    }
    return [
        {
            name: draw(st.dictionaries(st.sampled_from(keys), st.sampled_from(rows), max_size=size))
            for name, (keys, rows) in pools.items()
        }
        for _ in range(length)
    ]


def encoded(tables: Tables) -> dict[str, dict[bytes, bytes]]:
    """What a kernel holds that holds this state."""
    return {name: codec.encode_rows(name, tables.get(name, {})) for name in TABLES}


def complete(generation: int, tables: Tables) -> Desired:
    """A complete offer."""
    return Desired(generation, True, tables)


def changes(generation: int, before: Tables, after: Tables) -> Desired:
    """The incomplete offer that leads from one state to the other."""
    changed: Tables = {}
    for name in TABLES:
        old, new = before.get(name, {}), after.get(name, {})
        rows = {key: row for key, row in new.items() if old.get(key) != row}
        rows.update(dict.fromkeys(old.keys() - new.keys()))
        if rows:
            changed[name] = rows
    return Desired(generation, False, changed)


def endpoint_tables(number: int, ifindex: int) -> Tables:
    """All rows of one endpoint, 10.0.0.<number>, behind a device."""
    address = codec.address_bytes(f"10.0.0.{number}")
    return {
        "endpoints": {EndpointKey(address): EndpointRow(ifindex, 1000, number, 0, MAC, MAC)},
        "devices": {DeviceKey(ifindex): DeviceRow(address, NO_ADDRESS, 1000, number, MAC)},
        "attachments": {
            AttachmentKey(ifindex, hook): AttachmentRow(f"{hook}_p") for hook in ("ingress", "egress")
        },
        "routes": {RouteKey(128, address): RouteRow(ifindex, NO_ADDRESS)},
        "neighbours": {NeighbourKey(ifindex, address): NeighbourRow(MAC)},
    }


def service_tables(number: int, backend_set: int, count: int) -> Tables:
    """A frontend, 10.96.0.<number>:80, and the set of its backends."""
    frontend = ServiceKey(codec.address_bytes(f"10.96.0.{number}"), 80, 6)
    backends = {
        BackendKey(backend_set, slot): BackendRow(codec.address_bytes(f"10.1.{backend_set}.{slot}"), 8080, 0)
        for slot in range(count)
    }
    return {"services": {frontend: ServiceRow(backend_set, count, 0)}, "backends": backends}


def merged(*parts: Tables) -> Tables:
    """All rows of all parts."""
    merged_tables: Tables = {}
    for part in parts:
        for name, rows in part.items():
            merged_tables.setdefault(name, {}).update(rows)
    return merged_tables
