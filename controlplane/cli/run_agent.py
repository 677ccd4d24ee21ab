"""`meshlog agent`: its flags are its settings, which controlplane.agent reads itself.

Belongs here: a quick start, since whoever waits for a node waits for its imports. Does not belong here: the agent.
"""

import gc
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

CERTIFICATES = "SSL_CERT_FILE"
RICH = "rich"


def run_words(words: Sequence[str]) -> int:
    """Until it is told to stop."""
    # Nothing that is imported is garbage, and looking for it takes a fifth of the imports' time.
    gc.disable()
    with _spared():
        from controlplane.agent import main

    return main(words)


@contextmanager
def _spared() -> Iterator[None]:
    """Import without what an agent never uses: the machine's certificate authorities, which aiohttp loads twice for
    clients (45 ms, 7 MB), and rich, which structlog takes for tracebacks where it is installed (40 ms)."""
    given = os.environ.get(CERTIFICATES)
    os.environ[CERTIFICATES] = os.devnull
    is_blocked = sys.modules.setdefault(RICH, None) is None  # type: ignore[arg-type]
    try:
        yield
    finally:
        del os.environ[CERTIFICATES]
        if given is not None:
            os.environ[CERTIFICATES] = given
        if is_blocked:
            del sys.modules[RICH]
