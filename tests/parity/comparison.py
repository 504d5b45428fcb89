"""What the comparisons with diffusers share: the command, reference images, measures and the line about a case."""

import argparse
import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

MIN_DECIBELS = 60.0
SEED = 20_240_607

Size = tuple[int, int]


def reference(width: int, height: int, index: int) -> npt.NDArray[np.uint8]:
    """Return an image with large shapes and some noise; diffusers scales none of these sizes."""
    random = np.random.default_rng(SEED + index)
    rows, columns = np.mgrid[0:height, 0:width] / max(width, height)
    waves = [np.sin(random.uniform(2, 9) * rows + random.uniform(2, 9) * columns + index) for _ in range(3)]
    levels = 127.5 + 110 * np.stack(waves, axis=-1) + random.normal(0, 8, (height, width, 3))
    return np.clip(levels, 0, 255).astype(np.uint8)


def open_engine(fast_path: bool) -> Any:
    """Prepare this process to compute in float32 as the service does on a CPU, and return its device."""
    os.environ["MLX_DISABLE_COMPILE"] = "1"
    from mflux_api.engine import blas

    blas.preload()
    import attrs
    import mlx.core as mx
    from mflux.models.common.config.model_config import ModelConfig

    from mflux_api.engine.device import configure, detect_device

    device = attrs.evolve(detect_device(), fast_path=fast_path)
    configure(device)
    ModelConfig.precision = mx.float32
    return device


def generate_case(
    pipeline: Any,
    folder: Path,
    number: int,
    *,
    width: int,
    height: int,
    references: tuple[Size, ...],
    **fields: Any,
) -> None:
    """Write a case's noise and the engine's image into ``folder``; its references are made by their sizes."""
    from mflux_api.images.rgb import RGBImage

    given = tuple(RGBImage(w, h, reference(w, h, i).tobytes()) for i, (w, h) in enumerate(references))
    write_case(pipeline, folder, number, width=width, height=height, references=given, **fields)


def write_case(pipeline: Any, folder: Path, number: int, *, width: int, height: int, **fields: Any) -> None:
    """Write a case's noise and the engine's image into ``folder``."""
    from mflux.models.flux2.latent_creator.flux2_latent_creator import Flux2LatentCreator

    from mflux_api.engine.sampling.pipeline import ImageEvent, PipelineRequest

    seed = SEED + number
    request = PipelineRequest(seeds=(seed,), width=width, height=height, **fields)
    noise = Flux2LatentCreator.prepare_latents(seed=seed, height=height, width=width, batch_size=1)[0]
    np.save(folder / f"{number}.noise.npy", np.array(noise))
    for event in pipeline.run(request, lambda: False):
        if isinstance(event, ImageEvent):
            np.save(folder / f"{number}.pixels.npy", event.pixels)


def psnr(one: npt.NDArray[np.uint8], other: npt.NDArray[np.uint8]) -> float:
    """Return the peak signal-to-noise ratio in dB of two 8-bit images; infinite for equal ones."""
    error = float(np.mean((one.astype(np.float64) - other) ** 2))
    return math.inf if error == 0 else 10 * math.log10(255**2 / error)


def comparison(case: Mapping[str, Any], ours: npt.NDArray[np.uint8], theirs: npt.NDArray[np.uint8]) -> str:
    """Return a line about a case and its two images."""
    level = int(np.abs(ours.astype(np.int16) - theirs).max())
    return (
        f"{case['width']:4}x{case['height']:<4} {case['steps']:2} steps, guidance {case['guidance']}, "
        f"{len(case['references'])} references: "
        f"{psnr(ours, theirs):6.1f} dB, at most {level} of 255, std {ours.std():.0f}"
    )


def run_side(
    description: str, generate: Callable[[Path, Path | None, bool], None], compare: Callable[[Path], bool]
) -> int:
    """Run the side that the command line names; return the exit status."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("side", choices=["generate", "compare"])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--checkpoint", type=Path, help="generate: use this checkpoint for every case")
    add_fast_path(parser)
    arguments = parser.parse_args()
    if arguments.side == "generate":
        checkpoint = arguments.checkpoint.resolve() if arguments.checkpoint else None
        generate(arguments.folder.resolve(), checkpoint, arguments.fast_path)
        return 0
    return 0 if compare(arguments.folder) else 1


def add_fast_path(parser: argparse.ArgumentParser) -> None:
    """Add the option that says which of the engine's two ways of computing is compared."""
    parser.add_argument("--fast-path", action="store_true", help="generate: as the service does by default")
