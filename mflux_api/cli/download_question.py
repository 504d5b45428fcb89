"""Before ``generate`` downloads a model: what, how much, from where; on a terminal it asks."""

import sys
from contextlib import suppress
from pathlib import Path

from mflux_api.catalog import Model
from mflux_api.catalog.lookup import not_downloaded
from mflux_api.config import Settings
from mflux_api.storage.checkpoints import Checkpoints


def may_download(model: Model, settings: Settings, *, named: bool, yes: bool) -> bool:
    """Say what has to be downloaded before anything can be generated, and ask where a person can answer.

    Where none can (a script, a pipe) it goes on: ``models.auto_download`` allows it.

    Args:
        model: what to generate with.
        settings: where models lie, and whether they may be downloaded.
        named: whether the model was named, and is not the configured default.
        yes: the answer was given already.

    Raises:
        ModelNotDownloaded: it is not on disk, and ``models.auto_download`` is off.
    """
    checkpoints = Checkpoints(settings.models.cache_dir)
    if not model.remote or checkpoints.folder(model) is not None:
        return True
    if not settings.models.auto_download:
        raise not_downloaded(model)
    size = _size(model, settings)
    which = model.alias if named else f"{model.alias}, the default (models.default),"
    arrived = _arrived(checkpoints.hub.repository(model.repo))
    here = f" ({arrived / 1e9:.2f} GB of it are here)" if arrived else ""
    # No upscaler comes with the package.
    other = "" if model.upscales else "; --model demo needs no download"
    _say(
        f"{which} is not on disk: {size}{here} will be downloaded from {model.repo} ({model.licence}) "
        f"into models.cache_dir{other}"
    )
    if yes or not (sys.stdin is not None and sys.stdin.isatty() and sys.stderr.isatty()):
        return True
    sys.stderr.write(f"Download {size}? [y/N] ")
    sys.stderr.flush()
    agreed = sys.stdin.readline().strip().lower() in ("y", "yes")
    if not agreed:
        _say("mflux-api: nothing was downloaded; --yes skips the question")
    return agreed


def _say(line: str) -> None:
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()


def _size(model: Model, settings: Settings) -> str:
    """What the repository's files take; weights that are quantized here are made of all of it."""
    sizes = (each.size_gb for each in settings.catalog() if each.repo == model.repo and each.quantization != "runtime")
    known = next((size for size in sizes if size is not None), None)
    return "a model of a size that is not known here" if known is None else f"{known:.2f} GB"


def _arrived(repository: Path) -> int:
    """Bytes that an earlier try left."""
    with suppress(OSError):
        # Where links cannot be made the files themselves lie in the snapshots.
        files = (path for folder in ("blobs", "snapshots") for path in (repository / folder).rglob("*"))
        return sum(path.lstat().st_size for path in files if path.is_file() and not path.is_symlink())
    return 0
