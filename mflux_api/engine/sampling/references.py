"""Pictures that a run starts from: pixels through the VAE's encoder, packed as the transformer's tokens."""

from collections.abc import Callable, Sequence
from typing import Any

import attrs
import mlx.core as mx
import numpy as np
from mflux.models.common.config.model_config import ModelConfig
from mflux.models.flux2.latent_creator.flux2_latent_creator import Flux2LatentCreator
from mflux.models.flux2.variants.edit.flux2_klein_edit_helpers import _Flux2KleinEditHelpers
from mlx import nn

_CHANNELS = 3
_PIXELS_PER_LATENT = 16
# FLUX.2 tells references apart by the time coordinate of their position: 10, 20, 30 …; the painted picture has 0.
_TIME_STEP = 10


@attrs.frozen
class Picture:
    """RGB8 pixels, row by row; both sides are multiples of 16. Raises ValueError for anything else."""

    width: int
    height: int
    rgb: bytes = attrs.field(repr=False)

    def __attrs_post_init__(self) -> None:
        if any(side < _PIXELS_PER_LATENT or side % _PIXELS_PER_LATENT for side in (self.width, self.height)):
            raise ValueError(f"A picture's sides must be multiples of {_PIXELS_PER_LATENT} pixels.")
        if len(self.rgb) != self.width * self.height * _CHANNELS:
            raise ValueError("A picture must have 3 bytes per pixel.")


@attrs.frozen(eq=False)
class References:
    """The tokens of all reference pictures, one after the other."""

    tokens: mx.array
    """[1, tokens, 128]."""
    ids: mx.array
    """Position ids [1, tokens, 4]: time, row, column, layer."""


def encode_references(vae: Any, pictures: Sequence[Picture], check: Callable[[], None]) -> References | None:
    """The pictures' tokens as mflux's ``Flux2KleinEdit`` and diffusers' ``Flux2KleinPipeline`` feed them.

    None where there are no pictures. ``check`` is called between the encoder's blocks; what it raises passes through.
    """
    if not pictures:
        return None
    tokens, ids = [], []
    for index, picture in enumerate(pictures):
        latents = encode_picture(vae, picture, check)
        tokens.append(Flux2LatentCreator.pack_latents(latents))
        ids.append(Flux2LatentCreator.prepare_grid_ids(latents, t_coord=_TIME_STEP * (index + 1)))
    references = References(mx.concatenate(tokens, axis=1), mx.concatenate(ids, axis=1))
    mx.eval(references.tokens, references.ids)
    return references


def encode_picture(vae: Any, picture: Picture, check: Callable[[], None]) -> mx.array:
    """A picture's patched and normed latents [1, 128, height/16, width/16], those that the transformer works on.

    They are the mean of the encoder's distribution, so the same picture always has the same latents.
    """
    pixels = np.frombuffer(picture.rgb, np.uint8).reshape(1, picture.height, picture.width, _CHANNELS)
    image = 2.0 * mx.transpose(mx.array(pixels.astype(np.float32) / 255.0), (0, 3, 1, 2)) - 1.0
    encoded = Flux2LatentCreator.patchify_latents(_encode_modules(vae, image, check))
    latents: mx.array = _Flux2KleinEditHelpers.bn_normalize_vae_encoded_latents(encoded, vae=vae)
    mx.eval(latents)
    return latents


def _encode_modules(vae: Any, image: mx.array, check: Callable[[], None]) -> mx.array:
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
    mean, _ = mx.split(mx.transpose(vae.quant_conv(x), (0, 3, 1, 2)), 2, axis=1)
    latents: mx.array = (mean - vae.shift_factor) * vae.scaling_factor
    return latents
