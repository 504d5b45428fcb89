"""What the service and a decoder's child say to each other, in the frames of :mod:`mflux_api.ipc.frames`.

An order is a class derived from :class:`Order`, named in ``ORDER_TYPES``; the child answers it with one of
``RESULT_TYPES``. Texts and files travel as the order's blobs.
"""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

import attrs
from msgspec import Meta

from mflux_api.catalog.lora_layers import LoraContents
from mflux_api.errors import InternalError, InvalidParameter, ServiceError
from mflux_api.images.encode import ImageFormat
from mflux_api.images.generation_record import ImageMetadata
from mflux_api.ipc.frames import MAX_BLOB

TOO_MUCH_MEMORY = "takes too much memory to decode"

Natural = Annotated[int, Meta(ge=0)]
Size = tuple[Natural, Natural]
"""Width and height in pixels."""
Box = tuple[Natural, Natural, Natural, Natural]
"""Left, top, width and height in pixels."""
Margins = tuple[Natural, Natural, Natural, Natural]
"""Pixels added left, above, right and below."""
Blur = tuple[float, float]
"""Radius across and down."""
Filter = Literal["lanczos", "nearest"]
"""How an image is resized without a model."""


@attrs.frozen(kw_only=True)
class Order:
    """One piece of work for the child."""

    def refuse(self, index: int, problem: str) -> ServiceError:
        """Return the error for a part of the order that the child was killed over, or died of.

        Args:
            index: the part it was at work on, as :class:`Working` said.
            problem: what went wrong, as the end of a sentence that begins with what it happened to.
        """
        raise NotImplementedError


@attrs.frozen(kw_only=True)
class _ImagesOrder(Order):
    field: str = "init_images"
    """What the client calls the images, for errors."""
    first: Natural = 0
    """Place of the first image in the client's list."""

    def refuse(self, index: int, problem: str) -> ServiceError:
        place = self.first + index
        return InvalidParameter.for_field(
            self.field,
            f"is invalid: image {place + 1} {problem}; save it again as a plain PNG or JPEG",
            limit="a plain PNG or JPEG",
            index=place,
        )


@attrs.frozen(kw_only=True)
class CheckImages(_ImagesOrder):
    """Decode images and keep none. Blobs: each image as base64 or a data URL."""

    reference: bool = True
    """Whether they are for editing, which needs a least size."""


@attrs.frozen(kw_only=True)
class PrepareReferences(_ImagesOrder):
    """Decode images for an edit, each in the size of a reference. Blobs: each as base64 or a data URL."""

    start: Size | None
    """Size of the start image, which is made of the first one; ``None``: there is none."""


@attrs.frozen(kw_only=True)
class CheckMask(Order):
    """Say what a run will inpaint, and keep nothing. Blob: the mask as base64 or a data URL, if there is one."""

    transparent: bool = False
    """Whether of a mask with transparency that is inpainted which is transparent."""
    invert: bool = False
    """Whether its black is inpainted."""
    blur: Blur
    """Radius of its edge, in pixels of the result."""
    extend: Margins
    source: Size
    """The size of the image, not extended."""
    result: Size
    """The size of the finished image."""

    def refuse(self, index: int, problem: str) -> ServiceError:
        """Return the error for a mask that cannot be decoded."""
        return undecodable_mask(problem)


def undecodable_mask(problem: str) -> InvalidParameter:
    """Return the error for a mask that cannot be decoded.

    Args:
        problem: what is wrong with it, without its subject.
    """
    return mask_error(f"it {problem}; save it again as a plain PNG")


def mask_error(reason: str) -> InvalidParameter:
    """Return the error for a mask that cannot be used.

    Args:
        reason: what is wrong with it, as a clause.
    """
    return InvalidParameter.for_field("mask", f"is invalid: {reason}", limit="a plain PNG or JPEG")


def nothing_masked(reason: str, *, masked: bool) -> InvalidParameter:
    """Return the error for a run that would inpaint nothing.

    Args:
        reason: why, as a clause about the mask or the margins.
        masked: whether there is a mask.
    """
    return mask_error(reason) if masked else InvalidParameter.for_field("extend", f"is invalid: {reason}")


