"""``mflux-api generate``: one job on a service of its own, whose store is in memory.

The files that it is given may lie anywhere: the person who types the command may read them.
"""

import argparse
import base64
import os
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import attrs
import trio

from mflux_api.catalog import Model
from mflux_api.catalog.lookup import find_model
from mflux_api.cli.download_question import may_download
from mflux_api.cli.encoding import decode_argument, print_path
from mflux_api.cli.error_text import name_options
from mflux_api.cli.exit_status import EXIT_FAILED
from mflux_api.cli.folders import why_not_writable
from mflux_api.cli.image_files import content_of, read_request
from mflux_api.cli.progress_bar import ProgressBar
from mflux_api.config import Settings, load_settings
from mflux_api.errors import ConfigError
from mflux_api.jobs.parse import validate
from mflux_api.jobs.progress import Finished
from mflux_api.jobs.request import Extend, GenerateRequest, check_fields
from mflux_api.jobs.upscaling import check_upscaling
from mflux_api.service import open_service
from mflux_api.storage.lora_folders import has_suffix


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the command's options."""
    parser.add_argument("prompt", nargs="?", default="", help="what to generate; an upscaler needs none")
    parser.add_argument("--model", help="which model (default: models.default)")
    parser.add_argument("--negative-prompt", help="what not to generate (base models)")
    parser.add_argument("--seed", type=int, help="random seed (default: a new one)")
    parser.add_argument(
        "--width", type=int, help="pixels, a multiple of 16 (default: the model's, or the init image's)"
    )
    parser.add_argument(
        "--height", type=int, help="pixels, a multiple of 16 (default: the model's, or the init image's)"
    )
    parser.add_argument("--steps", type=int, help="denoising steps (default: the model's own)")
    parser.add_argument("--guidance", type=float, help="guidance (base models)")
    parser.add_argument("--num-images", type=int, default=1, help="how many images (default: 1)")
    parser.add_argument("--low-ram", action="store_true", help="take longer and less memory")
    parser.add_argument(
        "--init-image",
        type=Path,
        action="append",
        default=[],
        metavar="FILE",
        help="an image to edit (up to four) or to upscale",
    )
    parser.add_argument("--image-strength", type=float, help="how much to transform it, 0 to 1 (default: 0.75)")
    parser.add_argument("--mask", type=Path, metavar="FILE", help="what of the init image is inpainted is white in it")
    parser.add_argument("--mask-blur", type=float, help="radius of its edge in pixels (default: 4)")
    parser.add_argument("--inpainting-mask-invert", action="store_true", help="what is black in it is inpainted")
    parser.add_argument(
        "--inpainting-fill",
        type=int,
        help="what that starts from: 0 the colours around it, 1 itself, 2 noise, 3 nothing (default: 1)",
    )
    parser.add_argument(
        "--inpaint-full-res", action="store_true", help="generate the masked part alone, at --width and --height"
    )
    parser.add_argument("--inpaint-full-res-padding", type=int, help="pixels around it that count (default: 32)")
    parser.add_argument(
        "--extend",
        type=_extend,
        metavar="SIDE=PIXELS[,…]",
        help="outpainting: what to add to the init image, such as left=64,bottom=32",
    )
    parser.add_argument("--upscale", type=float, help="upscalers: times as large (default: 2)")
    parser.add_argument("--resolution", type=int, help="upscalers: the result's shorter side in pixels")
    parser.add_argument("--softness", type=float, help="upscalers: how much detail to invent anew, 0 to 1 (default: 0)")
    parser.add_argument(
        "--lora", action="append", default=[], metavar="NAME[:SCALE]", help="a LoRA of lora.dirs or a file; repeatable"
    )
    parser.add_argument(
        "--from-image",
        type=Path,
        metavar="FILE",
        help="make an image again as its file says (PNG, JPEG, WebP); other options count more",
    )
    parser.add_argument("--output-dir", type=Path, help="where to put them (default: ./output)")
    parser.add_argument("--yes", action="store_true", help="download the model, if it is not on disk, without asking")


def run(options: argparse.Namespace) -> int:
    """Generate the images and print their paths.

    Raises:
        ConfigError: the configuration cannot be used.
        ServiceError: the images cannot be generated; the message says why.
    """
    overrides: dict[str, dict[str, Any]] = {"generation": {"output_dir": options.output_dir}}
    settings = load_settings(options.config, overrides=overrides)
    again = None if options.from_image is None else read_request(options.from_image)
    wanted = options.model or (None if again is None else again.model)
    model = find_model(wanted or settings.models.default, settings.catalog())
    width, height = model.native_size if not options.init_image and again is None else (None, None)
    named = _loras(options.lora, settings)
    request = GenerateRequest(
        prompt=decode_argument(options.prompt).strip(),
        model=wanted,
        negative_prompt=options.negative_prompt and decode_argument(options.negative_prompt),
        seed=options.seed,
        width=options.width if options.width is not None else width,
        height=options.height if options.height is not None else height,
        steps=options.steps,
        guidance=options.guidance,
        num_images=options.num_images,
        low_ram=options.low_ram,
        init_images=_init_images(options.init_image),
        image_strength=options.image_strength,
        mask=_mask(options.mask),
        mask_blur=options.mask_blur,
        inpainting_mask_invert=options.inpainting_mask_invert,
        inpainting_fill=options.inpainting_fill,
        inpaint_full_res=options.inpaint_full_res,
        inpaint_full_res_padding=options.inpaint_full_res_padding,
        extend=options.extend,
        resolution=options.resolution,
        upscale=options.upscale,
        softness=options.softness,
        lora_files=named.files,
        lora_scales=named.scales,
    )
    if again is not None:
        request = _over(again, request)
    _check(request, model, settings)
    if not may_download(model, settings, named=wanted is not None, yes=options.yes):
        return EXIT_FAILED
    for path in trio.run(partial(_generate_images, named.settings, request)):
        print_path(path)
    return 0


