"""Stock mflux on the test checkpoints, and what tests of the pipeline share."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from mflux.models.common.config.model_config import ModelConfig

from mflux_api.engine.demo.byte_tokenizer import VOCABULARY_SIZE
from mflux_api.engine.device import Device
from mflux_api.engine.sampling.decoding import decode_mode
from mflux_api.engine.sampling.pipeline import Event, ImageEvent, Pipeline, PipelineRequest
from mflux_api.images.rgb import RGBImage
from tests.support.shapes import STOCK

Pixels = npt.NDArray[np.uint8]


def never() -> bool:
    """Never stop a run."""
    return False


def generate(pipeline: Pipeline, request: PipelineRequest) -> list[Pixels]:
    """Return every image of a pass."""
    return [event.pixels for event in pipeline.run(request, never) if isinstance(event, ImageEvent)]


def consume(run: Iterator[Event], seen: list[Event]) -> None:
    """Append events one by one, so that those before an exception stay."""
    seen.extend(run)


def distance(one: Pixels, other: Pixels) -> int:
    """Return the largest difference of two images in levels of 255."""
    return int(np.abs(one.astype(np.int16) - other).max())


def klein_config(*, kv_cache: bool = False) -> ModelConfig:
    """Return Klein's configuration with the dimensions of the test checkpoint."""
    return ModelConfig(
        priority=0,
        aliases=["test"],
        model_name="test",
        base_model=None,
        controlnet_model=None,
        custom_transformer_model=None,
        num_train_steps=1000,
        max_sequence_length=512,
        supports_guidance=True,
        requires_sigma_shift=True,
        supports_kv_cache=kv_cache,
        transformer_overrides={
            "num_layers": STOCK.double_blocks,
            "num_single_layers": STOCK.single_blocks,
            "num_attention_heads": STOCK.heads,
            "attention_head_dim": STOCK.head_dim,
            "axes_dims_rope": STOCK.axes_dims_rope,
            "joint_attention_dim": STOCK.joint_attention_dim,
        },
        text_encoder_overrides={
            "vocab_size": VOCABULARY_SIZE,
            "hidden_size": STOCK.text_width,
            "num_hidden_layers": STOCK.text_layers,
            "num_attention_heads": STOCK.text_heads,
            "num_key_value_heads": STOCK.text_key_value_heads,
            "intermediate_size": STOCK.text_mlp_width,
            "head_dim": STOCK.text_head_dim,
        },
    )


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


def rgb_image(width: int, height: int, seed: int = 0) -> RGBImage:
    """Return an image with large shapes and some noise, another one for each seed."""
    random = np.random.default_rng(seed)
    rows, columns = np.mgrid[0:height, 0:width] / max(width, height)
    waves = [np.sin(random.uniform(2, 9) * rows + random.uniform(2, 9) * columns + seed) for _ in range(3)]
    levels = 127.5 + 110 * np.stack(waves, axis=-1) + random.normal(0, 8, (height, width, 3))
    return RGBImage(width, height, np.clip(levels, 0, 255).astype(np.uint8).tobytes())


def pixels_of(image: RGBImage) -> Pixels:
    """Return the image as an array (height, width, 3)."""
    return np.frombuffer(image.rgb, np.uint8).reshape(image.height, image.width, 3)
