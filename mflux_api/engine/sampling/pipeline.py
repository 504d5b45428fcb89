"""One pass from prompt and images to pixels: encode, denoise, decode, reported step by step and stoppable throughout.

Without the fast path, for one seed at guidance 1, the image is the one of mflux's own ``Flux2Klein`` or
``Flux2KleinEdit``, bit for bit.
"""

from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import suppress

import attrs
import mlx.core as mx
from mflux.models.common.schedulers.flow_match_euler_discrete_scheduler import FlowMatchEulerDiscreteScheduler

from mflux_api.catalog.files import ComponentName
from mflux_api.engine.device import Device
from mflux_api.engine.kernels.cpu_threads import Threads
from mflux_api.engine.kernels.host_copies import HostCopies, HostCopy, copy_of
from mflux_api.engine.lora.applying import LoraError, ReadingLora, no_reading
from mflux_api.engine.sampling.batching import PassCost, images_per_pass
from mflux_api.engine.sampling.compositing import composite
from mflux_api.engine.sampling.decoding import NotFiniteError, Pixels, decode_mode, decode_packed, to_pixels
from mflux_api.engine.sampling.denoising import Conditioning, Denoiser, Step, cfg_branches, computed, new_cache
from mflux_api.engine.sampling.inpainting import encode_start
from mflux_api.engine.sampling.latents import Noise, StartLatents, draw_noise, to_grid
from mflux_api.engine.sampling.passes import (
    DoneEvent,
    Event,
    ImageEvent,
    OfImage,
    PartialImageEvent,
    PipelineRequest,
    PreviewEvent,
    Prompted,
    ShouldStop,
    StageEvent,
    StepEvent,
    Stopped,
    WarningEvent,
    every_image,
    no_image,
)
from mflux_api.engine.sampling.preview import SAMPLE_SIDE, PreviewDecoder, as_jpeg, fit
from mflux_api.engine.sampling.prompt_cache import PromptCache
from mflux_api.engine.sampling.prompt_encoding import CACHE_BYTES, PromptEncoder, branch_texts
from mflux_api.engine.sampling.references import encode_references
from mflux_api.engine.sampling.transformer_function import Predict, TransformerFunction
from mflux_api.engine.sampling.work_clock import WorkClock
from mflux_api.engine.weights.components import Components
from mflux_api.jobs.schedule import partial_steps

__all__ = [
    "DoneEvent",
    "Event",
    "ImageEvent",
    "LoraError",
    "NotFiniteError",
    "PartialImageEvent",
    "Pipeline",
    "PipelineRequest",
    "PreviewEvent",
    "StageEvent",
    "StepEvent",
    "Stopped",
    "WarningEvent",
]


@attrs.frozen(eq=False)
class _Encoded:
    """What the encoding stage hands to the denoising stage."""

    predict: Predict | None
    """None where the transformer's turn in memory is yet to come."""
    conditioning: Conditioning | None
    """None where no step is run."""
    start: StartLatents | None
    """None where the run begins with pure noise."""


@attrs.frozen
class _Pass:
    """One pass under way: its request, and what all its stages use."""

    request: PipelineRequest
    check: Callable[[], None]
    """Raises :class:`Stopped` where the pass is to end."""
    wants_previews: OfImage
    """Whether previews of an image are made now."""
    is_wanted: OfImage
    """Whether an image is to be finished."""
    clock: WorkClock

    def previewed(self, images: Iterable[int]) -> list[int]:
        """Return those of some images whose previews are made now."""
        return [index for index in images if self.wants_previews(index)]

    @property
    def together(self) -> int:
        """How many images share a batch.

        With little memory they take turns in each stage, so that each component is read once for all of them.
        """
        return 1 if self.request.low_ram else len(self.request.all_seeds)


