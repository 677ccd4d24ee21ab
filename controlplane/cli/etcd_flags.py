"""Flags of commands that reach etcd themselves, named as an agent's are, MESHLOG_<NAME> included.

Belongs here: the flags, certificates and login out of them. Does not belong here: any command.
"""

import argparse
import os
from pathlib import Path

from controlplane.cli.errors import UsageError
from controlplane.settings import ENVIRONMENT_PREFIX
from kvstore.etcd_client import TLS, Login

FLAGS = {
    "etcd_ca": ("FILE", "authority of etcd's certificate, PEM"),
    "etcd_cert": ("FILE", "client certificate, PEM"),
    "etcd_key": ("FILE", "its key, PEM"),
    "etcd_user": ("USER", "a user of etcd, where it asks for a password"),
    "etcd_password_file": ("FILE", "file with that user's password"),
}


def add_etcd(parser: argparse.ArgumentParser, help_text: str) -> None:
    """--etcd and what a connection needs besides."""
    group = parser.add_argument_group("reaching etcd")
    group.add_argument("--etcd", action="append", metavar="ENDPOINT", help=f"{help_text}; may be repeated")
    for name, (metavar, text) in FLAGS.items():
        variable = ENVIRONMENT_PREFIX + name.upper()
        group.add_argument(
            "--" + name.replace("_", "-"), default=os.environ.get(variable, ""), metavar=metavar,
            help=f"{text} (or {variable})",
        )  # fmt: skip


def tls_and_login(arguments: argparse.Namespace) -> tuple[TLS | None, Login | None]:
    """What the flags say. Raises UsageError."""
    files = [Path(each) if each else None for each in (arguments.etcd_ca, arguments.etcd_cert, arguments.etcd_key)]
    if bool(arguments.etcd_user) != bool(arguments.etcd_password_file):
        raise UsageError("--etcd-user and --etcd-password-file: give both, or neither")
    login = None
    if arguments.etcd_user:
        login = Login(arguments.etcd_user, read_password(arguments.etcd_password_file, "--etcd-password-file"))
    return TLS(*files) if any(files) else None, login


def read_password(path: str, flag: str) -> str:
    """The file's content without its last line end. Raises UsageError."""
    try:
        return Path(path).read_text().rstrip("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{flag}: {error}") from None