def _over(again: GenerateRequest, asked: GenerateRequest) -> GenerateRequest:
    """Return the request of an image with what is asked for in its place."""
    default = GenerateRequest()
    values = {field.name: getattr(asked, field.name) for field in attrs.fields(GenerateRequest)}
    changes = {name: value for name, value in values.items() if value != getattr(default, name)}
    return attrs.evolve(again, **changes)


def _check(request: GenerateRequest, model: Model, settings: Settings) -> None:
    """Refuse what the service would refuse, or fail at in the end, before a download is asked about.

    Raises:
        ConfigError: the folder for images cannot be written.
        InvalidParameter: the request breaks a rule.
    """
    check_fields(validate(request), max_images=settings.generation.max_batch_size, needs_prompt=not model.upscales)
    if model.upscales:
        check_upscaling(request, model)
    why = why_not_writable(settings.generation.output_dir, make=True)
    if why:
        raise ConfigError(
            f"generation.output_dir cannot be written ({why}): choose another folder with --output-dir, "
            "or change its permissions"
        )


async def _generate_images(settings: Settings, request: GenerateRequest) -> list[str]:
    # The progress bar shows no previews.
    async with open_service(settings, previews=False) as service:
        with ProgressBar(sys.stderr) as bar:
            bar.note("starting the engine")
            job = await service.submit(request, synchronous=True)
            async with service.events(job.id) as events:
                async for event in events:
                    if isinstance(event, Finished):
                        job = event.job
                    else:
                        bar.update(event)
        for warning in job.warnings:
            print(f"mflux-api: warning: {name_options(warning)}", file=sys.stderr)
        result = await service.result(job.id)
    return [image.path for image in result.images]


def _init_images(paths: Sequence[Path]) -> tuple[str, ...]:
    """Read images as a request carries them.

    Raises:
        InvalidParameter: one cannot be read.
    """
    return tuple(base64.b64encode(_content(path)).decode() for path in paths)


def _mask(path: Path | None) -> str | None:
    """Read a mask as a request carries it, where there is one.

    Raises:
        InvalidParameter: it cannot be read.
    """
    return None if path is None else base64.b64encode(_content(path, "mask", "mask")).decode()


def _content(path: Path, what: str = "init image", field: str = "init_images") -> bytes:
    return content_of(path, what, {"field": field, "value": None, "limit": "a file"})


def _extend(text: str) -> Extend:
    """Read ``left=64,bottom=32``.

    Raises:
        ArgumentTypeError: it is something else.
    """
    try:
        pairs = [pair.split("=") for pair in text.split(",")]
        margins = {side.strip(): int(pixels) for side, pixels in pairs}
        if len(margins) < len(pairs):
            raise ValueError("a side is there twice")
        return Extend(**margins)
    except (ValueError, TypeError):
        sides = ", ".join(field.name for field in attrs.fields(Extend))
        raise argparse.ArgumentTypeError(f"expected SIDE=PIXELS[,…] with the sides {sides}") from None


@attrs.frozen
class _NamedLoras:
    """LoRAs as a request names them, and the settings under which it may."""

    settings: Settings
    files: tuple[str, ...]
    scales: tuple[float, ...]


def _loras(values: Sequence[str], settings: Settings) -> _NamedLoras:
    """Read ``NAME``, ``FILE``, ``NAME:SCALE`` or ``FILE:SCALE``; a file's own folder counts as one of ``lora.dirs``."""
    files: list[str] = []
    scales: list[float] = []
    for value in values:
        name, scale = _split(value)
        path = Path(os.path.expanduser(name)).absolute()
        if has_suffix(path.name) and path.is_file():
            dirs = tuple(dict.fromkeys((*settings.lora.dirs, path.parent)))
            # A snapshot of a model hub is all links, which the person who typed the path may read.
            settings = attrs.evolve(settings, lora=attrs.evolve(settings.lora, dirs=dirs, follow_links=True))
            name = str(path)
        files.append(name)
        scales.append(scale)
    return _NamedLoras(settings, tuple(files), tuple(scales))


def _split(value: str) -> tuple[str, float]:
    name, _, scale = value.rpartition(":")
    try:
        return (name, float(scale)) if name else (value, 1.0)
    except ValueError:
        return value, 1.0
