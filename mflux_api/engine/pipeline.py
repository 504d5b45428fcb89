"""Text to image over the loaded components: encode, denoise, decode; reported step by step and stoppable throughout.

For one seed at guidance 1 the picture is the one of mflux's own ``Flux2Klein.generate_image``, bit for bit.
"""

import functools
import time
from collections.abc import Callable, Iterator
from typing import Literal, TypeAlias

import attrs
import mlx.core as mx
import numpy as np
import numpy.typing as npt
from mflux.models.common.schedulers.flow_match_euler_discrete_scheduler import FlowMatchEulerDiscreteScheduler
from mflux.models.flux2.latent_creator.flux2_latent_creator import Flux2LatentCreator
from mflux.models.flux2.model.flux2_text_encoder.prompt_encoder import Flux2PromptEncoder
from mflux.utils.apple_silicon import AppleSiliconUtil

from mflux_api.engine.components import ComponentName, Components
from mflux_api.engine.decoding import decode_mode, decode_packed, to_pixels
from mflux_api.engine.memory import Device
from mflux_api.engine.prompt_cache import PromptCache

Stage: TypeAlias = Literal["encoding", "denoising", "decoding"]
ShouldStop: TypeAlias = Callable[[], bool]

PROMPT_CACHE_BYTES = 64 << 20
# What mflux encodes where no negative prompt is given.
_NO_NEGATIVE_PROMPT = " "
_PIXELS_PER_LATENT = 16


class Stopped(Exception):
    """``should_stop`` said so; the run left nothing behind but cached prompt embeddings."""


def _positive(_: object, attribute: "attrs.Attribute[int]", value: int) -> None:
    if value < 1:
        raise ValueError(f"{attribute.name} must be at least 1, and is {value}.")


def _size(_: object, attribute: "attrs.Attribute[int]", value: int) -> None:
    if value < _PIXELS_PER_LATENT or value % _PIXELS_PER_LATENT:
        raise ValueError(f"{attribute.name} must be a multiple of {_PIXELS_PER_LATENT} pixels, and is {value}.")


@attrs.frozen
class PipelineRequest:
    """One pass: one prompt, one picture per seed, all in one batch. Raises ValueError for what cannot be computed."""

    prompt: str = attrs.field(repr=False)
    seeds: tuple[int, ...] = attrs.field()
    """Each in 0 to 2**64 - 1."""
    width: int = attrs.field(validator=_size)
    """Pixels, a multiple of 16."""
    height: int = attrs.field(validator=_size)
    steps: int = attrs.field(validator=_positive)
    guidance: float = 1.0
    """Above 1.0 a second branch with the negative prompt runs, also for a distilled model."""
    negative_prompt: str | None = attrs.field(default=None, repr=False)
    low_ram: bool = False
    """Keep one component in memory at a time, and decode with the least memory."""

    @seeds.validator
    def _check_seeds(self, _: "attrs.Attribute[tuple[int, ...]]", value: tuple[int, ...]) -> None:
        if not value or any(not 0 <= seed < 1 << 64 for seed in value):
            raise ValueError("seeds must hold at least one number, each from 0 to 2**64 - 1.")


@attrs.frozen
class StageEvent:
    """A stage begins."""

    stage: Stage


@attrs.frozen
class StepEvent:
    """A denoising step is finished: computed, not only queued."""

    step: int
    """From 1 to ``steps``."""
    steps: int


@attrs.frozen(eq=False)
class ImageEvent:
    """A picture is finished."""

    index: int
    """The position of ``seed`` in the request."""
    seed: int
    pixels: npt.NDArray[np.uint8] = attrs.field(repr=False)
    """Contiguous RGB8, (height, width, 3)."""


@attrs.frozen
class DoneEvent:
    """The pass is finished; seconds of wall time per stage, without the time the consumer took."""

    encode_s: float
    denoise_s: float
    decode_s: float


Event: TypeAlias = StageEvent | StepEvent | ImageEvent | DoneEvent


