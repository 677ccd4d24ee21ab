"""The flag that writes what scenarios come to into their files: `pytest tests/scenarios --rewrite-scenarios`."""

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--rewrite-scenarios",
        action="store_true",
        help="write what each scenario comes to into its file; review the difference",
    )


@pytest.fixture
def is_rewriting(pytestconfig: pytest.Config) -> bool:
    """Whether files are written instead of compared."""
    return bool(pytestconfig.getoption("--rewrite-scenarios", default=False))
