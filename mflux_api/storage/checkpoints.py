"""Checkpoints on disk: where a model's folder is, its state and hash, what may be deleted and how."""

import hashlib
import logging
import shutil
from collections.abc import Sequence
from fnmatch import fnmatch
from pathlib import Path

import attrs

from mflux_api.catalog import Catalog, Model
from mflux_api.catalog.files import MODEL_INDEX, SAVED_INDEX, UPSCALER_FILES
from mflux_api.errors import ModelNotDeletable, ModelNotDownloaded
from mflux_api.hub.cache import HubCache
from mflux_api.hub.snapshots import whole_snapshot
from mflux_api.storage.footprint import Footprint, measure

logger = logging.getLogger(__name__)

_SHORT_HASH_DIGITS = 10
_MARKERS = (MODEL_INDEX, f"transformer/{SAVED_INDEX}", UPSCALER_FILES["transformer"])
"""A file of diffusers' layout, of mflux's saved layout, which has no model index, and of SeedVR2."""

EMBEDDED = Path(__file__).parents[1] / "engine" / "demo" / "weights"
"""The checkpoint that comes with the package, shared by ``demo`` and ``demo-base``."""


@attrs.frozen(kw_only=True)
class CheckpointState:
    """A model's files on disk."""

    downloaded: bool
    path: Path | None
    """The folder, when it is on disk."""
    sha256: str | None
    """Digest of the sorted file manifest (name and size of every file); ``None`` when not on disk."""
    commit: str | None = None
    """The repository's commit; ``None`` for what was not downloaded."""

    @property
    def short_hash(self) -> str | None:
        """The first digits of the digest, as SD-WebUI shows it."""
        return None if self.sha256 is None else self.sha256[:_SHORT_HASH_DIGITS]


@attrs.frozen
class Checkpoints:
    """The folders of one service's models."""

    cache_dir: Path

    @property
    def hub(self) -> HubCache:
        """The repositories that were downloaded."""
        return HubCache(self.cache_dir)

    def free_bytes(self) -> int | None:
        """Return what is left of the disk that models are downloaded to; ``None`` where that cannot be told."""
        nearest = next(
            path for path in (self.cache_dir.absolute(), *self.cache_dir.absolute().parents) if path.exists()
        )
        try:
            return shutil.disk_usage(nearest).free
        except OSError:
            return None

    def folder(self, model: Model) -> Path | None:
        """Return the folder of the model's checkpoint; ``None`` if it is not on disk.

        Every file of a downloaded model is checked, whichever program downloaded it: an incomplete folder does not
        count.
        """
        if model.path is not None:
            return Path(model.path)
        if model.embedded:
            return EMBEDDED
        if not model.remote:
            return None
        found = self.hub.snapshot(model.repo, model.revision)
        # Without a mark of ours another program may have downloaded it; the hub need not be asked.
        return whole_snapshot(self.hub, model.repo, model.revision, model.files) if found is None else found[0]

    def quantized_folder(self, model: Model) -> Path | None:
        """Return where the weights that this service quantizes itself are kept; ``None`` for other models."""
        return self.cache_dir / "quantized" / model.alias if model.quantization == "runtime" else None

    def check_deletable(self, model: Model) -> None:
        """Check that a model's files may be removed.

        Raises:
            ModelNotDeletable: this service did not put the files there.
            ModelNotDownloaded: the model has no files.
        """
        details = {"model": model.alias}
        quantized = self.quantized_folder(model)
        if quantized is not None:
            if quantized.is_dir():
                return
            raise ModelNotDeletable(
                f"Model '{model.alias}' has no files of its own: it is quantized from '{model.base}'", details
            )
        if not model.remote:
            whose = "comes with the package" if model.embedded else "is a folder of yours"
            raise ModelNotDeletable(f"Model '{model.alias}' {whose}: this service did not put it there", details)
        if not self.hub.repository(model.repo).is_dir():
            raise ModelNotDownloaded(f"Model '{model.alias}' is not on disk: there is nothing to delete", details)
        if not self.hub.is_ours(model.repo):
            raise ModelNotDeletable(
                f"Model '{model.alias}' was in models.cache_dir before this service: remove it by hand", details
            )

    def sharing_files(self, model: Model, catalog: Catalog) -> tuple[Model, ...]:
        """Return every model that loses its files when the files of this one are removed."""
        if model.quantization == "runtime":
            return (model,)
        return tuple(each for each in catalog if each.remote and each.repo == model.repo)

    def delete(self, model: Model) -> None:
        """Remove a model's files: its own quantized ones, or the whole repository in all its revisions.

        Raises:
            OSError: they cannot be removed.
        """
        quantized = self.quantized_folder(model)
        if quantized is None:
            self.hub.remove(model.repo)
        elif quantized.is_dir():
            self.hub.remove_folder(quantized)

    def empty_trash(self) -> None:
        """Remove what a killed process had begun to delete."""
        self.hub.empty_trash()

    def footprint(self, model: Model, float_bytes: int) -> Footprint | None:
        """Return the memory that a model will take, ``None`` when it is unknown; looks at the disk."""
        kept = self.quantized_folder(model)
        measured = None if kept is None else measure(kept, float_bytes=float_bytes)
        folder = self.folder(model)
        if measured is None and folder is not None:
            measured = measure(folder, float_bytes=float_bytes, bits=model.bits if kept is not None else None)
        return measured

    def state(self, model: Model) -> CheckpointState:
        """Look at the disk; takes a file listing, so call it in a thread."""
        folder = self.folder(model)
        try:
            # A download has its own mark of completeness, and not every one has these files.
            if folder is not None and (model.remote or any((folder / marker).is_file() for marker in _MARKERS)):
                commit = folder.name if model.remote else None
                # Another program may have downloaded more of the repository than the model needs.
                patterns = model.files if model.remote else ("*",)
                return CheckpointState(
                    downloaded=True, path=folder, sha256=_manifest_digest(folder, patterns), commit=commit
                )
        except (OSError, ValueError) as error:
            # A path that is too long, forbidden or holds a NUL: the service cannot use what is there.
            logger.debug("the checkpoint of %s cannot be looked at: %s", model.alias, type(error).__name__)
        return CheckpointState(downloaded=False, path=None, sha256=None)

    def short_hash(self, model: Model | None) -> str | None:
        """Return the short digest of a model, ``None`` for none; looks at the disk like :meth:`state`."""
        return None if model is None else self.state(model).short_hash


def _manifest_digest(folder: Path, patterns: Sequence[str]) -> str:
    files = sorted(path for path in folder.rglob("*") if path.is_file() and not path.name.startswith("."))
    names = {path.relative_to(folder).as_posix(): path.stat().st_size for path in files}
    counted = {name: size for name, size in names.items() if any(fnmatch(name, pattern) for pattern in patterns)}
    manifest = "".join(f"{name}\0{size}\n" for name, size in counted.items())
    return hashlib.sha256(manifest.encode()).hexdigest()
