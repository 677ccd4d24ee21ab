"""Capsules: what goes in comes out, damage is named, and every command answers from the file alone."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from controlplane.cli.main import main
from controlplane.history.capsule import Capsule, CapsuleDamaged, Report, pack, unpack
from controlplane.history.exporting import check, export
from controlplane.history.flows import FlowSummary
from controlplane.history.replay import encoded_rows
from controlplane.projections.state import State
from tests.controlplane.history.past import past_of, shop
from tests.controlplane.history.test_why import apply_policy
from tests.controlplane.random_mesh import Log

GUARD = "{podSelector: {matchLabels: {app: db}}, ingress: [{ports: [{port: 5432, protocol: TCP}]}]}"


def report_of(log: Log, cluster: str, node: str, place: int = -1) -> Report:
    """What a node says when it has realized everything through a record."""
    state = State()
    until = log.records[place].revision
    for record in log.records:
        if record.revision <= until:
            state.apply(record)
    return Report(cluster, node, int(until), True, 0, 0, encoded_rows(state, cluster, node).digests())


async def capsule_of(
    log: Log, since: int = 0, reports: list[Report] | None = None, flows: Sequence[FlowSummary] = ()
) -> Capsule:
    """Through the last record."""
    past = past_of(log)
    until = int(log.records[-1].revision)
    first = await past.moment(since)
    told = reports if reports is not None else [report_of(log, *key) for key in sorted(log.state.nodes)]
    return await export(past, first, until, told, "east", "n1", "test", 7, flows)


@pytest.fixture
async def incident(tmp_path: Path) -> Path:
    """A file of a small mesh with a policy, from the fifth record on."""
    log = shop()
    apply_policy(log, GUARD)
    path = tmp_path / "incident.capsule"
    path.write_bytes(pack(await capsule_of(log, int(log.records[4].revision))))
    return path


async def test_what_goes_in_comes_out() -> None:
    """Every part of a capsule is the same after it was written and read."""
    capsule = await capsule_of(shop(), 14)
    read = unpack(pack(capsule))
    assert (read.manifest, read.saved, list(read.records), read.reports) == (
        capsule.manifest, capsule.saved, list(capsule.records), capsule.reports
    )  # fmt: skip
    assert read.origins.held == capsule.origins.held


@given(st.integers(0, 10_000_000), st.integers(1, 255))
@settings(max_examples=200, deadline=None)
async def test_a_changed_byte_is_found(place: int, change: int) -> None:
    """Whatever byte of the file is another one, it is refused, and nothing but CapsuleDamaged is raised."""
    content = bytearray(pack(await capsule_of(_SHOP)))
    content[place % len(content)] ^= change
    with pytest.raises(CapsuleDamaged):
        unpack(bytes(content))


@given(st.integers(0, 10_000_000))
@settings(max_examples=50, deadline=None)
async def test_a_cut_file_is_found(place: int) -> None:
    """However much of the end is missing."""
    content = pack(await capsule_of(_SHOP))
    with pytest.raises(CapsuleDamaged):
        unpack(content[: place % len(content)])


_SHOP = shop()


async def test_damage_is_named_by_its_part() -> None:
    """The last byte belongs to the flows."""
    content = bytearray(pack(await capsule_of(_SHOP)))
    content[-1] ^= 1
    with pytest.raises(CapsuleDamaged, match="part flows"):
        unpack(bytes(content))


async def test_reports_are_recomputed() -> None:
    """Nodes that reported at different revisions are all equal to rows derived from the file."""
    log = shop()
    reports = [report_of(log, "east", "n1"), report_of(log, "east", "n2", -3)]
    assert [each.result for each in check(await capsule_of(log, 14, reports))] == ["equal", "equal"]


async def test_a_lie_is_found() -> None:
    """A report with another digest is different, in the table that it is about; a revision not held is outside."""
    log = shop()
    true = report_of(log, "east", "n1")
    false = msgspec.structs.replace(true, digests={**true.digests, "ipcache": "0" * 32})
    late = msgspec.structs.replace(report_of(log, "west", "n1"), realized=10_000)
    found = check(await capsule_of(log, 0, [false, late]))
    assert [(each.result, each.tables) for each in found] == [("different", ["ipcache"]), ("outside", [])]


# --- over the file, in processes of their own ---------------------------------------------------------------------


def asked(incident: Path, *words: str) -> tuple[int, str, str]:
    """`meshlog capsule open FILE -- WORDS`."""
    program = "from controlplane.cli.main import main; raise SystemExit(main())"
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MESHLOG_")}
    done = subprocess.run(
        [sys.executable, "-c", program, "capsule", "open", str(incident), "--", *words],
        capture_output=True, text=True, check=False, env=environment, timeout=60,
    )  # fmt: skip
    return done.returncode, done.stdout, done.stderr


def told(incident: Path, *words: str) -> Any:
    """The JSON answer."""
    status, out, err = asked(incident, *words, "-o", "json")
    assert status == 0, err
    return json.loads(out)


async def test_lists_and_manifests_are_answered(incident: Path) -> None:
    """Endpoints of the exporting node, of another node by --node, and manifests."""
    assert [each["workload"] for each in told(incident, "endpoint", "list")] == ["cart", "db"]
    assert [each["workload"] for each in told(incident, "endpoint", "list", "--node", "n2")] == ["front"]
    assert [each["metadata"]["name"] for each in told(incident, "get", "netpol", "-A")["items"]] == ["guard"]


async def test_the_past_is_answered(incident: Path) -> None:
    """--at gives the mesh before the policy, and says which revision that is."""
    records = told(incident, "log", "list", "--kind", "policy")
    revision = records[0]["revision"]
    status, out, err = asked(incident, "policy", "list", "--at", str(revision - 1), "-o", "json")
    assert (status, json.loads(out)) == (0, [])
    assert f"at revision {revision - 1} (" in err
    assert told(incident, "bpf", "policy", "list", "--at", str(revision - 1)) == []
    assert told(incident, "bpf", "policy", "list")


async def test_before_the_capsule_is_refused(incident: Path) -> None:
    """The oldest revision that can be asked for is said."""
    status, _, err = asked(incident, "endpoint", "list", "--at", "3")
    assert status == 1
    assert "the oldest is 14" in err


async def test_the_newest_records_and_a_revision_between_two(incident: Path) -> None:
    """--last gives the end of the list; a revision that is no record's is told the next one."""
    whole = told(incident, "log", "list")
    assert told(incident, "log", "list", "--last", "2") == whole[-2:]
    assert told(incident, "log", "list", "--last", "1", "--kind", "policy") == [
        each for each in whole if each["events"][0]["event"] == "PolicyApplied"
    ]
    between = whole[0]["revision"] + 1
    assert f"the next one has {whole[1]['revision']}" in asked(incident, "log", "show", str(between))[2]


