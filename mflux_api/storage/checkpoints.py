"""Checkpoints on disk: where a model's folder is, whether it is there, and what identifies it."""

import hashlib
import logging
from pathlib import Path

import attrs

from mflux_api.catalog import Model
from mflux_api.storage.footprint import Footprint, measure

logger = logging.getLogger(__name__)

SHORT_HASH_DIGITS = 10
MARKER = "model_index.json"
"""The file that every diffusers-layout checkpoint has at its top."""
SAVED_MARKER = "transformer/model.safetensors.index.json"
"""A file of every checkpoint that mflux saved; those have no ``model_index.json``."""

EMBEDDED = Path(__file__).parents[1] / "engine" / "demo" / "weights"
"""The checkpoint that comes with the package, shared by ``demo`` and ``demo-base``."""


@attrs.frozen(kw_only=True)
class CheckpointState:
    """What is known of a model without loading it."""

    downloaded: bool
    path: Path | None
    """The folder, when it is on disk."""
    sha256: str | None
    """Digest of the sorted file manifest (name and size of every file); ``None`` when not on disk."""

    @property
    def short_hash(self) -> str | None:
        """The first digits of the digest, as SD-WebUI shows it."""
        return None if self.sha256 is None else self.sha256[:SHORT_HASH_DIGITS]


@attrs.frozen
class Checkpoints:
    """The folders of one service's models."""

    cache_dir: Path

    def folder(self, model: Model) -> Path | None:
        """Return where the model's checkpoint is; ``None`` if nowhere."""
        if model.path is not None:
            return Path(model.path)
        return EMBEDDED if model.embedded else None

    def quantized_folder(self, model: Model) -> Path | None:
        """Return where the weights that this service quantizes itself are kept; ``None`` for other models."""
        return self.cache_dir / "quantized" / model.alias if model.quantization == "runtime" else None

    def footprint(self, model: Model, float_bytes: int) -> Footprint | None:
        """Return the memory that a model will take, ``None`` when that cannot be told; looks at the disk."""
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
            if folder is not None and any((folder / marker).is_file() for marker in (MARKER, SAVED_MARKER)):
                return CheckpointState(downloaded=True, path=folder, sha256=_manifest_digest(folder))
        except (OSError, ValueError) as error:
            # A path that is too long, forbidden or holds a NUL: for the service there is nothing there.
            logger.debug("the checkpoint of %s cannot be looked at: %s", model.alias, type(error).__name__)
        return CheckpointState(downloaded=False, path=None, sha256=None)

    def short_hash(self, model: Model | None) -> str | None:
        """Return the short digest of a model, ``None`` for none; looks at the disk like :meth:`state`."""
        return None if model is None else self.state(model).short_hash


def _manifest_digest(folder: Path) -> str:
    files = sorted(path for path in folder.rglob("*") if path.is_file() and not path.name.startswith("."))
    manifest = "".join(f"{path.relative_to(folder).as_posix()}\0{path.stat().st_size}\n" for path in files)
    return hashlib.sha256(manifest.encode()).hexdigest()