class Pipeline:
    """Runs requests on one set of components, on the thread that loaded them (MLX's streams are thread-local)."""

    def __init__(
        self,
        components: Components,
        device: Device,
        *,
        prompt_cache_bytes: int = CACHE_BYTES,
        reading_lora: ReadingLora = no_reading,
    ) -> None:
        self._components = components
        self._device = device
        self._prompts = PromptEncoder(components, prompt_cache_bytes)
        self._threads = Threads() if device.kind == "cpu" and device.fast_path else None
        """Who computes instead of mflux, on a CPU; they end with the pipeline."""
        self._transformer = TransformerFunction(components, device, reading_lora, self._threads)
        self._copies = HostCopies() if device.kind == "cuda" and device.fast_path else None
        self._preview_decoder: PreviewDecoder | None = None
        # A GPU would wait while the next step is put together here; a CPU does both with the same cores.
        self._steps_ahead = 1 if device.is_gpu and device.fast_path else 0

    @property
    def components(self) -> Components:
        """The components that it runs on."""
        return self._components

    @property
    def prompt_cache(self) -> PromptCache:
        """The cached prompt embeddings."""
        return self._prompts.cache

    def unpack_weights(self) -> None:
        """Keep the transformer's quantized weights unpacked until a run with little memory gives them up.

        Only layers that dequantize before each product are changed, which are those of a CUDA device: the same numbers
        come of it, in more memory and less time.
        """
        self._transformer.unpack_weights()

    def images_per_pass(self, request: PipelineRequest) -> int:
        """Return how many of the request's images one pass should take; depends on device, model and request alone.

        Under ``low_ram`` it is all of them, which take turns: that reads each component once.
        """
        if request.low_ram:
            return len(request.seeds)
        images = [(request.width, request.height), *((each.width, each.height) for each in request.references)]
        info = self._components.info
        cost = PassCost(
            parameters=info.transformer_parameters,
            width=info.transformer_width,
            tokens=info.max_sequence_length + sum(width * height for width, height in images) // 256,
            branches=cfg_branches(request.guidance, embeds_guidance=info.embeds_guidance),
        )
        return images_per_pass(self._device.kind, cost)

    def run(
        self,
        request: PipelineRequest,
        should_stop: ShouldStop,
        wants_previews: OfImage = no_image,
        is_wanted: OfImage = every_image,
    ) -> Generator[Event, None, None]:
        """Run one pass and yield its events: a StageEvent per stage, a StepEvent per step, an ImageEvent per seed.

        Previews and partial images, where they are asked for, follow their step, and a DoneEvent comes last.

        Args:
            request: what to generate.
            should_stop: asked before and after every step, between the components, and between decode blocks.
            wants_previews: asked at every step, where the request itself asks for no previews.
            is_wanted: asked before an image is decoded; one that is not wanted any more has no ImageEvent.

        Raises:
            Stopped: ``should_stop`` returned true.
            LoraError: an adapter cannot be used.
            NotFiniteError: an image's numbers overflow, also without adapters.
            CheckpointError: a component that is not in memory cannot be read again.
            RuntimeError: from MLX, for instance when the device has too little memory.
        """

        def check() -> None:
            if should_stop():
                raise Stopped

        previewed = every_image if request.previews else wants_previews
        current = _Pass(request, check, previewed, is_wanted, WorkClock())
        for component in self._components.resident - {"text_encoder"}:
            self._release(component, request)
        check()
        # Without a name for what is encoded: the denoising stage frees it before the transformer goes.
        grids = yield from self._denoise(current, (yield from self._encode(current)))
        yield from self._decode(current, grids)
        yield current.clock.done()

    def _encode(self, current: _Pass) -> Generator[Event, None, _Encoded]:
        """Turn prompts and images into what conditions the transformer."""
        request, check = current.request, current.check
        yield from current.clock.pausing(StageEvent("encoding"))
        # An adapter that does not fit is found first, unless the transformer's turn is yet to come.
        waits = request.low_ram or request.alternating_offload
        predict = None if waits else (yield from self._adapt(current))
        for warning in self._explain_cuts(request) if request.steps_run else []:
            yield from current.clock.pausing(warning)
        embeddings = self._embed(current) if request.steps_run else None
        self._release("text_encoder", request)
        conditioning = None if embeddings is None else self._condition(embeddings, current)
        references = None if conditioning is None else conditioning.references
        start = encode_start(lambda: self._components.vae, request, references, check, self._threads)
        if request.steps_run and current.previewed(range(len(request.all_seeds))):
            # With little memory the VAE is not there later.
            self._fit_previews(request, check)
        self._release("vae", request)
        current.clock.lap()
        return _Encoded(predict, conditioning, start)

    def _adapt(self, current: _Pass) -> Generator[Event, None, Predict]:
        """Return the transformer with the pass's adapters, and tell what of them is not used."""
        predict = self._transformer.with_loras(current.request.loras)
        for message in self._transformer.warnings:
            yield from current.clock.pausing(WarningEvent(message))
        return predict

    def _denoise(self, current: _Pass, encoded: _Encoded) -> Generator[Event, None, list[mx.array]]:
        """Run the steps; return each image's latents [1, 128, rows, columns]."""
        request = current.request
        current.check()
        yield from current.clock.pausing(StageEvent("denoising"))
        predict = (yield from self._adapt(current)) if encoded.predict is None else encoded.predict
        grids: list[mx.array] = []
        seeds = request.all_seeds
        for first in range(0, len(seeds), current.together):
            noise = draw_noise(seeds[first : first + current.together], request.width, request.height)
            latents = yield from self._denoise_batch(current, encoded, predict, noise, first)
            grids += mx.split(to_grid(latents, noise.rows, noise.columns), latents.shape[0])
        del encoded, predict
        self._release("transformer", request)
        current.clock.lap()
        return grids

    def _denoise_batch(
        self, current: _Pass, encoded: _Encoded, predict: Predict, noise: Noise, first: int
    ) -> Generator[Event, None, mx.array]:
        """Take the images that share a batch, from number ``first`` on, through all steps; return packed latents."""
        request, check, clock, start = current.request, current.check, current.clock, encoded.start
        latents, images = noise.latents, noise.latents.shape[0]
        timesteps, sigmas = FlowMatchEulerDiscreteScheduler.get_timesteps_and_sigmas(
            image_seq_len=latents.shape[1], num_inference_steps=request.steps
        )
        skipped = request.steps - request.steps_run
        if start is not None:
            latents = start.begin(noise.latents, sigmas[skipped])
        if encoded.conditioning is None:
            return latents
        cache = new_cache(self._components.transformer) if self._components.info.caches_references else None
        denoiser = Denoiser(predict, encoded.conditioning, noise.ids, cache)
        # With little memory the VAE's place is the transformer's now.
        partials = () if request.low_ram else partial_steps(request.steps_run, request.partial_images)

        def steps(latents: mx.array) -> Iterator[Step]:
            for step in range(skipped, request.steps):
                check()
                before, timestep = latents, timesteps[step]
                latents, clean = denoiser.step(before, timestep, sigmas[step : step + 2])
                if start is not None:
                    latents = start.protect(latents, noise.latents, sigmas[step + 1])
                    clean = start.protect(clean, noise.latents, sigmas[-1])
                shown = self._shown(current, to_grid(clean, noise.rows, noise.columns), first)
                yield Step(step + 1 - skipped, timestep, before, latents, clean, shown)

        for step in computed(steps(latents), self._steps_ahead):
            if not step.is_finite:
                raise self._overflow(request, encoded.conditioning, noise.ids, step.before, step.timestep)
            latents, number = step.latents, step.number
            yield from clock.pausing(StepEvent(number, request.steps_run, first, images))
            for preview in self._previews(current, step, noise, first):
                yield from clock.pausing(preview)
            if number in partials:
                grids = to_grid(step.clean, noise.rows, noise.columns)
                yield from self._partial_images(current, grids, first, partials.index(number), number)
            check()
        return latents

    def _partial_images(
        self, current: _Pass, grids: mx.array, first: int, number: int, step: int
    ) -> Generator[Event, None, None]:
        """Decode what the images of a batch, from number ``first`` on, are coming to."""
        for index, grid in enumerate(mx.split(grids, grids.shape[0]), first):
            current.check()
            if not current.is_wanted(index):
                continue
            # One that cannot be seen yet may still become an image.
            with suppress(NotFiniteError):
                pixels = self._pixels(current, grid)
                yield from current.clock.pausing(PartialImageEvent(index, number, step, pixels))

    def _overflow(
        self, request: PipelineRequest, conditioning: Conditioning, ids: mx.array, latents: mx.array, timestep: mx.array
    ) -> Exception:
        """Return whose fault a step is that is not finite: without adapters the same step tells."""
        if request.loras:
            plain = Denoiser(self._transformer.with_loras(()), conditioning, ids)
            if mx.isfinite(plain.velocity(latents, timestep)).all().item():
                return LoraError("With these LoRAs the image's numbers overflow: use smaller scales or other LoRAs.")
        return NotFiniteError()

    def _decode(self, current: _Pass, grids: list[mx.array]) -> Generator[Event, None, None]:
        """Turn each image's latents into pixels."""
        request = current.request
        yield from current.clock.pausing(StageEvent("decoding"))
        for index, (seed, grid) in enumerate(zip(request.all_seeds, grids, strict=True)):
            current.check()
            if current.is_wanted(index):
                # One at a time: exact, and memory does not grow with the batch.
                yield from current.clock.pausing(ImageEvent(index, seed, self._pixels(current, grid)))
        self._release("vae", request)
        current.clock.lap()

    def _pixels(self, current: _Pass, grid: mx.array) -> Pixels:
        """Return one image's latents [1, 128, rows, columns] as it is shown: decoded, and put into what is kept."""
        request = current.request
        mode = decode_mode(self._device, request.width, request.height, request.low_ram)
        pixels = to_pixels(decode_packed(self._components.vae, grid, mode, current.check, self._threads))
        if request.inpainting is None:
            return pixels
        return composite(pixels, request.inpainting, current.check)

    def _release(self, component: ComponentName, request: PipelineRequest) -> None:
        """Free a component that the image needs no longer, if the request asks for it; its next use reads it again."""
        if request.low_ram or (request.alternating_offload and component == "text_encoder"):
            self._unload(component)

    def _unload(self, component: ComponentName) -> None:
        if component == "transformer":
            self._transformer.forget_weights()
        self._components.drop(component)

    def _texts(self, request: PipelineRequest, prompted: Prompted) -> list[str]:
        """Return the text of each branch of guidance."""
        branches = cfg_branches(request.guidance, embeds_guidance=self._components.info.embeds_guidance)
        return branch_texts(prompted.prompt, prompted.negative_prompt, branches)

    def _explain_cuts(self, request: PipelineRequest) -> Iterator[WarningEvent]:
        first = 0
        for prompted in request.prompted:
            for warning in self._prompts.explain_cuts(self._texts(request, prompted)):
                yield WarningEvent(warning, first if request.companions else None)
            first += len(prompted.seeds)

    def _embed(self, current: _Pass) -> mx.array:
        """Return prompt embeddings [branches x together, tokens, width]: positive rows first, then negative ones."""
        request = current.request
        texts = [self._texts(request, prompted) for prompted in request.prompted]
        if request.alternating_offload and not self._prompts.has_cached([text for each in texts for text in each]):
            # The text encoder needs the transformer's place.
            self._unload("transformer")
        rows: list[mx.array] = []
        for branch in zip(*texts, strict=True):
            for text, prompted in zip(branch, request.prompted, strict=True):
                current.check()
                rows += [self._prompts.encode(text)] * min(len(prompted.seeds), current.together)
        return rows[0] if len(rows) == 1 else mx.concatenate(rows, axis=0)

    def _condition(self, embeddings: mx.array, current: _Pass) -> Conditioning:
        request, check = current.request, current.check
        # Without references the VAE is not asked for: it may not be in memory.
        references = None
        if request.references:
            references = encode_references(self._components.vae, request.references, check, self._threads)
        return Conditioning(embeddings, request.guidance, references, self._components.info.embeds_guidance)

    def _shown(self, current: _Pass, grids: mx.array, first: int) -> dict[int, HostCopy]:
        """Return what the previews are made of that someone wants of a batch's images, from number ``first`` on."""
        previewed = current.previewed(range(first, first + grids.shape[0]))
        # With little memory the VAE's place is the transformer's now, so what was not fitted before cannot be.
        if self._preview_decoder is None and current.request.low_ram:
            return {}
        return {index: copy_of(grids[index - first].astype(mx.float32), self._copies) for index in previewed}

    def _previews(self, current: _Pass, step: Step, noise: Noise, first: int) -> Iterator[PreviewEvent]:
        """Yield a step's previews of images from number ``first`` on; a GPU computes the next step meanwhile."""
        shown = step.shown
        if len(current.previewed(range(first, first + step.clean.shape[0]))) > len(shown):
            # Someone came after the step was queued.
            shown = self._shown(current, to_grid(step.clean, noise.rows, noise.columns), first)
        for index, cells in shown.items():
            pixels = self._fit_previews(current.request, current.check).pixels(cells.numpy())
            height, width, _ = pixels.shape
            yield PreviewEvent(index, step.number, width, height, as_jpeg(pixels))

    def _fit_previews(self, request: PipelineRequest, check: Callable[[], None]) -> PreviewDecoder:
        if self._preview_decoder is None:
            mode = decode_mode(self._device, SAMPLE_SIDE, SAMPLE_SIDE, request.low_ram)
            self._preview_decoder = fit(self._components.vae, mode, check, self._threads)
        return self._preview_decoder
