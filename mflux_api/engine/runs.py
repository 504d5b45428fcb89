"""Frames to passes and back: a command becomes passes of a model, and a pass's events become frames."""

from collections.abc import Iterator, Sequence

import attrs

from mflux_api.engine.lora.applying import Lora
from mflux_api.engine.protocol import (
    Event,
    ImageDone,
    PartialImageMade,
    PreviewMade,
    Run,
    RunWarning,
    StageChanged,
    StepDone,
    Upscale,
)
from mflux_api.engine.run_images import from_blobs
from mflux_api.engine.sampling.passes import (
    ImageEvent,
    PartialImageEvent,
    PipelineRequest,
    PreviewEvent,
    StageEvent,
    StepEvent,
    WarningEvent,
)
from mflux_api.engine.sampling.pipeline import Pipeline
from mflux_api.engine.upscaling.upscaler import UpscaleRequest
from mflux_api.images.rgb import RGBImage
from mflux_api.ipc.paths import path_of


def passes(command: Run, blobs: Sequence[bytes], pipeline: Pipeline) -> Iterator[tuple[int, PipelineRequest]]:
    """Yield the passes of a run in their order, each with the position of its first image in the run.

    Raises:
        ValueError: the frame asks for what cannot be computed, or its images are not what it says.
    """
    images = from_blobs(command, blobs)
    loras = tuple(
        Lora(path_of(path), scale) for path, scale in zip(command.lora_paths, command.lora_scales, strict=True)
    )
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
        references=images.references,
        start=images.start,
        strength=command.image_strength,
        inpainting=images.inpainting,
        loras=loras,
        previews=command.previews,
        partial_images=command.partial_images,
    )
    count = pipeline.images_per_pass(whole)
    for first in range(0, len(command.seeds), count):
        yield first, attrs.evolve(whole, seeds=command.seeds[first : first + count])


def pass_kind(model: str, request: PipelineRequest) -> tuple[object, ...]:
    """Return what a pass has to have in common with another for nothing new to be compiled."""
    return (
        model,
        (request.width, request.height),
        len(request.seeds),
        request.guidance > 1.0,
        tuple(image.size for image in request.references),
        tuple(lora.path for lora in request.loras),
        request.low_ram,
        request.inpainting is not None,
    )


def upscale_passes(command: Upscale, blobs: Sequence[bytes]) -> Iterator[tuple[int, UpscaleRequest]]:
    """Yield the passes of an upscaling in their order, one for each image.

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


def to_frame(
    event: StageEvent | StepEvent | WarningEvent | PreviewEvent | PartialImageEvent | ImageEvent,
    run_id: int,
    first: int,
) -> tuple[Event, tuple[bytes, ...]]:
    """Return the frame, and its blobs, that tells the service of an event.

    Args:
        event: what a pass reported.
        run_id: the run that the pass belongs to.
        first: the position of the pass's first image in the run.
    """
    match event:
        case StageEvent(stage=stage):
            return StageChanged(run_id=run_id, stage=stage), ()
        case StepEvent(step=step, steps=steps, image=offset, images=images):
            return StepDone(run_id=run_id, image=first + offset, step=step, steps=steps, images=images), ()
        case WarningEvent(message=message):
            return RunWarning(run_id=run_id, message=message), ()
        case PreviewEvent(index=index, step=step, width=width, height=height, jpeg=jpeg):
            made = PreviewMade(run_id=run_id, index=first + index, step=step, width=width, height=height)
            return made, (jpeg,)
        case PartialImageEvent(index=index, number=number, step=step, pixels=pixels):
            height, width, _ = pixels.shape
            partial = PartialImageMade(
                run_id=run_id, index=first + index, number=number, step=step, width=width, height=height
            )
            return partial, (pixels.tobytes(),)
        case ImageEvent(index=index, seed=seed, pixels=pixels):
            height, width, _ = pixels.shape
            done = ImageDone(run_id=run_id, index=first + index, seed=seed, width=width, height=height)
            return done, (pixels.tobytes(),)
