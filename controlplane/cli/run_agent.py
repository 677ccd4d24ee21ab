"""`meshlog agent`: its flags are its settings, which controlplane.agent reads itself."""

from collections.abc import Sequence

from controlplane.agent import main


def run_words(words: Sequence[str]) -> int:
    """Until it is told to stop."""
    return main(words)
