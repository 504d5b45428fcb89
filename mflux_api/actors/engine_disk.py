"""The disk of the machine that an engine runs on, as the engine's actors ask it: paths mean something only there."""

from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import TypeVar

import attrs
import trio

from mflux_api.catalog import Model
from mflux_api.errors import InternalError
from mflux_api.storage.checkpoints import Checkpoints
from mflux_api.storage.footprint import Footprint
from mflux_api.storage.lora_folders import LoraFile
from mflux_api.storage.loras import LoraFiles
from mflux_api.system.threads import read_in_thread

ANSWER_SECONDS = 60.0
"""How long the disk may take to say where a model is, and how large: a few headers of files."""
MAX_THREADS = 4

T = TypeVar("T")


@attrs.frozen(kw_only=True)
class EngineDisk:
    """Where models and LoRAs lie; every question takes a while and keeps nothing else waiting."""

    locate: Callable[[Model], Awaitable[Path | None]]
    """Tells a model's folder; ``None`` where there is none."""
    measure: Callable[[Model, int], Awaitable[Footprint | None]]
    """Tells what a model will take with so many bytes for a number; ``None`` where that cannot be told."""
    quantized: Callable[[Model], Path | None]
    """Tells where the weights of a model that is quantized here are kept; ``None`` for any other."""
    locate_loras: Callable[[tuple[str, ...]], Awaitable[tuple[LoraFile, ...]]]
    """Tells the files of LoRAs by name; raises InvalidParameter for one that is not there."""


def local_disk(checkpoints: Checkpoints, loras: LoraFiles) -> EngineDisk:
    """Return the disk of this machine, asked in threads; one that does not answer is an error, and keeps no actor."""
    threads = trio.CapacityLimiter(MAX_THREADS)

    async def ask(question: Callable[[], T]) -> T:
        with trio.move_on_after(ANSWER_SECONDS):
            # A thread that hangs on a dead network disk cannot be ended, only left to itself.
            return await read_in_thread(question, limiter=threads)
        raise InternalError(
            f"The disk with the models did not answer within {ANSWER_SECONDS:g} s; check models.cache_dir and lora.dirs"
        )

    async def locate_loras(names: tuple[str, ...]) -> tuple[LoraFile, ...]:
        return await ask(partial(loras.resolve, names)) if names else ()

    return EngineDisk(
        locate=lambda model: ask(partial(checkpoints.folder, model)),
        measure=lambda model, float_bytes: ask(partial(checkpoints.footprint, model, float_bytes)),
        quantized=checkpoints.quantized_folder,
        locate_loras=locate_loras,
    )
