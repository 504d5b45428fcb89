"""A run as the generator is asked for it becomes a command to the engine."""

from collections.abc import Sequence
from pathlib import Path

from mflux_api.actors import messages as m
from mflux_api.engine.protocol import Run, SharedRun, Upscale
from mflux_api.engine.run_images import describe_inpainting, to_blobs
from mflux_api.ipc.paths import path_text

Said = tuple[Run | Upscale, tuple[bytes, ...]]
"""A command, and the blobs that go with it."""


def in_one_command(said: Sequence[Said]) -> tuple[Run | SharedRun | Upscale, tuple[bytes, ...]]:
    """Return the command for runs that share their passes, or the one that there is.

    Raises:
        ValueError: one of several has images of its own, or upscales one.
    """
    if len(said) == 1:
        return said[0]
    runs = [run for run, blobs in said if isinstance(run, Run) and not blobs]
    if len(runs) < len(said):
        raise ValueError("a run with images shares its passes with no other")
    return SharedRun(runs=tuple(runs)), ()


def run_command(work: m.Run, *, lora_paths: Sequence[Path] = (), previews: bool) -> Said:
    """Return the command for one run.

    Args:
        work: what the generator was asked for.
        lora_paths: the files of its LoRAs on the machine that the engine runs on.
        previews: whether to make previews.
    """
    request, inputs, lease = work.request, work.inputs, work.lease
    if request.upscaling is not None and inputs.source is not None:
        upscale = Upscale(
            run_id=work.run_id,
            model=lease.model,
            seeds=request.seeds,
            width=inputs.source.width,
            height=inputs.source.height,
            resolution=request.upscaling.resolution,
            softness=request.upscaling.softness,
            low_ram=request.low_ram,
        )
        return upscale, (inputs.source.rgb,)
    run = Run(
        run_id=work.run_id,
        model=lease.model,
        prompt=request.prompt,
        negative_prompt=request.negative_prompt,
        seeds=request.seeds,
        width=request.width,
        height=request.height,
        steps=request.steps,
        guidance=request.guidance,
        low_ram=request.low_ram,
        references=tuple(image.size for image in inputs.references),
        start=inputs.start is not None,
        image_strength=request.strength,
        lora_paths=tuple(path_text(path) for path in lora_paths),
        lora_scales=request.lora_scales,
        previews=previews,
        partial_images=request.partial_images,
        alternating_offload=lease.alternating_offload,
        inpainting=describe_inpainting(inputs),
    )
    return run, to_blobs(inputs)
