"""A capsule answers by itself: no etcd, no capability of the kernel's, no network, nothing on PATH; and nothing of the
original mesh is in a redacted one but words of the format itself."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from controlplane import events as e
from controlplane.codec import decode
from controlplane.commands.service import ApplyService
from controlplane.commands.workload import ApplyWorkload
from controlplane.history.capsule import Capsule, pack
from controlplane.history.exporting import moments_of
from controlplane.history.redaction import redacted
from controlplane.model import Exposure, ServicePort
from datapath.tables import TABLES
from tests.controlplane.history.test_capsule import capsule_of
from tests.controlplane.history.test_flows import table, told
from tests.controlplane.history.test_redaction import KEY, shape, telling, texts
from tests.controlplane.history.test_what_if import DB_FROM_CART, manifest
from tests.controlplane.random_mesh import Log
from tests.controlplane.small_mesh import accept
from tests.replay.recorded import OPERATOR, every_event

PROGRAM = "from controlplane.cli.main import main; raise SystemExit(main())"
WITHOUT_POWERS = ["--no-new-privs", "--bounding-set=-all", "--inh-caps=-all", "--clear-groups"]


def with_flows(log: Log) -> Any:
    """Of cart, db and an address outside."""
    seen = table()
    flows = [told(log, "cart", "db", 5432), told(log, "front", "db", 22), told(log, "198.51.100.77", "db", 80)]
    seen.take(log.state, [(flow, 3) for flow in flows], 5)
    return seen.summary("east", "n1", 9)


COMMANDS = (
    "endpoint list -A", "service list", "policy list --at {at}", "policy selectors", "policy settings", "name list",
    "get ciliumnetworkpolicies -A", "bpf policy list", "bpf ipcache list --at {at}", "log list --kind policy",
    "log show {at}", "diff {at} --tables", "why --from shop/cart --to shop/db --port 80/TCP --at {at}",
    "why map ipcache 0.0.0.0/0", "flow list", "verdict -f {flows}", "verdict -f {flows} --at {at}",
    "policy what-if -f {policy} --since=1970-01-01T00:00:00Z",
)  # fmt: skip


@pytest.mark.skipif(shutil.which("setpriv") is None or os.geteuid() != 0, reason="needs root, to give it up")
async def test_every_question_is_answered_without_powers(tmp_path: Path) -> None:
    """One shell over the file, in a process that may do nothing and finds nothing: each command gives its JSON."""
    log = telling()
    path = tmp_path / "a.capsule"
    path.write_bytes(pack(await capsule_of(log, flows=[with_flows(log)])))
    at = log.records[-4].revision
    flows, policy = tmp_path / "flows.json", tmp_path / "policy.json"
    flows.write_text(json.dumps([{"from": "shop/cart", "to": "shop/db", "l4": "TCP/80"}]))
    policy.write_text(json.dumps(manifest(DB_FROM_CART)))
    places = {"at": at, "flows": flows, "policy": policy}
    shell = tmp_path / "shell"
    meshlog = f"{sys.executable} -c '{PROGRAM}'"
    lines = [f"{meshlog} {command.format(**places)} -o json || echo '\"FAILED\"'\necho ,\n" for command in COMMANDS]
    shell.write_text("#!/bin/sh\n" + "".join(lines))
    shell.chmod(0o755)
    out, err = _without_powers(shell, "open", str(path))
    answers = json.loads(f"[{out.rstrip().rstrip(',')}]")
    assert [command for command, answer in zip(COMMANDS, answers, strict=True) if answer == "FAILED"] == [], err
    by_command = dict(zip(COMMANDS, answers, strict=True))
    assert [each["workload"] for each in by_command["endpoint list -A"]] == ["cart", "db", "front"]
    assert by_command["verdict -f {flows}"][0]["verdict"] == "allow"
    assert len(by_command["flow list"]["items"]) == 3
    assert by_command[COMMANDS[-1]]["flows_judged"] == 3


def _without_powers(shell: Path, *words: str) -> tuple[str, str]:
    """`meshlog capsule WORDS`: what it printed, and its errors. setpriv by its full path: the process has no PATH."""
    done = subprocess.run(
        [str(shutil.which("setpriv")), *WITHOUT_POWERS, sys.executable, "-c", PROGRAM, "capsule", *words],
        env={"SHELL": str(shell), "TMPDIR": "/tmp", "PATH": ""}, capture_output=True, text=True, check=False, timeout=120,
        cwd=Path(__file__).parent.parent.parent.parent,
    )  # fmt: skip
    return done.stdout, done.stderr


# --- what stays of the original ------------------------------------------------------------------------------------


def leaves(value: Any) -> Iterator[str]:
    """Every text, those inside JSON in texts too."""
    for text in texts(value):
        yield text
        try:
            found = json.loads(text)
        except ValueError:
            continue
        if isinstance(found, (dict, list)):
            yield from leaves(found)


def said(capsule: Capsule) -> set[str]:
    """Every text in every part of a file."""
    found = set(leaves(msgspec.msgpack.decode(capsule.saved)))
    for record in capsule.records:
        found |= {record.cluster, record.writer, *leaves(msgspec.msgpack.decode(record.payload))}
    for part in (capsule.manifest, list(capsule.reports), list(capsule.flows)):
        found |= set(leaves(msgspec.to_builtins(part)))
    for (kind, key), origin in capsule.origins.held.items():
        found |= {kind, origin.cluster, origin.writer, *leaves(list(key) if isinstance(key, tuple) else key)}
    return found


_WORDS = """
apiVersion kind metadata name namespace spec labels description podSelector endpointSelector matchLabels
matchExpressions key operator In values ingress egress from ipBlock cidr fromEndpoints fromCIDR toCIDRSet cidrGroupRef
toFQDNs matchName toPorts ports port protocol TCP 5432 networking.k8s.io/v1 cilium.io/v2 policyTypes NetworkPolicy
CiliumNetworkPolicy CiliumCIDRGroup CiliumLocalRedirectPolicy Backend enable-policy default allow deny test vxlan native
tunnel annotations 1 2 n quarantined LoadBalancer Local Cluster ClusterIP PreferSameZone
"""
FORMAT_WORDS = frozenset(_WORDS.split())


def is_of_the_format(text: str) -> bool:
    """A word that is the same in every mesh."""
    fields = {*Capsule.__struct_fields__}
    for kind in ("Manifest", "Report"):
        fields |= set(getattr(sys.modules[Capsule.__module__], kind).__struct_fields__)
    fields |= set(sys.modules["controlplane.history.flows"].FlowSummary.__struct_fields__)
    known = {*FORMAT_WORDS, *fields, *TABLES, *(event.__name__ for event in e.EVENTS)}
    return (
        not text
        or text in known
        or text.startswith(("k8s:io.cilium.k8s.policy.serviceaccount=default", '{"enable-policy":"default"'))
        or re.fullmatch(r"[0-9a-f]{32}", text) is not None
    )


async def test_what_is_left_of_the_original_is_the_format_alone() -> None:
    """Of a mesh in which every kind of thing has a name, a label, an annotation, a port, an address of its own."""
    log = every_event()
    port = ServicePort("secret-port", 80, "TCP", "secret-target")
    labels, annotations = {"secret-label": "secret-value"}, {"secret/annotation": "secret text of 10.1.1.2"}
    accept(log, OPERATOR, ApplyService(
        "shop", "annotated", (), (port,), {"secret-key": "v"}, False, False, True, labels, annotations, Exposure(
            "LoadBalancer", ("198.51.100.201",), ("198.51.100.202",), "secret-class", True, ("198.51.100.128/25",),
            "Local", "Local", 60, False, "PreferSameZone", 31000,
        )
    ))  # fmt: skip
    node = next(each for each in log.state.nodes.values() if (each.cluster, each.name) == ("west", "n1"))
    joined = e.NodeJoined("n1", node.addresses, node.device, (), cgroup="/secret.slice")
    log.write("west", "node.n1", joined)
    assert log.state.refused_events == []
    accept(log, OPERATOR, ApplyWorkload("shop", "acc", {"app": "x"}, True, "secret-account", {"secret": (1, "TCP")}, "n1"))
    for since in (0, 20):
        capsule = await capsule_of(log, since, flows=[with_flows(log)])
        after = redacted(capsule, KEY)
        left = said(capsule) & said(after)
        assert [shape(moments_of(each)[1].state) for each in (capsule, after)] == [shape(log.state)] * 2
        assert len(moments_of(after)[1].origins.held) == len(moments_of(capsule)[1].origins.held)
        assert [text for text in sorted(left) if not is_of_the_format(text)] == []


async def test_numbers_made_of_addresses_are_not_in_the_flows() -> None:
    """A prefix's identity is a hash of the prefix, which can be guessed from it: only reserved numbers stay."""
    log = telling()
    flow = told(log, "198.51.100.77", "db", 80, source_identity=(1 << 24) | 12345)
    seen = table()
    seen.take(log.state, [(flow, 1)], 5)
    after = redacted(await capsule_of(log, flows=[seen.summary("east", "n1", 9)]), KEY)
    sides = [row.key.source for each in after.flows for row in each.rows]
    assert [(side.identity, bool(side.address)) for side in sides] == [(0, True)]
    assert all(decode(record.payload) for record in after.records)
