"""Which of MLX's builds are installed here, and whether this machine could do better: they share one place on disk.

Only their names are looked at, and the driver's files: nothing is imported, and no GPU is touched.
"""

from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Final

CPU: Final = "mlx-cpu"
GPU: Final = ("mlx-cuda-13", "mlx-cuda-12")
DRIVER: Final = (Path("/proc/driver/nvidia/version"), Path("/dev/nvidia0"))
"""What there is where an NVIDIA driver runs, in a container that has its GPU too."""


def installed() -> tuple[str, ...]:
    """Return which builds for Linux are installed; on a Mac there is one, and it is none of them."""
    return tuple(name for name in (CPU, *GPU) if _is_installed(name))


def advise(builds: Sequence[str], *, on_gpu: bool, may_use_gpu: bool, driver: Sequence[Path] = DRIVER) -> str:
    """Return what is wrong with the builds that are installed, and what to do; nothing where all is well.

    Args:
        builds: those that are installed.
        on_gpu: whether MLX computes on a GPU.
        may_use_gpu: whether it was not told to use the CPU.
        driver: files that say that there is a GPU.
    """
    if len(builds) > 1:
        return (
            f"{' and '.join(builds)} are both installed, and the last one wrote over the other: remove both and "
            "install one of them (docs/install.md)"
        )
    if may_use_gpu and not on_gpu and CPU in builds and any(path.exists() for path in driver):
        return (
            "there is an NVIDIA GPU, and MLX's CPU build is installed: install the group cuda13 in its place, and set "
            "UV_NO_GROUP=cpu (docs/install.md)"
        )
    return ""


def _is_installed(name: str) -> bool:
    try:
        distribution(name)
    except PackageNotFoundError:
        return False
    return True
