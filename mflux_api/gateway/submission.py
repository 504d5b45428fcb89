"""The way of a request into the queue: checked, resolved, and kept when the answer comes."""

from collections.abc import Mapping
from contextlib import suppress
from functools import partial

import attrs
import trio

from mflux_api.access.keys import PROGRAM, Caller
from mflux_api.actors import messages as m
from mflux_api.actors.webhooks.target import FIELD as WEBHOOK
from mflux_api.actors.webhooks.target import read_target
from mflux_api.catalog import Model
from mflux_api.catalog.lookup import find_model, not_downloaded
from mflux_api.errors import InvalidParameter, ServerBusy, ServiceRestarting, TooManyDeliveries
from mflux_api.gateway.questions import DISK_SECONDS, Questions
from mflux_api.images.run_inputs import differs_in_shape, inpainting_canvas, inpainting_size, output_size
from mflux_api.jobs.idempotency import IdempotencyKey
from mflux_api.jobs.ignored import NO_NAMES, of_request
from mflux_api.jobs.inpainting import Inpainting, resolve_inpainting, unused_modifiers, wants_inpainting
from mflux_api.jobs.lora_tags import without_tags
from mflux_api.jobs.request import GenerateRequest, check_fields
from mflux_api.jobs.resolve import ResolvedRequest, resolve
from mflux_api.jobs.upscaling import check_upscaling, resolve_upscaling
from mflux_api.jobs.warnings import MAX_OF_REQUEST, merge
from mflux_api.jobs.webhook import Webhook
from mflux_api.system.log_fields import current_request

MAX_PENDING = 1000
"""Webhooks of all callers that are still to be delivered."""


