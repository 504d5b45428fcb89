"""What the service and an engine child say to each other, and how it looks on the pipe.

A frame is a 4-byte big-endian length, a MessagePack array ``[tag, body, blob lengths]`` of that length, and then the
blobs, raw. Both sides cap every size, so that a broken peer cannot make the other allocate at will.
"""

import struct
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

import attrs
import msgspec
from msgspec import Meta

MAX_HEADER = 1 << 20
MAX_BLOB = 1 << 26
MAX_BLOBS = 8

_LENGTH = struct.Struct(">I")

# What a receiver may rely on is checked here, where a frame is decoded, and nowhere else.
Natural = Annotated[int, Meta(ge=0)]
Positive = Annotated[int, Meta(ge=1)]
Bits = Literal[3, 4, 6, 8]
Stage = Literal["encoding", "denoising", "decoding"]


class ProtocolError(Exception):
    """The peer sent something that is not a frame of this protocol."""


# --- commands: service → engine ------------------------------------------------------------------------------------


@attrs.frozen(kw_only=True)
class Load:
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


@attrs.frozen(kw_only=True)
class Unload:
    """Drop a resident model and its memory."""

    model: str | None = None
    """``None``: all of them."""


@attrs.frozen(kw_only=True)
class Run:
    """Generate images with a resident model.

    Its blobs are images, RGB8 row by row: the references in their order, then the start image if there is one.
    """

    attempt: int
    """Every frame about this run carries it; frames of another attempt are dropped."""
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
    """Whether the last blob is an image of ``width`` by ``height`` to start from."""
    image_strength: float = 1.0
    """How much of the start image to transform, 0 to 1."""
    lora_files: tuple[str, ...] = ()
    """Absolute paths of adapters, for this run alone."""
    lora_scales: tuple[float, ...] = ()
    """One for each file."""
    previews: bool = False
    """Whether a :class:`PreviewMade` of every image follows each step."""


@attrs.frozen(kw_only=True)
class Upscale:
    """Upscale an image with a resident upscaler; its events are those of a :class:`Run` of one step.

    Its one blob is the image, RGB8 row by row, in any size.
    """

    attempt: int
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
class Cancel:
    """Stop the run with that attempt number at the next step."""

    attempt: int


@attrs.frozen(kw_only=True)
class Shutdown:
    """Exit at once."""


Command = Load | Unload | Run | Upscale | Cancel | Shutdown

# --- events: engine → service --------------------------------------------------------------------------------------


@attrs.frozen(kw_only=True)
class Ready:
    """The handshake: the child has imported everything and waits for work."""

    pid: int
    device: str
    """``cpu``, ``metal`` or ``cuda``."""
    device_name: str
    precision: str
    blas: str
    """The matrix library on CPU; empty on a GPU."""
    blas_fast: bool
    versions: Mapping[str, str]
    memory_bytes: Natural = 0
    """What the device has for models and images; 0 when it does not say."""


@attrs.frozen(kw_only=True)
class Heartbeat:
    """The child lives. Sent once a second."""

    active_bytes: int
    peak_bytes: int
    free_bytes: int | None = None
    """What the device has left; ``None`` when it does not say."""


@attrs.frozen(kw_only=True)
class Loaded:
    """The model is resident."""

    model: str
    seconds: float
    active_bytes: int
    warning: str = ""
    """What an operator should know of it; holds no path."""


@attrs.frozen(kw_only=True)
class LoadFailed:
    """The model cannot be loaded and is not resident; the others are as they were."""

    model: str
    code: str
    message: str


@attrs.frozen(kw_only=True)
class Unloaded:
    """What was to be dropped is not resident any more."""


@attrs.frozen(kw_only=True)
class StageChanged:
    """The run entered another stage."""

    attempt: int
    stage: Stage


@attrs.frozen(kw_only=True)
class StepDone:
    """A denoising step is computed."""

    attempt: int
    image: Natural
    """The first image that the step was for."""
    step: Natural
    steps: Positive
    images: Positive = 1
    """How many images the step was for, each of them now as far."""


@attrs.frozen(kw_only=True)
class StillRunning:
    """The run goes on within a stage or a step that takes long: it is not hung."""

    attempt: int


@attrs.frozen(kw_only=True)
class PreviewMade:
    """What an image is coming to; its one blob is a small JPEG file."""

    attempt: int
    index: Natural
    step: Natural
    width: Positive
    height: Positive


