"""Servers for the clients: one that anybody may call, and one with keys."""

from collections.abc import Iterator
from importlib.util import find_spec

import pytest

from tests.clients.running import Running, image, running

if find_spec("webuiapi") is None:
    raise pytest.UsageError("the clients are not installed here: uv run --project tests/clients pytest tests/clients")


@pytest.fixture(scope="session", params=["without keys", "with keys"])
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A server with the model demo; every test runs against both kinds."""
    with running(tmp_path_factory.mktemp("server"), keys=request.param == "with keys") as found:
        yield found


@pytest.fixture(scope="session")
def png() -> bytes:
    """An image to edit."""
    return image()
