"""What a policy may say and a running mesh cannot hold, so that it is refused and not left without effect. Pure.

Belongs here: such parts of manifests that have been understood. Does not belong here: settings (commands/addresses.py),
what the programs hold stricter than it is written (desired/policy_problems.py).
"""

from collections.abc import Iterator
from typing import Any

import msgspec

from controlplane.fields import Refusal

API_SERVER = "kube-apiserver"
API_SERVER_KEY = f"reserved:{API_SERVER}"
DENY_SECTIONS = ("ingressDeny", "egressDeny")
NO_API_SERVER = (
    "not in a running mesh: no address there has this identity, so the rule would deny nothing; name the addresses "
    "with fromCIDR or toCIDR, or entity remote-node; `meshlog verdict --manifests` takes it"
)


def refused_online(manifest: str) -> Refusal | None:
    """The first part of a manifest, which is canonical JSON, that would fail open."""
    if API_SERVER not in manifest:
        return None
    document = msgspec.json.decode(manifest)
    specs = [("spec", document.get("spec") or {})]
    specs += [(f"specs[{number}]", each) for number, each in enumerate(document.get("specs") or ())]
    return next((refusal for path, spec in specs for refusal in _denials(path, spec)), None)


def _denials(spec_path: str, spec: dict[str, Any]) -> Iterator[Refusal]:
    for section in DENY_SECTIONS:
        for number, rule in enumerate(spec.get(section) or ()):
            for side in ("from", "to"):
                path = f"{spec_path}.{section}[{number}].{side}"
                for place, entity in enumerate(rule.get(f"{side}Entities") or ()):
                    if entity == API_SERVER:
                        yield Refusal(f"{path}Entities[{place}]", entity, NO_API_SERVER)
                for place, selector in enumerate(rule.get(f"{side}Endpoints") or ()):
                    if _names_api_server(selector):
                        yield Refusal(f"{path}Endpoints[{place}]", API_SERVER_KEY, NO_API_SERVER)


def _names_api_server(selector: dict[str, Any]) -> bool:
    keys = [*(selector.get("matchLabels") or {})]
    keys += [each.get("key") for each in selector.get("matchExpressions") or ()]
    return API_SERVER_KEY in keys
