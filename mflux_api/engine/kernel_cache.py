"""What CUDA's kernels were compiled to, kept from one engine child to the next: the second start compiles nothing.

MLX keeps it too, in a folder for temporary files, where a reboot takes it away. It writes in place, and takes what it
finds there for whole; a child can be killed at any moment. So each child has a folder of its own, into which it copies
what the others left, and out of which it publishes what is whole.
"""

import os
import re
import shutil
import time
from pathlib import Path
from typing import Final

import psutil

from mflux_api.system.durable import make_folder, write_whole

VARIABLE: Final = "MLX_PTX_CACHE_DIR"
"""MLX's own variable for the folder; where the user has set it, nothing is kept here."""
_CODE, _NAMES = ".ptx", ".txt"
_OWN: Final = "of-process-"
_ABANDONED_SECONDS: Final = 3600.0


class KernelCache:
    """The kernels of one version of MLX on one kind of device."""

    def __init__(self, root: Path, mlx_version: str, device_name: str) -> None:
        """Name the folders; nothing is made yet.

        Args:
            root: the folder of all versions and devices.
            mlx_version: MLX's.
            device_name: as its maker writes it; the code is for one kind of device alone.
        """
        slug = re.sub(r"[^a-z0-9]+", "-", device_name.lower()).strip("-")
        self.folder = root / f"mlx-{mlx_version}-{slug}"
        self.own = self.folder / f"{_OWN}{os.getpid()}"

    def open(self) -> None:
        """Have MLX find what is there; call it before the first kernel is compiled.

        Raises:
            OSError: the folder cannot be written.
        """
        if VARIABLE in os.environ:
            return
        make_folder(self.folder)
        self._tidy()
        shutil.rmtree(self.own, ignore_errors=True)
        self.own.mkdir()
        for code in self.folder.glob(f"*{_CODE}"):
            names = code.with_suffix(_NAMES)
            if names.is_file():
                for file in (code, names):
                    shutil.copyfile(file, self.own / file.name)
        os.environ[VARIABLE] = str(self.own)

    def publish(self) -> None:
        """Keep what was compiled since; call it when no kernel is being compiled.

        Raises:
            OSError: the folder cannot be written.
        """
        for code in self.own.glob(f"*{_CODE}"):
            kept, names = self.folder / code.name, code.with_suffix(_NAMES)
            if not kept.exists() and names.is_file():
                # The one that is looked for comes last.
                write_whole(self.folder / names.name, names.read_bytes())
                write_whole(kept, code.read_bytes())

    def _tidy(self) -> None:
        """Remove the folders of children that are gone."""
        for other in self.folder.glob(f"{_OWN}*"):
            process = other.name.removeprefix(_OWN)
            if process.isdigit() and not psutil.pid_exists(int(process)) and _age(other) > _ABANDONED_SECONDS:
                shutil.rmtree(other, ignore_errors=True)


def _age(path: Path) -> float:
    """Return the seconds since something was last made in a folder: in a container others' processes are not seen."""
    try:
        return time.time() - path.stat().st_mtime
    except FileNotFoundError:
        return 0.0
