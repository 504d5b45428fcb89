"""Previews: small images during a run, from a linear map of the latents instead of a pass through the VAE per step.

The map is fitted on the checkpoint's own VAE, because any checkpoint can be loaded and its latents are its own: numbers
shipped for one VAE would show noise with another.
"""

from collections.abc import Callable
from io import BytesIO

import attrs
import mlx.core as mx
import numpy as np
import numpy.typing as npt
from mlx import nn
from PIL import Image

from mflux_api.engine.kernels.cpu_threads import Threads
from mflux_api.engine.sampling.decoding import DecodeMode, Pixels, decode_packed
from mflux_api.engine.sampling.references import encode_image
from mflux_api.images.rgb import RGBImage

JPEG_QUALITY = 80
_PIXELS_PER_CELL = 8
SAMPLE_SIDE = 128
"""Pixels of the image that the map is fitted on."""
_PATCH = 16
# Keeps channels that carry nothing in the sample from getting large factors.
_RIDGE = 1e-3


@attrs.frozen(eq=False)
class _Statistics:
    """How a VAE norms its patched latents; a copy, because previews must not keep a freed VAE in memory."""

    mean: npt.NDArray[np.float64]
    """[128, 1, 1], like ``deviation``."""
    deviation: npt.NDArray[np.float64]

    @classmethod
    def from_vae(cls, vae: nn.Module) -> "_Statistics":
        mean, variance = (
            np.array(values.astype(mx.float32)).astype(np.float64).reshape(-1, 1, 1)
            for values in (vae.bn.running_mean, vae.bn.running_var)
        )
        return cls(mean, np.sqrt(variance + vae.bn.eps))


@attrs.frozen(eq=False)
class PreviewDecoder:
    """RGB in [-1, 1] as an affine function of a cell's 32 latent channels."""

    factors: npt.NDArray[np.float64]
    """[33, 3]; the last row is the constant."""
    statistics: _Statistics

    def pixels(self, packed: npt.NDArray[np.generic]) -> Pixels:
        """Return an image's packed latents [128, H/16, W/16] as RGB8 (H/8, W/8, 3)."""
        cells, rows, columns = _cells(self.statistics, packed)
        colours = (cells @ self.factors).reshape(rows, columns, 3)
        return np.ascontiguousarray(np.clip(np.rint(colours * 127.5 + 127.5), 0, 255).astype(np.uint8))


def fit(vae: nn.Module, mode: DecodeMode, check: Callable[[], None], threads: Threads | None = None) -> PreviewDecoder:
    """Fit the map on one sample image that goes once through the VAE and back, by least squares; always the same.

    The colours to match are those that the decoder gives, 8 x 8 pixels averaged, and not the sample's: a preview
    foretells the image. ``check`` is called between the VAE's blocks; what it raises passes through. ``threads``
    compute instead of mflux, on a CPU.
    """
    packed = encode_image(vae, _sample(), check, threads)
    decoded = np.array(decode_packed(vae, packed, mode, check, threads).astype(mx.float32))[0]
    statistics = _Statistics.from_vae(vae)
    cells, rows, columns = _cells(statistics, np.array(packed[0].astype(mx.float32)))
    blocks = decoded.reshape(3, rows, _PIXELS_PER_CELL, columns, _PIXELS_PER_CELL).mean(axis=(2, 4))
    colours = blocks.transpose(1, 2, 0).reshape(-1, 3).astype(np.float64)
    scale = float(np.trace(cells.T @ cells)) / cells.shape[1]
    normal = cells.T @ cells + _RIDGE * scale * np.eye(cells.shape[1])
    return PreviewDecoder(np.linalg.solve(normal, cells.T @ colours), statistics)


def as_jpeg(pixels: Pixels) -> bytes:
    """Return RGB8 pixels as a JPEG file."""
    buffer = BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=JPEG_QUALITY)
    return buffer.getvalue()


def _cells(statistics: _Statistics, packed: npt.NDArray[np.generic]) -> tuple[npt.NDArray[np.float64], int, int]:
    """Return the latents of each 8 x 8 pixels with a 1 at the end [cells, 33], and the grid's rows and columns."""
    latents = packed.astype(np.float64) * statistics.deviation + statistics.mean
    channels, rows, columns = latents.shape
    # Flux2VAE._unpatchify_latents: each latent pixel of 16 is 2 x 2 of 8.
    patches = latents.reshape(channels // 4, 2, 2, rows, columns).transpose(3, 1, 4, 2, 0)
    rows, columns = 2 * rows, 2 * columns
    cells = patches.reshape(rows * columns, channels // 4)
    return np.concatenate([cells, np.ones((rows * columns, 1))], axis=1), rows, columns


def _sample() -> RGBImage:
    """Return an image of flat patches, slopes and texture in colours from all over the RGB cube."""
    random = np.random.Generator(np.random.PCG64(0))
    count = SAMPLE_SIDE // _PATCH
    levels = np.kron(random.uniform(0, 255, (count, count, 3)), np.ones((_PATCH, _PATCH, 1)))
    slopes = np.kron(random.uniform(-60, 60, (count, count, 3)), np.linspace(-1, 1, _PATCH)[:, None, None])
    slopes = np.repeat(slopes, _PATCH, axis=1)
    texture = random.normal(0, 1, (SAMPLE_SIDE, SAMPLE_SIDE, 1)) * np.kron(
        random.uniform(0, 20, (count, count, 1)), _ones()
    )
    return RGBImage(SAMPLE_SIDE, SAMPLE_SIDE, np.clip(levels + slopes + texture, 0, 255).astype(np.uint8).tobytes())


def _ones() -> npt.NDArray[np.float64]:
    return np.ones((_PATCH, _PATCH, 1))
