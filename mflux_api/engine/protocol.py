"""What the service and an engine child say to each other, in the frames of :mod:`mflux_api.ipc.frames`."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

import attrs
from msgspec import Meta

from mflux_api.images.inpainting import Fill, check_box
from mflux_api.ipc.printable import MAX_ENTRIES, MAX_NAME, MAX_SENTENCE, printable, printable_values, sentence
from mflux_api.jobs.schedule import MAX_PARTIAL_IMAGES
from mflux_api.jobs.warnings import MAX_WARNINGS

# What a receiver may rely on is checked here, where a frame is decoded, and nowhere else.
Natural = Annotated[int, Meta(ge=0)]
Positive = Annotated[int, Meta(ge=1)]
Bits = Literal[3, 4, 6, 8]
Stage = Literal["encoding", "compiling", "denoising", "decoding"]
# An engine's texts may be a file's or a library's: they are cut where the frame is made, and no longer ones are taken.
Name = Annotated[str, Meta(max_length=MAX_NAME)]
Sentence = Annotated[str, Meta(max_length=MAX_SENTENCE)]
Details = Annotated[Mapping[Name, Name | None], Meta(max_length=MAX_ENTRIES)]


FAST_PATH = "fast-path"
"""An argument of a child that may compute in the project's own ways."""
MAX_SHARED_IMAGES = 4
"""Images of runs that share their passes; one run alone may have as many."""
KERNELS = "kernels="
"""In front of an argument: the folder for compiled kernels."""


# --- commands: service → engine ------------------------------------------------------------------------------------


@attrs.frozen(kw_only=True)
class LoadModel:
    """Make a checkpoint resident, beside those that are."""

    model: str
    path: str
    """The checkpoint's folder."""
    bits: Bits | None = None
    """Quantize the checkpoint to that many bits."""
    entry: str = ""
    """With ``bits``: the folder where the quantized weights are kept."""
    component_offload: bool = False
    """Read each component's weights only when a run needs them."""
    unpack: bool = False
    """Keep the transformer's quantized weights unpacked, where the device would unpack them at each step."""


@attrs.frozen(kw_only=True)
class CancelLoad:
    """Stop the load under way between two tensors; :class:`LoadStopped` answers, or its end came first."""


@attrs.frozen(kw_only=True)
class UnloadModel:
    """Drop a resident model and its memory."""

    model: str


@attrs.frozen(kw_only=True)
class Inpainting:
    """Inpaint a part of a run's start image; its images have the size of ``result``.

    Raises:
        ValueError: the box is not within the result.
    """

    fill: Fill = "original"
    """What the inpainted part starts from, before noise is added."""
    result: tuple[Positive, Positive]
    """Width and height of each finished image."""
    box: tuple[Natural, Natural, Positive, Positive]
    """Left, top, width and height in the result of what the run generates; the whole result without a crop."""

    def __attrs_post_init__(self) -> None:
        check_box(self.box, self.result)


@attrs.frozen(kw_only=True)
class Run:
    """Generate images with a resident model.

    Its blobs are images, RGB8 row by row: the references in their order, then the start image if there is one. With
    inpainting three more follow: the mask, one byte a pixel in the run's size; the overlay, RGB8 in the result's size;
    and the blurred mask, one byte a pixel in the result's size (:mod:`mflux_api.engine.run_images`).
    """

    run_id: int
    """Every frame about this run carries it; frames of another run are dropped."""
    model: str
    prompt: str
    negative_prompt: str | None
    seeds: tuple[int, ...]
    width: int
    height: int
    steps: int
    guidance: float
    low_ram: bool = False
    alternating_offload: bool = False
    """Text encoder and transformer take turns in memory."""
    references: tuple[tuple[Positive, Positive], ...] = ()
    """Width and height of each reference image, multiples of 16; at most 4."""
    start: bool = False
    """Whether an image of ``width`` by ``height`` to start from follows the references."""
    image_strength: float = 1.0
    """How much of the start image to transform, 0 to 1."""
    lora_paths: tuple[str, ...] = ()
    """Absolute paths of adapters, for this run alone."""
    lora_scales: tuple[float, ...] = ()
    """One for each file."""
    previews: bool = False
    """Whether a :class:`PreviewMade` of every image follows each step."""
    partial_images: Annotated[int, Meta(ge=0, le=MAX_PARTIAL_IMAGES)] = 0
    """How many :class:`PartialImageMade` of every image are wanted on the way."""
    inpainting: Inpainting | None = None
    """Needs a start image."""


