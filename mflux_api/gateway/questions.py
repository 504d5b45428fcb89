"""What every part of the gateway has: the actors' addresses, and how a question to one of them fails."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import TypeVar, TypeVarTuple, Unpack

import attrs
import trio

from mflux_api.actors import messages as m
from mflux_api.actors.decoding import Decoding
from mflux_api.actors.engine_addresses import EngineAddresses
from mflux_api.actors.mailbox import ActorGone, ActorStopped, Address, Ask
from mflux_api.catalog import Catalog, Model
from mflux_api.config import Settings
from mflux_api.engine.interface import EngineId
from mflux_api.errors import ServerBusy, ServiceRestarting, ShuttingDown
from mflux_api.gateway.conversions import Conversions
from mflux_api.gateway.lora_contents import LoraContentsCache
from mflux_api.storage.checkpoints import Checkpoints
from mflux_api.storage.loras import LoraFiles
from mflux_api.system.threads import read_in_thread

RETRY_SECONDS = 0.05
"""Before a question is put again to an actor that is being restarted."""

READERS = 4
"""Threads that read one disk at a time."""

DISK_SECONDS = 30.0
"""How long a disk may take for one read: a network disk may have to wake up."""

T = TypeVar("T")
Ts = TypeVarTuple("Ts")
M = TypeVar("M")


@attrs.frozen(kw_only=True)
class Addresses:
    """Every actor that can be asked from outside the tree."""

    scheduler: Address[m.SchedulerMessage]
    store: Address[m.StoreMessage]
    hub: Address[m.HubMessage]
    downloader: Address[m.DownloaderMessage]
    decoder: Address[m.DecoderMessage]
    stats: Address[m.StatsMessage]
    webhooks: Address[m.WebhooksMessage] | None
    """``None`` where they are off."""
    engines: Mapping[EngineId, EngineAddresses]


class LoraDeletions:
    """Deletions of LoRAs, for those who looked one up before and need it after."""

    def __init__(self) -> None:
        self.begun = 0
        """How many there were; one more than before tells that a file may be gone."""
        self.under_way = trio.Lock()


class Questions:
    """Typed questions to the actors.

    Every method raises :class:`ServiceRestarting` when its actor just died, and :class:`ShuttingDown` once the service
    has ended.
    """

    def __init__(self, addresses: Addresses, settings: Settings, catalog: Catalog, checkpoints: Checkpoints) -> None:
        self._to = addresses
        # By disk: one that does not answer keeps its threads, and none that others wait for.
        self.model_readers = trio.CapacityLimiter(READERS)
        self.lora_readers = trio.CapacityLimiter(READERS)
        self.lora_deletions = LoraDeletions()
        self.lora_removers = trio.CapacityLimiter(READERS)
        self.image_readers = trio.CapacityLimiter(READERS)
        self.conversions = Conversions()
        self.decoding = Decoding(partial(self._ask, addresses.decoder))
        self.lora_contents = LoraContentsCache(self.decoding.describe_loras)
        self.loras = LoraFiles.from_settings(settings)
        self.settings = settings
        self.catalog = catalog
        self.checkpoints = checkpoints

    async def _on_disk(self, model: Model) -> bool:
        return await self.read_models(self.checkpoints.folder, model) is not None

    async def read_models(self, function: Callable[[Unpack[Ts]], T], *arguments: *Ts) -> T:
        """Read the disk with the models.

        Raises:
            ServerBusy: it does not answer.
        """
        return await _read(function, *arguments, limiter=self.model_readers, setting="models.cache_dir")

    async def read_loras(self, function: Callable[[Unpack[Ts]], T], *arguments: *Ts) -> T:
        """Read the disk with the LoRAs.

        Raises:
            ServerBusy: it does not answer.
        """
        return await _read(function, *arguments, limiter=self.lora_readers, setting="lora.dirs")

    async def read_images(self, function: Callable[[Unpack[Ts]], T], *arguments: *Ts) -> T:
        """Read the disk with the images.

        Raises:
            ServerBusy: it does not answer.
        """
        return await _read(function, *arguments, limiter=self.image_readers, setting="generation.output_dir")

    async def _ask(self, address: Address[M], message: Ask[T], *, control: bool = False) -> T:
        try:
            return await address.ask(message, control=control)
        except ActorGone as gone:
            raise gone_error(gone) from None


async def _read(function: Callable[[Unpack[Ts]], T], *arguments: *Ts, limiter: trio.CapacityLimiter, setting: str) -> T:
    """Read a disk, with an end: one that does not answer keeps its threads, and no caller."""
    with trio.move_on_after(DISK_SECONDS):
        return await read_in_thread(function, *arguments, limiter=limiter)
    raise ServerBusy(f"The disk of {setting} does not answer; check it, or try again later")


def gone_error(gone: ActorGone) -> ServiceRestarting | ShuttingDown:
    """Return what a caller sees of an actor that is gone."""
    if isinstance(gone, ActorStopped):
        return ShuttingDown("The service has ended")
    return ServiceRestarting(f"The service's {gone} was restarted; try again")
