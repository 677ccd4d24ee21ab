"""DNS names and the patterns that policies write for them. Pure.

Belongs here: the form of a name, what a pattern matches, as Cilium's users know it ("DNS based" in "Layer 3 Policy"):
`*` stands for any characters of one label, none too; `**.` at the start for one or more whole labels; a pattern of
stars alone for every name. Does not belong here: which addresses a name has (projections/names.py).
"""

import re
from functools import lru_cache

NAME_CHARS_MAX = 255
_CHAR = "[-a-zA-Z0-9_]"
_NAME = re.compile(rf"{_CHAR}+(\.{_CHAR}+)*\.?")
_PATTERN = re.compile(r"[-a-zA-Z0-9_.*]+")
_ANY_NAME = re.compile(rf"({_CHAR}+\.)*{_CHAR}*")


def canonical_name(text: str) -> str:
    """Lower case, without the dot at the end: equal names are equal text."""
    return text.strip().lower().removesuffix(".")


def name_fault(text: str) -> str:
    """What is wrong with a name, or ""."""
    if len(text) > NAME_CHARS_MAX or not _NAME.fullmatch(text):
        return f"must be a DNS name: letters, digits, - and _ between single dots, at most {NAME_CHARS_MAX} characters"
    return ""


def pattern_fault(text: str) -> str:
    """What is wrong with a pattern, or ""."""
    if len(text) > NAME_CHARS_MAX or not _PATTERN.fullmatch(text):
        return f"must be a DNS name in which * stands for characters, at most {NAME_CHARS_MAX} characters"
    return ""


def name_matches(pattern: str, name: str) -> bool:
    """Whether a canonical pattern (a name is one too) matches a canonical name."""
    return _expression(pattern).fullmatch(name) is not None


@lru_cache(maxsize=4096)
def _expression(pattern: str) -> re.Pattern[str]:
    if not pattern.strip("*"):
        return _ANY_NAME
    start = ""
    deep = re.match(r"\*{2,}\.", pattern)
    if deep:
        start = rf"({_CHAR}+\.)+"
        pattern = pattern[deep.end() :]
    parts = (re.escape(part) for part in re.split(r"\*+", pattern))
    return re.compile(start + f"{_CHAR}*".join(parts))
