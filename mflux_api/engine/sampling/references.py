"""Images that a run starts from: pixels through the VAE's encoder, packed as the transformer's tokens."""

from collections.abc import Callable, Sequence
from typing import Any

import attrs
import mlx.core as mx
import numpy as np
from mflux.models.common.config.model_config import ModelConfig
from mflux.models.flux2.latent_creator.flux2_latent_creator import Flux2LatentCreator
from mflux.models.flux2.variants.edit.flux2_klein_edit_helpers import _Flux2KleinEditHelpers
from mlx import nn

from mflux_api.engine.kernels import cpu_vae
from mflux_api.engine.kernels.cpu_threads import Threads
from mflux_api.images.rgb import CHANNELS, RGBImage

PIXELS_PER_TOKEN = 16
# FLUX.2 tells references apart by the time coordinate of their position: 10, 20, 30 …; the generated image has 0.
_TIME_STEP = 10


def check_sides(image: RGBImage) -> None:
    """Refuse an image whose sides are not whole numbers of the transformer's tokens.

    Raises:
        ValueError: a side is not a multiple of 16 pixels, or is 0.
    """
    if any(side < PIXELS_PER_TOKEN or side % PIXELS_PER_TOKEN for side in image.size):
        raise ValueError(f"an image's sides must be multiples of {PIXELS_PER_TOKEN} pixels")


@attrs.frozen(eq=False)
class References:
    """The tokens of all reference images, one after the other."""

    tokens: mx.array
    """[1, tokens, 128]."""
    ids: mx.array
    """Position ids [1, tokens, 4]: time, row, column, layer."""


def encode_references(
    vae: nn.Module, images: Sequence[RGBImage], check: Callable[[], None], threads: Threads | None = None
) -> References | None:
    """Return the images' tokens as mflux's ``Flux2KleinEdit`` and diffusers' ``Flux2KleinPipeline`` feed them.

    Args:
        vae: mflux's.
        images: the references; where there are none, the result is None.
        check: called between the encoder's blocks; what it raises passes through.
        threads: who encodes instead of mflux, on a CPU.
    """
    if not images:
        return None
    tokens, ids = [], []
    for index, image in enumerate(images):
        latents = encode_image(vae, image, check, threads)
        tokens.append(Flux2LatentCreator.pack_latents(latents))
        ids.append(Flux2LatentCreator.prepare_grid_ids(latents, t_coord=_TIME_STEP * (index + 1)))
    references = References(mx.concatenate(tokens, axis=1), mx.concatenate(ids, axis=1))
    mx.eval(references.tokens, references.ids)
    return references


def encode_image(
    vae: nn.Module, image: RGBImage, check: Callable[[], None], threads: Threads | None = None
) -> mx.array:
    """Return an image's patched and normed latents [1, 128, height/16, width/16].

    They are the mean of the encoder's distribution, so the same image always has the same latents. The arguments are
    those of :func:`encode_references`.
    """
    rgb = np.frombuffer(image.rgb, np.uint8).reshape(1, image.height, image.width, CHANNELS)
    pixels = 2.0 * mx.transpose(mx.array(rgb.astype(np.float32) / 255.0), (0, 3, 1, 2)) - 1.0
    encoded = Flux2LatentCreator.patchify_latents(_encode(vae, pixels, check, threads))
    latents: mx.array = _Flux2KleinEditHelpers.bn_normalize_vae_encoded_latents(encoded, vae=vae)
    mx.eval(latents)
    return latents


def _encode(vae: nn.Module, image: mx.array, check: Callable[[], None], threads: Threads | None) -> mx.array:
    """Return the latents [1, 32, H/8, W/8] of pixels [1, 3, H, W] in [-1, 1]."""
    if threads is not None and cpu_vae.is_known(vae):
        moments = cpu_vae.encode(vae, image, threads, check)
    else:
        moments = _encode_modules(vae, image, check)
    mean, _ = mx.split(moments, 2, axis=1)
    latents: mx.array = (mean - vae.shift_factor) * vae.scaling_factor
    return latents


def _encode_modules(vae: nn.Module, image: mx.array, check: Callable[[], None]) -> mx.array:
    # Flux2VAE.encode's own modules in its order; evaluating in between changes no bit and frees each block's memory.
    encoder = vae.encoder
    blocks: list[Any] = []
    for down_block in encoder.down_blocks:
        blocks += [*down_block.resnets, *down_block.downsamplers]
    mid = encoder.mid_block
    blocks += [mid.resnets[0], *mid.attentions, mid.resnets[1]]
    x = encoder.conv_in(image)
    for block in blocks:
        check()
        x = block(x)
        mx.eval(x)
    check()
    x = nn.silu(encoder.conv_norm_out(x)).astype(ModelConfig.precision)
    x = mx.transpose(encoder.conv_out(x), (0, 2, 3, 1))
    return mx.transpose(vae.quant_conv(x), (0, 3, 1, 2))
