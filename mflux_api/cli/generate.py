"""Files that ``mflux-api generate`` is given: whoever types the command may name any, wherever it lies."""

import base64
from collections.abc import Sequence
from pathlib import Path

import attrs

from mflux_api.config import Settings
from mflux_api.errors import InvalidParameter
from mflux_api.storage.loras import SUFFIX


def init_images(paths: Sequence[Path]) -> tuple[str, ...]:
    """Read images as a request carries them.

    Raises:
        InvalidParameter: one cannot be read.
    """
    return tuple(base64.b64encode(_content(path)).decode() for path in paths)


def _content(path: Path) -> bytes:
    try:
        return path.expanduser().read_bytes()
    except OSError as error:
        raise InvalidParameter(
            f"The init image {path} cannot be read: {error.strerror}",
            {"field": "init_images", "value": None, "limit": "a file"},
        ) from None


@attrs.frozen
class NamedLoras:
    """LoRAs as a request names them, and the settings under which it may."""

    settings: Settings
    files: tuple[str, ...]
    scales: tuple[float, ...]


def loras(values: Sequence[str], settings: Settings) -> NamedLoras:
    """Read ``NAME``, ``FILE``, ``NAME:SCALE`` or ``FILE:SCALE``; a file's own folder counts as one of ``lora.dirs``."""
    files: list[str] = []
    scales: list[float] = []
    for value in values:
        name, scale = _split(value)
        path = Path(name).expanduser().absolute()
        if path.suffix == SUFFIX and path.is_file():
            dirs = tuple(dict.fromkeys((*settings.lora.dirs, path.parent)))
            settings = attrs.evolve(settings, lora=attrs.evolve(settings.lora, dirs=dirs))
            name = str(path)
        files.append(name)
        scales.append(scale)
    return NamedLoras(settings, tuple(files), tuple(scales))


def _split(value: str) -> tuple[str, float]:
    name, _, scale = value.rpartition(":")
    try:
        return (name, float(scale)) if name else (value, 1.0)
    except ValueError:
        return value, 1.0