@attrs.frozen(kw_only=True)
class SharedRun:
    """Several runs whose images share passes; each has events of its own, as it would have alone.

    They start from noise alone and differ in prompts and seeds only. Where a pass of theirs fails, each is run alone.
    """

    runs: Annotated[tuple[Run, ...], Meta(min_length=2, max_length=MAX_SHARED_IMAGES)]


@attrs.frozen(kw_only=True)
class Upscale:
    """Upscale an image with a resident upscaler; its events are those of a :class:`Run` of one step.

    Its one blob is the image, RGB8 row by row, in any size.
    """

    run_id: int
    model: str
    seeds: tuple[Natural, ...]
    """One upscaled image for each."""
    width: Positive
    """Of the given image."""
    height: Positive
    resolution: Positive
    """The shorter side of the upscaled image in pixels."""
    softness: float = 0.0
    """How much detail to take away first, 0 to 1."""
    low_ram: bool = False


@attrs.frozen(kw_only=True)
class ShowPreviews:
    """Make previews in the run with that id, from its next step on."""

    run_id: int


@attrs.frozen(kw_only=True)
class Cancel:
    """Stop the run with that id at the next step."""

    run_id: int


@attrs.frozen(kw_only=True)
class Shutdown:
    """Exit at once."""


Command = LoadModel | CancelLoad | UnloadModel | Run | SharedRun | Upscale | ShowPreviews | Cancel | Shutdown

# --- events: engine → service --------------------------------------------------------------------------------------


@attrs.frozen(kw_only=True)
class Ready:
    """The handshake: the child has imported everything and waits for work."""

    pid: int
    device: Name = attrs.field(converter=printable)
    """``cpu``, ``metal`` or ``cuda``."""
    device_name: Name = attrs.field(converter=printable)
    precision: Name = attrs.field(converter=printable)
    blas: Name = attrs.field(converter=printable)
    """The matrix library on CPU; empty on a GPU."""
    blas_fast: bool
    versions: Annotated[Mapping[Name, Name], Meta(max_length=MAX_ENTRIES)] = attrs.field(converter=printable_values)
    memory_bytes: Natural = 0
    """What the device has for models and images; 0 when it does not say."""
    free_bytes: int | None = None
    """What it has left of that before the first beat; ``None`` when it does not say."""
    advice: Sentence = attrs.field(default="", converter=sentence)
    """What is wrong with what is installed where it runs, and what to do; empty as a rule."""


@attrs.frozen(kw_only=True)
class NotReady:
    """Instead of the handshake: the child cannot serve here, and ends."""

    message: Sentence = attrs.field(converter=sentence)
    """Why, and what to do; holds no path."""


@attrs.frozen(kw_only=True)
class Heartbeat:
    """The child lives. Sent once a second."""

    active_bytes: int
    peak_bytes: int
    free_bytes: int | None = None
    """What the device has left; ``None`` when it does not say."""


@attrs.frozen(kw_only=True)
class LoadProgress:
    """How far the reading of a model's files is: while it is loaded, or while a run reads what it does not keep."""

    component: Name = attrs.field(converter=printable)
    """What is being read now."""
    bytes_done: Natural
    """Of all that is to be read now, not of the component alone."""
    bytes_total: Natural
    run_id: int | None = None
    """The run that reads; ``None`` for a load."""


@attrs.frozen(kw_only=True)
class Loaded:
    """The model is resident."""

    model: str
    seconds: float
    active_bytes: int
    weights_bytes: Natural = 0
    """What its weights take now; 0 where components are read only when a run needs them."""
    warning: Sentence = attrs.field(default="", converter=sentence)
    """What an operator should know of it; holds no path."""


@attrs.frozen(kw_only=True)
class LoadFailed:
    """The model cannot be loaded and is not resident; the others are as they were."""

    model: str
    code: Name = attrs.field(converter=printable)
    message: Sentence = attrs.field(converter=sentence)


@attrs.frozen(kw_only=True)
class LoadStopped:
    """The load was cancelled: the model is not resident, and the engine is free."""

    model: str


@attrs.frozen(kw_only=True)
class Unloaded:
    """What was to be dropped is not resident any more."""


