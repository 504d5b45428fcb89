"""What the decoder's child does for each order about images."""

from binascii import b2a_base64
from collections.abc import Callable, Sequence
from functools import partial
from io import BytesIO

from PIL import Image

from mflux_api.images.base64_text import NotAFile, compact_text, decode_text
from mflux_api.images.child import extras
from mflux_api.images.child import protocol as p
from mflux_api.images.child.decode import decode_image, decode_mask, file_of
from mflux_api.images.child.formats.png import plain_png, read_text
from mflux_api.images.child.formats.refused import Refused
from mflux_api.images.child.inpainting import (
    NothingMasked,
    black_and_white,
    compose,
    is_cut_off,
    is_soft,
    lay_out,
    lay_out_mask,
    mask_levels,
    place_mask,
)
from mflux_api.images.child.metadata import to_exif
from mflux_api.images.child.resize import as_reference, as_start
from mflux_api.images.png import RECORD_KEY, SIGNATURE, encode_png
from mflux_api.images.rgb import RGBImage

_LOSSY_QUALITY = 92
_MOST_INFOTEXT = 64 * 1024
_GREY = "Much of the mask is grey, and was read as black or white; a soft edge is made by 'mask_blur'"
_CUT_OFF = "Some of what is masked is not in the result: {} × {} pixels were cut to the shape of {} × {}"


def check_images(
    order: p.CheckImages, texts: Sequence[bytes], begin: Callable[[int], None]
) -> tuple[p.ImagesChecked, Sequence[bytes]]:
    """Decode every image and keep none; what holds much more than its file is sent back shorter.

    Raises:
        InvalidParameter: one of them cannot be used.
    """
    sizes, compacted, warnings = list[p.Size](), dict[int, bytes](), list[str]()
    for index, text in enumerate(texts):
        begin(index)
        whole = text.decode("ascii")
        data = file_of(whole, order.first + index, order.field)
        place, reference = order.first + index, order.reference
        sizes.append(decode_image(data, place, order.field, reference=reference, warn=warnings.append).size)
        if (shorter := compact_text(whole, data)) is not None:
            compacted[index] = shorter.encode("ascii")
    checked = p.ImagesChecked(sizes=tuple(sizes), compacted=tuple(compacted), warnings=tuple(warnings))
    return checked, tuple(compacted.values())


def prepare_references(
    order: p.PrepareReferences, texts: Sequence[bytes], begin: Callable[[int], None]
) -> tuple[p.ImagesDecoded, Sequence[bytes]]:
    """Return the references and last, where it is wanted, the start image; one large image at a time is in memory.

    Raises:
        InvalidParameter: one of them cannot be used.
    """
    references, start = list[RGBImage](), list[RGBImage]()
    for index, text in enumerate(texts):
        begin(index)
        image = _decode(order, text, index)
        references.append(as_reference(image))
        if index == 0 and order.start is not None:
            start.append(as_start(image, *order.start))
        # Not beside the next one.
        del image
    made = references + start
    return p.ImagesDecoded(sizes=tuple(image.size for image in made)), tuple(image.rgb for image in made)


def check_mask(order: p.CheckMask, texts: Sequence[bytes]) -> tuple[p.ImagesChecked, Sequence[bytes]]:
    """Look at what is masked and keep nothing; a text that holds much more than its file is sent back shorter.

    Raises:
        InvalidParameter: the mask cannot be used, or nothing is inpainted.
    """
    mask: Image.Image | None = None
    shorter: tuple[bytes, ...] = ()
    told: tuple[str, ...] = ()
    for text in texts:
        levels, shorter = _decode_mask(text, transparent=order.transparent)
        mask = black_and_white(levels)
        told += (_GREY,) if is_soft(levels) else ()
        kept = 255 if order.invert else 0
        if mask.getextrema() == (kept, kept) and not any(order.extend):
            white = "black, with 'inpainting_mask_invert'," if order.invert else "white"
            opaque = "transparent" if order.invert != order.transparent else "opaque"
            raise p.mask_error(
                f"it protects the whole image; what is {white} is inpainted "
                f"(of a mask with transparency what is {opaque})"
            )
    holes = lay_out_mask(mask, order.source, invert=order.invert, extend=order.extend)
    try:
        place_mask(holes, order.result, order.blur)
    except NothingMasked as refused:
        raise p.nothing_masked(str(refused), masked=bool(texts)) from None
    told += (_CUT_OFF.format(*holes.size, *order.result),) if is_cut_off(holes, order.result) else ()
    sizes = () if mask is None else (mask.size,)
    return p.ImagesChecked(sizes=sizes, compacted=(0,) if shorter else (), warnings=told), shorter


def _decode_mask(text: bytes, *, transparent: bool) -> tuple[Image.Image, tuple[bytes, ...]]:
    """Return the levels of a mask, and a shorter text where there is one.

    Raises:
        InvalidParameter: it cannot be used.
    """
    whole = text.decode("ascii")
    try:
        data = decode_text(whole)
        shorter = compact_text(whole, data)
        return decode_mask(data, partial(mask_levels, transparent=transparent)), () if shorter is None else (
            shorter.encode("ascii"),
        )
    except (NotAFile, Refused) as refused:
        raise p.mask_error(f"it {refused}") from None


