"""``mflux-api upscale``: an image becomes larger, here on a service of its own, or on a running server."""

import argparse
from pathlib import Path

from mflux_api.catalog.lookup import find_model
from mflux_api.cli import generate
from mflux_api.cli.output import add_output_options
from mflux_api.config import load_settings
from mflux_api.errors import ConfigError

MODEL = "seedvr2"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the command's options."""
    parser.add_argument("file", type=Path, metavar="FILE", help="an image file")
    parser.add_argument("--model", default=MODEL, help=f"which upscaler (default: {MODEL})")
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--factor", "--upscale", dest="upscale", type=float, help="times as large (default: 2)")
    size.add_argument("--resolution", type=int, help="the result's shorter side in pixels")
    parser.add_argument("--softness", type=float, help="how much detail to invent anew, 0 to 1 (default: 0)")
    parser.add_argument("--seed", type=int, help="random seed (default: a new one)")
    parser.add_argument("--low-ram", action="store_true", help="take longer and less memory")
    add_output_options(parser)
    parser.add_argument("--yes", action="store_true", help="download the model, if it is not on disk, without asking")
    parser.add_argument("--url", help="a running server that upscales, in place of this machine")


def run(options: argparse.Namespace) -> int:
    """Upscale the image and print its path.

    Raises:
        ConfigError: the configuration or the output cannot be used, or the model upscales nothing.
        ServiceError: the image cannot be upscaled; the message says why.
        OSError: no server answers, or the image cannot be written.
    """
    if options.url is None:
        settings = load_settings(options.config)
        model = find_model(options.model, settings.catalog())
        if not model.upscales:
            others = ", ".join(each.alias for each in settings.catalog() if each.upscales)
            raise ConfigError(f"--model {model.alias} generates images and upscales none: name one of {others}")
    asked = argparse.ArgumentParser(add_help=False)
    generate.add_arguments(asked)
    # What an upscaler has no use for is as `generate` has it when nothing is asked for.
    whole = asked.parse_args([f"--init-image={options.file}"])
    return generate.run(argparse.Namespace(**{**vars(whole), **vars(options)}))
