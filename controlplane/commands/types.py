"""What a decision takes and gives. Belongs here: the shapes shared by all commands; not the commands themselves."""

from typing import NamedTuple

import msgspec

from controlplane.events import Event
from kvstore.types import Claim


class Author(NamedTuple):
    """On whose behalf a command is decided: the writer "node.<node>" or "operator" of a cluster."""

    cluster: str
    writer: str


class Decision(msgspec.Struct, frozen=True):
    """Events to append in one batch, with the claims that must hold. No events: the wish is already true."""

    events: tuple[Event, ...] = ()
    claims: tuple[Claim, ...] = ()


class Rejection(msgspec.Struct, frozen=True):
    """The command is refused. `field` is the path in the user's input ("spec.ports[0].port"), or ""."""

    reason: str
    field: str = ""
