"""Starts the lab's etcd, prints its pid and ends; etcd runs on.

Belongs here: only that, as a program of its own, because a child joins the namespace and cgroup of its starter.
"""

import asyncio
import sys
from pathlib import Path

from kvstore.embedded import EmbeddedEtcd
from kvstore.errors import EmbeddedError


async def start(data_dir: Path) -> int:
    """The pid of an etcd that takes writes. Raises EmbeddedError."""
    return (await EmbeddedEtcd.start(data_dir, bound_to_parent=False)).pid


if __name__ == "__main__":
    try:
        print(asyncio.run(start(Path(sys.argv[1]))))
    except EmbeddedError as failure:
        sys.exit(str(failure))
