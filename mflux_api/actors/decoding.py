"""Typed questions to the decoder: what the gateway and the scheduler ask of it, with the answers as they need them."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import attrs

from mflux_api.actors.messages.decoder import Decode
from mflux_api.errors import GenerationFailed
from mflux_api.images.child import protocol as p
from mflux_api.images.child.client import Decoded
from mflux_api.images.encode import ImageTarget
from mflux_api.images.generation_record import ImageMetadata
from mflux_api.images.inpainting import Fill, InpaintingInputs
from mflux_api.images.rgb import RGBImage
from mflux_api.images.run_inputs import RunInputs
from mflux_api.ipc.child_process import Blob
from mflux_api.ipc.paths import path_text
from mflux_api.jobs.inpainting import DEFAULT_FILL, Inpainting
from mflux_api.jobs.resolve import ResolvedRequest
from mflux_api.storage.loras import CheckedLora, Upload

R = TypeVar("R")


_FILL_WITH_PIXELS = 0
_FILLS: Mapping[int, Fill] = {_FILL_WITH_PIXELS: "original", 1: "original", 2: "noise", 3: "nothing"}
"""What the latents of the masked part are, by A1111's number."""


@attrs.frozen
class CheckedImages:
    """Images that can be used."""

    sizes: tuple[p.Size, ...]
    texts: tuple[str, ...] = attrs.field(repr=False)
    """Each as it was sent, or shorter where it was much longer than its file."""
    warnings: tuple[str, ...] = ()
    """Sentences about what is wrong with them and does not keep them from being used."""


