"""What is given up is free: after a run with little memory, and after a model left."""

from collections.abc import Iterator
from pathlib import Path

import attrs
import mlx.core as mx
import pytest

from mflux_api.engine.demo.layout import CheckpointShape
from mflux_api.engine.demo.random_checkpoint import write_random_checkpoint
from mflux_api.engine.device import release, select
from mflux_api.engine.kernels import cuda_operations
from mflux_api.engine.sampling.pipeline import Pipeline
from mflux_api.engine.weights.components import load_components
from mflux_api.engine.weights.parameters import weights_bytes
from tests.support.pipeline_runs import REQUEST, generate

SHAPE = CheckpointShape(
    double_blocks=1, single_blocks=2, heads=4, head_dim=128, axes_dims_rope=(32, 32, 32, 32), text_width=64
)
"""Of a transformer that CUDA's kernels take."""


@pytest.fixture(autouse=True)
def _gpu() -> Iterator[None]:
    select("gpu")
    yield
    release()


def active_bytes() -> int:
    release()
    return mx.get_active_memory()


@pytest.mark.parametrize("fast_path", [True, False])
def test_transformer_is_freed_after_each_run_and_with_its_model(tmp_path: Path, fast_path: bool) -> None:
    device = select("gpu", fast_path=fast_path)
    pipeline = Pipeline(load_components(write_random_checkpoint(tmp_path / "model", SHAPE)), device)
    transformer = pipeline.components.transformer
    assert cuda_operations.fits(SHAPE.heads, SHAPE.head_dim, transformer.inner_dim, int(SHAPE.width * SHAPE.mlp_ratio))
    weights = weights_bytes(transformer)
    del transformer
    low_ram = attrs.evolve(REQUEST, low_ram=True)
    generate(pipeline, low_ram)
    # With what is kept for the next run: an embedding, and the device's own workspaces.
    before = active_bytes()
    for _ in range(3):
        generate(pipeline, low_ram)
        assert not pipeline.components.resident
        assert active_bytes() < before + weights // 4
    pipeline.components.load_all()
    generate(pipeline, REQUEST)
    assert active_bytes() > before + weights
    del pipeline
    assert active_bytes() < before + weights // 4
