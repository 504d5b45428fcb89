"""Painting prompts with the real engine, in this process."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

WEIGHTS = Path(__file__).parents[2] / "mflux_api" / "engine" / "demo" / "weights"
"""Where the trained checkpoint is, in diffusers' layout."""


def is_trained(folder: Path = WEIGHTS) -> bool:
    """Whether the trained checkpoint is there."""
    return (folder / "model_index.json").is_file()


def open_pipeline(folder: Path) -> Any:
    """The engine's pipeline on a checkpoint folder."""
    import os

    os.environ.setdefault("MLX_DISABLE_COMPILE", "1")
    from mflux_api.engine import blas

    blas.preload()
    from mflux_api.engine.components import load_components
    from mflux_api.engine.memory import configure, detect_device
    from mflux_api.engine.pipeline import Pipeline

    device = detect_device()
    configure(device)
    return Pipeline(load_components(folder), device)


def paint(
    pipeline: Any, prompt: str, seeds: Sequence[int], *, width: int = 256, height: int = 256, steps: int = 4
) -> Iterator[npt.NDArray[np.uint8]]:
    """One picture per seed, at the distilled model's defaults."""
    from mflux_api.engine.pipeline import ImageEvent, PipelineRequest

    request = PipelineRequest(prompt=prompt, seeds=tuple(seeds), width=width, height=height, steps=steps)
    for event in pipeline.run(request, lambda: False):
        if isinstance(event, ImageEvent):
            yield event.pixels
