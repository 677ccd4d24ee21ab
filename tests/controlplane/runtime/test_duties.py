"""Who does the duties of a cluster, when several could."""

import pytest

from controlplane.runtime.clock import SystemClock
from controlplane.runtime.duties import Duties
from controlplane.runtime.telemetry import Counters
from controlplane.settings import OperatorSettings
from kvstore.errors import Fenced
from kvstore.memory import MemoryStore
from tests.controlplane.runtime.mesh import JOIN_EAST, Part, running


def duties_of(part: Part) -> Duties:
    settings = OperatorSettings(cluster="east", cluster_id=1)
    return Duties(part.log, part.follower, part.writer, SystemClock(), settings, Counters(), (JOIN_EAST,))


async def test_two_operators_do_not_take_the_duty_from_each_other_without_end() -> None:
    """The one that starts later has it; the other waits in reserve, opens no session, and has it when nobody has."""
    store = MemoryStore()
    parts = Part(store, "operator"), Part(store, "operator")
    first, second = map(duties_of, parts)
    async with running(*parts):
        await first.round()
        assert first.held
        await second.round()
        with pytest.raises(Fenced):
            await first.round()
        for _ in range(3):
            revision = store.revision
            await first.round()
            assert not first.held and store.revision == revision
            await second.round()
            assert second.held
        store.expire_session("east", "operator")
        await first.round()
        assert first.held
