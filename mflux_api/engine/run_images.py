"""The images of a run as the blobs of its frame, and back."""

from collections.abc import Sequence

from mflux_api.engine.protocol import Inpainting, Run
from mflux_api.images.inpainting import InpaintingInputs
from mflux_api.images.rgb import RGBImage
from mflux_api.images.run_inputs import RunInputs


class WrongImages(ValueError):
    """The blobs of a run are not the images that its frame names; the sentence may be shown."""


def to_blobs(inputs: RunInputs) -> tuple[bytes, ...]:
    """Return the images of a run in the order in which its frame carries them."""
    images = inputs.references if inputs.start is None else (*inputs.references, inputs.start)
    blobs = tuple(image.rgb for image in images)
    if inputs.inpainting is None:
        return blobs
    return (*blobs, inputs.inpainting.mask, inputs.inpainting.overlay.rgb, inputs.inpainting.blurred_mask)


def describe_inpainting(inputs: RunInputs) -> Inpainting | None:
    """Return what the frame says of a run's inpainting."""
    inpainting = inputs.inpainting
    if inpainting is None:
        return None
    return Inpainting(fill=inpainting.fill, result=inpainting.overlay.size, box=inpainting.box)


def from_blobs(command: Run, blobs: Sequence[bytes]) -> RunInputs:
    """Return the images of a run out of its frame's blobs.

    Raises:
        WrongImages: they are not what the frame says.
    """
    inpainting, size = command.inpainting, (command.width, command.height)
    if inpainting is not None and not command.start:
        raise WrongImages("The run has a mask and no image to start from")
    images = [*command.references, size] if command.start else [*command.references]
    # Width, height and bytes a pixel of each blob.
    layouts = [(*each, 3) for each in images]
    if inpainting is not None:
        layouts += [(*size, 1), (*inpainting.result, 3), (*inpainting.result, 1)]
    if len(blobs) != len(layouts):
        raise WrongImages(f"The run came with {len(blobs)} images instead of {len(layouts)}")
    for number, (blob, (width, height, channels)) in enumerate(zip(blobs, layouts, strict=True), 1):
        if len(blob) != width * height * channels:
            expected = f"{width * height * channels} for {width} × {height} pixels"
            raise WrongImages(f"Image {number} of the run has {len(blob)} bytes instead of {expected}")
    rgb = [RGBImage(*each, blob) for each, blob in zip(images, blobs[: len(images)], strict=True)]
    return RunInputs(
        references=tuple(rgb[: len(command.references)]),
        start=rgb[-1] if command.start else None,
        inpainting=None if inpainting is None else _inputs(inpainting, blobs[-3:]),
    )


def _inputs(inpainting: Inpainting, blobs: Sequence[bytes]) -> InpaintingInputs:
    mask, overlay, blurred_mask = blobs
    return InpaintingInputs(
        mask=mask,
        overlay=RGBImage(*inpainting.result, overlay),
        blurred_mask=blurred_mask,
        box=inpainting.box,
        fill=inpainting.fill,
    )
