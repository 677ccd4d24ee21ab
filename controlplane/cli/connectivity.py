"""`meshlog connectivity test`: who reaches whom in the running lab, in the manner of `cilium connectivity test`.

Belongs here: flags, what is printed, JSON and JUnit. Does not belong here: the tests (controlplane.lab.connectivity).
"""

import argparse
import json
import re
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, TextIO
from xml.sax.saxutils import quoteattr

from controlplane.cli.errors import FAILED, OK, CommandFailed, UsageError, reason_of
from controlplane.cli.lab import with_system_programs
from controlplane.cli.output import GREEN, RED, coloured

if TYPE_CHECKING:
    from controlplane.lab.connectivity import Outcome
    from controlplane.lab.connectivity_cases import Trial

EPILOG = """The lab must be up. The tests make pods, services and policies in a namespace of their own, and remove them
whatever happens; what a killed run left goes with the next one. A denial counts only if its drop was told.

Examples:
  meshlog connectivity test
  meshlog connectivity test --test pod-to-pod --test client-.*
  meshlog connectivity test --test '!outside' -o json
  meshlog connectivity test --junit-file connectivity.xml"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb test."""
    parser.description = "Who reaches whom, by real packets."
    verbs = parser.add_subparsers(metavar="VERB", title="verbs")
    text = "try every way between pods, services, hosts and clusters, and that policies deny and allow"
    test = verbs.add_parser("test", help=text, description=f"{text[0].upper()}{text[1:]}.", epilog=EPILOG,
                            allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    test.add_argument("--test", action="append", default=[], metavar="[!]REGEX",
                      help="only tests whose name it matches, with ! all others; several, or with commas: any of them")
    test.add_argument("--list", action="store_true", help="print the tests' names and do nothing")
    test.add_argument("-o", "--output", choices=("text", "json", "junit"), default="text",
                      help="of the result; with json and junit the lines go to standard error (default: text)")
    test.add_argument("--junit-file", metavar="FILE", help="write the result there as JUnit XML too")
    test.set_defaults(run=with_system_programs(run))


def run(arguments: argparse.Namespace) -> int:
    """Exit status 1 if a test failed."""
    from controlplane.lab import connectivity
    from controlplane.lab.connectivity_cases import NAMESPACE, TESTS
    from controlplane.lab.machine import LabFailure

    chosen = chosen_tests(TESTS, arguments.test)
    if arguments.list:
        print("\n".join(f"{test.name:<20} {test.text}" for test in chosen))
        return OK
    stream = sys.stdout if arguments.output == "text" else sys.stderr
    # An end by request removes what was made, as Ctrl-C does.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    begun = time.monotonic()
    try:
        outcomes = connectivity.run(chosen, Lines(stream, NAMESPACE))
    except LabFailure as error:
        raise CommandFailed(str(error)) from None
    seconds = round(time.monotonic() - begun, 1)
    print(report(outcomes, len(TESTS) - len(chosen), NAMESPACE), file=stream, flush=True)
    _write(arguments, outcomes, seconds)
    return OK if all(each.ok for found in outcomes.values() for each in found) else FAILED


def _write(arguments: argparse.Namespace, outcomes: "Mapping[str, Sequence[Outcome]]", seconds: float) -> None:
    if arguments.output == "json":
        print(json.dumps(document(outcomes, seconds), indent=2))
    elif arguments.output == "junit":
        print(junit(outcomes, seconds))
    if arguments.junit_file:
        try:
            with open(arguments.junit_file, "w", encoding="utf-8") as file:
                file.write(junit(outcomes, seconds) + "\n")
        except OSError as error:
            raise CommandFailed(f"{arguments.junit_file}: {reason_of(error)}") from None


def chosen_tests(tests: "Sequence[Trial]", words: Sequence[str]) -> "list[Trial]":
    """Those that any word matches, and none with "!" does. Raises UsageError where that leaves none."""
    patterns = [word for given in words for word in given.split(",") if word]
    try:
        wanted = [re.compile(word) for word in patterns if not word.startswith("!")]
        unwanted = [re.compile(word[1:]) for word in patterns if word.startswith("!")]
    except re.error as error:
        raise UsageError(f"--test: no regular expression: {error}") from None
    found = [
        test for test in tests
        if (not wanted or any(each.search(test.name) for each in wanted))
        and not any(each.search(test.name) for each in unwanted)
    ]  # fmt: skip
    if not found:
        raise UsageError(f"--test {','.join(patterns)}: no test is left; there are {', '.join(t.name for t in tests)}")
    return found


class Lines:
    """One line for each test and each action, as they happen."""

    def __init__(self, stream: TextIO, namespace: str) -> None:
        self._stream = stream
        self._namespace = namespace

    def note(self, text: str) -> None:
        """What is done beside the tests."""
        self._print(f"✨ [{self._namespace}] {text}")

    def test(self, number: int, count: int, test: "Trial") -> None:
        """A test begins."""
        if number == 1:
            self._print(f"🏃[{self._namespace}] Running {count} tests ...")
        self._print(f"[=] [{self._namespace}] Test [{test.name}] [{number}/{count}]")

    def action(self, test: "Trial", outcome: "Outcome") -> None:
        """An action has ended."""
        verdict = coloured("ok  ", GREEN) if outcome.ok else coloured("FAIL", RED)
        self._print(f"  {verdict} [.] Action [{test.name}/{outcome.title}] {outcome.ms:.0f} ms: {outcome.detail}")
        for line in outcome.why:
            self._print(f"         why: {line}")

    def _print(self, text: str) -> None:
        print(text, file=self._stream, flush=True)


def report(outcomes: "Mapping[str, Sequence[Outcome]]", skipped: int, namespace: str) -> str:
    """The last lines, in Cilium's words."""
    actions = [each for found in outcomes.values() for each in found]
    failed = {name: bad for name, found in outcomes.items() if (bad := [each for each in found if not each.ok])}
    rest = f"{skipped} tests skipped, 0 scenarios skipped"
    if not failed:
        return f"✅ [{namespace}] All {len(outcomes)} tests ({len(actions)} actions) successful, {rest}."
    count = sum(map(len, failed.values()))
    lines = [
        f"📋 Test Report [{namespace}]",
        f"❌ {len(failed)}/{len(outcomes)} tests failed ({count}/{len(actions)} actions), {rest}:",
    ]
    for name, found in failed.items():
        lines += [f"Test [{name}]:", *(f"  🟥 {name}/{each.title}: {each.detail}" for each in found)]
    return "\n".join(lines)


def document(outcomes: "Mapping[str, Sequence[Outcome]]", seconds: float) -> dict[str, Any]:
    """For programs."""
    tests = [
        {
            "name": name,
            "ok": all(each.ok for each in found),
            "actions": [
                {"title": each.title, "ok": each.ok, "ms": each.ms, "detail": each.detail, "why": each.why}
                for each in found
            ],
        }
        for name, found in outcomes.items()
    ]
    return {"ok": all(test["ok"] for test in tests), "seconds": seconds, "tests": tests}


def junit(outcomes: "Mapping[str, Sequence[Outcome]]", seconds: float) -> str:
    """A suite for each test, a case for each action."""
    lines = ['<?xml version="1.0" encoding="UTF-8"?>', f'<testsuites name="connectivity test" time="{seconds}">']
    for name, found in outcomes.items():
        failed, spent = sum(not each.ok for each in found), sum(each.ms for each in found) / 1000
        lines.append(
            f'  <testsuite name={quoteattr(name)} tests="{len(found)}" failures="{failed}" errors="0" '
            f'time="{spent:.3f}">'
        )
        for each in found:
            head = f'    <testcase classname={quoteattr(name)} name={quoteattr(each.title)} time="{each.ms / 1000:.3f}"'
            message = quoteattr("; ".join([each.detail, *each.why]))
            lines.append(f"{head}/>" if each.ok else f"{head}><failure message={message}/></testcase>")
        lines.append("  </testsuite>")
    return "\n".join([*lines, "</testsuites>"])
