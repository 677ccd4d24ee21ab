"""`meshlog completion`: words for bash, from the parsers themselves."""

import argparse
from importlib import import_module

from controlplane.cli.errors import OK
from controlplane.cli.parsing import Parser, with_verbs

SCRIPT = """_meshlog() {{
  local word="${{COMP_WORDS[COMP_CWORD]}}"
  case "${{COMP_WORDS[1]}}" in
{cases}
  esac
  if [ "$COMP_CWORD" -eq 1 ]; then COMPREPLY=($(compgen -W "{commands}" -- "$word")); fi
}}
complete -o default -F _meshlog meshlog
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of completion."""
    parser.description = "Print a completion script."
    parser.epilog = "Example: source <(meshlog completion bash)"
    parser.add_argument("shell", choices=("bash",), help="for which shell")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """For the shell named."""
    from controlplane.cli.main import COMMANDS

    cases = "\n".join(
        f'    {name}) COMPREPLY=($(compgen -W "{" ".join(words(module))}" -- "$word"));;'
        for name, (module, _) in COMMANDS.items()
    )
    print(SCRIPT.format(cases=cases, commands=" ".join(COMMANDS)), end="")
    return OK


def words(module: str) -> list[str]:
    """Verbs and flags of a command; none of one that reads its own."""
    if module in ("run_agent", "run_operator"):
        return []
    parser = Parser()
    import_module(f"controlplane.cli.{module}").add_arguments(parser)
    found: set[str] = set()
    for each in with_verbs(parser):
        for action in each._actions:  # argparse offers no public way to its flags
            found.update(flag for flag in action.option_strings if flag.startswith("--"))
            if isinstance(action, argparse._SubParsersAction):
                found.update(action.choices)
    return sorted(found)
