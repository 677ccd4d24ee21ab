"""What people and platforms had declared, and a log that was put back to a backup does not hold as it was.

Belongs here: comparing the two states, how each thing is put back by hand, and what may be without asking. Does not
belong here: what a node puts back by itself (commands/announcing.py), the list (runtime/losses.py). Pure.

Only what was added since the backup is put back without asking: without a policy that was added, what it closed is
open. What was changed or removed since stays as the backup has it, for that may be why somebody put it back.
"""

from collections.abc import Iterable, Mapping, Sequence
from hashlib import blake2b
from typing import Any

import msgspec

from controlplane.commands.addresses import ChangeSettings, ResolveName
from controlplane.commands.redirect import SetBackendState
from controlplane.kubernetes_objects import command_of
from controlplane.kubernetes_views import VIEWS, manifest_of
from controlplane.model import BackendState, ObjectKey, ResolvedName
from controlplane.projections.state import State
from controlplane.projections.workloads import KIND as WORKLOAD

GONE, OLDER, BACK = "gone", "older", "back"
"""Not in the log any more; as it was before a change; in the log again though it was removed."""
SETTINGS = "Settings"


class LostObject(msgspec.Struct, frozen=True):
    """`what`: GONE, OLDER or BACK. `found`: a digest of what the log that was put back holds, "" for nothing: while it
    holds that, nobody has done anything about it. `manifest`: as it was, where `apply` takes it; else `command`."""

    cluster: str
    kind: str
    namespace: str
    name: str
    what: str
    found: str
    manifest: dict[str, Any] | None = None
    command: str = ""

    @property
    def key(self) -> ObjectKey:
        return ObjectKey(self.cluster, self.kind, self.namespace, self.name)

    @property
    def text(self) -> str:
        """For messages."""
        place = f"{self.namespace}/{self.name}" if self.namespace else self.name
        return f"{_shown(self.kind)} {place}".strip()


def lost_objects(before: State, after: State) -> Sequence[LostObject]:
    """What `before` had and `after` has not as it was, policies first."""
    was, found = _declared(before), _declared(after)
    keys = sorted({*was, *found}, key=lambda key: (_RANKS.get(key.kind, 0), key))
    return [_lost(key, was.get(key), found.get(key)) for key in keys if was.get(key) != found.get(key)]


def additions(before: State, after: State, cluster: str) -> Sequence[Any]:
    """Commands for everything of a cluster that `after` has not at all, policies first."""
    was, found = _declared(before), _declared(after)
    gone = [key for key in was if key.cluster == cluster and key not in found]
    gone.sort(key=lambda key: (_RANKS.get(key.kind, 0), key))
    commands = [_addition(key, was[key]) for key in gone]
    return [each for each in commands if not isinstance(each, tuple)]  # a tuple says why a manifest is not understood


def _addition(key: ObjectKey, was: Any) -> Any:
    if isinstance(was, BackendState):
        return SetBackendState(was.address, was.port, was.protocol, was.state)
    if isinstance(was, ResolvedName):
        return ResolveName(was.name, was.addresses)
    if key.kind == SETTINGS:
        return ChangeSettings(was)
    return command_of(manifest_of(_shown(key.kind), was), key.cluster)


def still_lost(objects: Iterable[LostObject], state: State) -> Sequence[LostObject]:
    """Those about which nothing has happened since."""
    held = _declared(state)
    return [each for each in objects if _digest(held.get(each.key)) == each.found]


def _declared(state: State) -> Mapping[ObjectKey, Any]:
    """Everything that is in the log because somebody asked for it."""
    settings = {ObjectKey(cluster, SETTINGS, "", ""): text for cluster, text in state.policy_settings.items()}
    kinds: tuple[Mapping[ObjectKey, Any], ...] = (
        state.policies, settings, state.cidr_groups, state.local_redirects, state.services, state.backend_slices,
        state.backend_states, state.resolved_names, state.namespaces, state.workloads,
    )  # fmt: skip
    return {key: value for held in kinds for key, value in held.items()}


_RANKS = {"Service": 1, "EndpointSlice": 2, "Backend": 3, "Name": 4, "Namespace": 5, WORKLOAD: 6}


def _lost(key: ObjectKey, was: Any, found: Any) -> LostObject:
    what = GONE if found is None else BACK if was is None else OLDER
    kind = _shown(key.kind)
    if what == BACK:
        return LostObject(*key, what, _digest(found))
    if kind in VIEWS:
        return LostObject(*key, what, _digest(found), manifest_of(kind, was))
    return LostObject(*key, what, _digest(found), None, _command(was))


def _command(was: Any) -> str:
    if isinstance(was, BackendState):
        address = f"[{was.address}]" if ":" in was.address else was.address
        return f"meshlog service backend {address}:{was.port}/{was.protocol} --state {was.state}"
    if isinstance(was, ResolvedName):
        return f"meshlog name add {was.name} {' '.join(was.addresses)}"
    settings = msgspec.json.decode(was)
    words = (f"{name}={_word(value)}" for name, value in sorted(settings.items()))
    return f"meshlog policy settings {' '.join(words)}"


def _word(value: Any) -> str:
    return value if isinstance(value, str) else msgspec.json.encode(value).decode()


def _shown(kind: str) -> str:
    """As a manifest calls it."""
    return "Pod" if kind == WORKLOAD else kind


def _digest(value: Any) -> str:
    return "" if value is None else blake2b(msgspec.msgpack.encode(value), digest_size=16).hexdigest()
