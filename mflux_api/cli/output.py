"""Where the images of one command go, and how it is told: files, standard output, lines or JSON."""

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import attrs

from mflux_api.cli.encoding import print_path
from mflux_api.cli.error_text import name_options
from mflux_api.cli.folders import why_not_writable
from mflux_api.errors import ConfigError
from mflux_api.images.encode import ImageFormat
from mflux_api.system.durable import write_whole

STDOUT = "-"
_FORMATS: dict[str, ImageFormat] = {".png": "png", ".jpg": "jpeg", ".jpeg": "jpeg", ".webp": "webp"}


@attrs.frozen(kw_only=True)
class MadeImage:
    """One image that was generated."""

    seed: int
    data: bytes | None = attrs.field(default=None, repr=False)
    """Its file, where it is to be put somewhere else."""
    path: str = ""
    """Where it lies already."""


@attrs.frozen(kw_only=True)
class Made:
    """What became of one prompt."""

    job_id: str
    prompt: str
    model: str
    images: tuple[MadeImage, ...]
    warnings: tuple[str, ...]
    seconds: float


def add_output_options(parser: argparse.ArgumentParser) -> None:
    """Describe the options of :class:`Output`."""
    parser.add_argument(
        "-o",
        "--output",
        metavar="FILE",
        help="this very file (.png, .jpg or .webp; several images are numbered); '-' is standard output",
    )
    parser.add_argument("--output-dir", type=Path, metavar="FOLDER", help="where to put them (default: ./output)")
    parser.add_argument("--json", action="store_true", help="print a JSON object for each prompt, in a line")
    parser.add_argument("-q", "--quiet", action="store_true", help="say nothing but errors and warnings")
    parser.add_argument("--open", action="store_true", help="show the images with the program that opens images here")


@attrs.frozen(kw_only=True)
class Output:
    """Puts images where they belong and tells of them."""

    file: Path | None
    """A file that was named; several images are numbered."""
    to_stdout: bool
    json: bool
    quiet: bool
    open: bool
    format: ImageFormat
    count: int
    """How many images there will be in all."""

    @classmethod
    def from_options(cls, options: argparse.Namespace, count: int) -> "Output":
        """Read the options, and check whatever would fail in the end only.

        Raises:
            ConfigError: the file cannot be written, or one option contradicts another.
        """
        to_stdout = options.output == STDOUT
        file = None if options.output is None or to_stdout else Path(options.output).expanduser()
        if to_stdout:
            _check_stdout(options, count)
        if file is not None and options.output_dir is not None:
            raise ConfigError("give either --output, a file, or --output-dir, a folder")
        image_format = "png" if file is None else _check_file(file, options.output)
        return cls(
            file=file,
            to_stdout=to_stdout,
            json=options.json,
            quiet=options.quiet,
            open=options.open,
            format=image_format,
            count=count,
        )

    @property
    def takes_bytes(self) -> bool:
        """Whether images are put somewhere else than where the service puts them."""
        return self.file is not None or self.to_stdout

    def put(self, made: Made, first: int) -> None:
        """Put the images of one prompt where they belong, and tell of them.

        Args:
            made: what was generated.
            first: how many images there were before it.

        Raises:
            OSError: a file cannot be written.
        """
        for warning in made.warnings:
            print(f"mflux-api: warning: {name_options(warning)}", file=sys.stderr)
        paths = [self._put(image, first + index) for index, image in enumerate(made.images)]
        if self.json:
            print(json.dumps(_as_json(made, paths)), flush=True)
        elif not self.to_stdout:
            for path in paths:
                print_path(path)
        if not self.quiet and not self.json:
            print(_summary(made), file=sys.stderr)
        if self.open:
            _open(paths)

    def _put(self, image: MadeImage, number: int) -> str:
        if image.data is None:
            return image.path
        if self.file is None:
            sys.stdout.flush()
            sys.stdout.buffer.write(image.data)
            sys.stdout.buffer.flush()
            return STDOUT
        file = self.file
        path = file if self.count == 1 else file.with_name(f"{file.stem}-{number}{file.suffix}")
        write_whole(path, image.data)
        return str(path)


def _check_stdout(options: argparse.Namespace, count: int) -> None:
    if count > 1:
        raise ConfigError(f"--output -: standard output takes one image, and {count} are asked for; name a file")
    if options.json or options.open:
        raise ConfigError("--output -: standard output is the image's; leave out --json and --open")
    if sys.stdout.isatty():
        raise ConfigError("--output -: standard output is a terminal; send it to a program or a file")


def _check_file(file: Path, typed: str) -> ImageFormat:
    """Return the format that a file's name says.

    Raises:
        ConfigError: it cannot be written, or is no image.
    """
    if file.is_dir() or typed.endswith("/"):
        raise ConfigError(f"--output: {typed} is a folder; name a file in it, or use --output-dir")
    found = _FORMATS.get(file.suffix.lower())
    if found is None:
        raise ConfigError(f"--output: {typed} does not say which format; expected {', '.join(_FORMATS)} at its end")
    why = "it is not there" if not file.parent.is_dir() else why_not_writable(file.parent)
    if why:
        raise ConfigError(f"--output: the folder of {typed} cannot be written ({why})")
    return found


def _summary(made: Made) -> str:
    seeds = [str(image.seed) for image in made.images]
    return f"seed{'s' if len(seeds) > 1 else ''} {', '.join(seeds)}, {made.seconds:.1f} s"


def _as_json(made: Made, paths: Sequence[str]) -> dict[str, object]:
    return {
        "id": made.job_id,
        "prompt": made.prompt,
        "model": made.model,
        "seconds": round(made.seconds, 3),
        "images": [{"path": path, "seed": image.seed} for path, image in zip(paths, made.images, strict=True)],
        "warnings": [name_options(warning) for warning in made.warnings],
    }


def _open(paths: Sequence[str]) -> None:
    program = "open" if sys.platform == "darwin" else "xdg-open"
    for path in paths:
        try:
            # In a session of its own: it outlives this command, and Ctrl-C does not reach it.
            subprocess.Popen(
                [program, path],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
        except OSError:
            with suppress(OSError):
                print(f"mflux-api: {program} cannot be started, so no image is shown", file=sys.stderr)
            return
