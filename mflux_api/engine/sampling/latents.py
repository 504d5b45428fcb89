"""Latents of a pass: noise by seed, noise added to an image, and the packed form beside the grid that the VAE takes."""

from collections.abc import Sequence

import attrs
import mlx.core as mx
from mflux.models.flux2.latent_creator.flux2_latent_creator import Flux2LatentCreator


@attrs.frozen(eq=False)
class Noise:
    """The noise that a pass's images start from."""

    latents: mx.array
    """Packed [seeds, tokens, 128]."""
    ids: mx.array
    """The tokens' position ids [1, tokens, 4]."""
    rows: int
    """Rows of the grid, 16 pixels each."""
    columns: int


def draw_noise(seeds: Sequence[int], width: int, height: int) -> Noise:
    """Draw each seed's noise for an image of ``width`` by ``height`` pixels, as mflux draws it for that seed alone."""
    # One draw per seed: a batched draw would give a seed other noise than it has alone.
    draws = [
        Flux2LatentCreator.prepare_packed_latents(seed=seed, height=height, width=width, batch_size=1) for seed in seeds
    ]
    _, ids, rows, columns = draws[0]
    return Noise(mx.concatenate([draw[0] for draw in draws], axis=0), ids, rows, columns)


def add_noise(start: mx.array, noise: mx.array, sigma: mx.array) -> mx.array:
    """Return where the flow from ``start`` to each row of ``noise`` is at ``sigma``: (1 - sigma) start + sigma noise.

    It is ``scale_noise`` of diffusers' ``FlowMatchEulerDiscreteScheduler``.
    """
    share = sigma.astype(noise.dtype)
    return (1 - share) * start.astype(noise.dtype) + share * noise


@attrs.frozen(eq=False)
class StartLatents:
    """The latents of the image that a pass starts from."""

    image: mx.array
    """Packed [1, tokens, 128]."""

    def begin(self, noise: mx.array, sigma: mx.array) -> mx.array:
        """Return what the first step takes, packed [images, tokens, 128].

        Args:
            noise: each image's.
            sigma: the noise level before that step; 0 where no step is run.
        """
        return add_noise(self.image, noise, sigma)

    def protect(self, latents: mx.array, noise: mx.array, sigma: mx.array) -> mx.array:
        """Return a step's latents with what the image keeps put back: nothing, where all of it may change."""
        return latents


def to_grid(latents: mx.array, rows: int, columns: int) -> mx.array:
    """Lay packed latents [B, tokens, 128] out as the VAE takes them, [B, 128, rows, columns]."""
    return latents.reshape(latents.shape[0], rows, columns, latents.shape[-1]).transpose(0, 3, 1, 2)
