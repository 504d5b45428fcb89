"""Checkpoints for the model-side tests; the fast BLAS must be in place before anything imports MLX.

Model code is imported inside the fixtures: other tests of this folder need none of it, and it costs seconds.
"""

import os
import sys

# MLX's CPU compiler would call the system's C++ compiler: 20 s for the first graph.
os.environ["MLX_DISABLE_COMPILE"] = "1"

from mflux_api.engine import blas

blas.preload()

from pathlib import Path  # noqa: E402
from typing import TYPE_CHECKING  # noqa: E402

import pytest  # noqa: E402

if TYPE_CHECKING:
    from mflux_api.engine.device import Device
    from mflux_api.engine.sampling.pipeline import Pipeline
    from mflux_api.engine.weights.components import Components


@pytest.fixture(autouse=True)
def _numbers_are_those_of_a_cpu() -> None:
    """Also where a test computes with MLX and asks for no model: a GPU rounds its products otherwise."""
    mx = sys.modules.get("mlx.core")
    if mx is not None:
        mx.set_default_device(mx.cpu)


@pytest.fixture(scope="session")
def device() -> "Device":
    """The device, with mflux's precision set for it."""
    from mflux_api.engine import device as memory

    return memory.select(memory.devices_to_use("auto"))


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of the smallest shape, float32; tests must not change it."""
    from mflux_api.engine.demo.random_checkpoint import write_random_checkpoint
    from tests.support.checkpoint_shapes import TINY

    return write_random_checkpoint(tmp_path_factory.mktemp("tiny") / "model", TINY, dtype="float32")


@pytest.fixture(scope="session")
def tiny(tiny_folder: Path, device: "Device") -> "Components":
    """The tiny checkpoint, loaded."""
    from mflux_api.engine.weights.components import load_components

    return load_components(tiny_folder)


@pytest.fixture
def pipeline(tiny: "Components", device: "Device") -> "Pipeline":
    """A pipeline of its own, so that its prompt cache is empty."""
    from mflux_api.engine.sampling.pipeline import Pipeline

    return Pipeline(tiny, device)


@pytest.fixture(scope="session")
def stock_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of the only layout that stock mflux loads: full VAE, 28 text layers, 512 tokens."""
    from mflux_api.engine.demo.random_checkpoint import write_random_checkpoint
    from tests.support.checkpoint_shapes import STOCK

    return write_random_checkpoint(tmp_path_factory.mktemp("stock") / "model", STOCK, dtype="float32")