@attrs.frozen(kw_only=True)
class ImageDone:
    """An image is generated; its one blob is RGB8, row by row."""

    attempt: int
    index: Natural
    seed: Natural
    width: Positive
    height: Positive


@attrs.frozen(kw_only=True)
class RunDone:
    """All images of the run were sent."""

    attempt: int
    encode_seconds: float
    denoise_seconds: float
    decode_seconds: float


@attrs.frozen(kw_only=True)
class RunStopped:
    """The run was cancelled and the engine is free."""

    attempt: int


@attrs.frozen(kw_only=True)
class RunFailed:
    """The run ended with an error and the engine is free."""

    attempt: int
    code: str
    message: str
    details: Mapping[str, str | None] = attrs.field(factory=dict)


Event = (
    Ready
    | Heartbeat
    | Loaded
    | LoadFailed
    | Unloaded
    | StageChanged
    | StepDone
    | StillRunning
    | PreviewMade
    | ImageDone
    | RunDone
    | RunStopped
    | RunFailed
)

Frame = Command | Event

_TYPES: tuple[type[Any], ...] = (
    Load,
    Unload,
    Run,
    Upscale,
    Cancel,
    Shutdown,
    Ready,
    Heartbeat,
    Loaded,
    LoadFailed,
    Unloaded,
    StageChanged,
    StepDone,
    StillRunning,
    PreviewMade,
    ImageDone,
    RunDone,
    RunStopped,
    RunFailed,
)
ENGINE_TYPES: Mapping[str, type[Any]] = {kind.__name__: kind for kind in _TYPES}
"""Tag → class of every frame between the service and an engine."""


@attrs.frozen
class Header:
    """A decoded header: the frame and the lengths of the blobs that follow it."""

    frame: Any
    """An instance of one of the types that were asked for."""
    blob_lengths: tuple[int, ...]


def encode(frame: Any, blobs: Sequence[bytes] = ()) -> bytes:
    """Return a frame as bytes.

    Raises:
        ProtocolError: it is larger than the receiver would take, or holds what MessagePack cannot say.
    """
    lengths = [len(blob) for blob in blobs]
    try:
        header = msgspec.msgpack.encode([type(frame).__name__, attrs.asdict(frame, recurse=False), lengths])
    except (UnicodeEncodeError, OverflowError) as error:
        # A lone surrogate in a prompt, a number beyond 64 bits.
        raise ProtocolError(f"a {type(frame).__name__} frame cannot be encoded ({type(error).__name__})") from None
    if len(header) > MAX_HEADER or len(blobs) > MAX_BLOBS or any(length > MAX_BLOB for length in lengths):
        raise ProtocolError(f"a {type(frame).__name__} frame is too large")
    return b"".join((_LENGTH.pack(len(header)), header, *blobs))


def header_length(prefix: bytes) -> int:
    """Return the header's length from the first 4 bytes of a frame.

    Raises:
        ProtocolError: no frame is that long.
    """
    (length,) = _LENGTH.unpack(prefix)
    if not 0 < length <= MAX_HEADER:
        raise ProtocolError(f"a frame header of {length} bytes")
    return int(length)


def decode_header(data: bytes, types: Mapping[str, type[Any]] = ENGINE_TYPES) -> Header:
    """Decode a header.

    Args:
        data: the bytes between the length and the blobs.
        types: tag → class of every frame that may come; by default those of an engine.

    Raises:
        ProtocolError: it is not one of ours.
    """
    try:
        tag, body, lengths = msgspec.msgpack.decode(data, type=tuple[str, dict[str, Any], tuple[int, ...]])
        if tag not in types:
            raise ProtocolError("a frame with an unknown tag")
        frame = msgspec.convert(body, types[tag])
    except (msgspec.DecodeError, ValueError, OverflowError, RecursionError):
        # Not all that msgspec raises is its own: text that is not UTF-8 is a UnicodeDecodeError.
        raise ProtocolError("a frame that cannot be decoded") from None
    if len(lengths) > MAX_BLOBS or not all(0 <= length <= MAX_BLOB for length in lengths):
        raise ProtocolError("a frame with blobs out of bounds")
    return Header(frame, lengths)


PREFIX_LENGTH = _LENGTH.size
