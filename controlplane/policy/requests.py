"""Rules about requests inside a connection (layer 7): HTTP, DNS, Kafka, and the server name of TLS. Pure.

Belongs here: the parsed forms, and which request they allow, as "Layer 7 Policies" of Cilium's documentation says it.
Does not belong here: reading them from manifests (cilium_requests.py), enforcing them (a proxy's work; as long as there
is none, the kernel keeps such traffic out).
"""

import re
from collections.abc import Mapping
from functools import lru_cache

import msgspec

from controlplane.policy.names import canonical_name, name_matches

HTTP = "http"
DNS = "dns"
KAFKA = "kafka"
SERVER_NAMES = "serverNames"


class HeaderMatch(msgspec.Struct, frozen=True):
    """`value` None: the header is there. `required` False: a mismatch is repaired or logged and the request goes on."""

    name: str
    value: str | None = None
    required: bool = True


class HttpRule(msgspec.Struct, frozen=True):
    """Each of `method`, `path` and `host` is a regular expression for the whole text, "" for any."""

    method: str = ""
    path: str = ""
    host: str = ""
    headers: tuple[HeaderMatch, ...] = ()


class KafkaRule(msgspec.Struct, frozen=True):
    """As written, "" for any."""

    role: str = ""
    api_key: str = ""
    api_version: str = ""
    client_id: str = ""
    topic: str = ""


class RequestRules(msgspec.Struct, frozen=True):
    """A request is allowed if one of the rules of its protocol allows it. `names`: patterns, of DNS or server names."""

    protocol: str
    http: tuple[HttpRule, ...] = ()
    names: tuple[str, ...] = ()
    kafka: tuple[KafkaRule, ...] = ()


class HttpRequest(msgspec.Struct, frozen=True):
    method: str = "GET"
    path: str = "/"
    host: str = ""
    headers: Mapping[str, str] = {}


class Request(msgspec.Struct, frozen=True):
    """What is known of a request; all that is absent matches no rule that asks for it."""

    http: HttpRequest | None = None
    dns: str = ""
    sni: str = ""

    @property
    def is_known(self) -> bool:
        return self.http is not None or bool(self.dns) or bool(self.sni)


NO_REQUEST = Request()


def permits(rules: RequestRules, request: Request) -> bool:
    if rules.protocol == HTTP:
        found = request.http
        return found is not None and any(_http_permits(rule, found) for rule in rules.http)
    if rules.protocol in (DNS, SERVER_NAMES):
        name = canonical_name(request.dns if rules.protocol == DNS else request.sni)
        return bool(name) and any(name_matches(pattern, name) for pattern in rules.names)
    return False


def _http_permits(rule: HttpRule, request: HttpRequest) -> bool:
    parts = ((rule.method, request.method), (rule.path, request.path), (rule.host, request.host))
    if not all(_expression(wanted).fullmatch(given) for wanted, given in parts if wanted):
        return False
    headers = {name.lower(): value for name, value in request.headers.items()}
    return all(_has_header(match, headers) for match in rule.headers if match.required)


def _has_header(match: HeaderMatch, headers: Mapping[str, str]) -> bool:
    value = headers.get(match.name.lower())
    return value is not None and (match.value is None or value == match.value)


_CLASSES = {
    "alnum": "0-9A-Za-z", "alpha": "A-Za-z", "ascii": r"\x00-\x7f", "blank": r"\t ", "cntrl": r"\x00-\x1f\x7f",
    "digit": "0-9", "graph": "!-~", "lower": "a-z", "print": " -~", "punct": r"!-/:-@\[-`{-~", "space": r"\t-\r ",
    "upper": "A-Z", "word": "0-9A-Za-z_", "xdigit": "0-9A-Fa-f",
}  # fmt: skip
_PIECES = re.compile(r"\\.|\[\^?\]?(?:\[:\^?\w+:\]|\\.|[^\]\\])*\]|\(\?(?:<?[=!]|[>(]|P=)|[*+?}]\+|.", re.DOTALL)
"""An escape, a whole bracket, the start of a group that looks around or back, a possessive repetition, a character."""


@lru_cache(maxsize=4096)
def _expression(text: str) -> re.Pattern[str]:
    """As RE2 reads it, which is what the proxy is given. Raises re.error for what only Python understands too."""
    pieces = []
    for found in _PIECES.finditer(text):
        piece = found[0]
        looks_back = piece[0] == "\\" and piece[1:] in "123456789"
        if piece.startswith("(?") or looks_back or (piece[1:] == "+" and piece[0] in "*+?}"):
            raise re.error(f"{piece} at position {found.start()} is not understood by proxies (RE2)")
        pieces.append(_bracket(piece) if piece[0] == "[" and len(piece) > 1 else piece)
    return re.compile("".join(pieces), re.ASCII)


def _bracket(piece: str) -> str:
    """With its POSIX classes as Python writes them. Raises re.error."""

    def plain(found: re.Match[str]) -> str:
        if found[1] not in _CLASSES:
            raise re.error(f"[:{found[1]}:] is no class of characters; there are {', '.join(_CLASSES)}")
        return _CLASSES[found[1]]

    return "[" + re.sub(r"\[:(\^?\w+):\]", plain, piece[1:]).replace("[", r"\[").replace(r"\\[", r"\[")


def expression_fault(text: str) -> str:
    """What is wrong with a regular expression, or ""."""
    try:
        _expression(text)
    except re.error as error:
        return f"must be a regular expression: {error}"
    return ""