@attrs.frozen
class Decoding:
    """The questions of one asker.

    Every method raises what asking raises, :class:`~mflux_api.errors.ServerBusy` when too many orders wait, and the
    order's own error when it takes more than it may.
    """

    _ask: Callable[[Decode], Awaitable[Decoded]]
    _urgent: bool = False
    """Whether they are for jobs that run."""

    async def check_images(
        self, texts: Sequence[str], *, field: str = "init_images", reference: bool = True, caller: str = ""
    ) -> CheckedImages:
        """Check images.

        Args:
            texts: each as base64 or a data URL.
            field: what the client calls them, for errors.
            reference: whether they are for editing, which needs a least size.
            caller: on whose behalf.

        Raises:
            InvalidParameter: one of them cannot be used.
        """
        sizes, kept, warnings = list[p.Size](), list(texts), list[str]()
        # One at a time: a frame holds few blobs, and callers take turns between them.
        for place, text in enumerate(texts):
            order = p.CheckImages(field=field, first=place, reference=reference)
            done, shorter = await self._do(order, (text,), p.ImagesChecked, caller)
            sizes.extend(done.sizes)
            warnings.extend(done.warnings)
            if shorter:
                kept[place] = shorter[0].decode("ascii")
        return CheckedImages(tuple(sizes), tuple(kept), tuple(warnings))

    async def check_mask(self, text: str, inpainting: Inpainting, source: p.Size, *, caller: str = "") -> CheckedImages:
        """Check what is masked.

        Args:
            text: the mask as base64 or a data URL; empty without one.
            inpainting: how it is used.
            source: the size of the image, not extended.
            caller: on whose behalf.

        Raises:
            InvalidParameter: it cannot be used, or nothing is inpainted.
        """
        order = p.CheckMask(
            transparent=inpainting.transparent,
            invert=inpainting.invert,
            blur=inpainting.blur,
            extend=inpainting.extend,
            source=source,
            result=inpainting.result,
        )
        texts = (text,) if text else ()
        done, shorter = await self._do(order, texts, p.ImagesChecked, caller)
        return CheckedImages(done.sizes, (shorter[0].decode("ascii"),) if shorter else texts, done.warnings)

    async def run_inputs(self, request: ResolvedRequest) -> RunInputs:
        """Return the images of a run.

        Raises:
            InvalidParameter: one of them cannot be used.
            GenerationFailed: one that was kept for the job was removed.
        """
        texts = request.inputs
        if not texts:
            return RunInputs()
        if not all(texts):
            raise GenerationFailed("An image of this job was removed from the state directory; submit it again")
        if request.inpainting is not None:
            return await self._inpainting(request, request.inpainting)
        if request.upscaling is not None:
            (source,) = await self._images(p.PrepareSource(), texts[:1])
            return RunInputs(source=source)
        starts = request.strength < 1.0
        order = p.PrepareReferences(start=request.size if starts else None)
        images = await self._images(order, texts)
        return RunInputs(references=images[: len(texts)], start=images[-1] if starts else None)

    async def compose_extras(
        self, order: p.ComposeExtras, source: str, pngs: Sequence[bytes], caller: str
    ) -> tuple[bytes, ...]:
        """Return an image of A1111's extras as base64 PNG, in pieces: it may have a hundred megabytes.

        Args:
            order: what to make of it; how many blobs there are is filled in here.
            source: the image, as base64 or a data URL.
            pngs: what models made of it.
            caller: on whose behalf.

        Raises:
            InvalidParameter: the image cannot be used.
        """
        split = [p.pieces(png) for png in pngs]
        order = attrs.evolve(order, png_blobs=tuple(map(len, split)))
        blobs: list[Blob] = [source]
        for pieces in split:
            blobs += pieces
        _, made = await self._do(order, blobs, p.FileMade, caller)
        return made

    async def convert_image(self, png: bytes, target: ImageTarget, caller: str = "") -> bytes:
        """Return one of our PNG files in another format or size.

        Raises:
            InternalError: it is damaged.
        """
        order = p.ConvertImage(target=target.format, quality=target.quality, side=target.side)
        _, made = await self._do(order, p.pieces(png), p.FileMade, caller)
        return b"".join(made)

    async def read_metadata(self, text: str, caller: str = "") -> ImageMetadata:
        """Return what an image file tells of itself.

        Args:
            text: the file as base64 or a data URL.
            caller: on whose behalf.

        Raises:
            InvalidParameter: it is not an image.
        """
        done, blobs = await self._do(p.ReadMetadata(), (text,), p.MetadataRead, caller)
        return done.with_texts(blobs)

    async def check_lora(self, upload: Upload, caller: str = "") -> CheckedLora:
        """Check a LoRA that was received and is about to be published.

        Raises:
            InvalidParameter: it is not a whole safetensors file, or nothing that the engine could load.
        """
        done, _ = await self._do(p.CheckLora(path=path_text(upload.path)), (), p.LoraChecked, caller)
        return CheckedLora(done.size)

    async def describe_loras(self, paths: Sequence[Path], caller: str = "") -> tuple[p.DescribedLora, ...]:
        """Return what the first of these LoRA files hold, at least one of them.

        Raises:
            InvalidParameter: a child died of the header of one; the details have its ``index`` and a ``reason``.
        """
        order = p.DescribeLoras(paths=tuple(path_text(path) for path in paths))
        done, _ = await self._do(order, (), p.LorasDescribed, caller)
        return done.found

    async def _inpainting(self, request: ResolvedRequest, inpainting: Inpainting) -> RunInputs:
        order = p.PrepareInpainting(
            masked=inpainting.masked,
            transparent=inpainting.transparent,
            invert=inpainting.invert,
            blur=inpainting.blur,
            padding=inpainting.padding,
            fill=inpainting.fill == _FILL_WITH_PIXELS,
            # The others are for forgetting what is there, and a reference would show it.
            refer=inpainting.fill == DEFAULT_FILL,
            extend=inpainting.extend,
            run=request.size,
            result=inpainting.result,
            images=len(request.init_images),
        )
        done, blobs = await self._do(order, request.inputs, p.InpaintingPrepared, "")
        *references, start, mask, overlay, blurred = blobs
        return RunInputs(
            references=tuple(RGBImage(*size, rgb) for size, rgb in zip(done.references, references, strict=True)),
            start=RGBImage(*request.size, start),
            inpainting=InpaintingInputs(
                mask=mask,
                overlay=RGBImage(*inpainting.result, overlay),
                blurred_mask=blurred,
                box=done.box,
                fill=_FILLS[inpainting.fill],
            ),
        )

    async def _images(self, order: p.PrepareReferences | p.PrepareSource, texts: Sequence[str]) -> tuple[RGBImage, ...]:
        done, pixels = await self._do(order, texts, p.ImagesDecoded, "")
        return tuple(RGBImage(*size, rgb) for size, rgb in zip(done.sizes, pixels, strict=True))

    async def _do(
        self, order: p.Order, blobs: Sequence[Blob], kind: type[R], caller: str
    ) -> tuple[R, tuple[bytes, ...]]:
        for index, blob in enumerate(blobs):
            if isinstance(blob, str) and not blob.isascii():
                raise order.refuse(index, "is not base64")
        decoded = await self._ask(Decode(order=order, blobs=tuple(blobs), caller=caller, urgent=self._urgent))
        if not isinstance(decoded.result, kind):
            raise TypeError(f"the decoder answered a {type(order).__name__} with a {type(decoded.result).__name__}")
        return decoded.result, decoded.blobs
