"""Text and images to images over the loaded components: encode, denoise, decode; reported step by step and
stoppable throughout.

For one seed at guidance 1 the image is the one of mflux's own ``Flux2Klein`` or ``Flux2KleinEdit``, bit for bit.
"""

from collections.abc import Callable, Generator, Iterator
from typing import TypeAlias

import mlx.core as mx
from mflux.models.common.schedulers.flow_match_euler_discrete_scheduler import FlowMatchEulerDiscreteScheduler
from mflux.models.flux2.latent_creator.flux2_latent_creator import Flux2LatentCreator
from mflux.utils.apple_silicon import AppleSiliconUtil

from mflux_api.catalog.files import ComponentName
from mflux_api.engine.device import Device
from mflux_api.engine.lora.lora import Adapted, Lora, LoraError
from mflux_api.engine.sampling.batching import PassCost, images_per_pass
from mflux_api.engine.sampling.decoding import Pixels, decode_mode, decode_packed, to_pixels
from mflux_api.engine.sampling.denoising import (
    Conditioning,
    Denoiser,
    Predict,
    branches,
    mixed,
    new_cache,
    transformer_function,
)
from mflux_api.engine.sampling.passes import (
    DoneEvent,
    Event,
    ImageEvent,
    PipelineRequest,
    PreviewEvent,
    Stage,
    StageEvent,
    StepEvent,
)
from mflux_api.engine.sampling.preview import SAMPLE_SIDE, PreviewDecoder, as_jpeg, fit
from mflux_api.engine.sampling.prompt_cache import PromptCache
from mflux_api.engine.sampling.references import encode_image, encode_references
from mflux_api.engine.sampling.work_clock import WorkClock
from mflux_api.engine.weights.components import Components

ShouldStop: TypeAlias = Callable[[], bool]

PROMPT_CACHE_BYTES = 64 << 20
# What mflux encodes where no negative prompt is given.
_NO_NEGATIVE_PROMPT = " "

__all__ = [
    "DoneEvent",
    "Event",
    "ImageEvent",
    "LoraError",
    "Pipeline",
    "PipelineRequest",
    "PreviewEvent",
    "Stage",
    "StageEvent",
    "StepEvent",
    "Stopped",
]


class Stopped(Exception):
    """``should_stop`` said so; the run left nothing behind but cached prompt embeddings."""