@attrs.frozen(kw_only=True)
class PrepareInpainting(_ImagesOrder):
    """Decode images for an edit that protects a part of the first one.

    Blobs: each image as base64 or a data URL, the mask last if there is one. The answer's blobs are the references, the
    start, the mask, the overlay and the blurred mask.
    """

    masked: bool
    """Whether the last blob is a mask."""
    transparent: bool
    """Whether of a mask with transparency that is inpainted which is transparent."""
    invert: bool
    """Whether its black is inpainted."""
    blur: Blur
    """Radius of its edge, in pixels of the result."""
    padding: Natural | None
    """Pixels around the masked part that are generated with it; ``None``: the whole image is."""
    fill: bool
    """Whether the masked part starts from the colours around it."""
    refer: bool
    """Whether the first image is a reference, too."""
    extend: Margins
    run: Size
    """The size to generate at."""
    result: Size
    """The size of the finished image."""
    images: Natural
    """How many init images there are."""

    def refuse(self, index: int, problem: str) -> ServiceError:
        """Return the error for an image, or the mask, that cannot be decoded."""
        if index == self.images:
            return undecodable_mask(problem)
        return super().refuse(index, problem)


@attrs.frozen(kw_only=True)
class PrepareSource(_ImagesOrder):
    """Decode the image that is to be upscaled. Blob: it as base64 or a data URL."""


@attrs.frozen(kw_only=True)
class ComposeExtras(_ImagesOrder):
    """Make the image that A1111's extras answer with. Blobs: the source as base64 or a data URL, then PNG files."""

    layers: tuple[Filter | Literal["png"], ...]
    """One or two: the source resized, or the next PNG file."""
    png_blobs: tuple[Natural, ...] = ()
    """How many blobs each PNG file is."""
    scaled: Size
    """The size that the source is resized to."""
    wanted: Size | None
    """What is cut out of the middle of a layer; ``None``: nothing is cut."""
    visibility: float = 1.0
    """How much of a second layer is blended into the first."""
    done: str
    """What is done, for the text in the file."""
    metadata: bool = True
    """Whether the file says so, and keeps what its source said."""


@attrs.frozen(kw_only=True)
class ConvertImage(Order):
    """Turn one of our PNG files into another format. Blobs: its pieces."""

    target: ImageFormat
    quality: Annotated[int, Meta(ge=0, le=100)] | None = None
    side: Annotated[int, Meta(ge=1)] | None = None
    """The longer side of a smaller image."""

    def refuse(self, index: int, problem: str) -> ServiceError:
        """Return the error for a file that cannot be read."""
        return InternalError(
            "The image's file cannot be read; check that the server may read generation.output_dir",
            {"reason": "the file is damaged"},
        )


@attrs.frozen(kw_only=True)
class ReadMetadata(Order):
    """Say what an image file tells of itself. Blob: it as base64 or a data URL; no pixel is decoded."""

    def refuse(self, index: int, problem: str) -> ServiceError:
        """Return the error for a file that cannot be read."""
        return InvalidParameter.for_field("image", f"is invalid: it {problem}", limit="a PNG, JPEG or WebP file")


@attrs.frozen(kw_only=True)
class CheckLora(Order):
    """Check a LoRA's file by its header; nothing of its data is read."""

    path: str
    """As :func:`mflux_api.ipc.paths.path_text` makes it."""

    def refuse(self, index: int, problem: str) -> ServiceError:
        """Return the error for a header that cannot be read."""
        return lora_error(f"its header {problem}; save it again")


@attrs.frozen(kw_only=True)
class DescribeLoras(Order):
    """Say what LoRA files hold, by their headers. What takes long is answered in part: the rest can be asked again."""

    paths: tuple[str, ...]
    """As :func:`mflux_api.ipc.paths.path_text` makes them."""

    def refuse(self, index: int, problem: str) -> ServiceError:
        """Return the error for one of them, whose header cannot be read."""
        reason = f"its header {problem}"
        return InvalidParameter.for_field(
            "file", f"is invalid: {reason}", limit="a safetensors file", index=index, reason=reason
        )


