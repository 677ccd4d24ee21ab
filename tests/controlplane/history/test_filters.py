"""Which records are shown."""

import pytest

from controlplane.api.schema import LogRecord
from controlplane.history.filters import RecordFilter
from controlplane.history.records import log_record
from tests.controlplane.history.past import shop


def shown(wanted: RecordFilter) -> list[LogRecord]:
    """Of a small mesh's records."""
    return [record for record in map(log_record, shop().records) if wanted.matches(record)]


@pytest.mark.parametrize(
    ("wanted", "count"),
    [
        (RecordFilter(), 14),
        (RecordFilter(kind="endpoint"), 3),
        (RecordFilter(kind="EndpointCreated", object="shop/cart"), 1),
        (RecordFilter(kind="endpoint", object="cart"), 1),
        (RecordFilter(object="bank/cart"), 0),
        (RecordFilter(namespace="shop"), 6),
        (RecordFilter(cluster="west"), 3),
        (RecordFilter(writer="operator", cluster="east"), 6),
        (RecordFilter(writer="n1", cluster="east"), 3),
        (RecordFilter(node="n2"), 4),
        (RecordFilter(cause=0, kind="node"), 3),
        (RecordFilter(cause=7), 0),
    ],
)  # fmt: skip
def test_filters_choose(wanted: RecordFilter, count: int) -> None:
    """Each criterion, and several together: what is said of an event must hold of one event."""
    assert len(shown(wanted)) == count


def test_criteria_are_about_one_event() -> None:
    """A record with an identity and an endpoint is not about an identity in a namespace."""
    assert shown(RecordFilter(kind="IdentityAllocated", namespace="shop")) == []
    assert len(shown(RecordFilter(kind="IdentityAllocated"))) == 3
