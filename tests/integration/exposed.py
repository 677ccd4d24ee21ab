"""Services of the tests' lab, as manifests, and clients that ask them from anywhere in it.

Belongs here: making manifests, asking. Does not belong here: what should come of it (test_services.py).
"""

import json
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

from controlplane.api.connection import Connection
from tests.integration import lab

ASKER = str(Path(__file__).with_name("asker.py"))
SERVER = str(Path(__file__).parents[2] / "controlplane" / "lab" / "shop_server.py")
OUTSIDE = {"ipv4": "172.31.77.99", "ipv6": "fd77::99"}
NODES = {"east-1": {"ipv4": "172.31.77.11", "ipv6": "fd77::11"}, "east-2": {"ipv4": "172.31.77.12", "ipv6": "fd77::12"}}
BACKEND_PORT, HOSTED_PORT = 8080, 9090
ANSWER_S_MAX, SILENCE_S = 8.0, 0.5
"""How long a client waits where it is to be answered, and where it is not."""
FAMILIES = {"ipv4": "IPv4", "ipv6": "IPv6"}

Document = dict[str, Any]
Answers = list[dict[str, str]]


class Backend(NamedTuple):
    """`addresses` by family."""

    node: str
    addresses: dict[str, str]
    is_terminating: bool = False


def service(name: str, node_port: int = 0, protocol: str = "TCP", annotations: Any = None, **spec: Any) -> Document:
    """Without a selector: `slices` says who its backends are."""
    port = {"name": "p", "port": 80, "protocol": protocol, **({"nodePort": node_port} if node_port else {})}
    found = {"type": "NodePort", "ports": [port], **spec}
    metadata = {"name": name, "namespace": "shop", "annotations": annotations or {}}
    return {"apiVersion": "v1", "kind": "Service", "metadata": metadata, "spec": found}


def balanced(name: str, host: int, node_port: int, **spec: Any) -> Document:
    """With addresses of a load balancer that end in `host`."""
    ingress = [{"ip": f"172.31.80.{host}"}, {"ip": f"fd80::{host}"}]
    made = service(name, node_port, **{"type": "LoadBalancer", **spec})
    return {**made, "status": {"loadBalancer": {"ingress": ingress}}}


def slices(name: str, *backends: Backend, protocol: str = "TCP", port: int = BACKEND_PORT) -> list[Document]:
    """One EndpointSlice of each family."""
    made = []
    for family, kind in FAMILIES.items():
        listed = [
            {
                "addresses": [each.addresses[family]],
                "nodeName": each.node,
                "conditions": {"ready": not each.is_terminating, "serving": True, "terminating": each.is_terminating},
            }
            for each in backends
        ]
        labels = {"kubernetes.io/service-name": name}
        metadata = {"name": f"{name}-{family}", "namespace": "shop", "labels": labels}
        made.append({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "metadata": metadata, "addressType": kind,
            "endpoints": listed, "ports": [{"name": "p", "port": port, "protocol": protocol}],
        })  # fmt: skip
    return made


def apply(folder: Path, *documents: Document) -> None:
    """Through the operator of east, until the kernels of its nodes hold it."""
    manifest = folder / "manifest.yaml"
    manifest.write_text("\n---\n".join(json.dumps(each) for each in documents))
    applied = lab.answer("apply", "-f", str(manifest), "--socket", lab.operator_of("east"))
    refused = [each for each in applied["results"] if not each["accepted"]]
    assert not refused, refused
    wait_realized(applied["revision"])


def wait_realized(revision: int) -> None:
    """Until the kernels of both nodes hold it."""
    for node in NODES:
        Connection(lab.socket_of(node), timeout_s=60).get(f"/v1/wait?revision={revision}&timeout_s=20")


def program(place: str, *words: str) -> list[str]:
    """The command line of Python there."""
    return [lab.PROGRAM, "lab", "exec", place, "--", sys.executable, "-I", "-S", *words]


def ask(
    place: str, *asks: tuple[str, int], times: int = 1, protocol: str = "tcp", wait_s: float = ANSWER_S_MAX
) -> list[Answers]:
    """What came of each (address, port), asked from a place of the lab as often as that."""
    words = [f"{protocol},{address},{port},{times}" for address, port in asks]
    done = subprocess.run(
        program(place, ASKER, "ask", str(wait_s), *words), env=lab.ENVIRONMENT, capture_output=True, text=True, check=True,
        timeout=lab.SECONDS_MAX,
    )  # fmt: skip
    return [json.loads(line) for line in done.stdout.splitlines()]


def names(answers: Answers) -> set[str]:
    """Who answered, or the errors."""
    return {each.get("name") or each.get("error") or each.get("echo", "") for each in answers}


def is_silent(place: str, *asks: tuple[str, int]) -> bool:
    """Whether nothing answers any of them, not even with a refusal."""
    return all(names(answers) == {"TimeoutError"} for answers in ask(place, *asks, wait_s=SILENCE_S))


class Held:
    """A connection that is open from entering on."""

    def __init__(self, place: str, protocol: str, address: str, port: int) -> None:
        self._argv = program(place, ASKER, "hold", str(ANSWER_S_MAX), protocol, address, str(port))

    def __enter__(self) -> Self:
        self._asker = subprocess.Popen(
            self._argv, env=lab.ENVIRONMENT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert self._asker.stdout
        assert self._asker.stdout.readline()
        return self

    def ask(self) -> dict[str, str]:
        """Once more, on the same socket."""
        out, _ = self._asker.communicate("\n", timeout=lab.SECONDS_MAX)
        answer: dict[str, str] = json.loads(out)
        return answer

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._asker.kill()
        self._asker.wait()
