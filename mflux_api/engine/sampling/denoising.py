"""The maths of a denoising step: guidance's branches in one batch, reference tokens, Euler's method along the flow."""

import functools
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Literal

import attrs
import mlx.core as mx
from mflux.models.flux2.model.flux2_text_encoder.prompt_encoder import Flux2PromptEncoder
from mflux.models.flux2.model.flux2_transformer.flux2_kv_cache import Flux2KVCache

from mflux_api.engine.kernels.host_copies import HostCopy
from mflux_api.engine.sampling.references import References
from mflux_api.engine.sampling.transformer_function import Predict

# What FLUX.2-dev's guidance is multiplied with before it is embedded, like the timestep.
_GUIDANCE_SCALE = 1000.0


@attrs.frozen(eq=False)
class Conditioning:
    """What a pass's images are generated from."""

    embeddings: mx.array
    """Prompt embeddings [branches x seeds, tokens, width]: the positive rows first, then the negative ones."""
    guidance: float
    """Above 1.0 there are two branches, unless the transformer takes it as an input."""
    references: References | None = None
    embeds_guidance: bool = False
    """Whether the transformer takes guidance as an input (FLUX.2-dev); there is one branch then."""

    @property
    def branches(self) -> Literal[1, 2]:
        """How many rows of embeddings each image has."""
        return cfg_branches(self.guidance, embeds_guidance=self.embeds_guidance)


def cfg_branches(guidance: float, *, embeds_guidance: bool) -> Literal[1, 2]:
    """Return how often the transformer is asked for each image at each step.

    Classifier-free guidance (Ho & Salimans, arXiv:2207.12598) asks with the prompt and with the negative prompt.
    """
    return 2 if guidance > 1.0 and not embeds_guidance else 1


class Denoiser:
    """Moves a pass's latents along the flow, step by step."""

    def __init__(
        self, predict: Predict, conditioning: Conditioning, ids: mx.array, cache: Flux2KVCache | None = None
    ) -> None:
        """Prepare a pass.

        Args:
            predict: the transformer.
            conditioning: what the images are generated from.
            ids: position ids of the generated image's tokens [1, tokens, 4].
            cache: an empty one where the model was made to see references at its first step only, and to keep their
                keys and values from then on (FLUX.2 Klein 9B KV).
        """
        self._predict = predict
        self._conditioning = conditioning
        self._text_ids = Flux2PromptEncoder.prepare_text_ids(conditioning.embeddings[:1])
        self._ids = ids
        references = conditioning.references
        # The generated image's own tokens come first, as in mflux and diffusers.
        self._all_ids = ids if references is None else mx.concatenate([ids, references.ids], axis=1)
        self._cache = cache if references is not None else None

    def velocity(self, latents: mx.array, timestep: mx.array) -> mx.array:
        """Return the velocity of packed latents [seeds, tokens, 128] at a timestep from 0 to 1000; not yet computed."""
        guidance, two = self._conditioning.guidance, self._conditioning.branches == 2
        # Both branches of guidance share one batch.
        rows = mx.concatenate([latents, latents], axis=0) if two else latents
        velocity = self._call(rows, timestep)
        velocity = velocity[:, : latents.shape[1]]
        if not two:
            return velocity
        positive, negative = mx.split(velocity, 2, axis=0)
        return negative + guidance * (positive - negative)

    def step(self, latents: mx.array, timestep: mx.array, sigmas: mx.array) -> tuple[mx.array, mx.array]:
        """Take one step.

        Args:
            latents: packed, [seeds, tokens, 128].
            timestep: from 0 to 1000.
            sigmas: [2], the noise level now and after the step.

        Returns:
            The latents one step on, and the clean latents that the step predicts; neither is computed yet.
        """
        velocity = self.velocity(latents, timestep)
        return _euler_step(velocity, latents, sigmas[1], sigmas[0]), predict_x0(velocity, latents, sigmas[0])

    def _call(self, rows: mx.array, timestep: mx.array) -> mx.array:
        embeddings, text_ids, references = self._conditioning.embeddings, self._text_ids, self._conditioning.references
        cache = self._cache
        guidance = [mx.array(self._conditioning.guidance * _GUIDANCE_SCALE)] * self._conditioning.embeds_guidance
        if references is None:
            return self._predict(rows, self._ids, embeddings, text_ids, timestep, *guidance)
        count = references.tokens.shape[1]
        if cache is not None and cache.mode is not None:
            cache.configure(mode="cached", num_ref_tokens=count)
            return self._predict(rows, self._ids, embeddings, text_ids, timestep, None, cache)
        tokens = mx.broadcast_to(references.tokens, (rows.shape[0], *references.tokens.shape[1:]))
        tokens = mx.concatenate([rows, tokens], axis=1)
        if cache is None:
            return self._predict(tokens, self._all_ids, embeddings, text_ids, timestep, *guidance)
        cache.configure(mode="extract", num_ref_tokens=count)
        return self._predict(tokens, self._all_ids, embeddings, text_ids, timestep, None, cache)


@attrs.frozen(eq=False)
class Step:
    """One step of a pass; nothing of it is computed before it is asked for."""

    number: int
    """From 1 on."""
    timestep: mx.array
    before: mx.array
    """The latents that it started from, packed [seeds, tokens, 128]."""
    latents: mx.array
    """The latents one step on."""
    clean: mx.array
    """Where the flow ends if it goes straight on."""
    shown: Mapping[int, HostCopy] = attrs.field(factory=dict)
    """Of each image that someone follows, by its number in the pass, the clean latents [128, rows, columns]."""
    _finite: mx.array = attrs.field(init=False)

    @_finite.default
    def _check_finite(self) -> mx.array:
        return mx.isfinite(self.latents).all()

    def queue(self) -> None:
        """Have it computed, and do not wait for it."""
        mx.async_eval(self.latents, self._finite, *(each.pending for each in self.shown.values()))

    @property
    def is_finite(self) -> bool:
        """Whether all its numbers are; known when it is computed, which this waits for."""
        mx.eval(self.latents, self._finite)
        return bool(self._finite.item())


def computed(steps: Iterable[Step], ahead: int) -> Iterator[Step]:
    """Yield steps in their order, each when so many that follow it are queued.

    Args:
        steps: puts a step together when it is asked for the next one.
        ahead: how many; with 0 nothing is queued.
    """
    waiting = deque[Step]()
    for step in steps:
        if ahead:
            step.queue()
        waiting.append(step)
        if len(waiting) > ahead:
            yield waiting.popleft()
    yield from waiting


@functools.partial(mx.compile, shapeless=True)
def _euler_step(noise: mx.array, latents: mx.array, sigma_next: mx.array, sigma: mx.array) -> mx.array:
    """Take one Euler step along the flow: mflux's formula, compiled as there, so that the rounding is the same."""
    step = (sigma_next - sigma).astype(latents.dtype)
    return latents + step * noise.astype(latents.dtype)


def predict_x0(velocity: mx.array, latents: mx.array, sigma: mx.array) -> mx.array:
    """Return where the flow ends if it goes straight on from ``latents`` at ``sigma``: latents - sigma velocity."""
    return latents - sigma.astype(latents.dtype) * velocity.astype(latents.dtype)


def new_cache(transformer: Any) -> Flux2KVCache:
    """Return an empty key-value cache for one pass."""
    return Flux2KVCache(
        num_double_layers=len(transformer.transformer_blocks),
        num_single_layers=len(transformer.single_transformer_blocks),
    )
