"""Stock mflux on the test checkpoints: what this project's pixels are compared with."""

from pathlib import Path
from typing import Any

import numpy as np
from mflux.models.common.config.model_config import ModelConfig
from PIL import Image

from benchmarks.stock_mflux import model_config
from mflux_api.engine.demo import layout
from mflux_api.engine.device import Device
from mflux_api.engine.sampling.decoding import decode_mode
from mflux_api.engine.sampling.pipeline import PipelineRequest
from mflux_api.images.rgb import RGBImage
from tests.support.checkpoint_shapes import STOCK
from tests.support.pipeline_runs import Pixels, pixels_of


def klein_config(*, kv_cache: bool = False) -> ModelConfig:
    """Return Klein's configuration with the dimensions of the test checkpoint."""
    transformer, text = layout.transformer_config(STOCK), layout.text_encoder_config(STOCK, "float32")
    return model_config(transformer, text, kv_cache=kv_cache)


def generate_stock(stock: Any, request: PipelineRequest, device: Device, images: list[Path] | None = None) -> Pixels:
    """Return the image of stock mflux: ``Flux2Klein``, or ``Flux2KleinEdit`` where there are reference ``images``."""
    stock.vae.decode_mode = decode_mode(device, request.width, request.height, request.low_ram)
    image = stock.generate_image(
        seed=request.seeds[0],
        prompt=request.prompt,
        num_inference_steps=request.steps,
        width=request.width,
        height=request.height,
        guidance=request.guidance,
        **({"image_paths": images} if images else {}),
    ).image
    return np.asarray(image.convert("RGB"))


def save_images(folder: Path, images: tuple[RGBImage, ...]) -> list[Path]:
    """Write the images to files, which is how stock mflux takes them."""
    paths = [folder / f"{index}.png" for index in range(len(images))]
    for path, each in zip(paths, images, strict=True):
        Image.fromarray(pixels_of(each)).save(path)
    return paths
