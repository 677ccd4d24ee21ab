"""`meshlog operator`: its flags are its settings, which controlplane.operator reads itself."""

from collections.abc import Sequence

from controlplane.operator import main


def run_words(words: Sequence[str]) -> int:
    """Until it is told to stop."""
    return main(words)
