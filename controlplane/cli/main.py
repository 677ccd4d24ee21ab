"""The program `meshlog`: finds the command and runs it; turns every failure into one line and an exit status.

Belongs here: the overview of commands and what holds for all of them. Does not belong here: any command. Modules of
commands are imported when they run, so that `meshlog --help` and completion are fast.
"""

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from types import ModuleType

from controlplane.cli.errors import OK, USAGE, CommandFailed, UsageError

GROUPS: dict[str, dict[str, tuple[str, str]]] = {
    "Run": {
        "agent": ("run_agent", "run a node's agent"),
        "operator": ("run_operator", "run a cluster's operator"),
        "cni": ("run_cni", "the CNI plugin, as a container runtime calls it"),
        "lab": ("lab", "a whole mesh on this machine: up, down, exec, status, story"),
    },
    "Ask": {
        "status": ("status", "is it healthy, is it in sync"),
        "mesh": ("mesh", "how far every node is: revision, lag, digests"),
        "connectivity": ("connectivity", "who reaches whom, by real packets between pods of its own"),
        "verify": ("verify", "compare what the kernel holds with what the log says"),
        "monitor": ("monitor", "drops and verdicts as they happen"),
        "observe": ("observe", "flows of all nodes here, as `hubble observe` shows them"),
        "node": ("node", "nodes of the mesh"),
        "endpoint": ("endpoint", "workloads attached to a node"),
        "identity": ("identity", "security identities and their labels"),
        "service": ("service", "services, frontends and backends"),
        "policy": ("policy", "network policies in force"),
        "name": ("name", "DNS names and their addresses, for policies by name"),
        "verdict": ("verdict", "what would happen to a flow, here or by manifests alone"),
        "render": ("render", "the tables of a node from manifests alone"),
        "flow": ("flow", "who reached whom, as nodes have recorded it"),
        "ip": ("ip", "addresses and prefixes, and whose they are"),
        "bpf": ("bpf", "what the kernel's maps hold"),
        "log": ("log", "the history: list, follow, show, bisect, replay"),
        "why": ("why", "why a flow is allowed or denied, or a map row there; the records behind it"),
        "capsule": ("capsule", "an incident in one file: export, open, verify"),
        "sysdump": ("sysdump", "all about this machine's part of the mesh in one file, also of dead agents"),
        "diff": ("diff", "what is other between two points of the history"),
    },
    "Change": {
        "apply": ("apply", "put Kubernetes manifests into the log"),
        "delete": ("delete", "take what manifests name out of the log"),
        "get": ("get", "manifests as they are in force"),
    },
    "Other": {
        "etcd": ("etcd", "the store of the log: roles for agents, operators and readers"),
        "version": ("version", "print the version"),
        "completion": ("completion", "print a completion script for bash"),
    },
}
COMMANDS = {name: entry for group in GROUPS.values() for name, entry in group.items()}
AT_ENVIRONMENT = "MESHLOG_AT"
"""The point in the history that commands answer about, where --at says nothing."""
POINT_FLAGS = ("--at", "--since", "--until")
OF_NOW = ("status", "mesh", "verify", "monitor", "observe", "connectivity", "sysdump", "apply", "delete")
"""Commands without a past: under MESHLOG_AT they refuse, instead of answering about another time than was asked."""
GLOBAL_FLAGS = ("--node", "--socket", "-o", "--output")
_EPILOG = """Which agent is asked: --node NAME, --socket PATH or MESHLOG_SOCKET; otherwise the only one on this machine.
Exit status: 0 well, 1 failed, 2 wrong usage. MESHLOG_DEBUG=1 shows where a failure comes from.

Examples:
  meshlog lab up
  meshlog status
  meshlog endpoint list -o wide
  meshlog log follow
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; the exit status."""
    words = joined(list(sys.argv[1:] if argv is None else argv))
    try:
        return _run(words)
    except (CommandFailed, UsageError) as error:
        if os.environ.get("MESHLOG_DEBUG"):
            raise
        print(f"meshlog: {error}", file=sys.stderr)
        return error.exit_status
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # the reader, `head` for one, has what it wanted
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return OK
    except Exception as error:
        if os.environ.get("MESHLOG_DEBUG"):
            raise
        print(f"meshlog: {type(error).__name__}: {error} (MESHLOG_DEBUG=1 shows where)", file=sys.stderr)
        return 1


def _run(words: list[str]) -> int:
    leading, words = _split_leading_flags(words)
    if not words or words[0] in ("-h", "--help", "help"):
        print(overview())
        return OK
    if words[0] in ("-V", "--version"):
        words[0] = "version"
    if words[0] not in COMMANDS:
        return _unknown(words[0])
    if words[0] in OF_NOW and os.environ.get(AT_ENVIRONMENT):
        raise UsageError(f"{AT_ENVIRONMENT} is set, and {words[0]} is about now only; unset it")
    module = module_of(words[0])
    if hasattr(module, "run_words"):
        run_words: Callable[[Sequence[str]], int] = module.run_words
        return run_words([*leading, *words[1:]])
    rest = words[1:]
    place = rest.index("--") if "--" in rest else len(rest)
    parser = parser_of(words[0], module)
    arguments = parser.parse_args([*rest[:place], *leading, *rest[place:]])
    if not hasattr(arguments, "run"):
        parser.print_help(sys.stderr)
        return USAGE
    status: int = arguments.run(arguments)
    return status


def joined(words: list[str]) -> list[str]:
    """`--at -10m` as `--at=-10m`: a parser takes "-10m" for a flag otherwise. Behind "--" nothing is touched."""
    found: list[str] = []
    rest = iter(words)
    for word in rest:
        if word == "--":
            return [*found, word, *rest]
        value = next(rest, None) if word in POINT_FLAGS else None
        found.append(word if value is None else f"{word}={value}")
    return found


def module_of(command: str) -> ModuleType:
    """Imported now, so that a command pays for itself only."""
    return import_module(f"controlplane.cli.{COMMANDS[command][0]}")


def parser_of(command: str, module: ModuleType) -> argparse.ArgumentParser:
    """The parser of one command."""
    from controlplane.cli.parsing import Parser

    parser = Parser(prog=f"meshlog {command}")
    module.add_arguments(parser)
    return parser


def _split_leading_flags(words: list[str]) -> tuple[list[str], list[str]]:
    """`meshlog --node n1 status` is `meshlog status --node n1`."""
    leading: list[str] = []
    while words and words[0].partition("=")[0] in GLOBAL_FLAGS:
        width = 1 if "=" in words[0] else 2
        leading, words = leading + words[:width], words[width:]
    return leading, words


def _unknown(word: str) -> int:
    from difflib import get_close_matches

    close = get_close_matches(word, COMMANDS, n=1)
    hint = f"; did you mean `{close[0]}`?" if close else "; `meshlog --help` lists the commands"
    print(f"meshlog: unknown command {word!r}{hint}", file=sys.stderr)
    return USAGE


def overview() -> str:
    """What `meshlog --help` prints."""
    lines = ["Meshlog: pod networking whose whole state is one ordered log.", "", "Usage: meshlog COMMAND [flags]"]
    for title, commands in GROUPS.items():
        lines += ["", f"{title}:"]
        lines += [f"  {name:<11} {text}" for name, (_, text) in commands.items()]
    return "\n".join([*lines, "", "`meshlog COMMAND --help` says more.", _EPILOG])
