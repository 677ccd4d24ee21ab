"""Rules about requests inside a connection (layer 7): HTTP, DNS, Kafka, and the server name of TLS. Pure.

Belongs here: the parsed forms, and which request they allow, as "Layer 7 Policies" of Cilium's documentation says it.
Does not belong here: reading them from manifests (cilium_requests.py), enforcing them (a proxy's work; as long as there
is none, the kernel keeps such traffic out).
"""

from collections.abc import Mapping

import msgspec

from controlplane.policy.expressions import expression
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
    if not all(expression(wanted).fullmatch(given) for wanted, given in parts if wanted):
        return False
    headers = {name.lower(): value for name, value in request.headers.items()}
    return all(_has_header(match, headers) for match in rule.headers if match.required)


def _has_header(match: HeaderMatch, headers: Mapping[str, str]) -> bool:
    value = headers.get(match.name.lower())
    return value is not None and (match.value is None or value == match.value)
