"""One pass's denoising steps: what conditions the transformer, both branches of guidance, reference tokens."""

import functools
from collections.abc import Callable
from typing import Any, Literal

import attrs
import mlx.core as mx
from mflux.models.flux2.model.flux2_text_encoder.prompt_encoder import Flux2PromptEncoder
from mflux.models.flux2.model.flux2_transformer.flux2_kv_cache import Flux2KVCache

from mflux_api.engine.sampling.references import References
from mflux_api.engine.weights.components import Components

Predict = Callable[..., mx.array]
"""The transformer as a function of (tokens, position ids, embeddings, text ids, timestep), all of one batch; then of
guidance, and of a cache, where there is one."""

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
        return branches(self.guidance, embeds_guidance=self.embeds_guidance)


def branches(guidance: float, *, embeds_guidance: bool) -> Literal[1, 2]:
    """How often the transformer is asked for each image at each step."""
    return 2 if guidance > 1.0 and not embeds_guidance else 1


class Denoiser:
    """Predicts the velocity of a pass's latents, step by step."""

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
        self._cache = cache if conditioning.references is not None else None

    def velocity(self, latents: mx.array, timestep: mx.array) -> mx.array:
        """The velocity of packed latents [seeds, tokens, 128] at a timestep from 0 to 1000; not yet computed."""
        guidance, two = self._conditioning.guidance, self._conditioning.branches == 2
        # Both branches of classifier-free guidance (Ho & Salimans, arXiv:2207.12598) share one batch.
        rows = mx.concatenate([latents, latents], axis=0) if two else latents
        velocity = self._call(rows, timestep)
        velocity = velocity[:, : latents.shape[1]]
        if not two:
            return velocity
        positive, negative = mx.split(velocity, 2, axis=0)
        guided: mx.array = negative + guidance * (positive - negative)
        return guided

    def stepped(self, latents: mx.array, timestep: mx.array, sigmas: mx.array) -> tuple[mx.array, mx.array]:
        """The latents one step on, from the first of two ``sigmas`` to the second, and where the flow would end if it
        went straight on; neither is computed yet.
        """
        velocity = self.velocity(latents, timestep)
        return _euler_step(velocity, latents, sigmas[1], sigmas[0]), clean_estimate(velocity, latents, sigmas[0])

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
        # The generated image's own tokens come first, as in mflux and diffusers.
        tokens = mx.broadcast_to(references.tokens, (rows.shape[0], *references.tokens.shape[1:]))
        tokens = mx.concatenate([rows, tokens], axis=1)
        ids = mx.concatenate([self._ids, references.ids], axis=1)
        if cache is None:
            return self._predict(tokens, ids, embeddings, text_ids, timestep, *guidance)
        cache.configure(mode="extract", num_ref_tokens=count)
        return self._predict(tokens, ids, embeddings, text_ids, timestep, None, cache)


@functools.partial(mx.compile, shapeless=True)
def _euler_step(noise: mx.array, latents: mx.array, sigma_next: mx.array, sigma: mx.array) -> mx.array:
    """One Euler step along the flow, in mflux's formula and compiled as there, so that the rounding is the same."""
    step = (sigma_next - sigma).astype(latents.dtype)
    return latents + step * noise.astype(latents.dtype)


def new_cache(transformer: Any) -> Flux2KVCache:
    """An empty cache for one pass."""
    return Flux2KVCache(
        num_double_layers=len(transformer.transformer_blocks),
        num_single_layers=len(transformer.single_transformer_blocks),
    )


def mixed(start: mx.array, noise: mx.array, sigma: mx.array) -> mx.array:
    """Where the flow from ``start`` to each row of ``noise`` is at ``sigma``: (1 - sigma) start + sigma noise."""
    share = sigma.astype(noise.dtype)
    latents: mx.array = (1 - share) * start.astype(noise.dtype) + share * noise
    return latents


def clean_estimate(velocity: mx.array, latents: mx.array, sigma: mx.array) -> mx.array:
    """Where the flow would end if it went straight on from ``latents`` at ``sigma``."""
    estimate: mx.array = latents - sigma.astype(latents.dtype) * velocity.astype(latents.dtype)
    return estimate


def transformer_function(components: Components) -> Predict:
    """Mflux's ``Flux2Transformer`` as a plain function, which keeps no transformer in memory that is given up."""

    def predict(
        latents: mx.array,
        ids: mx.array,
        embeddings: mx.array,
        text_ids: mx.array,
        timestep: mx.array,
        guidance: mx.array | None = None,
        cache: Flux2KVCache | None = None,
    ) -> mx.array:
        velocity: mx.array = components.transformer(
            hidden_states=latents,
            encoder_hidden_states=embeddings,
            timestep=timestep,
            img_ids=ids,
            txt_ids=text_ids,
            guidance=guidance,
            kv_cache=cache,
        )
        return velocity

    return predict
