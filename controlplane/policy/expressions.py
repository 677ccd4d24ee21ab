"""Regular expressions as users of Cilium write them: those of RE2. Pure.

Belongs here: reading them with Python's, and telling those that only Python understands, or that could keep it busy.
Does not belong here: what is matched by them (requests.py, identity_labels.py).
"""

import re
from functools import lru_cache

_CLASSES = {
    "alnum": "0-9A-Za-z", "alpha": "A-Za-z", "ascii": r"\x00-\x7f", "blank": r"\t ", "cntrl": r"\x00-\x1f\x7f",
    "digit": "0-9", "graph": "!-~", "lower": "a-z", "print": " -~", "punct": r"!-/:-@\[-`{-~", "space": r"\t-\r ",
    "upper": "A-Z", "word": "0-9A-Za-z_", "xdigit": "0-9A-Fa-f",
}  # fmt: skip
_PIECES = re.compile(r"\\.|\[\^?\]?(?:\[:\^?\w+:\]|\\.|[^\]\\])*\]|\(\?(?:<?[=!]|[>(]|P=)|[*+?}]\+|.", re.DOTALL)
"""An escape, a whole bracket, the start of a group that looks around or back, a possessive repetition, a character."""
_OPENS = re.compile(r"\((\?[^:)>]*[:)>])?")
_REPEATS = re.compile(r"\{(\d+)(,?)(\d*)\}|[*+?]")

CHARS_MAX = 512
TRIES_MAX = 10_000_000
"""Ways through a text of CHARS_MAX characters that an expression may have: a tenth of a second of matching at most."""


@lru_cache(maxsize=4096)
def expression(text: str) -> re.Pattern[str]:
    """As RE2 reads it, which is what the proxy is given. Raises re.error for what only Python understands too."""
    pieces = []
    for found in _PIECES.finditer(text):
        piece = found[0]
        looks_back = piece[0] == "\\" and piece[1:] in "123456789"
        if piece.startswith("(?") or looks_back or (piece[1:] == "+" and piece[0] in "*+?}"):
            raise re.error(f"{piece} at position {found.start()} is not understood by RE2, whose expressions these are")
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
        expression(text)
    except re.error as error:
        return f"must be a regular expression: {error}"
    return ""


def effort_fault(text: str) -> str:
    """Why matching could take long, or "": Python goes one way after the other, and RE2, which goes all at once, is
    not at hand. For expressions that every node matches, whoever wrote them."""
    if len(text) > CHARS_MAX:
        return f"is longer than {CHARS_MAX} characters"
    tries, place = 1, 0
    groups: list[list[int]] = [[1, 0]]
    """Of each group that is open: its alternatives, and whether it repeats something."""
    closed, previous = [1, 0], ""
    while place < len(text):
        repeats = _REPEATS.match(text, place)
        found = repeats or _OPENS.match(text, place) or _PIECES.match(text, place)
        assert found is not None
        if repeats and place:
            if previous == ")" and (closed[1] or closed[0] > 1) and repeats[0] != "?":
                return f"repeats a group that repeats something itself or has alternatives, at position {place}"
            most = int(repeats[3] or repeats[1]) if repeats[1] and (repeats[3] or not repeats[2]) else CHARS_MAX
            tries *= 2 if repeats[0] == "?" else max(1, most)
            groups[-1][1] = 1
        elif found[0].startswith("(") and not found[0].endswith(")"):
            groups.append([1, 0])
        elif found[0] == ")" and len(groups) > 1:
            closed = groups.pop()
            groups[-1][1] |= closed[1]
            tries *= closed[0]
        elif found[0] == "|":
            groups[-1][0] += 1
        place, previous = found.end(), found[0]
    if tries * groups[0][0] > TRIES_MAX:
        return "has too many repetitions and alternatives for one expression; several simpler ones say the same"
    return ""