class Submission(Questions):
    """Submitting jobs, and taking them back."""

    async def submit(
        self,
        request: GenerateRequest,
        *,
        synchronous: bool = False,
        caller: Caller = PROGRAM,
        key: IdempotencyKey | None = None,
        warnings: tuple[str, ...] = (),
        names: Mapping[str, str] = NO_NAMES,
    ) -> m.Accepted:
        """Check, resolve and queue a request whose fields are within their limits; when this returns the job is kept.

        With a ``key`` under which a job was accepted before, that job is the answer. The job keeps ``warnings``, which
        are about what was asked for and is not done.

        Args:
            request: what is to be generated.
            synchronous: whether its caller waits for the images.
            caller: who asks: its owner's job it is, and its key says what it may have in the queue, and where.
            key: an idempotency key.
            warnings: about what was asked for and is not done; the job keeps them, and those of the request itself.
            names: what the client calls a field, where it has a name of its own; warnings use it.

        Raises:
            InvalidParameter: a field is outside its limits.
            InvalidModel: no model has that name.
            ModelNotFound: it is a Flux1 model's name.
            ModelNotDownloaded: it is not on disk, and ``models.auto_download`` is off.
            TooManyJobs: too many jobs of this caller wait.
            QueueFull: too many jobs wait.
            ShuttingDown: the service is draining.
            EngineUnavailable: the engine does not start.
            IdempotencyConflict: the key was used before with another body.
            JobGone: the key's job was removed by retention.
            TooManyDeliveries: too many webhooks are still to be delivered.
        """
        most = self.settings.generation.max_batch_size
        check = partial(check_fields, max_images=most, needs_prompt=not self.upscales(request.model))
        check(request)
        untagged = without_tags(request)
        checked, warnings = untagged.request, (*warnings, *untagged.warnings)
        check(checked)
        if checked.webhook is not None:
            await self._check_webhook(checked.webhook, caller.owner)
        model = find_model(checked.model or self.settings.models.default, self.catalog)
        if model.upscales:
            check_upscaling(checked, model)
        if model.remote and not self.settings.models.auto_download and not await self._on_disk(model):
            raise not_downloaded(model)
        if checked.init_images or checked.lora_files:
            # Before they are read: a refused job must cost little.
            await self.check_admission(caller=caller, synchronous=synchronous, init_images=bool(checked.init_images))
        deletions = self.lora_deletions.begun
        resolved = await (self._upscaling if model.upscales else self._generating)(checked, model, caller.owner)
        resolved = resolved.with_warnings(
            merge(of_request(checked, model, resolved, names), warnings, resolved.warnings, most=MAX_OF_REQUEST)
        )
        priority = checked.priority
        lane = priority if caller.prioritizes else 0
        resolved = attrs.evolve(resolved, priority=priority, lane=lane, webhook=checked.webhook)
        submit = m.Submit(
            request=resolved,
            synchronous=synchronous,
            owner=caller.owner,
            key=key,
            most_queued=caller.most_queued,
            request_id=current_request(),
        )
        try:
            accepted = await self._submit(submit)
            if resolved.lora_files and self.lora_deletions.begun != deletions:
                await self._check_loras(submit)
            return accepted
        except (ServiceRestarting, trio.Cancelled):
            if synchronous:
                # No caller will wait for it.
                self.abandon(submit.job_id)
            raise

    async def _check_webhook(self, webhook: Webhook, owner: str) -> None:
        """Refuse a webhook that would certainly not be delivered, or that would be one too many."""
        settings = self.settings.webhooks
        if not settings.enabled:
            raise InvalidParameter.for_field(
                WEBHOOK,
                "cannot be used: this server sends none (webhooks.enabled); leave it out, and follow the job with "
                "GET /api/v1/jobs/{id}/stream",
                limit="absent",
            )
        read_target(webhook.url, allow_private=settings.allow_private_addresses)
        counts = await self._ask(self._to.store, m.CountDeliveries(owner=owner))
        limit = settings.max_pending_per_caller
        # The program that embeds the service decides about its own callers.
        if owner and counts.of_owner >= limit:
            raise TooManyDeliveries(
                f"{counts.of_owner} of your webhooks are still to be delivered and {limit} may be "
                "(webhooks.max_pending_per_caller); check the receivers, or submit without a webhook",
                {"pending": counts.of_owner, "limit": limit},
            )
        if counts.in_all >= MAX_PENDING:
            raise TooManyDeliveries(
                f"{counts.in_all} webhooks of all callers are still to be delivered; try again later, or submit "
                "without a webhook",
                {"pending": counts.in_all, "limit": MAX_PENDING},
            )

    async def check_admission(self, *, caller: Caller, synchronous: bool, init_images: bool) -> None:
        """Return if a job would be accepted now; only :meth:`submit` takes a place for it.

        Raises:
            ServiceError: what :meth:`submit` would raise.
        """
        question = m.CheckAdmission(
            owner=caller.owner,
            most_queued=caller.most_queued,
            synchronous=synchronous,
            init_images=init_images,
        )
        await self._ask(self._to.scheduler, question)

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

    async def _upscaling(self, checked: GenerateRequest, model: Model, owner: str) -> ResolvedRequest:
        images = await self.decoding.check_images(checked.init_images, reference=False, caller=owner)
        # What waits is counted, and is what a start would read: a text that was much longer than its file is shorter.
        resolved = resolve_upscaling(attrs.evolve(checked, init_images=images.texts), model, images.sizes[0])
        return attrs.evolve(resolved, warnings=(*resolved.warnings, *images.warnings))

    async def _generating(self, checked: GenerateRequest, model: Model, owner: str) -> ResolvedRequest:
        loras = await self._named(checked.lora_files)
        warnings = list(unused_modifiers(checked))
        size: tuple[int, int] | None = None
        inpainting: Inpainting | None = None
        if checked.init_images:
            images = await self.decoding.check_images(checked.init_images, caller=owner)
            checked = attrs.evolve(checked, init_images=images.texts)
            warnings += images.warnings
            size = output_size(images.sizes[0])
            if wants_inpainting(checked):
                canvas = inpainting_canvas(checked, images.sizes[0])
                size = inpainting_size(canvas)
                run = (checked.width or size[0], checked.height or size[1])
                inpainting = resolve_inpainting(checked, canvas, run)
                checked = await self._with_mask(checked, inpainting, images.sizes[0], warnings, owner)
        steps = self.settings.generation.default_steps
        resolved = resolve(
            checked, model, default_steps=steps, default_size=size, lora_names=loras, inpainting=inpainting
        )
        return attrs.evolve(resolved, warnings=(*resolved.warnings, *warnings))

    async def _with_mask(
        self,
        checked: GenerateRequest,
        inpainting: Inpainting,
        source: tuple[int, int],
        warnings: list[str],
        owner: str,
    ) -> GenerateRequest:
        """Check what is masked as the init images are."""
        mask = await self.decoding.check_mask(checked.mask or "", inpainting, source, caller=owner)
        warnings += [
            f"The mask has {size[0]} × {size[1]} pixels and the image {source[0]} × {source[1]}; it was stretched"
            for size in mask.sizes
            if differs_in_shape(size, source)
        ]
        warnings += mask.warnings
        return attrs.evolve(checked, mask="".join(mask.texts) or None)

    async def _named(self, loras: tuple[str, ...]) -> tuple[str, ...]:
        """Return every LoRA's one name, under which it is found again after a restart, too."""
        if not loras:
            return ()
        files = await self.read_loras(self.loras.resolve, loras)
        return tuple(file.name for file in files)

    async def _check_loras(self, submit: m.Submit) -> None:
        """Take a job back whose LoRA was deleted between its look-up and the moment from which it counts as in use.

        Raises:
            InvalidParameter: it is gone.
        """
        with trio.move_on_after(DISK_SECONDS):
            async with self.lora_deletions.under_way:
                pass
        try:
            # A disk that does not answer now may do so when the job runs.
            with suppress(ServerBusy):
                await self._named(submit.request.lora_files)
        except InvalidParameter:
            self.abandon(submit.job_id)
            raise

    def abandon(self, job_id: str) -> None:
        """Cancel a job without waiting for the answer, for callers that are being cancelled themselves."""
        self._to.scheduler.tell_latest(m.Abandon(job_id=job_id), key=(m.Abandon, job_id))
