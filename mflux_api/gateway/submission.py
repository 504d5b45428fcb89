"""The way of a request into the queue: checked, resolved, and kept when the answer comes."""

from functools import partial

import attrs
import trio

from mflux_api.actors import messages as m
from mflux_api.catalog import Catalog, Model
from mflux_api.catalog.lookup import find_model, not_downloaded
from mflux_api.config import Settings
from mflux_api.errors import ServiceRestarting
from mflux_api.gateway.questions import Addresses, Questions
from mflux_api.images.decode import compact_text
from mflux_api.images.run_inputs import output_size, source_size
from mflux_api.jobs.idempotency import IdempotencyKey
from mflux_api.jobs.lora_tags import without_tags
from mflux_api.jobs.request import GenerateRequest, check_fields
from mflux_api.jobs.resolve import ResolvedRequest, resolve
from mflux_api.jobs.upscaling import check_upscaling, resolve_upscaling
from mflux_api.storage.checkpoints import Checkpoints
from mflux_api.system.threads import read_in_thread


class Submission(Questions):
    """Submitting jobs, and taking them back."""

    def __init__(self, addresses: Addresses, settings: Settings, catalog: Catalog, checkpoints: Checkpoints) -> None:
        super().__init__(addresses, settings, catalog, checkpoints)
        self._decoders = trio.CapacityLimiter(2)

    async def submit(
        self,
        request: GenerateRequest,
        *,
        synchronous: bool = False,
        owner: str = "",
        key: IdempotencyKey | None = None,
    ) -> m.Accepted:
        """Check, resolve and queue a request whose fields are within their limits; when this returns the job is kept.

        With a ``key`` under which a job was accepted before, that job is the answer.

        Raises:
            InvalidParameter: a field is outside its limits.
            InvalidModel: no model has that name.
            ModelNotFound: it is a Flux1 model's name.
            ModelNotDownloaded: it is not on disk, and ``models.auto_download`` is off.
            QueueFull: too many jobs wait.
            ShuttingDown: the service is draining.
            EngineUnavailable: the engine does not start.
            IdempotencyConflict: the key was used before with another body.
            JobGone: the key's job was removed by retention.
        """
        most = self.settings.generation.max_batch_size
        check = partial(check_fields, max_images=most, needs_prompt=not self.upscales(request.model))
        check(request)
        checked = without_tags(request)
        check(checked)
        model = find_model(checked.model or self.settings.models.default, self.catalog)
        if model.upscales:
            check_upscaling(checked, model)
        if model.remote and not self.settings.models.auto_download and not await self._on_disk(model):
            raise not_downloaded(model)
        resolved = await (self._upscaling if model.upscales else self._generating)(checked, model)
        if resolved.init_images and not synchronous:
            # What waits is counted, and is what a start would read. A synchronous caller has its text in memory anyway.
            texts = await read_in_thread(lambda: tuple(map(compact_text, resolved.init_images)), limiter=self._decoders)
            resolved = attrs.evolve(resolved, init_images=texts)
        submit = m.Submit(request=resolved, synchronous=synchronous, owner=owner, key=key)
        try:
            return await self._submit(submit)
        except (ServiceRestarting, trio.Cancelled):
            if synchronous:
                # No caller will wait for it.
                self.abandon(submit.job_id)
            raise

    async def _submit(self, submit: m.Submit) -> m.Accepted:
        try:
            return await self._ask(self._to.scheduler, submit)
        except ServiceRestarting:
            # It may have died between the store's answer and its own; when it answers again it has recovered.
            question = m.GetSnapshots(job_ids=(submit.job_id,))
            live = (await self._ask(self._to.scheduler, question)).get(submit.job_id)
            job = await self._ask(self._to.store, m.GetJob(job_id=submit.job_id))
            if job is None:
                raise
            return m.Accepted(job=job, position=(live.position if live is not None else None) or 0)

    async def accepted_before(self, key: IdempotencyKey) -> m.Accepted | None:
        """Return the job that was accepted under a key; ``None`` when there is none.

        Ask before anything of the request is checked: a file or a model may be gone since.

        Raises:
            IdempotencyConflict: the key was used before with another body.
            JobGone: the key's job was removed by retention.
        """
        return await self._ask(self._to.scheduler, m.FindAccepted(key=key))

    def upscales(self, name: object) -> bool:
        """Whether a request's ``model``, which is not checked yet, or the default where it has none, upscales."""
        name = name or self.settings.models.default
        model = self.catalog.get(name) if isinstance(name, str) else None
        return model is not None and model.upscales

    async def _upscaling(self, checked: GenerateRequest, model: Model) -> ResolvedRequest:
        size = await read_in_thread(source_size, checked.init_images[0], limiter=self._decoders)
        return resolve_upscaling(checked, model, size)

    async def _generating(self, checked: GenerateRequest, model: Model) -> ResolvedRequest:
        loras = await self._named(checked.lora_files)
        size: tuple[int, int] | None = None
        if checked.init_images:
            size = await read_in_thread(output_size, checked.init_images, limiter=self._decoders)
        steps = self.settings.generation.default_steps
        return resolve(checked, model, default_steps=steps, default_size=size, lora_names=loras)

    async def _named(self, loras: tuple[str, ...]) -> tuple[str, ...]:
        """Return every LoRA's one name, under which it is found again after a restart, too."""
        if not loras:
            return ()
        files = await self.read_loras(self.loras.resolve, loras)
        return tuple(file.name for file in files)

    def abandon(self, job_id: str) -> None:
        """Cancel a job without waiting for the answer, for callers that are being cancelled themselves."""
        self._to.scheduler.tell_latest(m.Abandon(job_id=job_id), key=(m.Abandon, job_id))
