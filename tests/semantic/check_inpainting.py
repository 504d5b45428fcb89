"""Inpaint and extend an image with the demo model, measure the result, and write a contact sheet.

    python -m tests.semantic.check_inpainting

It exits with 1 unless every protected pixel has the bytes of its image, and every inpainted part shows what its prompt
says. The sheet (image, mask, result, in each row) goes to docs/images/demo-inpainting-sheet.webp.
"""

import base64
import sys
import tempfile
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import numpy.typing as npt
import trio
from PIL import Image, ImageFilter

import mflux_api
from training.demo.contact import contact_sheet
from training.demo.measures import color_mask

IMAGES = Path(__file__).parents[2] / "docs" / "images"
SHEET = IMAGES / "demo-inpainting-sheet.webp"
_BLUR = 4.0
_TILE = 256
_SHEET_COLOUR = "#f2f2f2"
_SEED = 1

Box = tuple[int, int, int, int]


@attrs.frozen(kw_only=True)
class Case:
    """One image, what of it is masked, and what is to be seen there."""

    image: str
    prompt: str
    masked: Box | None = None
    """What is white in the mask: left, top, right and bottom; ``None`` without a mask."""
    fields: Mapping[str, Any] = attrs.field(factory=dict)
    colour: str
    """A colour that the part ``where`` shows."""
    where: Box
    not_colour: str | None = None
    """A colour that it does not show."""
    label: str


_LOWER_LEFT: Box = (0, 136, 128, 256)
_UPPER_HALF: Box = (0, 0, 256, 132)
_UPPER_RIGHT: Box = (144, 16, 248, 120)

CASES = (
    Case(
        image="house",
        prompt="a blue house on the left, green hills",
        masked=_LOWER_LEFT,
        fields={"image_strength": 1.0},
        colour="blue",
        where=_LOWER_LEFT,
        not_colour="red",
        label="a blue house on the left, green hills",
    ),
    Case(
        image="house",
        prompt="green hills",
        masked=_LOWER_LEFT,
        fields={"image_strength": 1.0, "inpainting_fill": 0},
        colour="green",
        where=_LOWER_LEFT,
        not_colour="red",
        label="green hills (fill 0)",
    ),
    Case(
        image="house",
        prompt="a red house at sunset",
        masked=_UPPER_HALF,
        fields={"image_strength": 1.0, "inpainting_fill": 2},
        colour="orange",
        where=_UPPER_HALF,
        label="a red house at sunset (fill 2)",
    ),
    Case(
        image="house",
        prompt="add a red balloon",
        masked=_UPPER_RIGHT,
        fields={"image_strength": 1.0, "inpaint_full_res": True, "inpaint_full_res_padding": 16},
        colour="red",
        where=_UPPER_RIGHT,
        label="add a red balloon (the masked part alone)",
    ),
    Case(
        image="house",
        prompt="a red house, green hills",
        fields={"extend": mflux_api.Extend(left=64, right=64)},
        colour="green",
        where=(320, 160, 384, 256),
        label="extended to both sides",
    ),
    Case(
        image="moon",
        prompt="the moon above the sea at night",
        fields={"extend": mflux_api.Extend(left=96, top=32)},
        colour="blue",
        where=(0, 200, 96, 288),
        label="extended to the left and above",
    ),
)


@attrs.frozen
class Done:
    """A case that was generated."""

    case: Case
    image: Image.Image
    mask: Image.Image
    """In the result's size, not blurred."""
    result: Image.Image


async def generate() -> list[Done]:
    """Generate every case with a service of its own."""
    with tempfile.TemporaryDirectory() as folder:
        settings = mflux_api.load_settings(environ={}, overrides={"generation": {"output_dir": Path(folder)}})
        async with mflux_api.open_service(settings, previews=False) as service:
            return [await _generate(service, case) for case in CASES]


async def _generate(service: mflux_api.Service, case: Case) -> Done:
    image = Image.open(IMAGES / "demo" / f"{case.image}.png").convert("RGB")
    mask = Image.new("L", image.size)
    if case.masked is not None:
        mask.paste(255, case.masked)
    request = mflux_api.GenerateRequest(
        prompt=case.prompt,
        model="demo",
        seed=_SEED,
        init_images=(_base64(image),),
        mask=None if case.masked is None else _base64(mask),
        mask_blur=_BLUR,
        **case.fields,
    )
    job = await service.submit(request, synchronous=True)
    with Image.open((await service.result(job.id)).images[0].path) as result:
        extend = case.fields.get("extend") or mflux_api.Extend()
        whole = Image.new("L", result.size, 255)
        whole.paste(mask, (extend.left, extend.top))
        canvas = Image.new("RGB", result.size, (128, 128, 128))
        canvas.paste(image, (extend.left, extend.top))
        return Done(case, canvas, whole, result.convert("RGB"))


def protected_differ(done: Done) -> int:
    """Return how many protected pixels have other bytes than the image."""
    protected = np.asarray(done.mask.filter(ImageFilter.GaussianBlur(_BLUR))) == 0
    differ = (np.asarray(done.result) != np.asarray(done.image)).any(axis=2)
    return int(differ[protected].sum())


def share(image: Image.Image, colour: str, where: Box) -> float:
    """Return how much of a part of an image has a colour."""
    return float(color_mask(np.asarray(image.crop(where)), colour).mean())


def holds(done: Done) -> bool:
    """Say whether the protected part is as it was and the inpainted one as its prompt says."""
    case = done.case
    shows = share(done.result, case.colour, case.where) > 0.1
    gone = case.not_colour is None or share(done.result, case.not_colour, case.where) < 0.02
    return protected_differ(done) == 0 and shows and gone


def main() -> int:
    """Generate, measure, write the sheet."""
    everything = trio.run(generate)
    tiles, labels = list[npt.NDArray[np.uint8]](), list[str]()
    for done in everything:
        case = done.case
        found = f"{case.colour} {share(done.result, case.colour, case.where):.0%}"
        print(f"{case.label}: {protected_differ(done)} protected pixels differ; {found}; {holds(done)}")  # noqa: T201
        tiles += [_tile(each) for each in (done.image, done.mask, done.result)]
        labels += [case.image, "mask", case.label]
    contact_sheet(tiles, labels, 6, 192).save(SHEET, quality=88, method=6)
    return 0 if all(map(holds, everything)) else 1


def _tile(image: Image.Image) -> npt.NDArray[np.uint8]:
    """Return an image within a square."""
    small = image.convert("RGB")
    small.thumbnail((_TILE, _TILE))
    tile = Image.new("RGB", (_TILE, _TILE), _SHEET_COLOUR)
    tile.paste(small, ((_TILE - small.width) // 2, (_TILE - small.height) // 2))
    return np.asarray(tile)


def _base64(image: Image.Image) -> str:
    buffer = BytesIO()
    image.save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


if __name__ == "__main__":
    sys.exit(main())
