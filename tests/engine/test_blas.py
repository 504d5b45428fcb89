"""The BLAS is chosen without importing MLX, and MLX then uses it."""

import subprocess
import sys

import pytest

_CHECK = """
import sys
from mflux_api.engine import blas
chosen = blas.preload()
assert blas.preload() is chosen
assert not {"mlx", "mlx.core", "mflux", "cv2"} & set(sys.modules), sorted(sys.modules)
import mlx.core as mx
mapped = open("/proc/self/maps").read()
print(chosen.source, chosen.fast, "openblas" in mapped, chosen.name)
"""

_TOO_LATE = """
import mlx.core
from mflux_api.engine import blas
blas.preload()
"""

linux = pytest.mark.skipif(sys.platform != "linux", reason="macOS has Accelerate and loads nothing")


@linux
def test_preload_finds_a_library_and_imports_no_model_code() -> None:
    done = subprocess.run([sys.executable, "-P", "-c", _CHECK], capture_output=True, text=True, check=True)
    source, fast, mapped, name = done.stdout.split(maxsplit=3)
    assert source in {"system", "opencv-python"}
    assert (fast, mapped) == ("True", "True")
    assert name.startswith("OpenBLAS")


@linux
def test_preload_after_mlx_is_an_error_because_it_would_have_no_effect() -> None:
    done = subprocess.run([sys.executable, "-P", "-c", _TOO_LATE], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "must be called before mlx.core is imported" in done.stderr


@linux
def test_without_any_library_the_reference_blas_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    from mflux_api.engine import blas

    monkeypatch.setattr(blas, "_load_system", lambda: None)
    monkeypatch.setattr(blas, "_load_bundled", lambda: None)
    monkeypatch.delitem(sys.modules, "mlx.core", raising=False)
    assert blas.preload.__wrapped__() == blas.Blas("reference BLAS", "mlx-cpu reference", fast=False)
