"""``--proxies``: run the suite of the proxies; it needs nginx, and Caddy where that is installed."""

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the option."""
    parser.addoption("--proxies", action="store_true", help="run tests/proxies, with this machine's nginx and Caddy")


@pytest.fixture(autouse=True, scope="session")
def _only_on_request(request: pytest.FixtureRequest) -> None:
    if not request.config.getoption("--proxies"):
        pytest.skip("needs --proxies, and nginx and Caddy")
