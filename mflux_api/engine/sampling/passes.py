"""What one pass of the pipeline is asked to do, and the events that it reports: values only."""

from collections.abc import Callable
from typing import TypeAlias

import attrs
import numpy as np
import numpy.typing as npt

from mflux_api.engine.lora.applying import Lora
from mflux_api.engine.protocol import Stage
from mflux_api.engine.sampling.references import PIXELS_PER_TOKEN, check_sides
from mflux_api.images.inpainting import InpaintingInputs
from mflux_api.images.rgb import RGBImage
from mflux_api.jobs.schedule import steps_to_run

ShouldStop: TypeAlias = Callable[[], bool]
"""Asked throughout a pass whether it is to stop."""


OfImage: TypeAlias = Callable[[int], bool]
"""Asked about an image of a pass, by its position."""


def no_image(index: int) -> bool:
    """Return False for each image."""
    return False


def every_image(index: int) -> bool:
    """Return True for each image."""
    return True


class Stopped(Exception):
    """A pass ended because it was told to stop; it left nothing behind but cached prompt embeddings."""


def _positive(_: object, attribute: "attrs.Attribute[int]", value: int) -> None:
    if value < 1:
        raise ValueError(f"{attribute.name} must be at least 1, and is {value}.")


def _size(_: object, attribute: "attrs.Attribute[int]", value: int) -> None:
    if value < PIXELS_PER_TOKEN or value % PIXELS_PER_TOKEN:
        raise ValueError(f"{attribute.name} must be a multiple of {PIXELS_PER_TOKEN} pixels, and is {value}.")


@attrs.frozen
class Prompted:
    """Images of one prompt, one for each seed."""

    prompt: str = attrs.field(repr=False)
    seeds: tuple[int, ...]
    negative_prompt: str | None = attrs.field(default=None, repr=False)


@attrs.frozen
class PipelineRequest:
    """One pass: one image for each seed, all in one batch; under ``low_ram`` one image after the other.

    Raises:
        ValueError: it cannot be computed.
    """

    prompt: str = attrs.field(repr=False)
    seeds: tuple[int, ...] = attrs.field()
    """Each in 0 to 2**64 - 1."""
    width: int = attrs.field(validator=_size)
    """Pixels, a multiple of 16."""
    height: int = attrs.field(validator=_size)
    steps: int = attrs.field(validator=_positive)
    guidance: float = 1.0
    """Above 1.0 a second branch with the negative prompt runs, also for a distilled model."""
    negative_prompt: str | None = attrs.field(default=None, repr=False)
    low_ram: bool = False
    """Keep one component in memory at a time, and decode with the least memory."""
    alternating_offload: bool = False
    """Never keep text encoder and transformer in memory together; what the next image may need stays."""
    references: tuple[RGBImage, ...] = attrs.field(default=())
    """Reference images that the prompt may speak of; each keeps its own size."""
    start: RGBImage | None = None
    """What ``strength`` below 1 starts from, in the size of the generated image."""
    strength: float = attrs.field(default=1.0)
    """How much of ``start`` to transform: 1 begins with pure noise, 0 returns its round trip through the VAE."""
    inpainting: InpaintingInputs | None = attrs.field(default=None)
    """Which part of ``start`` to inpaint, whatever the strength."""
    loras: tuple[Lora, ...] = ()
    """Adapters for this pass alone, working together."""
    previews: bool = False
    """Report a small image of every image after every step, whether or not someone asks meanwhile."""
    partial_images: int = 0
    """Decode every image so often before it is finished; never under ``low_ram``, which has no place for the VAE."""
    companions: tuple[Prompted, ...] = attrs.field(default=())
    """Images of other prompts in the same batch, behind its own; everything else of the request is theirs, too."""

    @property
    def prompted(self) -> tuple[Prompted, ...]:
        """All images of the pass in their order, by prompt."""
        return (Prompted(self.prompt, self.seeds, self.negative_prompt), *self.companions)

    @property
    def all_seeds(self) -> tuple[int, ...]:
        """The seed of each image of the pass."""
        return tuple(seed for each in self.prompted for seed in each.seeds)

    @property
    def steps_run(self) -> int:
        """How many of ``steps`` are computed: the last ones of the schedule."""
        return steps_to_run(self.steps, self.strength)

    @strength.validator
    def _check_strength(self, _: "attrs.Attribute[float]", value: float) -> None:
        if not 0 <= value <= 1:
            raise ValueError(f"strength must be from 0 to 1, and is {value}.")
        if value < 1 and (self.start is None or (self.start.width, self.start.height) != (self.width, self.height)):
            raise ValueError("strength below 1 needs a start image in the size of the generated one.")

    @inpainting.validator
    def _check_inpainting(self, _: "attrs.Attribute[InpaintingInputs]", value: InpaintingInputs | None) -> None:
        if value is None:
            return
        if self.start is None or self.start.size != (self.width, self.height):
            raise ValueError("inpainting needs a start image in the size of the generated one.")
        if len(value.mask) != self.width * self.height:
            raise ValueError("the mask of an inpainting must have one byte for each pixel of the generated image.")

    @references.validator
    def _check_references(self, _: "attrs.Attribute[tuple[RGBImage, ...]]", value: tuple[RGBImage, ...]) -> None:
        for image in value:
            check_sides(image)

    @companions.validator
    def _check_companions(self, _: "attrs.Attribute[tuple[Prompted, ...]]", value: tuple[Prompted, ...]) -> None:
        if value and (self.low_ram or self.references or self.start is not None):
            raise ValueError("images of several prompts share a batch only where they start from noise alone.")

    @seeds.validator
    def _check_seeds(self, _: "attrs.Attribute[tuple[int, ...]]", value: tuple[int, ...]) -> None:
        if not value or any(not 0 <= seed < 1 << 64 for seed in value):
            raise ValueError("seeds must hold at least one number, each from 0 to 2**64 - 1.")