class Pipeline:
    """Runs requests on one set of components, on the thread that loaded them (MLX's streams are thread-local)."""

    def __init__(self, components: Components, device: Device, *, prompt_cache_bytes: int = PROMPT_CACHE_BYTES) -> None:
        self._components = components
        self._device = device
        self._cache = PromptCache(prompt_cache_bytes)
        self._predict = self._function()
        self._preview_decoder: PreviewDecoder | None = None
        self._adapted: Adapted | None = None

    @property
    def components(self) -> Components:
        """What it runs on."""
        return self._components

    @property
    def prompt_cache(self) -> PromptCache:
        """The cached prompt embeddings."""
        return self._cache

    def images_per_pass(self, request: PipelineRequest) -> int:
        """How many of the request's images one pass should take; a fixed function of device, model and request.

        Under ``low_ram`` it is all of them, which take turns: that reads each component once.
        """
        if request.low_ram:
            return len(request.seeds)
        images = [(request.width, request.height), *((each.width, each.height) for each in request.references)]
        info = self._components.info
        load = PassCost(
            parameters=info.transformer_parameters,
            width=info.transformer_width,
            tokens=info.max_sequence_length + sum(width * height for width, height in images) // 256,
            branches=branches(request.guidance, embeds_guidance=info.embeds_guidance),
        )
        return images_per_pass(self._device.kind, load)

    def run(self, request: PipelineRequest, should_stop: ShouldStop) -> Generator[Event, None, None]:
        """Run one pass and yield its events: a StageEvent per stage, a StepEvent per step, an ImageEvent per seed, and
        a DoneEvent last.

        ``should_stop`` is asked before and after every step, between the components, and between decode blocks.

        Raises:
            Stopped: ``should_stop`` returned true.
            LoraError: an adapter cannot be used.
            CheckpointError: a component that is not in memory cannot be read again.
            RuntimeError: from MLX, for instance when the device has too little memory.
        """

        def check() -> None:
            if should_stop():
                raise Stopped

        clock = WorkClock()
        for component in self._components.resident - {"text_encoder"}:
            self._done_with(component, request)
        check()
        yield from clock.pausing(StageEvent("encoding"))
        # An adapter that does not fit is found first, unless the transformer's turn is yet to come.
        component_offload = request.low_ram or request.alternating_offload
        predict = None if component_offload else self._with_loras(request.loras)
        # With little memory the images take turns in each stage, so that each component is read once for all of them.
        together = 1 if request.low_ram else len(request.seeds)
        embeddings = self._embeddings(request, together, check) if request.steps_run else None
        self._done_with("text_encoder", request)
        conditioning = None if embeddings is None else self._condition(embeddings, request, check)
        del embeddings
        start = self._encode_start(request, check)
        decoder = self._fitted(request, check) if request.previews else None
        self._done_with("vae", request)
        encode_s = clock.lap()

        check()
        yield from clock.pausing(StageEvent("denoising"))
        if predict is None:
            predict = self._with_loras(request.loras)
        grids: list[mx.array] = []
        for first in range(0, len(request.seeds), together):
            latents, ids, rows, columns = _noise(request, request.seeds[first : first + together])
            timesteps, sigmas = FlowMatchEulerDiscreteScheduler.get_timesteps_and_sigmas(
                image_seq_len=latents.shape[1], num_inference_steps=request.steps
            )
            skipped = request.steps - request.steps_run
            if start is not None:
                latents = mixed(start, latents, sigmas[skipped])
            if conditioning is not None:
                caching = self._components.info.caches_references
                cache = new_cache(self._components.transformer) if caching else None
                denoiser = Denoiser(predict, conditioning, ids, cache)
                for step in range(skipped, request.steps):
                    check()
                    latents, clean = denoiser.stepped(latents, timesteps[step], sigmas[step : step + 2])
                    # Without this the graph is only queued, and the step would be reported before it ran.
                    mx.eval(latents, *([] if decoder is None else [clean]))
                    number = step + 1 - skipped
                    yield from clock.pausing(StepEvent(number, request.steps_run, first, together))
                    for index, pixels in enumerate(_previews(decoder, clean, rows, columns), first):
                        height, width, _ = pixels.shape
                        yield from clock.pausing(PreviewEvent(index, number, width, height, as_jpeg(pixels)))
                    check()
                del denoiser, cache, clean
            if request.loras and not mx.isfinite(latents).all().item():
                raise LoraError("With these LoRAs the image's numbers overflow: use smaller scales or other LoRAs.")
            grids += mx.split(_grid(latents, rows, columns), latents.shape[0])
        del conditioning, predict
        self._done_with("transformer", request)
        denoise_s = clock.lap()

        yield from clock.pausing(StageEvent("decoding"))
        mode = decode_mode(self._device, request.width, request.height, request.low_ram)
        for index, (seed, grid) in enumerate(zip(request.seeds, grids, strict=True)):
            check()
            # One at a time: exact, and memory does not grow with the batch.
            pixels = to_pixels(decode_packed(self._components.vae, grid, mode, check))
            yield from clock.pausing(ImageEvent(index, seed, pixels))
        self._done_with("vae", request)
        yield DoneEvent(encode_s=encode_s, denoise_s=denoise_s, decode_s=clock.lap())

    def _done_with(self, component: ComponentName, request: PipelineRequest) -> None:
        """Give up what the image needs no more, where the request says so; its next use reads it from disk again."""
        if request.low_ram or (request.alternating_offload and component == "text_encoder"):
            self._release_component(component)

    def _release_component(self, component: ComponentName) -> None:
        if component == "transformer":
            # Adapters wrap its layers, and a compiled function holds the weights that it was traced with.
            self._adapted = None
            self._predict = self._function()
        self._components.drop(component)

    def _fitted(self, request: PipelineRequest, check: Callable[[], None]) -> PreviewDecoder:
        if self._preview_decoder is None:
            mode = decode_mode(self._device, SAMPLE_SIDE, SAMPLE_SIDE, request.low_ram)
            self._preview_decoder = fit(self._components.vae, mode, check)
        return self._preview_decoder

    def _function(self) -> Predict:
        """The transformer, compiled where stock mflux compiles it, except on a CPU (20 s of C++ there)."""
        predict = transformer_function(self._components)
        caching = self._components.info.caches_references
        if not self._device.is_gpu or AppleSiliconUtil.is_m1_or_m2() or caching:
            return predict
        compiled: Predict = mx.compile(predict)
        return compiled

    def _with_loras(self, loras: tuple[Lora, ...]) -> Predict:
        if not loras:
            # Whoever goes without them gets their memory back.
            self._adapted = None
            return self._predict
        if self._adapted is None or not self._adapted.fits(loras):
            self._adapted = None
            self._adapted = Adapted(self._components.transformer, loras, self._function())
        return self._adapted

    def _embeddings(self, request: PipelineRequest, together: int, check: Callable[[], None]) -> mx.array:
        """Prompt embeddings [branches x together, tokens, width]: the positive rows first, then the negative ones."""
        texts = [request.prompt]
        if branches(request.guidance, embeds_guidance=self._components.info.embeds_guidance) == 2:
            texts.append(_NO_NEGATIVE_PROMPT if request.negative_prompt is None else request.negative_prompt)
        if request.alternating_offload and any(self._cache.get(text) is None for text in texts):
            # Its turn is over: the text encoder needs its place.
            self._release_component("transformer")
        rows: list[mx.array] = []
        for text in texts:
            check()
            rows += [self._embedding(text)] * together
        return rows[0] if len(rows) == 1 else mx.concatenate(rows, axis=0)

    def _condition(self, embeddings: mx.array, request: PipelineRequest, check: Callable[[], None]) -> Conditioning:
        # Without references the VAE is not asked for: it may not be in memory.
        references = encode_references(self._components.vae, request.references, check) if request.references else None
        return Conditioning(embeddings, request.guidance, references, self._components.info.embeds_guidance)

    def _embedding(self, text: str) -> mx.array:
        cached = self._cache.get(text)
        if cached is not None:
            return cached
        components = self._components
        tokens = components.tokenizer.tokenize(
            prompt=text, max_length=components.info.max_sequence_length, keep_empty=True
        )
        embedding: mx.array = components.text_encoder.get_prompt_embeds(
            input_ids=tokens.input_ids,
            attention_mask=tokens.attention_mask,
            hidden_state_layers=components.info.text_encoder_out_layers,
        )
        mx.eval(embedding)
        self._cache.put(text, embedding)
        return embedding

    def _encode_start(self, request: PipelineRequest, check: Callable[[], None]) -> mx.array | None:
        """The start image's packed latents [1, tokens, 128]; None where the run begins with pure noise."""
        if request.start is None or request.steps_run == request.steps:
            return None
        packed: mx.array = Flux2LatentCreator.pack_latents(encode_image(self._components.vae, request.start, check))
        return packed


def _previews(decoder: PreviewDecoder | None, clean: mx.array, rows: int, columns: int) -> Iterator[Pixels]:
    """Every image's preview, from the packed clean estimate; none without a decoder."""
    if decoder is not None:
        for grid in mx.split(_grid(clean, rows, columns), clean.shape[0]):
            yield decoder.pixels(grid)


def _grid(latents: mx.array, rows: int, columns: int) -> mx.array:
    """Packed latents [B, tokens, 128] as the VAE takes them, [B, 128, rows, columns]."""
    return latents.reshape(latents.shape[0], rows, columns, latents.shape[-1]).transpose(0, 3, 1, 2)


def _noise(request: PipelineRequest, seeds: tuple[int, ...]) -> tuple[mx.array, mx.array, int, int]:
    """Packed noise [seeds, tokens, 128], its position ids, and the grid's rows and columns of 16 pixels."""
    # One draw per seed: a batched draw would give a seed other noise than it has alone.
    draws = [
        Flux2LatentCreator.prepare_packed_latents(seed=seed, height=request.height, width=request.width, batch_size=1)
        for seed in seeds
    ]
    _, ids, rows, columns = draws[0]
    return mx.concatenate([draw[0] for draw in draws], axis=0), ids, rows, columns