def lora_error(reason: str) -> InvalidParameter:
    """Return the error for a file that is not a LoRA that the engine can load.

    Args:
        reason: what is wrong with it, as a clause.
    """
    return InvalidParameter.for_field("file", f"is invalid: {reason}", limit="a whole safetensors file with a LoRA")


# --- answers ---


@attrs.frozen(kw_only=True)
class Ready:
    """The child takes orders."""


@attrs.frozen(kw_only=True)
class Working:
    """The child begins with a part of its order; the limits count anew for each."""

    index: Natural


@attrs.frozen(kw_only=True)
class OrderFailed:
    """The order cannot be done; the error is the client's."""

    code: str
    message: str
    details: Mapping[str, Any] = attrs.field(factory=dict)


@attrs.frozen(kw_only=True)
class OutOfBounds:
    """The order needs more memory than the child may take, or met a defect of the child."""

    index: Natural
    problem: str


@attrs.frozen(kw_only=True)
class ImagesChecked:
    """All images can be used. Blobs: shorter texts for some of them."""

    sizes: tuple[Size, ...]
    compacted: tuple[Natural, ...] = ()
    """Which images the blobs stand for."""
    warnings: tuple[str, ...] = ()
    """Sentences about what is wrong with an image and does not keep it from being used."""


@attrs.frozen(kw_only=True)
class ImagesDecoded:
    """Images as raw pixels, one blob each."""

    sizes: tuple[Size, ...]


@attrs.frozen(kw_only=True)
class InpaintingPrepared:
    """The images of a run, one blob each."""

    references: tuple[Size, ...]
    box: Box
    """Where in the result what is generated belongs."""


@attrs.frozen(kw_only=True)
class FileMade:
    """A file, or its text; the blobs are its pieces."""


@attrs.frozen(kw_only=True)
class MetadataRead:
    """What a file tells of itself. Blobs, in UTF-8: the infotext, the record, and each of the items."""

    width: Natural
    height: Natural
    format: str
    items: tuple[str, ...] = ()
    """Names of the other texts."""

    def with_texts(self, blobs: Sequence[bytes]) -> ImageMetadata:
        """Return what was found, with the texts of the blobs."""
        infotext, record, *values = (blob.decode("utf-8", "replace") for blob in blobs)
        return ImageMetadata(
            width=self.width,
            height=self.height,
            format=self.format,
            infotext=infotext,
            record=record,
            items=dict(zip(self.items, values, strict=True)),
        )


@attrs.frozen(kw_only=True)
class LoraChecked:
    """The engine can load the file, as far as its header tells."""

    size: Natural
    """Bytes of the file that was checked."""


@attrs.frozen
class DescribedLora:
    """What is known of a LoRA file: its contents, or why they are not known; neither where it was not read."""

    contents: LoraContents | None = None
    problem: str | None = None
    """A clause."""


@attrs.frozen(kw_only=True)
class LorasDescribed:
    """What the first files of an order hold, at least one."""

    found: tuple[DescribedLora, ...]


Result = ImagesChecked | ImagesDecoded | InpaintingPrepared | FileMade | MetadataRead | LoraChecked | LorasDescribed
"""What an order that was done gives."""


def pieces(data: bytes) -> tuple[bytes, ...]:
    """Return a file as blobs that fit into a frame."""
    if len(data) <= MAX_BLOB:
        return (data,)
    return tuple(data[start : start + MAX_BLOB] for start in range(0, len(data), MAX_BLOB))


def _by_name(*kinds: type[Any]) -> Mapping[str, type[Any]]:
    return {kind.__name__: kind for kind in kinds}


ORDER_TYPES = _by_name(
    CheckImages,
    CheckMask,
    PrepareReferences,
    PrepareInpainting,
    PrepareSource,
    ComposeExtras,
    ConvertImage,
    ReadMetadata,
    CheckLora,
    DescribeLoras,
)
"""Tag → class of every frame that the child takes."""
RESULT_TYPES = _by_name(
    Ready,
    Working,
    OrderFailed,
    OutOfBounds,
    ImagesChecked,
    ImagesDecoded,
    InpaintingPrepared,
    FileMade,
    MetadataRead,
    LoraChecked,
    LorasDescribed,
)
"""Tag → class of every frame that it sends."""
