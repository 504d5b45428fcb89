"""``--gpu``: run the suite of the GPU; it needs one."""

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the option."""
    parser.addoption("--gpu", action="store_true", help="run tests/gpu, on the GPU of this machine")


@pytest.fixture(autouse=True, scope="session")
def _only_on_request(request: pytest.FixtureRequest) -> None:
    if not request.config.getoption("--gpu"):
        pytest.skip("needs --gpu and a GPU")
