"""Reading a document field by field, so that everything wrong in it is found and named. Pure.

Belongs here: paths, types and names of fields, for every kind of manifest. Does not belong here: what a field means.
An absent field and a null one are the same, as in the Kubernetes API; `[]` and `{}` are not absent.
"""

import difflib
import re
from collections.abc import Collection, Mapping
from typing import Any

import msgspec

DNS_LABEL = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?")
DNS_LABEL_MAX = 63
DNS_SUBDOMAIN_MAX = 253
LABEL_NAME = re.compile(r"[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?")
LABEL_NAME_MAX = 63
VALUE_SHOWN_MAX = 120


class Refusal(msgspec.Struct, frozen=True):
    """Why a document is not taken: `field` is a path ("spec.ports[0].port"), `value` its JSON, "" where absent."""

    field: str
    value: str
    reason: str

    def __str__(self) -> str:
        where = f"{self.field}: " if self.field else ""
        return f"{where}{self.value + ': ' if self.value else ''}{self.reason}"


def path_of(path: str, field: str) -> str:
    return f"{path}.{field}" if path else field


def _shown(value: Any) -> str:
    if value is None:
        return ""
    try:
        text = msgspec.json.encode(value).decode()
    except (TypeError, ValueError, msgspec.MsgspecError):
        text = str(value)
    return text if len(text) <= VALUE_SHOWN_MAX else text[: VALUE_SHOWN_MAX - 3] + "..."


def _is_label_name(text: str) -> bool:
    return len(text) <= LABEL_NAME_MAX and LABEL_NAME.fullmatch(text) is not None


class Reading:
    """Collects the refusals of one document while it is read. Readers go on with an empty value after a refusal."""

    def __init__(self) -> None:
        self.refusals: list[Refusal] = []

    def refuse(self, path: str, value: Any, reason: str) -> None:
        self.refusals.append(Refusal(path, _shown(value), reason))

    def mapping(
        self,
        value: Any,
        path: str,
        known: Collection[str] | None = None,
        unsupported: Mapping[str, str] | None = None,
    ) -> dict[str, Any]:
        """The mapping without its null fields. `known` None: any key; `unsupported`: known names and why not."""
        if value is None:
            return {}
        if not isinstance(value, dict):
            self.refuse(path, value, "must be a mapping")
            return {}
        present: dict[str, Any] = {}
        for key, item in value.items():
            if not isinstance(key, str):
                self.refuse(path, key, "keys must be text; write the key in quotes")
            elif known is not None and key not in known:
                self._refuse_key(path, key, item, known, unsupported or {})
            elif item is not None:
                present[key] = item
        return present

    def _refuse_key(
        self, path: str, key: str, item: Any, known: Collection[str], unsupported: Mapping[str, str]
    ) -> None:
        if key in unsupported:
            if item is not None:
                self.refuse(path_of(path, key), item, unsupported[key])
            return
        near = difflib.get_close_matches(key, sorted({*known, *unsupported}), n=1, cutoff=0.5)
        hint = f"did you mean {near[0]}?" if near else f"known here: {', '.join(sorted(known))}"
        self.refuse(path_of(path, key), item, f"unknown field; {hint}")

    def sequence(self, value: Any, path: str) -> list[Any]:
        if value is None:
            return []
        if not isinstance(value, list):
            self.refuse(path, value, "must be a list")
            return []
        return value

    def text(self, value: Any, path: str, *, required: bool = False) -> str:
        if value is None and not required:
            return ""
        if not isinstance(value, str) or (required and not value):
            hint = "; write it in quotes" if isinstance(value, (int, float, bool)) else ""
            self.refuse(path, value, f"must be text{hint}" if value is not None else "is required")
            return ""
        return value

    def number(self, value: Any, path: str, low: int, high: int) -> int | None:
        if isinstance(value, int) and not isinstance(value, bool) and low <= value <= high:
            return value
        self.refuse(path, value, f"must be a number from {low} to {high}")
        return None

    def flag(self, value: Any, path: str, default: bool) -> bool:
        if value is None:
            return default
        if isinstance(value, bool):
            return value
        self.refuse(path, value, "must be true or false")
        return default

    def one_of(self, value: Any, path: str, allowed: Collection[str], default: str = "") -> str:
        if value is None:
            return default
        if isinstance(value, str) and value in allowed:
            return value
        self.refuse(path, value, f"must be one of {', '.join(allowed)}")
        return default

    def dns_label(self, value: Any, path: str) -> str:
        text = self.text(value, path, required=True)
        if text and (len(text) > DNS_LABEL_MAX or not DNS_LABEL.fullmatch(text)):
            self.refuse(path, value, "must be a DNS label: a-z, 0-9 and -, at most 63 characters")
            return ""
        return text

    def dns_subdomain(self, value: Any, path: str) -> str:
        text = self.text(value, path, required=True)
        if text and (len(text) > DNS_SUBDOMAIN_MAX or not all(map(DNS_LABEL.fullmatch, text.split(".")))):
            self.refuse(path, value, "must be a DNS name: labels of a-z, 0-9 and -, joined by dots")
            return ""
        return text

    def label_key(self, key: str, path: str) -> str:
        """A Kubernetes label key: an optional DNS prefix and "/", then a name."""
        prefix, slash, name = key.rpartition("/")
        good = _is_label_name(name) and (
            not slash or (len(prefix) <= DNS_SUBDOMAIN_MAX and all(map(DNS_LABEL.fullmatch, prefix.split("."))))
        )
        if not good:
            self.refuse(path, key, "must be a label key: [prefix/]name of letters, digits, -, _ and .")
        return key if good else ""

    def label_value(self, value: Any, path: str) -> str:
        text = self.text(value, path)
        if text and not _is_label_name(text):
            self.refuse(path, value, "must be a label value: letters, digits, -, _ and ., at most 63 characters")
            return ""
        return text

    def labels(self, value: Any, path: str) -> dict[str, str]:
        """Labels of an object, by key."""
        found: dict[str, str] = {}
        for key, item in sorted(self.mapping(value, path).items()):
            if self.label_key(key, f"{path}[{key}]"):
                found[key] = self.label_value(item, f"{path}[{key}]")
        return found

    def texts(self, value: Any, path: str) -> dict[str, str]:
        """Annotations: any text by any key."""
        return {key: self.text(item, f"{path}[{key}]") for key, item in sorted(self.mapping(value, path).items())}
