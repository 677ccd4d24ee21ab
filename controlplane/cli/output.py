"""How answers look: tables, JSON, YAML. Belongs here: layout. Does not belong here: what the columns are."""

import argparse
import json
import os
import sys
from collections.abc import Sequence
from typing import Any

FORMATS = ("table", "wide", "json", "yaml")
GAP = 3

Cell = str | int | Sequence[str]
"""A cell of several lines pushes the next row down; the other cells stay blank beside it."""

RED, GREEN, YELLOW, PLAIN = "\033[31m", "\033[32m", "\033[33m", "\033[0m"


def add_output(parser: argparse.ArgumentParser) -> None:
    """The flag -o."""
    parser.add_argument("-o", "--output", choices=FORMATS, default="table", help="how to print (default: table)")


def print_document(form: str, document: Any) -> None:
    """As JSON or YAML."""
    if form == "yaml":
        import yaml

        print(yaml.safe_dump(document, sort_keys=False, allow_unicode=True), end="")
    else:
        print(json.dumps(document, indent=2, ensure_ascii=False))


def print_table(headers: Sequence[Sequence[str]], rows: Sequence[Sequence[Cell]]) -> None:
    """Left-aligned columns; no rows: "No entries found." on standard error, as the BPF lists of Cilium do."""
    if not rows:
        print("No entries found.", file=sys.stderr)
        return
    lines = [list(header) for header in headers]
    for row in rows:
        lines += _lines_of(row)
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    for line in lines:
        print((" " * GAP).join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


def _lines_of(row: Sequence[Cell]) -> list[list[str]]:
    cells = [[str(cell)] if isinstance(cell, str | int) else [str(part) for part in cell] for cell in row]
    height = max(max(map(len, cells)), 1)
    return [[cell[number] if number < len(cell) else "" for cell in cells] for number in range(height)]


def coloured(text: str, colour: str) -> str:
    """Coloured on a terminal only; NO_COLOR is honoured."""
    if not sys.stdout.isatty() or os.environ.get("NO_COLOR"):
        return text
    return f"{colour}{text}{PLAIN}"
