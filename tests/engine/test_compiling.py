"""Functions whose weights are inputs: right after a change of weights, and nothing is kept of them."""

import gc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attrs
import mlx.core as mx
import numpy as np
import pytest
from mlx import nn

from mflux_api.engine.device import Device
from mflux_api.engine.kernels.compiling import CompiledFunction
from mflux_api.engine.kernels.fused_transformer import FusedTransformer
from mflux_api.engine.sampling.pipeline import Pipeline
from mflux_api.engine.weights.components import Components, load_components
from mflux_api.engine.weights.parameters import named_arrays
from tests.support.pipeline_runs import REQUEST, generate

SIDE = 256
WEIGHTS_BYTES = SIDE * SIDE * 4


@pytest.fixture
def compiling() -> Iterator[None]:
    """Let MLX compile, which needs no C++ compiler for functions whose operations it cannot fuse."""
    mx.enable_compile()
    yield
    mx.disable_compile()


class Halves(nn.Module):
    """A product, then an operation with two outputs."""

    def __init__(self, seed: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        mx.random.seed(seed)
        self.layers = [nn.Linear(SIDE, SIDE, bias=False)]
        mx.eval(self.layers[0].weight)

    def __call__(self, x: mx.array) -> mx.array:
        left, right = mx.split(self.layers[0](x), 2, axis=-1)
        return mx.concatenate([right, left], axis=-1)


def active_bytes() -> int:
    gc.collect()
    mx.clear_cache()
    return mx.get_active_memory()


def ones() -> mx.array:
    return mx.ones((2, SIDE))


@pytest.mark.usefixtures("compiling")
def test_weights_are_freed_with_their_module() -> None:
    before = active_bytes()
    modules = [Halves(0)]
    function = CompiledFunction(lambda x: modules[0](x), lambda: modules)
    for _ in range(2):
        mx.eval(function(ones()))
    assert active_bytes() - before >= WEIGHTS_BYTES
    modules.clear()
    assert active_bytes() - before < WEIGHTS_BYTES // 4, "while the function is there"
    del function
    assert active_bytes() - before < WEIGHTS_BYTES // 4


@pytest.mark.usefixtures("compiling")
def test_mlx_still_keeps_what_a_compiled_function_captures() -> None:
    """When this fails MLX frees it, and weights may be captured again."""
    before = active_bytes()
    modules = [Halves(0)]
    function = mx.compile(lambda x: modules[0](x))
    mx.eval(function(ones()))
    del function
    modules.clear()
    assert active_bytes() - before >= WEIGHTS_BYTES


@pytest.mark.usefixtures("compiling")
def test_other_weights_count_at_the_next_call_without_another_trace() -> None:
    modules, traces = [Halves(0)], []

    def call(x: mx.array) -> mx.array:
        traces.append(x.shape)
        return modules[0](x)

    function = CompiledFunction(call, lambda: modules)
    for seed in range(3):
        modules[:] = [Halves(seed)]
        assert mx.array_equal(function(ones()), modules[0](ones())).item()
    assert len(traces) == 1
    modules[0].layers[0].weight = 2 * modules[0].layers[0].weight
    assert mx.array_equal(function(ones()), modules[0](ones())).item()


@pytest.mark.usefixtures("compiling")
def test_trace_that_is_broken_off_is_told_and_keeps_nothing() -> None:
    told: list[str] = []

    def fail(x: mx.array) -> mx.array:
        raise KeyboardInterrupt

    function = CompiledFunction(fail, lambda: [Halves(0)], lambda: told.append("spoiled"))
    before = active_bytes()
    with pytest.raises(KeyboardInterrupt):
        function(ones())
    assert told == ["spoiled"]
    assert active_bytes() - before < WEIGHTS_BYTES // 4


@pytest.mark.parametrize("fast_path", [True, False])
def test_every_weight_of_a_transformer_is_an_input(
    tiny: Components, monkeypatch: pytest.MonkeyPatch, fast_path: bool
) -> None:
    given: list[set[int]] = []

    def compiled(function: Any, inputs: list[Any]) -> Any:
        def call(*arguments: Any) -> Any:
            module, *joint = inputs
            arrays = [*named_arrays(module), *(pair for layer in joint for pair in named_arrays(layer))]
            given.append({id(array) for _, array in arrays})
            assert len(joint) == fast_path * 2 * len(module.transformer_blocks)
            return function(*arguments)

        return call

    monkeypatch.setattr(mx, "compile", compiled)
    pipeline = Pipeline(tiny, Device(kind="metal", name="computed on a CPU", fast_path=fast_path))
    generate(pipeline, REQUEST)
    assert given
    assert all({id(array) for _, array in named_arrays(tiny.transformer)} <= each for each in given)


@pytest.mark.parametrize("low_ram", [False, True])
def test_transformer_is_read_again_after_a_step_that_could_not_be_put_together(
    tiny_folder: Path, device: Device, monkeypatch: pytest.MonkeyPatch, low_ram: bool
) -> None:
    components = load_components(tiny_folder)
    pipeline = Pipeline(components, Device(kind="metal", name="computed on a CPU", fast_path=True))
    request = attrs.evolve(REQUEST, low_ram=low_ram)
    (before,) = generate(pipeline, request)

    def fail(*_: object) -> None:
        raise RuntimeError("no such operation")

    with monkeypatch.context() as broken:
        broken.setattr(FusedTransformer, "_operations", fail)
        with pytest.raises(RuntimeError, match="no such operation"):
            generate(pipeline, request)
    assert "transformer" not in components.resident
    assert np.array_equal(generate(pipeline, request)[0], before)
