"""Files that engines died over: what was being read when children died is not read again and again.

A death over one file costs the jobs that name it, and no others: the engine is started again, and goes on with them.
"""

import logging
from collections.abc import Sequence

import attrs
import trio

from mflux_api.actors import messages as m
from mflux_api.engine.interface import EngineId
from mflux_api.errors import InvalidParameter
from mflux_api.ipc.printable import printable
from mflux_api.storage.lora_folders import LoraFile

logger = logging.getLogger(__name__)

DEATHS = 2
"""Deaths over the same LoRAs, without a success between, after which they are refused; a job has as many attempts."""
MODEL_DEATHS = 2 * DEATHS
"""Deaths over a model after which it is not tried for a while: those of two jobs, for it may be the only model."""
RETRY_FIRST = 60.0
RETRY_MAXIMUM = 1800.0
MAX_SUSPECTS = 1000
"""How many files are remembered; each needs a death to get here."""


@attrs.frozen
class ModelFiles:
    """A checkpoint as one engine loads it: what kills one device may be sound on another."""

    engine: EngineId
    alias: str
    path: str
    bits: int | None


@attrs.frozen
class ReadLoras:
    """The LoRAs of a run that were being read, and those before them.

    All of them, for their numbers are computed together when the last one is read, and what the first one took is
    missing then: alone, the last one may be sound. One that was changed since (its size, its time) is another file.
    """

    files: frozenset[LoraFile]

    def __str__(self) -> str:
        return ", ".join(sorted(printable(file.name) for file in self.files))


Suspect = ReadLoras | ModelFiles
"""What was read when a child died."""


@attrs.define
class _Record:
    deaths: int
    last: float


class Quarantine:
    """What engines died over; one for all engines of a service."""

    def __init__(self, attempts: int = DEATHS) -> None:
        """Take how many attempts a job has, so that no refusal comes before their end."""
        self._lora_deaths = max(DEATHS, attempts)
        self._model_deaths = max(MODEL_DEATHS, 2 * attempts)
        self._records: dict[Suspect, _Record] = {}

    def note_death(self, suspect: Suspect) -> None:
        """Count a death while something was read."""
        record = self._records.pop(suspect, _Record(0, 0.0))
        # Put at the end: the one that was longest without a death is forgotten first.
        self._records[suspect] = _Record(record.deaths + 1, trio.current_time())
        what = f"LoRA {suspect}" if isinstance(suspect, ReadLoras) else f"model {suspect.alias}"
        logger.warning("%s: an engine died while it read this, %d times without a success", what, record.deaths + 1)
        if len(self._records) > MAX_SUSPECTS:
            del self._records[next(iter(self._records))]

    def note_success(self, suspect: Suspect) -> None:
        """Forget what was said of something that was read now."""
        self._records.pop(suspect, None)
        if isinstance(suspect, ReadLoras):
            for among in self._among(suspect.files):
                del self._records[among]

    def lora_error(self, files: Sequence[LoraFile]) -> InvalidParameter | None:
        """Return the error for LoRAs some of which are not read any more until one changes; ``None`` for any others."""
        for suspect in self._among(frozenset(files)):
            deaths = self._records[suspect].deaths
            if deaths >= self._lora_deaths:
                break
        else:
            return None
        if len(suspect.files) == 1:
            problem = f"The LoRA {suspect} ended the engine {deaths} times while it was read, so it is not read again"
        else:
            problem = (
                f"The LoRAs {suspect} ended the engine {deaths} times while they were read together, so they are not "
                "read together again"
            )
        return InvalidParameter(
            f"{problem}; replace the file, or leave it out",
            {"field": "lora_files", "value": str(suspect), "limit": "whole LoRAs made for this model"},
        )

    def _among(self, files: frozenset[LoraFile]) -> list[ReadLoras]:
        """Return the suspects that are among some files."""
        return [each for each in self._records if isinstance(each, ReadLoras) and each.files <= files]

    def model_error(self, files: ModelFiles) -> m.ModelRefused | None:
        """Return the error for a model that is not loaded for a while; ``None`` for any other."""
        record = self._records.get(files)
        if record is None or record.deaths < self._model_deaths:
            return None
        pause = min(RETRY_MAXIMUM, RETRY_FIRST * 2.0 ** min(record.deaths - self._model_deaths, 16))
        seconds = record.last + pause - trio.current_time()
        if seconds <= 0:
            # One more try: a driver or a disk may have recovered.
            return None
        return m.ModelRefused(
            f"Model '{files.alias}' ended the engine {record.deaths} times while it was loaded; it is tried again in "
            f"{seconds:.0f} s; download it again, or use another model",
            {"model": files.alias},
        )
