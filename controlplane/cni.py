"""The CNI plugin: what a container runtime calls for every workload that comes or goes.

Belongs here: the CNI specification (0.4.0 to 1.1.0) on one side, one request to the node's agent on the other.
Does not belong here: any networking, which the agent does, nor an import that is slow: a kubelet waits for each call.

    {"cniVersion": "1.0.0", "name": "meshlog", "type": "meshlog", "socket": "/run/meshlog/agent.sock"}

`socket` may be left out where one agent runs on the machine. `mtu` (bytes) is the devices' MTU; 0: the underlay's.
"""

import json
import os
import re
import sys
from collections.abc import Mapping
from typing import Any

from controlplane.api.quickclient import ApiRefused, ApiUnavailable, request

SUPPORTED_VERSIONS = ("0.4.0", "1.0.0", "1.1.0")
RUNTIME_ROOT = "/run/meshlog"

INCOMPATIBLE_VERSION = 1
UNSUPPORTED_FIELD = 2
UNKNOWN_CONTAINER = 3
INVALID_ENVIRONMENT = 4
UNDECODABLE = 6
INVALID_CONFIG = 7
TRY_AGAIN = 11
NOT_AVAILABLE = 50
REFUSED = 100
CHECK_FAILED = 101

_CONTAINER_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.\-]*")
_INTERFACE = re.compile(r"[^\s/:]{1,15}")


class CniError(Exception):
    """An error of the specification: a code, one line, and details where there are some."""

    def __init__(self, code: int, message: str, details: str = "") -> None:
        super().__init__(message)
        self.code = code
        self.details = details


def main() -> int:
    """The program: environment and standard input in, JSON on standard output, exit status 0 or 1."""
    config: dict[str, Any] = {}
    try:
        raw = sys.stdin.buffer.read()
        config = read_config(raw, os.environ)
        answer = run(config, os.environ)
    except CniError as error:
        print(json.dumps(error_object(config, error)))
        return 1
    except Exception as error:  # a traceback is no answer that a runtime can read
        if os.environ.get("MESHLOG_DEBUG"):
            raise
        failure = CniError(REFUSED, f"the plugin failed: {type(error).__name__}: {error}")
        print(json.dumps(error_object(config, failure)))
        return 1
    if answer is not None:
        print(json.dumps(answer))
    return 0


def read_config(raw: bytes, env: Mapping[str, str]) -> dict[str, Any]:
    """The network configuration. Raises CniError; VERSION may come without one."""
    if env.get("CNI_COMMAND") == "VERSION" and not raw.strip():
        return {}
    try:
        config = json.loads(raw)
    except ValueError as error:
        raise CniError(UNDECODABLE, "the network configuration on standard input is not JSON", str(error)) from None
    if not isinstance(config, dict):
        raise CniError(UNDECODABLE, f"the network configuration is a {type(config).__name__}, not an object")
    return config


def run(config: dict[str, Any], env: Mapping[str, str]) -> dict[str, Any] | None:
    """One call. Raises CniError."""
    command = env.get("CNI_COMMAND", "")
    if command == "VERSION":
        version = config.get("cniVersion", "1.0.0")
        return {"cniVersion": version, "supportedVersions": list(SUPPORTED_VERSIONS)}
    if command not in _COMMANDS:
        raise CniError(INVALID_ENVIRONMENT, f"CNI_COMMAND is {command!r}; right is one of {', '.join(_COMMANDS)}")
    _check_config(config)
    try:
        answer: dict[str, Any] | None = _COMMANDS[command](config, env)
        return answer
    except ApiUnavailable as error:
        raise CniError(TRY_AGAIN, "the node's agent does not answer; try again later", str(error)) from None
    except ApiRefused as error:
        code = TRY_AGAIN if error.status in (429, 503, 504) else REFUSED
        raise CniError(code, f"the agent refused: {error}", error.field) from None


def error_object(config: Mapping[str, Any], error: CniError) -> dict[str, Any]:
    """As the specification wants it on standard output."""
    version = config.get("cniVersion")
    shown = version if version in SUPPORTED_VERSIONS else "1.0.0"
    answer = {"cniVersion": shown, "code": error.code, "msg": str(error)}
    return {**answer, "details": error.details} if error.details else answer


