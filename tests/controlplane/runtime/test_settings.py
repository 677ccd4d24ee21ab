"""Settings: where they come from, and what is said of wrong ones."""

import subprocess
import sys

import pytest

from controlplane.settings import (
    AgentSettings,
    OperatorSettings,
    SettingsError,
    block_prefixes,
    read_settings,
)

AGENT = {"cluster": "east", "node": "n1"}
OPERATOR = {"cluster": "east", "cluster_id": "1"}


def test_flag_wins_over_environment_and_file(tmp_path):
    """A flag wins over the environment, the environment over the file, the file over the default."""
    path = tmp_path / "agent.toml"
    path.write_text('device = "file0"\nbpffs = "/file"\nreport_s = 9.5\n')
    environment = {"MESHLOG_DEVICE": "env0", "MESHLOG_BPFFS": "/env"}
    found = read_settings(AgentSettings, {**AGENT, "device": "flag0"}, environment, str(path))
    assert (found.device, found.bpffs, found.report_s, found.log_level) == ("flag0", "/env", 9.5, "info")


def test_wrong_value_names_flag_and_value():
    """A value that does not fit names the flag, the value, and what would be right."""
    with pytest.raises(SettingsError, match=r"--cluster-id: '300' is not usable: expected `int` <= 255"):
        read_settings(OperatorSettings, {"cluster": "east", "cluster_id": "300"}, {})


def test_missing_value_names_flag():
    """A required setting that nobody gave is named by its flag."""
    with pytest.raises(SettingsError, match="give --node"):
        read_settings(AgentSettings, {"cluster": "east"}, {})


def test_unknown_name_in_file_is_refused(tmp_path):
    """A misspelt setting in the file is an error, never ignored."""
    path = tmp_path / "agent.json"
    path.write_text('{"devise": "eth0"}')
    with pytest.raises(SettingsError, match="'devise'"):
        read_settings(AgentSettings, AGENT, {}, str(path))


def test_several_values_from_environment():
    """A repeatable setting takes a comma-separated list from the environment."""
    found = read_settings(AgentSettings, AGENT, {"MESHLOG_ETCD": "unix:/a,h:2379"})
    assert found.etcd == ("unix:/a", "h:2379")


def test_block_sizes_follow_pod_cidrs():
    """Each pod CIDR gets a block size, given or by default; a number that does not fit is refused."""
    cidrs = ["10.1.0.0/16", "fd00:1::/48"]
    found = read_settings(OperatorSettings, {**OPERATOR, "pod_cidr": cidrs}, {})
    assert block_prefixes(found) == (24, 64)
    short = read_settings(OperatorSettings, {**OPERATOR, "pod_cidr": cidrs, "block_size": ["24"]}, {})
    with pytest.raises(SettingsError, match="give one for each"):
        block_prefixes(short)
    wide = read_settings(OperatorSettings, {**OPERATOR, "pod_cidr": cidrs, "block_size": ["8", "64"]}, {})
    with pytest.raises(SettingsError, match="between 17 and 30"):
        block_prefixes(wide)


@pytest.mark.parametrize(
    ("program", "flags", "told"),
    [
        ("agent", ["--cluster", "east"], "give --node"),
        ("agent", ["--cluster", "east", "--node", "n1"], "--etcd"),
        ("operator", ["--cluster", "east", "--cluster-id", "1", "--etcd", "h:1"], "--pod-cidr"),
        ("operator", ["--cluster", "east", "--cluster-id", "x"], "--cluster-id"),
    ],
)
def test_wrong_flags_end_with_exit_code_2(program, flags, told):
    """A process with wrong flags says so in one line on stderr and ends with exit code 2."""
    code = f"from controlplane.{program} import main; raise SystemExit(main())"
    found = subprocess.run([sys.executable, "-c", code, *flags], capture_output=True, text=True, check=False)
    assert found.returncode == 2
    assert told in found.stderr and found.stderr.count("\n") == 1


def test_a_form_of_attachment_that_is_none_is_refused():
    """What is not one of the three names is told by its flag; the default lets the kernel choose."""
    assert read_settings(AgentSettings, AGENT, {}).attach_mode == "auto"
    assert read_settings(AgentSettings, {**AGENT, "attach_mode": "clsact"}, {}).attach_mode == "clsact"
    with pytest.raises(SettingsError, match="--attach-mode: 'xdp' is not usable"):
        read_settings(AgentSettings, {**AGENT, "attach_mode": "xdp"}, {})
