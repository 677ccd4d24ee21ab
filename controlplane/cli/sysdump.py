"""`meshlog sysdump`: what whoever looks at an incident asks for, in one file, also of a mesh that is half dead.

Belongs here: what is gathered, and saying what is missing. Does not belong here: looking at it; the history
(capsule.py), which can be redacted: a dump is not.
"""

import argparse
import io
import json
import os
import sys
import tarfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from controlplane.api.quickclient import ApiRefused, ApiUnavailable, open_answer
from controlplane.cli import target
from controlplane.cli.at import asked
from controlplane.cli.errors import FAILED, OK, CommandFailed, reason_of
from controlplane.cli.output import FORMATS, print_document

ANSWER_S = 20.0
LOG_BYTES_MAX = 2 * 1024 * 1024
"""Of each log file, its end."""
LISTS = ("node", "endpoint", "identity", "service", "policy", "ip")
MAPS = ("endpoint", "ipcache", "policy", "lb", "ct", "nat", "affinity", "metrics")
OF_ALL = {
    "status.json": "/v1/status", "mesh.json": "/v1/mesh?left=1", "metrics.txt": "/metrics",
    "settings.json": "/v1/policy/settings", "log.ndjson": "/v1/log?last=1000",
}  # fmt: skip
OF_AGENTS = {
    "verify.json": "/v1/verify", "digests.json": "/v1/digests",
    **{f"list/{kind}.json": f"/v1/list/{kind}" for kind in LISTS},
    **{f"bpf/{kind}.json": f"/v1/bpf/{kind}" for kind in MAPS},
}  # fmt: skip
EPILOG = """The file holds status, verification, lists, kernel maps, metrics and the newest records of every agent and
operator of this machine, the last hour's history as a capsule, and log files. It is not redacted, and readable by you
only. Who does not answer is named, and manifest.json lists what is there and what is missing, with the reason.

Examples:
  meshlog sysdump
  meshlog sysdump incident.tar.gz --since=-3h
  meshlog sysdump --node n1 -o json"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of sysdump."""
    parser.description = "Everything about this machine's part of the mesh in one tar.gz, also when agents are dead."
    parser.epilog = EPILOG
    parser.add_argument("file", nargs="?", metavar="FILE", help="default: meshlog-sysdump-TIME.tar.gz, here")
    parser.add_argument("--since", default="-1h", metavar="POINT", help="where the capsule begins (default: -1h)")
    parser.add_argument("-o", "--output", choices=FORMATS, default="table", help="how to print what is in it")
    target.add_target(parser)
    parser.set_defaults(run=run)


class Dump:
    """The file while it is made. `missing`: what could not be had -> why."""

    def __init__(self, archive: tarfile.TarFile) -> None:
        self._archive = archive
        self.files: dict[str, int] = {}
        self.missing: dict[str, str] = {}

    def add(self, name: str, content: bytes) -> None:
        """One file."""
        entry = tarfile.TarInfo(f"meshlog-sysdump/{name}")
        entry.size, entry.mtime, entry.mode = len(content), int(time.time()), 0o600
        self._archive.addfile(entry, io.BytesIO(content))
        self.files[name] = len(content)

    def ask(self, socket: str, name: str, path: str) -> bool:
        """One answer as a file; false where nobody answers."""
        try:
            with open_answer(socket, "GET", path, None, ANSWER_S, ANSWER_S) as stream:
                self.add(name, stream.read())
        except ApiRefused as error:
            self.missing[name] = str(error)
        except (ApiUnavailable, OSError) as error:
            self.missing[name] = str(error)
            return False
        return True


def run(arguments: argparse.Namespace) -> int:
    """Exit status 1 if something is missing; the file is there with the rest."""
    path = Path(arguments.file or time.strftime("meshlog-sysdump-%Y%m%d-%H%M%S.tar.gz"))
    sources = _sources(arguments)
    with _archive(path) as archive:
        dump = Dump(archive)
        if not sources:
            dump.missing["agents"] = f"no socket below {target.RUNTIME_ROOT}"
        answering = [source for source in sources.items() if _gather(dump, *source)]
        if answering:
            name, socket = answering[0]
            _say(f"the history since {arguments.since}, of {name}")
            dump.ask(socket, "incident.capsule", asked("/v1/capsule", {"since": arguments.since}))
        _logs(dump)
        manifest = {"made": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), "host": os.uname().nodename,
                    "kernel": os.uname().release, "file": str(path), "files": dict(dump.files), "missing": dump.missing}
        dump.add("manifest.json", json.dumps(manifest, indent=2).encode())
    if arguments.output in ("json", "yaml"):
        print_document(arguments.output, manifest)
    else:
        print(f"{path}: {len(dump.files)} files, {path.stat().st_size} bytes, not redacted")
    for name, reason in dump.missing.items():
        print(f"missing: {name}: {reason}", file=sys.stderr)
    return FAILED if dump.missing else OK


def _sources(arguments: argparse.Namespace) -> dict[str, str]:
    """Name -> socket: the one that is asked for, or every agent and operator of this machine."""
    if arguments.node or arguments.socket:
        socket = target.socket_of(arguments)
        return {Path(socket).parent.name: socket}
    found = [path for root in (target.RUNTIME_ROOT, target.LAB_ROOT) for kind in ("agent.sock", "operator.sock")
             for path in target.sockets(root, kind)]
    if os.environ.get("MESHLOG_SOCKET"):
        found = [os.environ["MESHLOG_SOCKET"]]
    return {Path(path).parent.name: path for path in found}


def _gather(dump: Dump, name: str, socket: str) -> bool:
    """Everything of one process; false where it does not answer."""
    _say(name)
    is_agent = Path(socket).name != "operator.sock"
    for file, path in {**OF_ALL, **(OF_AGENTS if is_agent else {})}.items():
        if not dump.ask(socket, f"{name}/{file}", path) and file == "status.json":
            dump.missing[name] = dump.missing.pop(f"{name}/{file}")
            return False
    return True


def _logs(dump: Dump) -> None:
    """What the lab's processes wrote; elsewhere the log is the service manager's."""
    places = sorted(Path(target.LAB_ROOT, "logs").glob("*")) if target.LAB_ROOT else []
    for place in places:
        try:
            with place.open("rb") as file:
                file.seek(max(place.stat().st_size - LOG_BYTES_MAX, 0))
                dump.add(f"logs/{place.name}", file.read())
        except OSError as error:
            dump.missing[f"logs/{place.name}"] = reason_of(error)
    if not places:
        print("no lab's log files here: add what your service manager keeps of agents and operators", file=sys.stderr)


@contextmanager
def _archive(path: Path) -> Iterator[tarfile.TarFile]:
    """There in whole, or not at all. Raises CommandFailed."""
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "wb") as file, tarfile.open(fileobj=file, mode="w:gz") as archive:
            yield archive
        os.replace(fresh, path)
    except OSError as error:
        raise CommandFailed(f"{path}: {reason_of(error)}") from None
    finally:
        fresh.unlink(missing_ok=True)


def _say(text: str) -> None:
    print(f"gathering {text} ...", file=sys.stderr, flush=True)