@attrs.frozen
class StageEvent:
    """A stage has begun."""

    stage: Stage


@attrs.frozen
class StepEvent:
    """A denoising step has been computed, not only queued."""

    step: int
    """From 1 to ``steps``."""
    steps: int
    """How many steps this pass runs."""
    image: int = 0
    """The position of the first seed that the step was for."""
    images: int = 1
    """How many images the step was for."""


@attrs.frozen
class WarningEvent:
    """The pass does not do all that was asked for; a run tells its client so once, however many passes say it."""

    message: str
    """What is left out, and why; holds no path."""
    image: int | None = None
    """The position of the first image of the prompt that it is about; ``None`` where it is about all."""


@attrs.frozen
class PreviewEvent:
    """What an image would be if all the noise that the last step predicts were removed at once."""

    index: int
    """The position of its seed in the request."""
    step: int
    width: int
    height: int
    jpeg: bytes = attrs.field(repr=False)
    """A JPEG file, an eighth of the image's width and height."""


@attrs.frozen(eq=False)
class PartialImageEvent:
    """What an image would be if all the noise that is left were removed at once, decoded as a finished one is."""

    index: int
    """The position of its seed in the request."""
    number: int
    """Which of the image's partial ones, from 0."""
    step: int
    pixels: npt.NDArray[np.uint8] = attrs.field(repr=False)
    """As of :class:`ImageEvent`."""


@attrs.frozen(eq=False)
class ImageEvent:
    """An image is finished."""

    index: int
    """The position of ``seed`` in the request."""
    seed: int
    pixels: npt.NDArray[np.uint8] = attrs.field(repr=False)
    """Contiguous RGB8, (height, width, 3): the request's size, or that of its inpainting's overlay."""


@attrs.frozen
class DoneEvent:
    """The pass is finished; seconds of wall time per stage, without the time the consumer took."""

    encode_s: float
    denoise_s: float
    decode_s: float


Event: TypeAlias = StageEvent | StepEvent | WarningEvent | PreviewEvent | PartialImageEvent | ImageEvent | DoneEvent
