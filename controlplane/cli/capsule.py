"""`meshlog capsule`: an incident in one file: made from a running mesh, opened anywhere, checked.

Belongs here: files, and running a command against one. Does not belong here: what is in it (controlplane.history).
"""

import argparse
import asyncio
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from controlplane.api.quickclient import ApiRefused, ApiUnavailable, open_answer
from controlplane.cli.at import POINT, asked
from controlplane.cli.errors import FAILED, OK, USAGE, CommandFailed
from controlplane.cli.output import GREEN, RED, YELLOW, add_output, coloured, print_document, print_table
from controlplane.cli.target import add_target, socket_of
from controlplane.history.capsule import Capsule, CapsuleDamaged, pack, unpack
from controlplane.history.records import time_text

EXPORT_S = 600.0
KEY_BYTES = 32
COLOURS = {"equal": GREEN, "different": RED, "outside": YELLOW}
PROGRAM = [sys.executable, "-c", "from controlplane.cli.main import main; raise SystemExit(main())"]
NOT_HERE = ("agent", "operator", "cni", "lab", "capsule")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verbs."""
    parser.description = "A stretch of the history in one file: state, records, versions, and what nodes reported."
    verbs = parser.add_subparsers(metavar="VERB", title="verbs")
    exporting = verbs.add_parser(
        "export", help="write a file", description="Write a stretch of the history into a file.", allow_abbrev=False,
        epilog="Example: meshlog capsule export --since=-1h --redact incident.capsule",
    )  # fmt: skip
    exporting.add_argument("file", metavar="FILE", help="to write")
    exporting.add_argument("--since", default="", metavar="POINT", help=f"(default: the first record) {POINT}")
    exporting.add_argument("--until", default="", metavar="POINT", help="(default: now)")
    exporting.add_argument("--redact", action="store_true",
                           help="names, labels and addresses become pseudonyms, the same ones throughout the file")
    add_target(exporting)
    exporting.set_defaults(run=run_export)
    opening = verbs.add_parser(
        "open", help="ask a file what a mesh would be asked", allow_abbrev=False,
        description="Run a command against a file, or a shell in which every meshlog command asks it. Nothing else is "
        "needed: no etcd, no root, no kernel.",
        epilog="Examples:\n  meshlog capsule open incident.capsule -- endpoint list -A\n"
        "  meshlog capsule open incident.capsule -- why --from shop/a --to shop/b --port 80/TCP --at=-10m",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    opening.add_argument("file", metavar="FILE", help="a capsule")
    opening.add_argument("command", nargs="*", metavar="COMMAND", help="a meshlog command and its flags, behind --")
    opening.set_defaults(run=run_open)
    verifying = verbs.add_parser(
        "verify", help="recompute what nodes reported", allow_abbrev=False,
        description="Derive every node's rows anew and compare their digests with those it reported. Exit status 1 "
        "where they differ, or where nothing could be compared.",
        epilog="Example: meshlog capsule verify incident.capsule",
    )  # fmt: skip
    verifying.add_argument("file", metavar="FILE", help="a capsule")
    add_output(verifying)
    verifying.set_defaults(run=run_verify)


def run_export(arguments: argparse.Namespace) -> int:
    """Written whole or not at all."""
    content = fetched(arguments)
    capsule = read(content, "the answer")
    if arguments.redact:
        capsule = redact(capsule)
        content = pack(capsule)
    write(Path(arguments.file), content)
    manifest = capsule.manifest
    how = ", redacted" if manifest.redacted else ""
    print(
        f"{arguments.file}: {len(content)} bytes{how}; the state at revision {manifest.since} and {manifest.records} "
        f"records through {manifest.until} ({time_text(manifest.until_ns)}), reports of {len(capsule.reports)} nodes",
        file=sys.stderr,
    )
    return OK


def redact(capsule: Capsule) -> Capsule:
    """Under a key that nobody keeps. Raises CommandFailed."""
    from controlplane.history.redaction import RedactionFailed, redacted

    try:
        return redacted(capsule, os.urandom(KEY_BYTES))
    except (RedactionFailed, CapsuleDamaged) as error:
        raise CommandFailed(str(error)) from None


def fetched(arguments: argparse.Namespace) -> bytes:
    """Raises CommandFailed."""
    target = asked("/v1/capsule", {"since": arguments.since, "until": arguments.until})
    try:
        with open_answer(socket_of(arguments), "GET", target, None, EXPORT_S, EXPORT_S) as stream:
            return stream.read()
    except (ApiUnavailable, ApiRefused, OSError) as error:
        raise CommandFailed(str(error)) from None


def write(path: Path, content: bytes) -> None:
    """Readable by its owner only: it tells everything about a mesh. Raises CommandFailed."""
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
        os.replace(fresh, path)
    except OSError as error:
        fresh.unlink(missing_ok=True)
        raise CommandFailed(f"{path}: {error.strerror}") from None


def read_file(path: str) -> Capsule:
    """Raises CommandFailed."""
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise CommandFailed(f"{path}: {error.strerror}") from None
    return read(content, path)


def read(content: bytes, name: str) -> Capsule:
    """Raises CommandFailed."""
    try:
        return unpack(content)
    except CapsuleDamaged as error:
        raise CommandFailed(f"{name}: {error}") from None


def run_open(arguments: argparse.Namespace) -> int:
    """The exit status of the command, or of the shell."""
    capsule = read_file(arguments.file)
    words = arguments.command[1:] if arguments.command[:1] == ["meshlog"] else arguments.command
    if words and words[0] in NOT_HERE:
        print(f"meshlog: {words[0]} does not ask a mesh, so there is nothing a capsule could answer", file=sys.stderr)
        return USAGE
    command = [*PROGRAM, *words] if words else [os.environ.get("SHELL", "/bin/sh")]
    if not words:
        print(f"every meshlog command in this shell asks {arguments.file}; exit leaves it", file=sys.stderr)
    try:
        return asyncio.run(_served(capsule, command))
    except CapsuleDamaged as error:
        raise CommandFailed(f"{arguments.file}: {error}") from None


async def _served(capsule: Capsule, command: list[str]) -> int:
    from controlplane.api.capsule_view import serving_capsule

    with tempfile.TemporaryDirectory(prefix="meshlog-") as root:
        async with serving_capsule(capsule, Path(root)) as socket:
            environment = {**os.environ, "MESHLOG_CAPSULE": root, "MESHLOG_SOCKET": str(socket)}
            return (await asyncio.to_thread(subprocess.run, command, env=environment, check=False)).returncode


def run_verify(arguments: argparse.Namespace) -> int:
    """Exit status 0 only if every node that can be compared is equal, and one is."""
    from controlplane.history.exporting import check

    capsule = read_file(arguments.file)
    try:
        found = check(capsule)
    except CapsuleDamaged as error:
        raise CommandFailed(f"{arguments.file}: {error}") from None
    if arguments.output in ("json", "yaml"):
        import msgspec

        print_document(arguments.output, {
            "manifest": msgspec.to_builtins(capsule.manifest), "nodes": msgspec.to_builtins(found)
        })  # fmt: skip
    else:
        rows = [
            [f"{each.cluster}/{each.node}", each.realized, coloured(each.result, COLOURS[each.result]),
             each.tables or "-"] for each in found
        ]  # fmt: skip
        print_table([("NODE", "REVISION", "RESULT", "TABLES THAT DIFFER")], rows)
        manifest = capsule.manifest
        print(
            f"Revisions {manifest.since} to {manifest.until}, {manifest.records} records, made by version "
            f"{manifest.version}. Undamaged.", file=sys.stderr,
        )  # fmt: skip
    results = [each.result for each in found]
    return OK if "equal" in results and "different" not in results else FAILED
