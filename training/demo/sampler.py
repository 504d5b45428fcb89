"""The inference schedule and loop of the engine and of diffusers, in PyTorch."""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from training.demo.models import TextEncoder, Transformer, compute_rope
from training.demo.vae import Autoencoder


def empirical_mu(tokens: int, steps: int) -> float:
    """Return FLUX.2's time shift for a number of image tokens and steps (diffusers' ``compute_empirical_mu``)."""
    at_200 = 0.00016927 * tokens + 0.45666666
    if tokens > 4300:
        return at_200
    at_10 = 8.73809524e-05 * tokens + 1.89833333
    slope = (at_200 - at_10) / 190.0
    return slope * steps + at_200 - 200.0 * slope


def schedule(tokens: int, steps: int) -> list[float]:
    """Return the sigmas [steps + 1] at which each step begins, and the final 0."""
    shift = math.exp(empirical_mu(tokens, steps))
    return [shift / (shift + 1.0 / (1.0 - i / steps) - 1.0) for i in range(steps)] + [0.0]


@dataclass(frozen=True)
class Reference:
    """A reference image, or one for each new image, encoded to the mean of its latents."""

    latents: Tensor
    """[1 or n, rows x columns, 128], packed."""
    rows: int
    """Of latent patches, 16 pixels each."""
    columns: int


@torch.no_grad()
def encode_reference(vae: Autoencoder, images: Tensor) -> Reference:
    """Encode images [n, 3, height, width] in 0..1, whose sides are multiples of 16 pixels."""
    mean, _ = vae.encode(images * 2 - 1)
    return Reference(vae.pack(mean), images.shape[2] // 16, images.shape[3] // 16)


@torch.no_grad()
def denoise(
    transformer: Transformer,
    text: Tensor,
    noise: Tensor,
    rows: int,
    columns: int,
    sigmas: list[float],
    *,
    guidance: float = 1.0,
    negative: Tensor | None = None,
    references: Sequence[Reference] = (),
) -> Tensor:
    """Take Euler steps along ``sigmas``.

    Args:
        transformer: Predicts the velocity.
        text: Prompt embeddings [n, 64, width].
        noise: Packed noise [n, rows x columns, 128], which is at the first of ``sigmas``.
        rows: Of latent patches, 16 pixels each.
        columns: Of latent patches.
        sigmas: Where each step begins, and where the last one ends.
        guidance: Above 1, how far the velocity leads away from ``negative`` (classifier-free guidance).
        negative: Embeddings of the negative prompts, as ``text``.
        references: Images that the new ones are made from.

    Returns:
        Clean packed latents [n, rows x columns, 128].
    """
    grids = tuple((reference.rows, reference.columns) for reference in references)
    rope = compute_rope(rows, columns, text.shape[1], transformer.axes, noise.device, grids)
    latents = noise.float()
    clean = [reference.latents.expand(noise.shape[0], -1, -1) for reference in references]

    def predict(embedded: Tensor, time: Tensor) -> Tensor:
        found: Tensor = transformer(torch.cat([latents, *clean], dim=1), embedded, time, rope)
        return found[:, : latents.shape[1]].float()

    for sigma, following in itertools.pairwise(sigmas):
        time = torch.full((latents.shape[0],), sigma, device=latents.device)
        velocity = predict(text, time)
        if guidance > 1.0 and negative is not None:
            other = predict(negative, time)
            velocity = other + guidance * (velocity - other)
        latents = latents + (following - sigma) * velocity
    return latents


@torch.no_grad()
def generate(
    text_encoder: TextEncoder,
    transformer: Transformer,
    vae: Autoencoder,
    tokens: Tensor,
    height: int,
    width: int,
    *,
    steps: int = 4,
    seed: int = 0,
    guidance: float = 1.0,
    negative: Tensor | None = None,
    references: Sequence[Reference] = (),
) -> Tensor:
    """Generate an image for each row of ``tokens``, decoding 16 at a time.

    Args:
        text_encoder: Embeds the prompts.
        transformer: Predicts the velocity.
        vae: Decodes the latents.
        tokens: Token rows [n, 64].
        height: In pixels, a multiple of 16.
        width: In pixels, a multiple of 16.
        steps: How many steps to take.
        seed: Of the noise, which is made on the CPU.
        guidance: Above 1, how far to lead away from ``negative``.
        negative: Token rows of the negative prompts.
        references: Images to edit; each holds one image for all rows, or one for each.

    Returns:
        Images [n, 3, height, width] in 0..1.
    """
    device, rows, columns = tokens.device, height // 16, width // 16
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(tokens.shape[0], rows * columns, 128, generator=generator).to(device)
    text = text_encoder(tokens)
    against = None if negative is None else text_encoder(negative)
    sigmas = schedule(rows * columns, steps)
    latents = denoise(
        transformer, text, noise, rows, columns, sigmas, guidance=guidance, negative=against, references=references
    )
    images = [vae.decode(part).float() for part in vae.unpack(latents, rows, columns).split(16)]
    return (torch.cat(images) / 2 + 0.5).clamp(0, 1)
