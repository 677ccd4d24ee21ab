"""Identity numbers: found or allocated with a decision that needs one, released when nobody can use them. Pure."""

import hashlib
from itertools import chain

import msgspec

from controlplane.commands.cluster import cluster_claim
from controlplane.commands.types import Author, Decision, Rejection
from controlplane.events import IdentityAllocated, IdentityReleased
from controlplane.model import IDENTITY_BITS, IDENTITY_N_MAX, IDENTITY_N_MIN, Labels
from controlplane.projections.state import State
from kvstore.types import Claim, Want


class ReleaseIdentity(msgspec.Struct, frozen=True):
    """The number has no user, and every node has reported a revision beyond its last one."""

    number: int


def identity_for(
    state: State, author: Author, labels: Labels, preferred: int = 0
) -> tuple[int, Decision] | Rejection:
    """The number of a label set, and what must be appended for it: of a known one the claim alone, held, so that no
    release that did not see this use can stand.

    A new number is the first free one behind the last given out, so that a released number stays unused longest; but
    `preferred`, which packets carry already, if it is free.
    """
    known = state.identity_numbers.get((author.cluster, labels))
    if known is not None:
        return known, Decision(claims=(Claim(number_claim(author.cluster, known), Want.HELD),))
    cluster = state.clusters.get(author.cluster)
    if cluster is None:
        return Rejection(f"cluster {author.cluster} has not joined the mesh; its operator must come first")
    base = cluster.cluster_id << IDENTITY_BITS
    count = IDENTITY_N_MAX - IDENTITY_N_MIN + 1
    last = state.last_identity.get(author.cluster, base + IDENTITY_N_MIN - 1) - base
    wished = (preferred,) if IDENTITY_N_MIN <= preferred - base <= IDENTITY_N_MAX else ()
    following = (base + IDENTITY_N_MIN + (last - IDENTITY_N_MIN + 1 + step) % count for step in range(count))
    for number in chain(wished, following):
        if number not in state.identities:
            claims = (
                Claim(cluster_claim(cluster.cluster_id), Want.HELD),
                Claim(number_claim(author.cluster, number)),
                Claim(labels_claim(author.cluster, labels), value=str(number).encode()),
            )
            return number, Decision((IdentityAllocated(number, labels),), claims)
    return Rejection(f"all {count} identity numbers of cluster {author.cluster} are in use")


def release_identity(state: State, author: Author, command: ReleaseIdentity) -> Decision | Rejection:
    """Free the number and its labels for others, unless somebody has used the number meanwhile."""
    identity = state.identities.get(command.number)
    if identity is None:
        return Decision()
    if state.identity_users.get(command.number):
        return Rejection(f"identity {command.number} has {state.identity_users[command.number]} endpoints", "number")
    claims = (
        Claim(number_claim(author.cluster, command.number), Want.FREED, untouched_since=state.revision),
        Claim(labels_claim(author.cluster, identity.labels), Want.FREED),
    )
    return Decision((IdentityReleased(command.number),), claims)


def number_claim(cluster: str, number: int) -> str:
    """The claim's key of a number."""
    return f"identity/{cluster}/number/{number}"


def labels_claim(cluster: str, labels: Labels) -> str:
    """The claim's key of a label set: a hash, since labels may be long."""
    return f"identity/{cluster}/labels/{hashlib.blake2b(','.join(labels).encode(), digest_size=16).hexdigest()}"
