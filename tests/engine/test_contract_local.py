"""The contract with a real child, MLX and the embedded checkpoint."""

from pathlib import Path

import pytest

from mflux_api.engine.client import LocalEngine
from mflux_api.engine.interface import EngineStarter
from mflux_api.engine.protocol import Load
from tests.engine.contract import EngineContract


@pytest.fixture(scope="session")
def demo_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the embedded checkpoint is made, by whichever child needs it first."""
    return tmp_path_factory.mktemp("embedded") / "demo"


class TestLocalEngine(EngineContract):
    @pytest.fixture
    def start(self) -> EngineStarter:
        return LocalEngine.start

    @pytest.fixture
    def good(self, demo_folder: Path) -> Load:
        return Load(model="demo", path=str(demo_folder), embedded=True)