# --- commands ---------------------------------------------------------------------------------------------------


def _add(config: dict[str, Any], env: Mapping[str, str]) -> dict[str, Any]:
    container_id, interface = _attachment(env)
    netns = env.get("CNI_NETNS", "")
    if not netns.startswith("/"):
        raise CniError(INVALID_ENVIRONMENT, f"CNI_NETNS is {netns!r}; right is the path of a network namespace")
    arguments = _arguments(env)
    body = {
        "container_id": container_id,
        "interface": interface,
        "netns": netns,
        "namespace": _argument(arguments, "K8S_POD_NAMESPACE"),
        "workload": _argument(arguments, "K8S_POD_NAME"),
        "mtu": config.get("mtu", 0),
    }
    endpoint = request(_socket(config), "POST", "/v1/endpoints", body)
    return result(config["cniVersion"], endpoint, netns)


def _del(config: dict[str, Any], env: Mapping[str, str]) -> None:
    try:
        request(_socket(config), "DELETE", _endpoint_path(*_attachment(env)))
    except ApiRefused as error:
        if error.status != 404:  # what is gone already is what was asked for
            raise


def _check(config: dict[str, Any], env: Mapping[str, str]) -> None:
    container_id, interface = _attachment(env)
    previous = config.get("prevResult")
    if not isinstance(previous, dict):
        raise CniError(INVALID_CONFIG, "prevResult is absent; CHECK needs the result of ADD in it")
    try:
        answer = request(_socket(config), "GET", _endpoint_path(container_id, interface))
    except ApiRefused as error:
        if error.status != 404:
            raise
        raise CniError(UNKNOWN_CONTAINER, f"no endpoint for container {container_id}, interface {interface}") from None
    problems = list(answer["problems"])
    held = {address for address in (answer["endpoint"]["ipv4"], answer["endpoint"]["ipv6"]) if address}
    for address in previous.get("ips", []):
        if address["address"].partition("/")[0] not in held:
            problems.append(f"{address['address']} of prevResult is not the endpoint's ({', '.join(sorted(held))})")
    if problems:
        number = answer["endpoint"]["endpoint_id"]
        raise CniError(CHECK_FAILED, f"endpoint {number}: {problems[0]}", "; ".join(problems))


def _status(config: dict[str, Any], env: Mapping[str, str]) -> None:
    try:
        status = request(_socket(config), "GET", "/v1/status")
    except ApiUnavailable as error:
        raise CniError(NOT_AVAILABLE, "the node's agent does not answer", str(error)) from None
    if not status["ready"]:
        raise CniError(NOT_AVAILABLE, "the node's agent is not ready", "; ".join(status["problems"]))


def _gc(config: dict[str, Any], env: Mapping[str, str]) -> None:
    if "cni.dev/valid-attachments" not in config:
        raise CniError(INVALID_CONFIG, "cni.dev/valid-attachments is absent; GC needs the attachments to keep")
    keep = {(a["containerID"], a["ifname"]) for a in config["cni.dev/valid-attachments"]}
    path = _socket(config)
    status = request(path, "GET", "/v1/status")
    for endpoint in request(path, "GET", "/v1/list/endpoint")["items"]:
        attachment = (endpoint["container_id"], endpoint["interface"])
        if (endpoint["cluster"], endpoint["node"]) == (status["cluster"], status["node"]) and attachment not in keep:
            request(path, "DELETE", _endpoint_path(*attachment))


_COMMANDS: dict[str, Any] = {"ADD": _add, "DEL": _del, "CHECK": _check, "GC": _gc, "STATUS": _status, "VERSION": None}


