"""A run as the service asks for it becomes passes of the pipeline."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import attrs

from mflux_api.engine.lora.lora import Lora
from mflux_api.engine.protocol import Run, Upscale
from mflux_api.engine.sampling.pipeline import Pipeline, PipelineRequest
from mflux_api.engine.upscaling.upscaler import UpscaleRequest
from mflux_api.images.rgb import RGBImage


def passes(command: Run, blobs: Sequence[bytes], pipeline: Pipeline) -> Iterator[tuple[int, PipelineRequest]]:
    """The passes of a run in their order, each with the position of its first image in the run.

    Raises:
        ValueError: the frame asks for what cannot be computed, or its images are not what it says.
    """
    sizes = [*command.references, (command.width, command.height)][: len(command.references) + command.start]
    if len(blobs) != len(sizes):
        raise ValueError("a run must come with as many images as it names")
    images = [RGBImage(width, height, rgb) for (width, height), rgb in zip(sizes, blobs, strict=True)]
    loras = tuple(Lora(Path(path), scale) for path, scale in zip(command.lora_paths, command.lora_scales, strict=True))
    whole = PipelineRequest(
        prompt=command.prompt,
        negative_prompt=command.negative_prompt,
        seeds=command.seeds,
        width=command.width,
        height=command.height,
        steps=command.steps,
        guidance=command.guidance,
        low_ram=command.low_ram,
        alternating_offload=command.alternating_offload,
        references=tuple(images[: len(command.references)]),
        start=images[-1] if command.start else None,
        strength=command.image_strength,
        loras=loras,
        previews=command.previews,
    )
    count = pipeline.images_per_pass(whole)
    for first in range(0, len(command.seeds), count):
        yield first, attrs.evolve(whole, seeds=command.seeds[first : first + count])


def upscaled_images(command: Upscale, blobs: Sequence[bytes]) -> Iterator[tuple[int, UpscaleRequest]]:
    """The upscaled images of a command in their order, one a pass.

    Raises:
        ValueError: the frame asks for what cannot be computed, or its image is not what it says.
    """
    if len(blobs) != 1:
        raise ValueError("an upscaling must come with one image")
    image = RGBImage(command.width, command.height, blobs[0])
    for first, seed in enumerate(command.seeds):
        yield (
            first,
            UpscaleRequest(
                image=image,
                resolution=command.resolution,
                seed=seed,
                softness=command.softness,
                low_ram=command.low_ram,
            ),
        )
