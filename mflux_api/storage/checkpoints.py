"""Checkpoints on disk: where a model's folder is, whether it is there, and what identifies it."""

import hashlib
import logging
from pathlib import Path

import attrs

from mflux_api.catalog import Model

logger = logging.getLogger(__name__)

SHORT_HASH_DIGITS = 10
MARKER = "model_index.json"
"""The file that every diffusers-layout checkpoint has at its top."""

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

    def state(self, model: Model) -> CheckpointState:
        """Look at the disk; takes a file listing, so call it in a thread."""
        folder = self.folder(model)
        try:
            if folder is not None and (folder / MARKER).is_file():
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
