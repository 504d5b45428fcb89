"""One load: told to the engine, followed, passed on to those who wait for it, and abandoned when they are gone."""

from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

import trio

from mflux_api.actors import messages as m
from mflux_api.actors.mailbox import Address
from mflux_api.catalog import Model
from mflux_api.engine.protocol import Bits, LoadModel, LoadProgress
from mflux_api.system.nurseries import unwrapped_nursery

Asking = Callable[[], Sequence[m.Acquire]]
"""Tells which questions still wait for the load."""


async def load_while_wanted(
    generator: Address[m.GeneratorMessage],
    command: LoadModel,
    asking: Asking,
    change: Callable[[], Awaitable[None]],
) -> m.Resident:
    """Have the engine load a model, for as long as a question waits for it.

    Args:
        generator: the engine's.
        command: what to load.
        asking: who waits; each is told how far it is.
        change: waits until ``asking`` may have another answer.

    Raises:
        LoadCancelled: no question waited for it any more, and it was stopped.
        EngineDied: the engine ended over it.
        ServiceError: the model cannot be loaded.
    """
    updates, news = trio.open_memory_channel[LoadProgress](1)
    passing = trio.CancelScope()

    async def pass_on() -> None:
        with passing:
            async for progress in news:
                for each in asking():
                    each.tell(progress)

    async def watch() -> None:
        while asking():
            await change()
        # Closed before the news of it: by that the generator knows which load is meant.
        passing.cancel()
        news.close()
        generator.tell_latest(m.LoadAbandoned(), key=m.LoadAbandoned)

    async with unwrapped_nursery() as nursery:
        nursery.start_soon(pass_on)
        nursery.start_soon(watch)
        resident = await generator.ask(m.LoadModel(command=command, updates=updates))
        nursery.cancel_scope.cancel()
    return resident


def load_command(model: Model, folder: Path, entry: Path | None, *, component_offload: bool, unpack: bool) -> LoadModel:
    """Return the command that loads a model.

    Args:
        model: the model.
        folder: its checkpoint.
        entry: where its weights are kept that are quantized here; ``None`` for any other.
        component_offload: read each component only when a run needs it.
        unpack: keep quantized weights unpacked.
    """
    return LoadModel(
        model=model.alias,
        path=str(folder),
        bits=None if entry is None else _bits(model),
        entry="" if entry is None else str(entry),
        component_offload=component_offload,
        unpack=unpack,
    )


def _bits(model: Model) -> Bits:
    match model.bits:
        case 3 | 4 | 6 | 8 as bits:
            return bits
        case other:
            raise ValueError(f"{model.alias} cannot be quantized to {other} bits")
