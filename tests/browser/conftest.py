"""``--browser``: run the page in Chromium; it needs one, Node, and the packages of ``package.json``."""

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the option."""
    parser.addoption("--browser", action="store_true", help="run tests/browser, in the Chromium of this machine")


@pytest.fixture(autouse=True, scope="session")
def _only_on_request(request: pytest.FixtureRequest) -> None:
    if not request.config.getoption("--browser"):
        pytest.skip("needs --browser, Chromium and Node")
