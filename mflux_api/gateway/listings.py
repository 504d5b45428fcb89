"""What there is: jobs, models, downloads and LoRAs, as an embedding program lists them."""

from datetime import datetime
from pathlib import Path

import attrs

from mflux_api.actors import messages as m
from mflux_api.catalog import Model
from mflux_api.catalog.lora_layers import LoraContents
from mflux_api.gateway.questions import Questions
from mflux_api.jobs.job import Failure, Job


@attrs.frozen(kw_only=True)
class JobList:
    """A page of jobs, newest first."""

    jobs: tuple[Job, ...]
    next_cursor: str | None
    """Leads to the next page."""


@attrs.frozen(kw_only=True)
class ModelView:
    """A model that a request can name."""

    model: Model
    path: Path | None
    """Where it lies; ``None`` where it is not on disk, or not whole."""

    @property
    def downloaded(self) -> bool:
        """Whether it can be used without a hub."""
        return self.path is not None


@attrs.frozen(kw_only=True)
class DownloadView:
    """A download that goes on, or whose last try failed."""

    model: str
    transfer: m.Transfer | None
    """How far it is, while it goes on."""
    failure: Failure | None
    """Why the last try failed."""


@attrs.frozen(kw_only=True)
class LoraView:
    """A LoRA that a request can name."""

    name: str
    """What ``lora_files`` takes."""
    path: Path
    size: int
    modified_at: datetime
    contents: LoraContents | None
    """What it holds; ``None`` where its header was not read."""
    problem: str | None
    """Why its header cannot be read, as a clause."""


class Listings(Questions):
    """Lists of what there is."""

    async def model_views(self) -> tuple[ModelView, ...]:
        """Return every model of the catalog, and where it lies."""

        def read() -> tuple[ModelView, ...]:
            return tuple(ModelView(model=model, path=self.checkpoints.state(model).path) for model in self.catalog)

        return await self.read_models(read)

    async def downloads(self) -> tuple[DownloadView, ...]:
        """Return the downloads that go on, and those whose last try failed."""
        found = []
        for model in self.catalog:
            if model.remote:
                state = await self._ask(self._to.downloader, m.GetDownload(model=model.alias))
                if state.transfer is not None or state.failure is not None:
                    found.append(DownloadView(model=model.alias, transfer=state.transfer, failure=state.failure))
        return tuple(found)

    async def lora_views(self) -> tuple[LoraView, ...]:
        """Return every LoRA of ``lora.dirs`` and what it holds."""
        files = (await self.read_loras(self.loras.look)).files
        described = await self.lora_contents.describe(files)
        return tuple(
            LoraView(
                name=file.name,
                path=file.path,
                size=file.size,
                modified_at=file.modified_at,
                contents=each.contents,
                problem=each.problem,
            )
            for file, each in zip(files, described, strict=True)
        )