def result(version: str, endpoint: Mapping[str, Any], netns: str) -> dict[str, Any]:
    """The result of ADD, in the shape that this version of the specification has."""
    interfaces: list[dict[str, Any]] = [
        {"name": endpoint["host_device"], "mac": endpoint["host_mac"]},
        {"name": endpoint["device"], "mac": endpoint["mac"], "sandbox": netns},
    ]
    if version == "1.1.0":
        for interface in interfaces:
            interface["mtu"] = endpoint["mtu"]
    addresses = [
        {"interface": 1, "address": given["address"], "gateway": given["gateway"]} for given in endpoint["addresses"]
    ]
    if version == "0.4.0":
        addresses = [{"version": "6" if ":" in a["address"] else "4", **a} for a in addresses]
    routes = [{"dst": prefix, "gw": gateway} for prefix, gateway in endpoint["routes"].items()]
    return {"cniVersion": version, "interfaces": interfaces, "ips": addresses, "routes": routes, "dns": {}}


# --- what a call is about ---------------------------------------------------------------------------------------


def _check_config(config: Mapping[str, Any]) -> None:
    version = config.get("cniVersion")
    if version not in SUPPORTED_VERSIONS:
        known = ", ".join(SUPPORTED_VERSIONS)
        raise CniError(INCOMPATIBLE_VERSION, f"cniVersion {version!r} is not supported", f"supported: {known}")
    if not isinstance(config.get("name"), str) or not config["name"]:
        raise CniError(INVALID_CONFIG, "name is absent; give the network's name")
    mtu = config.get("mtu", 0)
    if isinstance(mtu, bool) or not isinstance(mtu, int) or not (mtu == 0 or 1280 <= mtu <= 65535):
        raise CniError(INVALID_CONFIG, f"mtu is {mtu!r}; right is 0 or a number from 1280 to 65535")
    if config.get("ipam"):
        raise CniError(UNSUPPORTED_FIELD, "ipam is not supported: addresses come from the node's block")


def _socket(config: Mapping[str, Any]) -> str:
    """The agent's socket: as configured, or the only one on the machine."""
    given = config.get("socket", "")
    if not isinstance(given, str) or (given and not given.startswith("/")):
        raise CniError(INVALID_CONFIG, f"socket is {given!r}; right is the absolute path of the agent's socket")
    if given:
        return given
    found = agent_sockets()
    if len(found) == 1:
        return found[0]
    if not found:
        raise CniError(TRY_AGAIN, "the node's agent does not answer; try again later", f"no socket in {RUNTIME_ROOT}")
    raise CniError(INVALID_CONFIG, "socket is absent and several agents run here", ", ".join(found))


def agent_sockets(root: str = RUNTIME_ROOT) -> list[str]:
    """Sockets of agents directly in `root` or one directory below, sorted."""
    try:
        below = [entry.path for entry in os.scandir(root) if entry.is_dir()]
    except OSError:
        return []
    candidates = (f"{directory}/agent.sock" for directory in [root, *below])
    return sorted(path for path in candidates if os.path.exists(path))


def _attachment(env: Mapping[str, str]) -> tuple[str, str]:
    container_id, interface = env.get("CNI_CONTAINERID", ""), env.get("CNI_IFNAME", "")
    if not _CONTAINER_ID.fullmatch(container_id):
        raise CniError(INVALID_ENVIRONMENT, f"CNI_CONTAINERID is {container_id!r}; right are letters, digits, _ . -")
    if not _INTERFACE.fullmatch(interface) or interface in (".", ".."):
        raise CniError(INVALID_ENVIRONMENT, f"CNI_IFNAME is {interface!r}; right is a device name up to 15 characters")
    return container_id, interface


def _arguments(env: Mapping[str, str]) -> dict[str, str]:
    found = {}
    for pair in filter(None, env.get("CNI_ARGS", "").split(";")):
        key, equals, value = pair.partition("=")
        if not equals:
            raise CniError(INVALID_ENVIRONMENT, f"CNI_ARGS has {pair!r}; right is KEY=VALUE;KEY=VALUE")
        found[key] = value
    return found


def _argument(arguments: Mapping[str, str], name: str) -> str:
    value = arguments.get(name, "")
    if not value:
        raise CniError(INVALID_ENVIRONMENT, f"CNI_ARGS has no {name}; Meshlog attaches workloads by namespace and name")
    return value


def _endpoint_path(container_id: str, interface: str) -> str:
    return f"/v1/endpoints/{container_id}/{interface}"


if __name__ == "__main__":
    sys.exit(main())
