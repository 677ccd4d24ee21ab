"""`meshlog status`: an agent's or operator's word about itself, in lines of `Key: State  message` as in Cilium.

Belongs here: how it reads, and waiting for it. Does not belong here: judging; `health` and `problems` come as they are.
"""

import argparse
import time
from typing import Any

from controlplane.api.quickclient import ApiRefused, ApiUnavailable
from controlplane.cli.errors import FAILED, OK, CommandFailed
from controlplane.cli.output import GREEN, RED, YELLOW, add_output, coloured, print_document, print_table
from controlplane.cli.target import add_target, ask, connect

PAUSE_S = 0.1
COLOURS = {"ok": GREEN, "starting": YELLOW}
ATTACH_MODES = {"tcx": "TCX", "clsact": "Legacy TC (clsact)"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of status."""
    parser.description = "Is the agent healthy, does its kernel hold what the log says. Exit status 1 if not."
    parser.epilog = "Example: meshlog status --wait --timeout 60"
    add_output(parser)
    add_target(parser)
    parser.add_argument("--wait", action="store_true", help="wait until it is ready and well")
    parser.add_argument("--timeout", type=float, default=60.0, metavar="SECONDS", help="how long to wait (default: 60)")
    parser.add_argument("--brief", action="store_true", help="one word: OK, or what is wrong")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Exit status 0 only if ready and well."""
    connection = connect(arguments)
    answer = _wait(connection, arguments.timeout) if arguments.wait else ask(connection, "/v1/status")
    well = bool(answer["ready"]) and answer["health"] == "ok"
    if arguments.output in ("json", "yaml"):
        print_document(arguments.output, answer)
    elif arguments.brief:
        print("OK" if well else f"error in {'; '.join(answer['problems']) or answer['health']}")
    else:
        print_table([], [[f"{key}:", text] for key, text in _lines(answer, arguments.output == "wide")])
    return OK if well else FAILED


def _wait(connection: Any, timeout_s: float) -> dict[str, Any]:
    deadline = time.monotonic() + timeout_s
    problem = ""
    while True:
        try:
            answer: dict[str, Any] = connection.get("/v1/status")
            if answer["ready"] and answer["health"] == "ok":
                return answer
            problem = "; ".join(answer["problems"]) or answer["health"]
        except ApiUnavailable as error:
            problem = str(error)
        except ApiRefused as error:
            raise CommandFailed(str(error)) from None
        if time.monotonic() > deadline:
            raise CommandFailed(f"not well after {timeout_s:g} s: {problem}")
        time.sleep(PAUSE_S)


def _lines(answer: dict[str, Any], wide: bool) -> list[tuple[str, str]]:
    is_agent = "kernel" in answer
    name = f"{answer['cluster']}/{answer['node']}" if is_agent else answer["cluster"]
    health = coloured(answer["health"].capitalize(), COLOURS.get(answer["health"], RED))
    ready = "ready" if answer["ready"] else "not ready"
    if answer.get("ready_after_s") is not None:
        ready += f" after {answer['ready_after_s']:.2f} s"
    lines = [
        ("Meshlog", (f"{health}   {answer['kind']} {name}, version {answer['version']}, {ready}, "
                    f"up {answer['uptime_s']:.0f} s, pid {answer['pid']}")),
        ("Log", _log_line(answer["log"])),
    ]
    lines += _agent_lines(answer, wide) if is_agent else _operator_lines(answer)
    lines.append(("Counts", ", ".join(f"{count} {what}" for what, count in answer["counts"].items())))
    if answer["unknown_events"]:
        lines.append(("Unknown events", f"{answer['unknown_events']} of a newer version, kept and skipped"))
    lines += [("Refused event", text) for text in answer["refused_events"]]
    return lines + [("Problem", coloured(problem, RED)) for problem in answer["problems"]]


def _log_line(log: dict[str, Any]) -> str:
    where = ", ".join(log["endpoints"])
    if log["connected"]:
        state = coloured("Ok", GREEN)
    else:
        since = log["unavailable_since"]
        moment = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(since)) if since else "the start"
        state = coloured(f"Unavailable since {moment} ({log['last_error']})", RED)
    counts = f"applied {log['applied_revision']} of {log['head_revision']}, lag {log['lag_records']} records, "
    counts += f"{log['gaps']} gaps, {log['rewinds']} rewinds, {log['reconnects']} reconnects"
    repairing = f", repairing: {log['repairing']}" if log["repairing"] else ""
    return f"{state}   {counts}{repairing}   ({where})"


def _agent_lines(answer: dict[str, Any], wide: bool) -> list[tuple[str, str]]:
    kernel = answer["kernel"]
    state = coloured("In sync", GREEN) if kernel["in_sync"] and answer["in_sync"] else coloured("Not in sync", YELLOW)
    total = sum(kernel["rows"].values())
    written = sum(kernel["writes_at_start"].values())
    counts = f"{total} rows, {len(kernel['failed'])} failing, {written} written at start"
    mode = ATTACH_MODES.get(answer["attach_mode"], "not attached yet")
    realized = f"realized {kernel['realized']} of {kernel['generation']}"
    lines = [("Kernel", f"{state}   {realized}, {counts}"), ("Attach Mode", mode)]
    lines += [("Routing", answer.get("routing_mode", "") or "native"), ("Socket LB", answer["socket_lb"]),
              ("Load Balancing", answer["balancing"]),
              ("XDP Acceleration", answer["acceleration"]), ("Joined Sockets", answer["joined_sockets"]),
              ("Bandwidth Manager", answer["bandwidth"])]
    if wide:
        tables = sorted({*kernel["writes_at_start"], *kernel["writes"]})
        at_start, since = kernel["writes_at_start"], kernel["writes"]
        lines += [(f"  {t}", f"{at_start.get(t, 0)} written at start, {since.get(t, 0)} since") for t in tables]
        lines += [("Started from", answer["start_source"]), ("Write mode", answer["write_mode"])]
    return lines + [
        ("Failing row", coloured(f"{row['table']} {row['key']}: {row['reason']} (tried {row['attempts']} times)", RED))
        for row in kernel["failed"]
    ]


def _operator_lines(answer: dict[str, Any]) -> list[tuple[str, str]]:
    duty = "holds the cluster's duties" if answer["holds_duty"] else "another holds the cluster's duties"
    lines = [("Duty", duty), ("Checkpoint", f"at revision {answer['checkpoint_revision']}")]
    return lines + [
        (f"Node {report['cluster']}/{report['node']}",
         (f"realized {report['realized']}, {'in sync' if report['in_sync'] else 'not in sync'}, "
         f"{report['failed_rows']} failing"))
        for report in answer["reports"]
    ]
