"""The scripted engine of the tests keeps the contract of a real one; otherwise tests that use it prove nothing."""

import pytest

from mflux_api.engine.interface import EngineStarter
from mflux_api.engine.protocol import LoadModel
from mflux_api.storage.checkpoints import EMBEDDED
from tests.support.engine_contract import EngineContract
from tests.support.scripted_engine import Script


class TestScriptedEngine(EngineContract):
    @pytest.fixture(params=[1, 2], ids=["one image a pass", "two"])
    def start(self, request: pytest.FixtureRequest) -> EngineStarter:
        return Script(per_pass=request.param).start

    @pytest.fixture
    def good(self) -> LoadModel:
        return LoadModel(model="demo", path=str(EMBEDDED))
