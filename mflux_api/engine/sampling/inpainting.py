"""Inpainting in latents: what a pass may change of its start image, and what every step is given back.

The loop is the one of diffusers' ``Flux2KleinInpaintPipeline``. All latents are packed and normed by the VAE's batch
norm; with others the mask's edge would be seen in the image.
"""

from collections.abc import Callable

import attrs
import mlx.core as mx
import numpy as np
from mflux.models.flux2.latent_creator.flux2_latent_creator import Flux2LatentCreator
from mlx import nn

from mflux_api.engine.kernels.cpu_threads import Threads
from mflux_api.engine.sampling.latents import StartLatents, add_noise
from mflux_api.engine.sampling.passes import PipelineRequest
from mflux_api.engine.sampling.references import PIXELS_PER_TOKEN, References, encode_image
from mflux_api.images.inpainting import Fill

# The two pixels in the middle of a token: where interpolation between pixels samples a grid 16 times as coarse.
_MIDDLE = slice(PIXELS_PER_TOKEN // 2 - 1, PIXELS_PER_TOKEN // 2 + 1)
_WHITE = 128


@attrs.frozen(eq=False)
class MaskedLatents(StartLatents):
    """The start image's latents with a mask over them."""

    mask: mx.array
    """[1, tokens, 1]: 1 where it is inpainted, 0 where it is protected."""
    fill: Fill
    """What the inpainted part is before the noise of the first step is added.

    ``original`` leaves the start image as it is. With ``noise`` it is the image's own noise, so that it begins as pure
    noise at every strength. With ``nothing`` it is zero, so that it begins as noise of the first step's level without
    content. At strength 1 all three begin with the same pure noise.
    """

    def begin(self, noise: mx.array, sigma: mx.array) -> mx.array:
        """Return what the first step takes, its inpainted part filled."""
        if self.fill == "original":
            return super().begin(noise, sigma)
        content = noise if self.fill == "noise" else mx.zeros_like(noise)
        return add_noise(_mix(self.mask, content, self.image), noise, sigma)

    def protect(self, latents: mx.array, noise: mx.array, sigma: mx.array) -> mx.array:
        """Return a step's latents with the protected part put back: the start image at that level of the same noise.

        Args:
            latents: what the step made, packed [images, tokens, 128].
            noise: what the images began with.
            sigma: the noise level after the step; 0 after the last, where the protected part is the image itself.
        """
        return _mix(self.mask, latents, super().begin(noise, sigma))


def encode_start(
    vae: Callable[[], nn.Module],
    request: PipelineRequest,
    references: References | None,
    check: Callable[[], None],
    threads: Threads | None = None,
) -> StartLatents | None:
    """Return the latents that a pass starts from; ``None`` where it starts from noise alone.

    Args:
        vae: gets the VAE, which may not be in memory.
        request: the pass.
        references: its encoded references, if there are any.
        check: called between the encoder's blocks; what it raises passes through.
        threads: who encodes instead of mflux, on a CPU.
    """
    if request.start is None or (request.steps_run == request.steps and request.inpainting is None):
        return None
    if references is not None and request.references[0] == request.start:
        # The source of an inpainting is its first reference; encoding it again would give the same.
        image = references.tokens[:, : request.width * request.height // PIXELS_PER_TOKEN**2]
    else:
        image = Flux2LatentCreator.pack_latents(encode_image(vae(), request.start, check, threads))
    if request.inpainting is None:
        return StartLatents(image)
    mask = pack_mask(request.inpainting.mask, request.width, request.height)
    # Without a step nothing would remove what a fill is made of.
    return MaskedLatents(image, mask, request.inpainting.fill if request.steps_run else "original")


def pack_mask(mask: bytes, width: int, height: int) -> mx.array:
    """Return a mask of pixels as one of tokens [1, tokens, 1], float32.

    A pixel of 128 or more is inpainted. A token's value is the bilinear sample at its middle, the mean of 2 x 2 pixels,
    as in diffusers. A token that the mask touches beside its middle, and none of whose neighbours it meets, is
    inpainted, too: of a thin line nothing would change otherwise.

    Args:
        mask: one byte a pixel, row by row.
        width: in pixels, a multiple of 16.
        height: likewise.
    """
    white = np.frombuffer(mask, np.uint8).reshape(height, width) >= _WHITE
    tokens = white.reshape(height // PIXELS_PER_TOKEN, PIXELS_PER_TOKEN, width // PIXELS_PER_TOKEN, PIXELS_PER_TOKEN)
    shares = np.asarray(tokens[:, _MIDDLE, :, _MIDDLE].mean(axis=(1, 3)), np.float32)
    rows, columns = shares.shape
    around = np.pad(shares, 1)
    near = np.maximum.reduce([around[y : y + rows, x : x + columns] for y in range(3) for x in range(3)])
    shares[tokens.any(axis=(1, 3)) & (near == 0)] = 1.0
    return mx.array(shares.reshape(1, -1, 1))


def _mix(mask: mx.array, inside: mx.array, outside: mx.array) -> mx.array:
    share = mask.astype(inside.dtype)
    return (1 - share) * outside.astype(inside.dtype) + share * inside
