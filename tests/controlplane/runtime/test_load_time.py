"""What the agent's settings tell the programs when they are loaded."""

from pathlib import Path

import pytest

from controlplane.agent import load_time_constants
from controlplane.model import Device
from controlplane.runtime.sockets import joining_cgroup, socket_cgroup
from controlplane.runtime.underlay import Underlay
from controlplane.settings import AgentSettings, SettingsError
from datapath.codec import address_bytes

UNDERLAY = Underlay(Device("eth0", 2, "02:00:00:00:00:01"), ("192.0.2.1", "2001:db8::1"), 1500, (32768, 60999), 77)


def told(**settings: object) -> dict[str, int | bytes]:
    """The constants of an agent with these settings."""
    return load_time_constants(AgentSettings(cluster="east", node="n1", **settings), UNDERLAY)  # type: ignore[arg-type]


def test_usually_endpoints_leave_with_the_nodes_addresses() -> None:
    """Of both families, by ports that the node itself does not use."""
    constants = told()
    assert constants["config_masquerade_ipv4"] == address_bytes("192.0.2.1")
    assert constants["config_masquerade_ipv6"] == address_bytes("2001:db8::1")
    assert (constants["config_masquerade_port_first"], constants["config_masquerade_port_count"]) == (10000, 20000)


def test_masquerade_can_be_turned_off() -> None:
    """No address is told."""
    assert not {"config_masquerade_ipv4", "config_masquerade_ipv6"} & told(masquerade="off").keys()


@pytest.mark.parametrize(
    ("notify", "expected"),
    [(("drops", "verdicts"), (1, 1, 0)), (("drops", "denials"), (1, 0, 1)), (("none",), (0, 0, 0))],
)
def test_what_is_notified(notify: tuple[str, ...], expected: tuple[int, int, int]) -> None:
    """Drops, verdicts, and the verdict beside a drop."""
    constants = told(notify=notify)
    assert tuple(constants[f"config_notify_{each}"] for each in ("drops", "verdicts", "denials")) == expected


def test_lifetimes_of_flows_have_ciliums_names() -> None:
    """Its values too, where nothing else is said."""
    stages = ("tcp", "syn", "closing", "other")
    constants = told()
    assert tuple(constants[f"config_conntrack_{each}_s"] for each in stages) == (8000, 60, 10, 60)
    constants = told(bpf_ct_timeout_regular_tcp_fin=30, bpf_ct_timeout_regular_any=120)
    assert tuple(constants[f"config_conntrack_{each}_s"] for each in stages) == (8000, 60, 30, 120)


def test_prefix_that_is_none_is_named() -> None:
    """With the flag."""
    with pytest.raises(SettingsError, match=r"--non-masquerade-cidr: .*10\.0\.0\.1/8"):
        told(non_masquerade_cidr=("10.0.0.1/8",))


def test_without_services_at_the_socket_nothing_is_told_of_sockets() -> None:
    """Programs of a node that has none need no other content for it."""
    assert not [name for name in told() if "socket" in name or "cookie" in name]


def test_sockets_of_the_node_are_known_by_its_namespace(tmp_path: Path) -> None:
    """And whose sockets are meant."""
    (tmp_path / "cgroup.controllers").touch()
    constants = told(bpf_lb_sock="on", bpf_lb_sock_hostns_only="on", cgroup_root=str(tmp_path))
    assert constants["config_node_netns_cookie"] == 77
    assert constants["config_socket_node_only"] == 1


def test_a_root_of_cgroups_that_is_none_is_named(tmp_path: Path) -> None:
    """With the flag, and what would be right."""
    with pytest.raises(SettingsError, match=r"--cgroup-root: .* is no cgroup v2 directory; right is"):
        told(bpf_lb_sock="on", cgroup_root=str(tmp_path))


def test_the_cgroup_of_joined_sockets_is_that_of_services_at_the_socket(tmp_path: Path) -> None:
    """Each by its own setting, and named by it where there is none."""
    (tmp_path / "cgroup.controllers").touch()
    wanted = AgentSettings(cluster="east", node="n1", sockops_enable="on", cgroup_root=str(tmp_path))
    assert (joining_cgroup(wanted), socket_cgroup(wanted)) == (str(tmp_path), "")
    with pytest.raises(SettingsError, match=r"--cgroup-root: .* is no cgroup v2 directory; right is"):
        joining_cgroup(AgentSettings(cluster="east", node="n1", sockops_enable="on", cgroup_root=str(tmp_path / "no")))
