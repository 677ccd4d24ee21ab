"""How a process reaches the log: the settings of endpoints, certificates and login made into a connection.

Belongs here: reading the password's file, and naming the setting that is wrong. Does not belong here: the connection
(kvstore/etcd.py).
"""

from collections.abc import Sequence
from pathlib import Path

from controlplane.settings import CommonSettings, SettingsError
from kvstore.etcd import EtcdLog
from kvstore.etcd_client import TLS, Login


async def connect_log(
    settings: CommonSettings, endpoints: Sequence[str] = (), archive: Path | None = None
) -> EtcdLog:
    """Over `endpoints`, those of the settings if none. Nothing is sent before it is used. Raises SettingsError."""
    try:
        return await EtcdLog.connect(
            endpoints or settings.etcd, tls=_tls(settings), login=_login(settings), archive=archive
        )
    except ValueError as error:
        raise SettingsError(f"--etcd: {error}") from None
    except OSError as error:
        raise SettingsError(f"--etcd-ca, --etcd-cert, --etcd-key: {error}") from None


def _tls(settings: CommonSettings) -> TLS | None:
    files = [Path(each) if each else None for each in (settings.etcd_ca, settings.etcd_cert, settings.etcd_key)]
    return TLS(*files) if any(files) else None


def _login(settings: CommonSettings) -> Login | None:
    if bool(settings.etcd_user) != bool(settings.etcd_password_file):
        raise SettingsError("--etcd-user and --etcd-password-file: give both, or neither")
    if not settings.etcd_user:
        return None
    try:
        password = Path(settings.etcd_password_file).read_text().rstrip("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"--etcd-password-file: {error}") from None
    return Login(settings.etcd_user, password)
