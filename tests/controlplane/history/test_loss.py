"""What a log that was put back to a backup does not hold as it was, and how it is put back by hand."""

import msgspec

from controlplane.codec import decode
from controlplane.commands.addresses import ChangeSettings, ResolveName
from controlplane.commands.policy import ApplyPolicy, RemovePolicy
from controlplane.commands.redirect import SetBackendState
from controlplane.commands.types import Author
from controlplane.commands.workload import ApplyWorkload
from controlplane.history.loss import BACK, GONE, OLDER, LostObject, additions, lost_objects, still_lost
from controlplane.kubernetes_objects import command_of
from controlplane.policy.manifests import canonical
from controlplane.projections.state import State
from tests.controlplane.random_mesh import Log
from tests.controlplane.small_mesh import accept, add_endpoint, mesh

OPERATOR = Author("east", "operator")


def policy(name: str) -> ApplyPolicy:
    document = {
        "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": {"name": name, "namespace": "shop"},
        "spec": {"podSelector": {}},
    }  # fmt: skip
    return ApplyPolicy("NetworkPolicy", "shop", name, canonical(document))


def changed() -> tuple[Log, State]:
    """A mesh, and what it was at the time of a backup."""
    log = mesh()
    accept(log, OPERATOR, policy("removed"))
    accept(log, OPERATOR, ApplyWorkload("shop", "web", {"app": "web"}, False))
    backup = log.state.copy()
    accept(log, OPERATOR, policy("added"))
    accept(log, OPERATOR, RemovePolicy("NetworkPolicy", "shop", "removed"))
    accept(log, OPERATOR, ApplyWorkload("shop", "web", {"app": "web"}, True))
    accept(log, OPERATOR, SetBackendState("fd00::2", 53, "UDP", "maintenance"))
    accept(log, OPERATOR, ResolveName("www.example.com", ("192.0.2.1",)))
    accept(log, OPERATOR, ChangeSettings('{"enable-policy":"always"}'))
    add_endpoint(log, "east", "n1", "cart", 11)
    return log, backup


def by_name(found: list[LostObject]) -> dict[str, LostObject]:
    return {each.text: each for each in found}


def test_each_thing_is_named_with_what_became_of_it() -> None:
    """Policies stand first; what a node announces again by itself, an endpoint and its identity, is not among them."""
    log, backup = changed()
    found = list(lost_objects(log.state, backup))
    assert [(each.text, each.what) for each in found] == [
        ("NetworkPolicy shop/added", GONE), ("NetworkPolicy shop/removed", BACK), ("Settings", GONE),
        ("Backend fd00::2 53/UDP", GONE), ("Name www.example.com", GONE), ("Pod shop/cart", GONE), ("Pod shop/web", OLDER),
    ]  # fmt: skip
    commands = {each.text: each.command for each in found if each.command}
    assert commands == {
        "Settings": "meshlog policy settings enable-policy=always",
        "Backend fd00::2 53/UDP": "meshlog service backend [fd00::2]:53/UDP --state maintenance",
        "Name www.example.com": "meshlog name add www.example.com 192.0.2.1",
    }
    assert lost_objects(log.state, log.state) == []


def test_manifests_put_back_what_was() -> None:
    """`apply` of what is gone or older makes the state that was, and each thing is mended by it."""
    log, backup = changed()
    found = list(lost_objects(log.state, backup))
    restored = Log()
    restored.state = backup.copy()
    restored.records = list(log.records)
    for each in found:
        if each.manifest:
            restored.wish(OPERATOR, command_of(each.manifest, "east"))
    left = [each.text for each in still_lost(found, restored.state)]
    assert left == ["NetworkPolicy shop/removed", "Settings", "Backend fd00::2 53/UDP", "Name www.example.com"]
    added = next(event for record in restored.records for event in decode(record.payload).events
                 if getattr(event, "name", "") == "added")  # fmt: skip
    assert restored.state.policies[by_name(found)["NetworkPolicy shop/added"].key].manifest == added.manifest


def test_only_what_was_added_is_put_back_without_asking() -> None:
    """Of one cluster, whatever it is; what was changed or removed since may be why somebody put the log back."""
    log, backup = changed()
    accept(log, Author("west", "operator"), ApplyWorkload("shop", "west", {}))
    commands = additions(log.state, backup, "east")
    assert [type(each).__name__ for each in commands] == [
        "ApplyPolicy", "ChangeSettings", "SetBackendState", "ResolveName", "ApplyWorkload",
    ]  # fmt: skip
    restored = Log()
    restored.state, restored.records = backup.copy(), list(log.records)
    for each in commands:
        accept(restored, OPERATOR, each)
    left = lost_objects(log.state, restored.state)
    assert [(each.text, each.what) for each in left] == [
        ("NetworkPolicy shop/removed", BACK), ("Pod shop/web", OLDER), ("Pod shop/west", GONE),
    ]  # fmt: skip
    assert additions(log.state, log.state, "east") == []


def test_what_somebody_changed_since_is_mended() -> None:
    """Another form than the one that was is a decision too."""
    log, backup = changed()
    found = list(lost_objects(log.state, backup))
    key = by_name(found)["Pod shop/web"].key
    backup.workloads[key] = msgspec.structs.replace(backup.workloads[key], labels={"app": "new"})
    assert "Pod shop/web" not in by_name(list(still_lost(found, backup)))
