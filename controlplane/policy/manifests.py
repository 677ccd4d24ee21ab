"""From a policy's manifest to its parsed form, or to everything that is wrong with it. Pure.

Belongs here: which kinds exist, metadata, and the version of the meaning. Does not belong here: the fields of a spec
(network_policy.py, cilium.py).
"""

from typing import Any

import msgspec

from controlplane.fields import Reading, Refusal
from controlplane.model import ObjectKey
from controlplane.policy.cilium import CiliumPolicyParser
from controlplane.policy.network_policy import NetworkPolicyParser
from controlplane.policy.rules import ParsedPolicy
from controlplane.policy.settings import DEFAULTS, PolicySettings

PARSER_VERSION = 1
"""The meaning that a manifest is given when it is applied; the event records it, and replay asks for it again.

It is that of the newest release. Until a version is released nobody's log depends on its meanings, so that mending one
leaves the number; after that, a change of what a manifest that was taken means is a new number, beside the parsers that
the older ones name. A refusal that becomes a meaning, or a meaning that becomes a refusal on apply alone, is no change.
"""

NETWORK_POLICY = "NetworkPolicy"
CILIUM_NETWORK_POLICY = "CiliumNetworkPolicy"
CILIUM_CLUSTERWIDE = "CiliumClusterwideNetworkPolicy"
API_VERSIONS = {
    NETWORK_POLICY: "networking.k8s.io/v1",
    CILIUM_NETWORK_POLICY: "cilium.io/v2",
    CILIUM_CLUSTERWIDE: "cilium.io/v2",
}
WITHOUT_NAMESPACE = (CILIUM_CLUSTERWIDE,)

POLICY_FIELDS = ("apiVersion", "kind", "metadata", "spec", "status")
CILIUM_FIELDS = (*POLICY_FIELDS, "specs")
DEFAULT_NAMESPACE = "default"


def canonical(manifest: dict[str, Any]) -> str:
    """The stored form: JSON with sorted keys. Equal manifests are equal text."""
    return msgspec.json.encode(manifest, order="sorted").decode()


def parse(
    kind: str,
    manifest: dict[str, Any],
    cluster: str,
    parser_version: int = PARSER_VERSION,
    settings: PolicySettings = DEFAULTS,
) -> ParsedPolicy | tuple[Refusal, ...]:
    """All refusals at once; never a policy that is understood in part."""
    reading = Reading()
    if parser_version != PARSER_VERSION:
        reading.refuse("", parser_version, f"this version reads policies of parser {PARSER_VERSION}")
        return tuple(reading.refusals)
    if kind not in API_VERSIONS:
        reading.refuse("kind", kind, f"must be one of {', '.join(API_VERSIONS)}")
        return tuple(reading.refusals)
    document = reading.mapping(manifest, "", POLICY_FIELDS if kind == NETWORK_POLICY else CILIUM_FIELDS)
    if document.get("kind", kind) != kind:
        reading.refuse("kind", document["kind"], f"must be {kind}")
    if document.get("apiVersion", API_VERSIONS[kind]) != API_VERSIONS[kind]:
        reading.refuse("apiVersion", document["apiVersion"], f"must be {API_VERSIONS[kind]}")
    metadata = reading.mapping(document.get("metadata"), "metadata")
    name = reading.dns_subdomain(metadata.get("name"), "metadata.name")
    namespace = ""
    if kind not in WITHOUT_NAMESPACE:
        namespace = reading.dns_label(metadata.get("namespace", DEFAULT_NAMESPACE), "metadata.namespace")
    key = ObjectKey(cluster, kind, namespace, name)
    if kind == NETWORK_POLICY:
        spec = document.get("spec")
        if spec is None and not reading.refusals:
            reading.refuse("spec", None, "is required")
        found = NetworkPolicyParser(reading, key, settings).parse(spec)
    else:
        found = _cilium(reading, CiliumPolicyParser(reading, key, settings), document)
    if kind in settings.ignored and not reading.refusals:
        return ParsedPolicy(key, found.subject, enforce_ingress=False, enforce_egress=False, rules=())
    return tuple(reading.refusals) or found


def _cilium(reading: Reading, parser: CiliumPolicyParser, document: dict[str, Any]) -> ParsedPolicy:
    """`spec`, and `specs` beside it or in its place: each selects and enforces for itself."""
    specs = [(document["spec"], "spec")] if "spec" in document else []
    listed = reading.sequence(document.get("specs"), "specs")
    specs += [(item, f"specs[{number}]") for number, item in enumerate(listed)]
    if not specs:
        if not reading.refusals:
            reading.refuse("spec", None, "is required")
        specs = [({"endpointSelector": {}}, "spec")]
    first, *more = (parser.parse(*item) for item in specs)
    return msgspec.structs.replace(first, more=tuple(more))


def parse_text(
    kind: str, text: str, cluster: str, parser_version: int, settings: PolicySettings = DEFAULTS
) -> ParsedPolicy | tuple[Refusal, ...]:
    """The same from the stored form."""
    try:
        manifest = msgspec.json.decode(text)
    except msgspec.MsgspecError as error:
        return (Refusal("", "", f"the stored manifest is not JSON: {error}"),)
    return parse(kind, manifest, cluster, parser_version, settings)
