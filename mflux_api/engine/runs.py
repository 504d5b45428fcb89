"""Frames to passes and back: a command becomes passes of a model, and a pass's events become frames."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import groupby
from typing import TypeAlias

import attrs

from mflux_api.engine.lora.applying import Lora
from mflux_api.engine.protocol import (
    ImageDone,
    PartialImageMade,
    PreviewMade,
    Run,
    RunWarning,
    SharedRun,
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
    Prompted,
    StageEvent,
    StepEvent,
    WarningEvent,
)
from mflux_api.engine.sampling.pipeline import Pipeline
from mflux_api.engine.upscaling.upscaler import UpscaleRequest
from mflux_api.images.rgb import RGBImage
from mflux_api.ipc.paths import path_of

PassFrame: TypeAlias = StageChanged | StepDone | RunWarning | PreviewMade | PartialImageMade | ImageDone
"""What is told of a pass."""


@attrs.frozen
class ImageOfRun:
    """Whose an image of a pass is."""

    run_id: int
    index: int
    """Its position in the run."""


Owners: TypeAlias = tuple[ImageOfRun, ...]
"""Of each image of a pass."""


def passes(command: Run, blobs: Sequence[bytes], pipeline: Pipeline) -> Iterator[tuple[Owners, PipelineRequest]]:
    """Yield the passes of a run in their order, each with what its images are.

    Raises:
        ValueError: the frame asks for what cannot be computed, or its images are not what it says.
    """
    whole = _whole(command, blobs)
    count = pipeline.images_per_pass(whole)
    for first in range(0, len(command.seeds), count):
        seeds = command.seeds[first : first + count]
        owners = tuple(ImageOfRun(command.run_id, index) for index, _ in enumerate(seeds, first))
        yield owners, attrs.evolve(whole, seeds=seeds)


def shared_passes(
    command: SharedRun, pipeline: Pipeline, is_open: Callable[[int], bool]
) -> Iterator[tuple[Owners, PipelineRequest]]:
    """Yield the passes of runs that share them, each with whose its images are.

    Args:
        command: the runs, of which the first says what is common to them.
        pipeline: knows how many images one pass takes.
        is_open: whether a run goes on; of others no images are begun.

    Raises:
        ValueError: the frame asks for what cannot be computed.
    """
    whole = _whole(command.runs[0], ())
    count = pipeline.images_per_pass(whole)
    images = deque((run, index) for run in command.runs for index, _ in enumerate(run.seeds))
    while images := deque(each for each in images if is_open(each[0].run_id)):
        taken = [images.popleft() for _ in range(min(count, len(images)))]
        owners = tuple(ImageOfRun(run.run_id, index) for run, index in taken)
        first, *others = [
            Prompted(run.prompt, tuple(run.seeds[index] for _, index in group), run.negative_prompt)
            for run, group in groupby(taken, key=lambda image: image[0])
        ]
        own = attrs.evolve(whole, prompt=first.prompt, negative_prompt=first.negative_prompt, seeds=first.seeds)
        yield owners, attrs.evolve(own, companions=tuple(others), previews=False)


def _whole(command: Run, blobs: Sequence[bytes]) -> PipelineRequest:
    """Return a run as if one pass took all its images."""
    images = from_blobs(command, blobs)
    loras = tuple(
        Lora(path_of(path), scale) for path, scale in zip(command.lora_paths, command.lora_scales, strict=True)
    )
    return PipelineRequest(
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


def pass_kind(model: str, request: PipelineRequest) -> tuple[object, ...]:
    """Return what a pass has to have in common with another for nothing new to be compiled."""
    return (
        model,
        (request.width, request.height),
        len(request.all_seeds),
        request.guidance > 1.0,
        tuple(image.size for image in request.references),
        tuple(lora.path for lora in request.loras),
        request.low_ram,
        request.inpainting is not None,
    )


def upscale_passes(command: Upscale, blobs: Sequence[bytes]) -> Iterator[tuple[Owners, UpscaleRequest]]:
    """Yield the passes of an upscaling in their order, one for each image, with what it is.

    Raises:
        ValueError: the frame asks for what cannot be computed, or its image is not what it says.
    """
    if len(blobs) != 1:
        raise ValueError("an upscaling must come with one image")
    image = RGBImage(command.width, command.height, blobs[0])
    for index, seed in enumerate(command.seeds):
        yield (
            (ImageOfRun(command.run_id, index),),
            UpscaleRequest(
                image=image,
                resolution=command.resolution,
                seed=seed,
                softness=command.softness,
                low_ram=command.low_ram,
            ),
        )


def to_frames(
    event: StageEvent | StepEvent | WarningEvent | PreviewEvent | PartialImageEvent | ImageEvent,
    owners: Owners,
) -> Iterator[tuple[PassFrame, tuple[bytes, ...]]]:
    """Yield the frames, each with its blobs, that tell the service of an event: one for each run that it is about.

    Args:
        event: what a pass reported.
        owners: whose the pass's images are.
    """
    match event:
        case StageEvent(stage=stage):
            for run_id in _runs(owners):
                yield StageChanged(run_id=run_id, stage=stage), ()
        case StepEvent(step=step, steps=steps, image=offset, images=count):
            for run_id, group in groupby(owners[offset : offset + count], key=lambda owner: owner.run_id):
                first, *more = group
                images = 1 + len(more)
                done = StepDone(run_id=run_id, image=first.index, step=step, steps=steps, images=images, batch=count)
                yield done, ()
        case WarningEvent(message=message, image=None):
            for run_id in _runs(owners):
                yield RunWarning(run_id=run_id, message=message), ()
        case WarningEvent(message=message, image=int() as image):
            yield RunWarning(run_id=owners[image].run_id, message=message), ()
        case PreviewEvent(index=index, step=step, width=width, height=height, jpeg=jpeg):
            owner = owners[index]
            made = PreviewMade(run_id=owner.run_id, index=owner.index, step=step, width=width, height=height)
            yield made, (jpeg,)
        case PartialImageEvent(index=index, number=number, step=step, pixels=pixels):
            owner, (height, width, _) = owners[index], pixels.shape
            partial = PartialImageMade(
                run_id=owner.run_id, index=owner.index, number=number, step=step, width=width, height=height
            )
            yield partial, (pixels.tobytes(),)
        case ImageEvent(index=index, seed=seed, pixels=pixels):
            owner, (height, width, _) = owners[index], pixels.shape
            whole = ImageDone(run_id=owner.run_id, index=owner.index, seed=seed, width=width, height=height)
            yield whole, (pixels.tobytes(),)


def _runs(owners: Owners) -> Iterable[int]:
    return dict.fromkeys(owner.run_id for owner in owners)
