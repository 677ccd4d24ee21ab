"""Every scenario in this folder comes to what its text says."""

from pathlib import Path

import pytest

from tests.scenarios.runner import Scenario

SCENARIOS = sorted(Path(__file__).parent.glob("*.txt"))


@pytest.mark.parametrize("path", SCENARIOS, ids=lambda path: path.stem)
def test_scenario(path: Path, is_rewriting: bool) -> None:
    """Run again, the text is the same, line by line."""
    text = path.read_text()
    outcome = Scenario().run(text)
    if is_rewriting:
        path.write_text(outcome)
    else:
        assert outcome.splitlines() == text.splitlines()


def test_a_wrong_outcome_is_noticed() -> None:
    """The runner writes what happened, not what was expected."""
    text = "given east/node.n1 ClusterLeft\n  all is well\n"
    assert Scenario().run(text) == "given east/node.n1 ClusterLeft\n  refused: only operator may write it\n"


def test_a_line_that_is_no_step_is_named() -> None:
    """Rather than skipped."""
    with pytest.raises(ValueError, match="given, ask or follow"):
        Scenario().run("hope east/operator ClusterLeft\n")
