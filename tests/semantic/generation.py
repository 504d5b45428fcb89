"""Generating images with the real engine, in this process."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

WEIGHTS = Path(__file__).parents[2] / "mflux_api" / "engine" / "demo" / "weights"
"""Where the trained checkpoint is, in diffusers' layout."""


def open_pipeline(folder: Path) -> Any:
    """Open the engine's pipeline on a checkpoint folder."""
    import os

    os.environ.setdefault("MLX_DISABLE_COMPILE", "1")
    from mflux_api.engine import blas

    blas.preload()
    from mflux_api.engine.device import configure, detect_device
    from mflux_api.engine.sampling.pipeline import Pipeline
    from mflux_api.engine.weights.components import load_components

    device = detect_device()
    configure(device)
    return Pipeline(load_components(folder), device)


def generate(
    pipeline: Any, prompt: str, seeds: Sequence[int], *, width: int = 256, height: int = 256, steps: int = 4
) -> Iterator[npt.NDArray[np.uint8]]:
    """Generate one image per seed, at the distilled model's defaults."""
    from mflux_api.engine.sampling.pipeline import ImageEvent, PipelineRequest

    request = PipelineRequest(prompt=prompt, seeds=tuple(seeds), width=width, height=height, steps=steps)
    for event in pipeline.run(request, lambda: False):
        if isinstance(event, ImageEvent):
            yield event.pixels


LORA = Path(__file__).parents[2] / "loras" / "demo-ink.safetensors"
"""The example LoRA."""


def generate_edit(
    pipeline: Any, prompt: str, references: Sequence[npt.NDArray[np.uint8]], seed: int, *, like: int = 0
) -> npt.NDArray[np.uint8]:
    """Edit in four steps; the result has the size of the reference number ``like``."""
    from mflux_api.images.rgb import RGBImage

    given = tuple(RGBImage(pixels.shape[1], pixels.shape[0], pixels.tobytes()) for pixels in references)
    height, width = references[like].shape[:2]
    return _first(pipeline, prompt=prompt, seeds=(seed,), width=width, height=height, steps=4, references=given)


def generate_with_lora(
    pipeline: Any, prompt: str, scale: float | None, seed: int, *, side: int
) -> npt.NDArray[np.uint8]:
    """Generate one image with the example LoRA at a scale, or without it where the scale is None."""
    from mflux_api.engine.lora.applying import Lora

    loras = () if scale is None else (Lora(LORA, scale),)
    return _first(pipeline, prompt=prompt, seeds=(seed,), width=side, height=side, steps=4, loras=loras)


def _first(pipeline: Any, **request: Any) -> npt.NDArray[np.uint8]:
    from mflux_api.engine.sampling import pipeline as engine

    for event in pipeline.run(engine.PipelineRequest(**request), lambda: False):
        if isinstance(event, engine.ImageEvent):
            return event.pixels
    raise AssertionError("the pass ended without an image")