async def test_a_check_cannot_say_where_an_end_was_not_there(incident: Path) -> None:
    """Exit status 125 of `why -q`, which bisect passes over."""
    flow = ("--from", "shop/nobody", "--to", "shop/db", "--port", "80/TCP")
    assert asked(incident, "why", "-q", *flow)[0] == 125


async def test_a_record_shows_what_it_changed(incident: Path) -> None:
    """The policy, and the rows it put into the tables of the node that has the subject."""
    revision = told(incident, "log", "list", "--kind", "policy")[0]["revision"]
    shown = told(incident, "log", "show", str(revision))
    assert [(each["kind"], each["change"]) for each in shown["things"]] == [("policy", "added")]
    assert {(each["node"], each["table"]) for each in shown["rows"]} >= {("n1", "policy"), ("n1", "policy_subjects")}


async def test_two_points_are_compared(incident: Path) -> None:
    """Things and rows that are other at the end than at the begin."""
    found = told(incident, "diff", "14", "--tables")
    assert {each["kind"] for each in found["things"]} >= {"endpoint", "identity", "policy", "workload"}
    assert {each["table"] for each in found["rows"]} >= {"endpoints", "ipcache", "policy"}


async def test_why_is_answered(incident: Path) -> None:
    """A denial with its policy; the same as exit status; a row with its records."""
    flow = ("--from", "shop/cart", "--to", "shop/db", "--port", "80/TCP")
    answer = told(incident, "why", *flow)
    assert (answer["verdict"], answer["sides"][-1]["enforced_by"]) == ("deny", ["NetworkPolicy/shop/guard"])
    assert asked(incident, "why", "-q", *flow)[0] == 1
    address = told(incident, "endpoint", "list")[0]["ipv4"]
    row = told(incident, "why", "map", "ipcache", f"{address}/32")
    assert "EndpointCreated" in [each["event"] for each in row["evidence"]]


async def test_bisect_finds_the_record(incident: Path) -> None:
    """The first revision at which a flow is denied is the policy's."""
    program = f"{sys.executable} -c 'from controlplane.cli.main import main; raise SystemExit(main())'"
    check_command = f"{program} why -q --from shop/cart --to shop/db --port 80/TCP"
    revision = told(incident, "log", "list", "--kind", "policy")[0]["revision"]
    since = revision - 5
    status, out, err = asked(incident, "log", "bisect", "--since", str(since), "--check", check_command)
    assert (status, out.strip()) == (0, str(revision)), err


async def test_what_a_file_cannot_do_is_refused(incident: Path) -> None:
    """Changing it, or asking for live things, is an error that says so."""
    for words in (("status",), ("monitor",), ("bpf", "ct", "list")):
        assert asked(incident, *words)[0] == 1


async def test_verify_says_equal(incident: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Every node's digests are those that it reported; exit status 0."""
    status = main(["capsule", "verify", str(incident), "-o", "json"])
    assert (status, {each["result"] for each in json.loads(capsys.readouterr().out)["nodes"]}) == (0, {"equal"})


async def test_damage_stops_every_verb(incident: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A damaged file is neither opened nor verified, and the part is named."""
    content = bytearray(incident.read_bytes())
    content[-1] ^= 1
    incident.write_bytes(content)
    for words in (["verify", str(incident)], ["open", str(incident), "--", "node", "list"]):
        assert main(["capsule", *words]) == 1
        assert "part flows" in capsys.readouterr().err


async def test_nodes_of_one_name_are_told_apart(incident: Path) -> None:
    """Two clusters each have an n1: the file serves them under cluster and name."""
    assert told(incident, "node", "list", "--node", "west-n1")[-1]["local"]
