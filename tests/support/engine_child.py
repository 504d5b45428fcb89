"""An engine in a child process, from its handshake to its death."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio

from mflux_api.engine.interface import EngineDied
from mflux_api.engine.local import LocalEngine, LocalEngineOptions
from tests.support.engine_contract import DEADLINE_SECONDS

WORKER = LocalEngineOptions()


@asynccontextmanager
async def running_engine(options: LocalEngineOptions = WORKER) -> AsyncIterator[LocalEngine]:
    """A child past its handshake, gone when the block ends."""
    async with trio.open_nursery() as nursery:
        with trio.fail_after(DEADLINE_SECONDS):
            engine = await LocalEngine.start(nursery, options)
        try:
            yield engine
        finally:
            with trio.CancelScope(shield=True):
                await engine.aclose(force=True)


async def death(engine: LocalEngine) -> str:
    """Wait for the engine's death and return its reason."""
    with trio.fail_after(DEADLINE_SECONDS):
        while True:
            try:
                await engine.receive()
            except EngineDied as died:
                return died.reason
