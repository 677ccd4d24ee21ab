"""The command line of a process, made from its settings: one flag per field.

Belongs here: argparse and the exit code of a wrong flag. Does not belong here: what a setting means (settings.py).
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from typing import TypeVar

import msgspec

from controlplane.settings import (
    CommonSettings,
    SettingsError,
    flag_name,
    is_repeatable,
    read_settings,
    setting_hints,
)

EXIT_BAD_FLAG = 2

type_Settings = TypeVar("type_Settings", bound=CommonSettings)


def parser_of(
    program: str, description: str, kind: type[CommonSettings], helps: Mapping[str, str]
) -> argparse.ArgumentParser:
    """A parser with a flag for every field; those without a help text are bounds, which rarely change."""
    parser = argparse.ArgumentParser(prog=program, description=description)
    parser.add_argument(
        "--config", default="", metavar="FILE", help="settings by name, TOML, or JSON where it ends so"
    )
    hints = setting_hints(kind)
    for field in sorted(msgspec.structs.fields(kind), key=lambda field: field.name not in helps):
        shown = "" if field.required else f" (default: {_shown(field.default)})"
        text = helps.get(field.name, "bound; see settings.py") + shown
        if is_repeatable(hints[field.name]):
            parser.add_argument(flag_name(field.name), action="append", help=f"{text}; can be given again")
        else:
            parser.add_argument(flag_name(field.name), help=text)
    return parser


def settings_from(
    parser: argparse.ArgumentParser, kind: type[type_Settings], argv: Sequence[str] | None
) -> type_Settings:
    """The settings of this process. Ends it with exit code 2 and one line where they are wrong."""
    given = vars(parser.parse_args(argv))
    config = given.pop("config")
    try:
        return read_settings(kind, given, file_path=config)
    except SettingsError as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        raise SystemExit(EXIT_BAD_FLAG) from None


def _shown(value: object) -> str:
    return "none" if value in ("", ()) else str(value)
