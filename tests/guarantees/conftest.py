"""``--full``: the long form of every guarantee."""

import pytest

FULL_SECONDS = 3600.0


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the option."""
    parser.addoption("--full", action="store_true", help="prove the guarantees in their long form (an hour in all)")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Give the long forms their time."""
    if config.getoption("--full"):
        for item in items:
            item.add_marker(pytest.mark.timeout(FULL_SECONDS))


@pytest.fixture(scope="session")
def full(request: pytest.FixtureRequest) -> bool:
    """Whether this is the long form."""
    return bool(request.config.getoption("--full"))
