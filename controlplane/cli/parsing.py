"""How a command line that cannot be meant is told: one line with what is wrong and what would be right.

Belongs here: argparse's own complaints. Does not belong here: any flag; values that only a command can judge.
"""

import argparse
import re
from collections.abc import Iterable, Iterator
from difflib import get_close_matches
from typing import Any, NoReturn

from controlplane.cli.errors import UsageError

UNKNOWN = "unrecognized arguments: "
INVALID_CHOICE = re.compile(r"invalid choice: '(?P<given>.*)' \(choose from (?P<right>.*)\)$")


class Parser(argparse.ArgumentParser):
    """A parser of a command, and of each of its verbs. Raises UsageError where argparse prints a page of usage."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        named = {"formatter_class": argparse.RawDescriptionHelpFormatter, "allow_abbrev": False, **named}
        super().__init__(*arguments, **named)

    def error(self, message: str) -> NoReturn:
        """With the nearest word that is known."""
        command = self.prog.partition(" ")[2]
        raise UsageError(f"{command}: {self._told(message)}; `{self.prog} --help` says more")

    def _told(self, message: str) -> str:
        if message.startswith(UNKNOWN):
            given = message.removeprefix(UNKNOWN)
            known = sorted({flag for parser in self._with_verbs() for flag in parser._option_string_actions})
            return f"{given}: unknown{_nearest(given.split()[0].partition('=')[0], known)}"
        choice = INVALID_CHOICE.search(message)
        if choice:
            right = choice["right"].replace("'", "").split(", ")
            where = message[: choice.start()].removeprefix("argument ").rstrip(": ")
            nearest = _nearest(choice["given"], right)
            return f"{where} {choice['given']!r}: right is one of {', '.join(right)}{nearest}"
        required = "the following arguments are required: "
        return message.replace(required, "missing: ") if message.startswith(required) else message

    def _with_verbs(self) -> Iterator["argparse.ArgumentParser"]:
        yield from with_verbs(self)


def with_verbs(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    """The parser and those of its verbs, each once."""
    yield parser
    for action in parser._actions:  # argparse offers no public way to its flags
        if isinstance(action, argparse._SubParsersAction):
            for verb in dict.fromkeys(action.choices.values()):
                yield from with_verbs(verb)


def whole_number(text: str) -> int:
    """Of a flag that takes a revision or a count. Raises argparse.ArgumentTypeError."""
    if not text.isascii() or not text.isdigit():
        raise argparse.ArgumentTypeError(f"{text!r}: right is a whole number, such as 42")
    return int(text)


def _nearest(given: str, known: Iterable[str]) -> str:
    close = get_close_matches(given, list(known), n=1)
    return f"; did you mean {close[0]}?" if close else ""
