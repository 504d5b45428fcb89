"""Options that say what to generate, and the request that they become.

The files that are named may lie anywhere: the person who types the command may read them.
"""

import argparse
import base64
import os
from collections.abc import Sequence
from pathlib import Path

import attrs

import mflux_api
from mflux_api.cli.encoding import decode_argument
from mflux_api.cli.image_files import content_of
from mflux_api.config import Settings
from mflux_api.errors import ConfigError
from mflux_api.jobs.request import Extend, GenerateRequest
from mflux_api.storage.lora_folders import has_suffix

EXAMPLE_LORAS = tuple(Path(mflux_api.__file__).parent / folder for folder in ("engine/demo/loras", "../loras"))
"""Where the example lies: in a wheel, and in a checkout."""


def add_request_options(parser: argparse.ArgumentParser) -> None:
    """Describe the options of a request, but for its prompt."""
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


def request_of(
    options: argparse.Namespace, size: tuple[int | None, int | None], loras: "NamedLoras"
) -> GenerateRequest:
    """Return what is asked for, without a prompt.

    Args:
        options: the command's.
        size: width and height where none is asked for.
        loras: those of the options.

    Raises:
        InvalidParameter: a file cannot be read.
    """
    width, height = size
    return GenerateRequest(
        model=options.model,
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
        lora_files=loras.files,
        lora_scales=loras.scales,
    )


def laid_over(again: GenerateRequest, asked: GenerateRequest) -> GenerateRequest:
    """Return the request of an image with what is asked for in its place."""
    default = GenerateRequest()
    values = {field.name: getattr(asked, field.name) for field in attrs.fields(GenerateRequest)}
    changes = {name: value for name, value in values.items() if value != getattr(default, name)}
    return attrs.evolve(again, **changes)


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
class NamedLoras:
    """LoRAs as a request names them, and the settings under which it may."""

    settings: Settings
    files: tuple[str, ...]
    scales: tuple[float, ...]


def local_loras(values: Sequence[str], settings: Settings) -> NamedLoras:
    """Read ``NAME``, ``FILE``, ``NAME:SCALE`` or ``FILE:SCALE``; a file's own folder counts as one of ``lora.dirs``."""
    files: list[str] = []
    scales: list[float] = []
    for value in values:
        name, scale = _split(value)
        path = _example(name, settings) or Path(os.path.expanduser(name)).absolute()
        if has_suffix(path.name) and path.is_file():
            dirs = tuple(dict.fromkeys((*settings.lora.dirs, path.parent)))
            # A snapshot of a model hub is all links, which the person who typed the path may read.
            settings = attrs.evolve(settings, lora=attrs.evolve(settings.lora, dirs=dirs, follow_links=True))
            name = str(path)
        files.append(name)
        scales.append(scale)
    return NamedLoras(settings, tuple(files), tuple(scales))


def remote_loras(values: Sequence[str], settings: Settings) -> NamedLoras:
    """Read ``NAME`` or ``NAME:SCALE``, names of the server's.

    Raises:
        ConfigError: one is a file of this machine.
    """
    named = [_split(value) for value in values]
    for name, _ in named:
        if os.path.dirname(name) and has_suffix(name) and Path(name).expanduser().is_file():
            raise ConfigError(
                f"--lora: {name} is a file of this machine, and the server has its own: `mflux-api loras add {name} "
                "--url …` brings it there"
            )
    return NamedLoras(settings, tuple(name for name, _ in named), tuple(scale for _, scale in named))


def _example(name: str, settings: Settings) -> Path | None:
    """Return the LoRA that comes with the package, unless a folder of the configuration has one of its name."""
    if Path(name).name != name:
        return None
    file = name if has_suffix(name) else f"{name}.safetensors"
    if any((folder / file).exists() for folder in (*settings.lora.dirs, Path())):
        return None
    return next((folder / file for folder in EXAMPLE_LORAS if (folder / file).is_file()), None)


def _split(value: str) -> tuple[str, float]:
    name, _, scale = value.rpartition(":")
    try:
        return (name, float(scale)) if name else (value, 1.0)
    except ValueError:
        return value, 1.0