@attrs.frozen(kw_only=True)
class StageChanged:
    """The run entered another stage."""

    run_id: int
    stage: Stage


@attrs.frozen(kw_only=True)
class StepDone:
    """A denoising step is computed."""

    run_id: int
    image: Natural
    """The first image that the step was for."""
    step: Natural
    steps: Positive
    images: Positive = 1
    """How many images the step was for, each of them now as far."""
    batch: Positive = 1
    """How many it computed, those of other runs with them."""


@attrs.frozen(kw_only=True)
class StillRunning:
    """The run goes on within a stage or a step that takes long: it is not hung."""

    run_id: int


@attrs.frozen(kw_only=True)
class ReadingLora:
    """The run reads one of its LoRAs; if the engine dies now, that is the file's doing."""

    run_id: int
    index: Natural | None
    """Its place in ``lora_paths``; ``None`` when all are read."""


@attrs.frozen(kw_only=True)
class RunWarning:
    """The run does not do all that was asked for; at most :data:`MAX_WARNINGS` a run, each once."""

    run_id: int
    message: Sentence = attrs.field(converter=sentence)
    """What is left out, and why; it goes to the client, and holds no path."""


@attrs.frozen(kw_only=True)
class PreviewMade:
    """What an image is coming to; its one blob is a small JPEG file."""

    run_id: int
    index: Natural
    step: Natural
    width: Positive
    height: Positive


@attrs.frozen(kw_only=True)
class PartialImageMade:
    """An image as it would be without the noise that is left, from the VAE; its one blob is RGB8, row by row.

    It has the size of the finished image.
    """

    run_id: int
    index: Natural
    number: Natural
    """Which of the image's partial ones, from 0."""
    step: Positive
    """After how many steps."""
    width: Positive
    height: Positive


@attrs.frozen(kw_only=True)
class ImageDone:
    """An image is generated; its one blob is RGB8, row by row.

    It has the run's size, or that of the result of its inpainting.
    """

    run_id: int
    index: Natural
    seed: Natural
    width: Positive
    height: Positive


@attrs.frozen(kw_only=True)
class RunDone:
    """All images of the run were sent."""

    run_id: int
    encode_seconds: float
    denoise_seconds: float
    decode_seconds: float


@attrs.frozen(kw_only=True)
class RunStopped:
    """The run was cancelled and the engine is free."""

    run_id: int


@attrs.frozen(kw_only=True)
class RunFailed:
    """The run ended with an error and the engine is free."""

    run_id: int
    code: Name = attrs.field(converter=printable)
    message: Sentence = attrs.field(converter=sentence)
    details: Details = attrs.field(factory=dict, converter=printable_values)


Event = (
    Ready
    | NotReady
    | Heartbeat
    | LoadProgress
    | Loaded
    | LoadFailed
    | LoadStopped
    | Unloaded
    | StageChanged
    | StepDone
    | StillRunning
    | ReadingLora
    | RunWarning
    | PreviewMade
    | PartialImageMade
    | ImageDone
    | RunDone
    | RunStopped
    | RunFailed
)


def most_events(images: int, steps: int) -> int:
    """Return how many frames a run of so many images and steps can send: stages, steps, previews, images, warnings."""
    return images * (2 * steps + 13 + MAX_PARTIAL_IMAGES) + 8 + MAX_WARNINGS


LOSSY_EVENTS = 32
"""Room for news of a run that may be lost, beside what may not."""
MOST_BEFORE_PARTIAL_IMAGE = 4
"""News of a run that may lie before a partial image, which is lost where more waits."""


Frame = Command | Event

_TYPES: tuple[type[Any], ...] = (
    LoadModel,
    CancelLoad,
    UnloadModel,
    Run,
    SharedRun,
    Upscale,
    ShowPreviews,
    Cancel,
    Shutdown,
    Ready,
    NotReady,
    Heartbeat,
    LoadProgress,
    Loaded,
    LoadFailed,
    LoadStopped,
    Unloaded,
    StageChanged,
    StepDone,
    StillRunning,
    ReadingLora,
    RunWarning,
    PreviewMade,
    PartialImageMade,
    ImageDone,
    RunDone,
    RunStopped,
    RunFailed,
)
ENGINE_TYPES: Mapping[str, type[Any]] = {kind.__name__: kind for kind in _TYPES}
"""Tag → class of every frame between the service and an engine."""
