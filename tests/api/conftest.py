"""One server for all tests that leave it as they found it."""

from collections.abc import Iterator

import httpx
import pytest

from mflux_api.storage.checkpoints import EMBEDDED
from tests.support.lora_files import write_lora
from tests.support.server import Server, api_client, serving

CUSTOM = f"""
[models]
default = "demo"
auto_download = false

[[models.custom]]
name = "flux2-klein-4b"
base = "demo"
path = {str(EMBEDDED)!r}

[[models.custom]]
name = "flux2-klein-4b-mlx-4bit"
base = "demo"
path = {str(EMBEDDED)!r}
"""
"""The embedded checkpoint under the names that the API document's examples use."""


# Per package: tests elsewhere look at the children of the test process.
@pytest.fixture(scope="package")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with the embedded checkpoint, warm."""
    folder = tmp_path_factory.mktemp("server")
    write_lora(folder / "loras" / "one.safetensors", seed=1)
    write_lora(folder / "loras" / "two.safetensors", seed=2)
    write_lora(folder / "loras" / "styles" / "three.safetensors", seed=3)
    with serving(folder, CUSTOM) as running:
        with api_client(running.url) as client:
            warm = {"prompt": "warm up", "model": "demo", "width": 64, "height": 64, "steps": 1}
            client.post("/sdapi/v1/txt2img", json=warm).raise_for_status()
        yield running
        # Not killed, or the measurement of its coverage would be lost.
        assert running.stop() == 0


@pytest.fixture
def client(server: Server) -> Iterator[httpx.Client]:
    """A client of that server, checking every answer against the OpenAPI document."""
    with api_client(server.url) as connected:
        yield connected