def prepare_inpainting(
    order: p.PrepareInpainting, texts: Sequence[bytes], begin: Callable[[int], None]
) -> tuple[p.InpaintingPrepared, Sequence[bytes]]:
    """Return the images of a run that protects a part of its first init image.

    Raises:
        InvalidParameter: one of them cannot be used.
    """
    mask: Image.Image | None = None
    if order.masked:
        begin(order.images)
        mask = black_and_white(_decode_mask(texts[order.images], transparent=order.transparent)[0])
    begin(0)
    source = _decode(order, texts[0], 0)
    # It counts anew: decoding and composing a large image take about as long.
    begin(0)
    whole, mask = lay_out(source, mask, invert=order.invert, extend=order.extend)
    references = list[RGBImage]()
    if order.refer and any(order.extend):
        # Of what it is extended by it would show but the colours, and they would be taken for what is wanted.
        references.append(as_reference(source))
    del source
    try:
        layers = compose(
            whole,
            mask,
            run=order.run,
            result=order.result,
            blur=order.blur,
            padding=order.padding,
            fill=order.fill,
        )
    except NothingMasked as refused:
        raise p.nothing_masked(str(refused), masked=order.masked) from None
    if order.refer and not references:
        # Of a crop the crop, as in diffusers.
        references.append(as_reference(layers.start))
    made = [layers.start.tobytes(), layers.mask.tobytes(), layers.overlay.tobytes(), layers.blurred.tobytes()]
    box = layers.box
    del whole, mask, layers
    for index in range(1, order.images):
        begin(index)
        references.append(as_reference(_decode(order, texts[index], index)))
    prepared = p.InpaintingPrepared(references=tuple(image.size for image in references), box=box)
    return prepared, (*(image.rgb for image in references), *made)


def prepare_source(order: p.PrepareSource, texts: Sequence[bytes]) -> tuple[p.ImagesDecoded, Sequence[bytes]]:
    """Return the pixels of an image as it is.

    Raises:
        InvalidParameter: it cannot be used.
    """
    (text,) = texts
    image = _decode(order, text, 0, reference=False)
    return p.ImagesDecoded(sizes=(image.size,)), (image.tobytes(),)


def compose_extras(order: p.ComposeExtras, blobs: Sequence[bytes]) -> tuple[p.FileMade, Sequence[bytes]]:
    """Return the finished image as base64 PNG, with what its source said about itself.

    Raises:
        InvalidParameter: the source cannot be used.
    """
    source, *rest = blobs
    data = file_of(source.decode("ascii"), order.first, order.field)
    decoded: Image.Image | None = None
    layers = list[Image.Image]()
    pngs = iter(_joined(rest, order.png_blobs))
    for layer in order.layers:
        if layer == "png":
            layers.append(extras.open_png(next(pngs), order.wanted))
        else:
            # Decoded once, whatever is blended.
            decoded = decoded or decode_image(data, order.first, order.field, reference=False)
            layers.append(extras.resize(decoded, layer, order.scaled, order.wanted))
    image = extras.merge(layers, order.visibility)
    parameters, done = (infotext_of(data), order.done) if order.metadata else ("", "")
    png = encode_png(image.tobytes(), *image.size, parameters=parameters, postprocessing=done)
    return p.FileMade(), p.pieces(b2a_base64(png, newline=False))


def convert_image(order: p.ConvertImage, pieces: Sequence[bytes]) -> tuple[p.FileMade, Sequence[bytes]]:
    """Return one of our PNG files in another format or size, with its infotext as the EXIF user comment.

    Raises:
        InternalError: it is not a whole PNG file.
    """
    data, buffer = b"".join(pieces), BytesIO()
    try:
        with Image.open(BytesIO(plain_png(data)), formats=("PNG",)) as image:
            exif = to_exif(read_text(data, "parameters"), read_text(data, RECORD_KEY))
            made = image.convert("RGB")
            if order.side is not None:
                made.thumbnail((order.side, order.side), Image.Resampling.LANCZOS)
            quality = (
                {} if order.target == "png" else {"quality": _LOSSY_QUALITY if order.quality is None else order.quality}
            )
            made.save(buffer, order.target.upper(), exif=exif, **quality)
    except (Refused, OSError, SyntaxError, ValueError):
        # Pillow's words for a damaged file.
        raise order.refuse(0, "is damaged") from None
    return p.FileMade(), p.pieces(buffer.getvalue())


def infotext_of(data: bytes) -> str:
    """Return the infotext in a file that :func:`decode_image` has read; "" where there is none."""
    said = read_text(data, "parameters") if data.startswith(SIGNATURE) else ""
    return said if len(said) <= _MOST_INFOTEXT else ""


def _decode(
    order: p.PrepareReferences | p.PrepareInpainting | p.PrepareSource,
    text: bytes,
    index: int,
    *,
    reference: bool = True,
) -> Image.Image:
    place = order.first + index
    return decode_image(file_of(text.decode("ascii"), place, order.field), place, order.field, reference=reference)


def _joined(blobs: Sequence[bytes], counts: Sequence[int]) -> list[bytes]:
    files, at = list[bytes](), 0
    for count in counts:
        files.append(b"".join(blobs[at : at + count]))
        at += count
    return files
