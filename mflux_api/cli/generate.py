"""``mflux-api generate``: prompts become images, here on a service of its own, or on a running server."""

import argparse
from pathlib import Path
from typing import Any

import attrs

from mflux_api.catalog import Model
from mflux_api.catalog.lookup import find_model
from mflux_api.cli.download_question import may_download
from mflux_api.cli.exit_status import EXIT_FAILED
from mflux_api.cli.folders import require_output_dir
from mflux_api.cli.generating import generate_here, generate_there
from mflux_api.cli.image_files import read_request
from mflux_api.cli.output import Output, add_output_options
from mflux_api.cli.prompts import read_prompts
from mflux_api.cli.request_options import add_request_options, laid_over, local_loras, remote_loras, request_of
from mflux_api.cli.running_server import connected
from mflux_api.config import Settings, load_settings
from mflux_api.jobs.parse import validate
from mflux_api.jobs.request import GenerateRequest, check_fields
from mflux_api.jobs.upscaling import check_upscaling


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the command's options."""
    parser.add_argument(
        "prompt",
        nargs="*",
        default=[],
        help="what to generate, each in quotes; '-' is a line each of standard input",
    )
    parser.add_argument("--from-file", type=Path, metavar="FILE", help="a prompt in each line; '-' is standard input")
    add_request_options(parser)
    parser.add_argument(
        "--from-image",
        type=Path,
        metavar="FILE",
        help="make an image again as its file says (PNG, JPEG, WebP); other options count more",
    )
    add_output_options(parser)
    parser.add_argument("--yes", action="store_true", help="download the model, if it is not on disk, without asking")
    parser.add_argument("--url", help="a running server that generates, in place of this machine")


def run(options: argparse.Namespace) -> int:
    """Generate the images and print their paths.

    Raises:
        ConfigError: the configuration or the output cannot be used.
        ServiceError: the images cannot be generated; the message says why.
        OSError: no server answers, or an image cannot be written.
    """
    overrides: dict[str, dict[str, Any]] = {"generation": {"output_dir": options.output_dir}}
    settings = load_settings(options.config, overrides=overrides)
    prompts = read_prompts(options.prompt, options.from_file)
    again = None if options.from_image is None else read_request(options.from_image)
    output = Output.from_options(options, len(prompts) * _images_each(options, again))
    if options.url is not None:
        size = _native_size(options, settings, again)
        asked = request_of(options, size, remote_loras(options.lora, settings))
        _check_folder(settings, output)
        generate_there(settings, options.url, _requests(asked, again, prompts), output)
        return 0
    wanted = options.model or (None if again is None else again.model)
    model = find_model(wanted or settings.models.default, settings.catalog())
    loras = local_loras(options.lora, settings)
    asked = request_of(options, _default_size(options, model.native_size, again), loras)
    requests = _requests(attrs.evolve(asked, model=wanted), again, prompts)
    for request in requests:
        _check(request, model, settings)
    _check_folder(settings, output)
    if not may_download(model, settings, named=wanted is not None, yes=options.yes):
        return EXIT_FAILED
    generate_here(loras.settings, requests, output)
    return 0


def _images_each(options: argparse.Namespace, again: GenerateRequest | None) -> int:
    count: int = options.num_images
    return again.num_images if again is not None and count == GenerateRequest().num_images else count


def _requests(asked: GenerateRequest, again: GenerateRequest | None, prompts: tuple[str, ...]) -> list[GenerateRequest]:
    requests = [attrs.evolve(asked, prompt=prompt) for prompt in prompts]
    return requests if again is None else [laid_over(again, request) for request in requests]


def _default_size(
    options: argparse.Namespace, native: tuple[int, int], again: GenerateRequest | None
) -> tuple[int | None, int | None]:
    """An image that is given has a size of its own, and so has one that is made again."""
    return (None, None) if options.init_image or again is not None else native


def _native_size(
    options: argparse.Namespace, settings: Settings, again: GenerateRequest | None
) -> tuple[int | None, int | None]:
    """The size that the server's model is made for, as here; of one that it does not know it says so itself."""
    sized = options.width is not None and options.height is not None
    if options.model is None or options.init_image or again is not None or sized:
        return None, None
    with connected(settings, options.url) as client:
        models = {model.title: model.native_size for model in client.models()}
    return models.get(options.model, (None, None))


def _check(request: GenerateRequest, model: Model, settings: Settings) -> None:
    """Refuse what the service would refuse, before a download is asked about.

    Raises:
        InvalidParameter: the request breaks a rule.
    """
    check_fields(validate(request), max_images=settings.generation.max_batch_size, needs_prompt=not model.upscales)
    if model.upscales:
        check_upscaling(request, model)


def _check_folder(settings: Settings, output: Output) -> None:
    """Refuse a folder that every image would fail at in the end.

    Raises:
        ConfigError: the folder for images cannot be written.
    """
    if not output.takes_bytes:
        require_output_dir(settings)
