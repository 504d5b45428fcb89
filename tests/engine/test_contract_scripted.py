"""The scripted engine of the tests keeps the contract of a real one; else tests that use it prove nothing."""

import pytest

from mflux_api.engine.interface import EngineStarter
from mflux_api.engine.protocol import Load
from tests.engine.contract import EngineContract
from tests.scripted_engine import Script


class TestScriptedEngine(EngineContract):
    @pytest.fixture
    def start(self) -> EngineStarter:
        return Script().start

    @pytest.fixture
    def good(self) -> Load:
        return Load(model="demo", path="/nowhere", embedded=True)