class Pipeline:
    """Runs requests on one set of components, on the thread that loaded them (MLX's streams are thread-local)."""

    def __init__(self, components: Components, device: Device, *, prompt_cache_bytes: int = PROMPT_CACHE_BYTES) -> None:
        self._components = components
        self._device = device
        self._cache = PromptCache(prompt_cache_bytes)
        self._predict = _compiled(components, device)

    @property
    def components(self) -> Components:
        """What it runs on."""
        return self._components

    @property
    def prompt_cache(self) -> PromptCache:
        """The cached prompt embeddings."""
        return self._cache

    def run(self, request: PipelineRequest, should_stop: ShouldStop) -> Iterator[Event]:
        """Run one pass and yield its events: a StageEvent per stage, a StepEvent per step, an ImageEvent per seed, and
        a DoneEvent last.

        ``should_stop`` is asked before and after every step, between the components, and between decode blocks.

        Raises:
            Stopped: ``should_stop`` returned true.
            RuntimeError: from MLX, for instance when the device has too little memory.
        """

        def check() -> None:
            if should_stop():
                raise Stopped

        clock = _Clock()
        if request.low_ram:
            for component in self._components.resident - {"text_encoder"}:
                self._free(component)
        check()
        yield from clock.pausing(StageEvent("encoding"))
        embeddings = self._encode(request, check)
        encode_s = clock.lap()
        if request.low_ram:
            self._free("text_encoder")

        check()
        yield from clock.pausing(StageEvent("denoising"))
        latents, ids, rows, columns = _noise(request)
        text_ids = Flux2PromptEncoder.prepare_text_ids(embeddings[:1])
        timesteps, sigmas = FlowMatchEulerDiscreteScheduler.get_timesteps_and_sigmas(
            image_seq_len=latents.shape[1], num_inference_steps=request.steps
        )
        for step in range(request.steps):
            check()
            noise = self._velocity(latents, ids, embeddings, text_ids, timesteps[step], request.guidance)
            latents = _euler_step(noise, latents, sigmas[step + 1], sigmas[step])
            # Without this the graph is only queued, and the step would be reported before it ran.
            mx.eval(latents)
            yield from clock.pausing(StepEvent(step + 1, request.steps))
            check()
        del embeddings
        denoise_s = clock.lap()
        if request.low_ram:
            self._free("transformer")

        yield from clock.pausing(StageEvent("decoding"))
        mode = decode_mode(self._device, request.width, request.height, request.low_ram)
        grid = latents.reshape(len(request.seeds), rows, columns, latents.shape[-1]).transpose(0, 3, 1, 2)
        for index, seed in enumerate(request.seeds):
            check()
            # One at a time: exact, and memory does not grow with the batch.
            pixels = to_pixels(decode_packed(self._components.vae, grid[index : index + 1], mode, check))
            yield from clock.pausing(ImageEvent(index, seed, pixels))
        if request.low_ram:
            self._free("vae")
        yield DoneEvent(encode_s=encode_s, denoise_s=denoise_s, decode_s=clock.lap())

    def _free(self, component: ComponentName) -> None:
        """Give up a component that the picture needs no more; its next use reads it from disk again."""
        self._components.drop(component)
        if component == "transformer":
            # A compiled function holds the weights that it was traced with.
            self._predict = _compiled(self._components, self._device)

    def _encode(self, request: PipelineRequest, check: Callable[[], None]) -> mx.array:
        """Prompt embeddings [branches x seeds, tokens, width]: the positive rows first, then the negative ones."""
        texts = [request.prompt]
        if request.guidance > 1.0:
            texts.append(_NO_NEGATIVE_PROMPT if request.negative_prompt is None else request.negative_prompt)
        rows: list[mx.array] = []
        for text in texts:
            check()
            rows += [self._embedding(text)] * len(request.seeds)
        return rows[0] if len(rows) == 1 else mx.concatenate(rows, axis=0)

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

    def _velocity(
        self,
        latents: mx.array,
        ids: mx.array,
        embeddings: mx.array,
        text_ids: mx.array,
        timestep: mx.array,
        guidance: float,
    ) -> mx.array:
        if guidance <= 1.0:
            return self._predict(latents, ids, embeddings, text_ids, timestep)
        # Both branches of classifier-free guidance (Ho & Salimans, arXiv:2207.12598) share one batch.
        both = mx.concatenate([latents, latents], axis=0)
        positive, negative = mx.split(self._predict(both, ids, embeddings, text_ids, timestep), 2, axis=0)
        guided: mx.array = negative + guidance * (positive - negative)
        return guided


class _Clock:
    """Wall time of the work alone: a generator also sleeps while its consumer handles an event."""

    def __init__(self) -> None:
        self._start = time.perf_counter()

    def pausing(self, event: Event) -> Iterator[Event]:
        paused = time.perf_counter()
        yield event
        self._start += time.perf_counter() - paused

    def lap(self) -> float:
        now = time.perf_counter()
        elapsed, self._start = now - self._start, now
        return elapsed


def _compiled(components: Components, device: Device) -> Callable[..., mx.array]:
    """The transformer as a function, compiled where stock mflux compiles it, except on a CPU (20 s of C++ there)."""

    def predict(
        latents: mx.array, ids: mx.array, embeddings: mx.array, text_ids: mx.array, timestep: mx.array
    ) -> mx.array:
        noise: mx.array = components.transformer(
            hidden_states=latents,
            encoder_hidden_states=embeddings,
            timestep=timestep,
            img_ids=ids,
            txt_ids=text_ids,
            guidance=None,
        )
        return noise

    if not device.is_gpu or AppleSiliconUtil.is_m1_or_m2():
        return predict
    compiled: Callable[..., mx.array] = mx.compile(predict)
    return compiled


@functools.partial(mx.compile, shapeless=True)
def _euler_step(noise: mx.array, latents: mx.array, sigma_next: mx.array, sigma: mx.array) -> mx.array:
    """One Euler step along the flow, in mflux's formula and compiled as there, so that the rounding is the same."""
    step = (sigma_next - sigma).astype(latents.dtype)
    return latents + step * noise.astype(latents.dtype)


def _noise(request: PipelineRequest) -> tuple[mx.array, mx.array, int, int]:
    """Packed noise [seeds, tokens, 128], its position ids, and the grid's rows and columns of 16 pixels."""
    # One draw per seed: a batched draw would give a seed other noise than it has alone.
    draws = [
        Flux2LatentCreator.prepare_packed_latents(seed=seed, height=request.height, width=request.width, batch_size=1)
        for seed in request.seeds
    ]
    _, ids, rows, columns = draws[0]
    return mx.concatenate([draw[0] for draw in draws], axis=0), ids, rows, columns
