"""``mflux-api info FILE``: how an image was made, as its file says."""

import argparse
import json
from pathlib import Path

import msgspec

from mflux_api.cli.image_files import read_file
from mflux_api.images.generation_record import recipe_of


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the command's options."""
    parser.add_argument("file", type=Path, metavar="FILE", help="a PNG, JPEG or WebP file")
    parser.add_argument("--json", action="store_true", help="print JSON: also the request that makes the image again")


def run(options: argparse.Namespace) -> int:
    """Print it.

    Raises:
        InvalidParameter: the file cannot be read.
    """
    found = read_file(options.file)
    recipe = recipe_of(found)
    if options.json:
        whole = {
            **msgspec.to_builtins(found),
            "request": recipe.request,
            "warnings": list(recipe.warnings),
        }
        whole.pop("record")
        print(json.dumps(whole, indent=2))
        return 0
    print(f"{found.width} × {found.height} pixels, {found.format}")
    for text in (found.infotext, *(f"{name}: {value}" for name, value in found.items.items())):
        if text:
            print(text)
    for warning in recipe.warnings:
        print(f"({warning})")
    if recipe.request:
        print(f"Make it again: mflux-api generate --from-image {options.file}")
    return 0
