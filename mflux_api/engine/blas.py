"""Choosing a fast BLAS library for MLX's CPU backend, which another package brings, before MLX is imported.

The Linux CPU wheel of MLX carries the reference BLAS (a few GFLOP/s). The dynamic linker resolves a symbol to the
first library of the global namespace that defines it, so loading an OpenBLAS there first gives MLX's float32 matrix
products that library instead. Nothing here imports MLX or mflux.
"""

import ctypes
import functools
import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path

import attrs

_SYSTEM_NAMES = ("libopenblas.so.0", "libopenblas.so")
_BUNDLED_FOLDERS = ("opencv_python.libs", "opencv_python_headless.libs")
# OpenBLAS needs libgfortran, and that needs libquadmath: wheels rename them, so each must be loaded before its user.
_BUNDLED_ORDER = ("libquadmath", "libgfortran", "libopenblas")


@attrs.frozen
class Blas:
    """The BLAS that MLX's CPU backend uses in this process."""

    name: str
    """For people, e.g. ``OpenBLAS 0.3.29``."""
    source: str
    """``system``, ``opencv-python``, ``mlx-cpu reference`` or ``accelerate``."""
    fast: bool
    """False for the reference BLAS, which is about 40 times slower in float32 matrix products."""


@functools.cache
def preload() -> Blas:
    """Load the fastest BLAS found into the global namespace and say which one it is; later calls return the same.

    The number of threads stays OpenBLAS's own choice (one per core that the process may run on).

    Raises:
        RuntimeError: ``mlx.core`` is already imported, so its symbols are already bound.
    """
    if sys.platform == "darwin":
        return Blas(name="Accelerate", source="accelerate", fast=True)
    if "mlx.core" in sys.modules:
        raise RuntimeError("preload() must be called before mlx.core is imported: MLX has already bound its BLAS.")
    for source, load in (("system", _load_system), ("opencv-python", _load_bundled)):
        loaded = load()
        if loaded is not None:
            return Blas(name=_openblas_name(loaded), source=source, fast=True)
    return Blas(name="reference BLAS", source="mlx-cpu reference", fast=False)


def _load_system() -> ctypes.CDLL | None:
    for name in _SYSTEM_NAMES:
        library = _load(name)
        if library is not None:
            return library
    # `ctypes.util.find_library` would find no other, and starts gcc and ld to say so.
    return None


def _load_bundled() -> ctypes.CDLL | None:
    for folder in _bundled_folders():
        # Files are matched by prefix, because a wheel puts a hash into each library's name.
        groups = [sorted(folder.glob(f"{prefix}*.so*")) for prefix in _BUNDLED_ORDER]
        if not groups[-1]:
            continue
        libraries = [_load(str(path)) for group in groups for path in group]
        if libraries[-1] is not None:
            return libraries[-1]
    return None


def _bundled_folders() -> Iterator[Path]:
    spec = importlib.util.find_spec("cv2")
    if spec is None or not spec.submodule_search_locations:
        return
    for location in spec.submodule_search_locations:
        for name in _BUNDLED_FOLDERS:
            folder = Path(location).parent / name
            if folder.is_dir():
                yield folder


def _load(name: str) -> ctypes.CDLL | None:
    try:
        return ctypes.CDLL(name, mode=ctypes.RTLD_GLOBAL)
    except OSError:
        return None


def _openblas_name(library: ctypes.CDLL) -> str:
    try:
        get_config = library.openblas_get_config
    except AttributeError:
        return "OpenBLAS"
    get_config.restype = ctypes.c_char_p
    config = get_config()
    words = config.decode("ascii", "replace").split() if config else []
    return " ".join(words[:2]) if words[:1] == ["OpenBLAS"] else "OpenBLAS"
