"""`meshlog log replay`, the slow half: it opens the log itself, so that no agent's belief has a part in the result.

Belongs here: opening and closing the log around controlplane.history.replay. Imported only when it runs.
"""

import argparse
import asyncio
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from controlplane.cli.errors import CommandFailed, UsageError
from controlplane.cli.etcd_flags import tls_and_login
from controlplane.history.replay import ReplayResult, replay
from controlplane.runtime.archives import reaching, whereabouts
from kvstore.errors import HistoryTruncated, LogError
from kvstore.etcd import EtcdLog

Result = TypeVar("Result")


def replay_digests(arguments: argparse.Namespace, endpoints: Sequence[str]) -> dict[str, Any]:
    """{"revision", "records", "events", "nodes": "cluster/node" -> table -> digest}. Raises CommandFailed, UsageError.
    """
    result = asyncio.run(with_log(arguments, endpoints, lambda log: _replay(log, arguments.through)))
    return {
        "revision": result.revision,
        "records": result.records,
        "events": result.events,
        "state_digest": result.state_digest,
        "nodes": result.digests,
    }


async def with_log(
    arguments: argparse.Namespace, endpoints: Sequence[str], use: Callable[[EtcdLog], Awaitable[Result]]
) -> Result:
    """What `use` makes of the log, which is closed afterwards. Raises CommandFailed, UsageError."""
    tls, login = tls_and_login(arguments)
    archive = Path(arguments.archive_dir) if getattr(arguments, "archive_dir", "") else None
    try:
        log = await EtcdLog.connect(endpoints, tls=tls, login=login, archive=archive)
    except (ValueError, OSError) as error:
        raise UsageError(f"--etcd: {error}") from None
    try:
        return await use(log)
    except HistoryTruncated as error:
        raise CommandFailed(f"{error}; {await whereabouts(log) or 'no operator has recorded an archive'}") from None
    except LogError as error:
        raise CommandFailed(f"the log cannot be read: {error}") from None
    finally:
        await log.close()


async def _replay(log: EtcdLog, through: int | None) -> ReplayResult:
    return await replay(reaching(log), through)
