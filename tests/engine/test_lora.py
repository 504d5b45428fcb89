"""Adapters: every naming that mflux knows, on plain and quantized bases, and removed without a trace."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import mlx.core as mx
import numpy as np
import pytest
from mflux.models.flux2.variants import Flux2Klein
from mlx import nn

from mflux_api.catalog.lora_tensors import Rows
from mflux_api.engine.device import Device
from mflux_api.engine.lora.adapter_files import read_adapter
from mflux_api.engine.lora.applying import Lora, LoraError, LoraStack
from mflux_api.engine.lora.factors import Kronecker, LowRank
from mflux_api.engine.sampling.pipeline import Event, NotFiniteError, Pipeline, PipelineRequest, StepEvent, Stopped
from mflux_api.engine.weights.components import Components, load_components
from mflux_api.engine.weights.parameters import named_arrays
from tests.support.adapter_files import factors, peft, save
from tests.support.checkpoint_shapes import STOCK, TINY
from tests.support.pipeline_runs import (
    consume,
    distance,
    generate,
    inpaint_right_half,
    keeps_left_half,
    never,
    rgb_image,
)
from tests.support.stock_mflux import generate_stock, klein_config

pytestmark = pytest.mark.slow

REQUEST = PipelineRequest(prompt="a red cat", seeds=(3,), width=64, height=48, steps=2)
WIDTH = TINY.width


def weights(module: Any) -> list[tuple[str, int]]:
    """Return every parameter's name and the identity of its array."""
    return [(name, id(array)) for name, array in named_arrays(module)]


def delta(components: Components, path: Path, target: str, scale: float = 1.0) -> mx.array:
    """Return what an adapter adds to a layer's output for the unit vectors: its update, transposed."""
    layer = _layer(components.transformer, target)
    unit = mx.eye(_inputs(layer))
    with LoraStack(components.transformer, [Lora(path, scale)]).applied():
        wrapped = _layer(components.transformer, target)
        assert wrapped is not layer
        added: mx.array = wrapped(unit) - layer(unit)
        return added


def _layer(transformer: Any, target: str) -> Any:
    found = transformer
    for part in target.split("."):
        found = found[int(part)] if part.isdigit() else getattr(found, part)
    return found


def _inputs(layer: Any) -> int:
    quantized = isinstance(layer, nn.QuantizedLinear)
    return int(layer.scales.shape[1] * layer.group_size if quantized else layer.weight.shape[1])


def test_same_pixels_as_stock_with_two_loras(stock_folder: Path, device: Device, tmp_path: Path) -> None:
    files = [peft(tmp_path / f"{seed}.safetensors", STOCK, seed) for seed in (1, 2)]
    request = attrs.evolve(REQUEST, loras=(Lora(files[0], 0.7), Lora(files[1], 1.5)))
    stock = Flux2Klein(
        model_path=str(stock_folder),
        model_config=klein_config(),
        lora_paths=[str(file) for file in files],
        lora_scales=[0.7, 1.5],
        bake_lora=False,
    )
    pipeline = Pipeline(load_components(stock_folder), device)
    (ours,) = generate(pipeline, request)
    assert distance(ours, generate_stock(stock, request, device)) == 0
    assert distance(ours, generate(pipeline, attrs.evolve(request, loras=()))[0]) > 10


DOWN, UP = factors(WIDTH, WIDTH, seed=5)
QKV_DOWN, QKV_UP = factors(3 * WIDTH, WIDTH, seed=6)
SINGLE = 3 * WIDTH + 2 * int(WIDTH * TINY.mlp_ratio)
SINGLE_DOWN, SINGLE_UP = factors(SINGLE, WIDTH, seed=7)
ALPHA = mx.array(2.0)

# name, tensors, metadata, the changed layer, its update [outputs, inputs]
NAMINGS: list[tuple[str, dict[str, mx.array], dict[str, str], str, mx.array]] = [
    (
        "diffusers",
        {
            "transformer.transformer_blocks.0.attn.to_q.lora_A.weight": DOWN,
            "transformer.transformer_blocks.0.attn.to_q.lora_B.weight": UP,
        },
        {},
        "transformer_blocks.0.attn.to_q",
        UP @ DOWN,
    ),
    (
        "peft with its own alpha",
        {
            "transformer.transformer_blocks.0.attn.to_k.lora_A.default.weight": DOWN,
            "transformer.transformer_blocks.0.attn.to_k.lora_B.default.weight": UP,
        },
        {"lora_adapter_metadata": json.dumps({"transformer.lora_alpha": 8, "transformer.r": 4})},
        "transformer_blocks.0.attn.to_k",
        2 * UP @ DOWN,
    ),
    (
        "kohya",
        {
            "lora_unet_transformer_blocks_0_attn_to_q.lora_down.weight": DOWN,
            "lora_unet_transformer_blocks_0_attn_to_q.lora_up.weight": UP,
            "lora_unet_transformer_blocks_0_attn_to_q.alpha": ALPHA,
        },
        {},
        "transformer_blocks.0.attn.to_q",
        0.5 * UP @ DOWN,
    ),
    (
        "bfl, fused",
        {
            "diffusion_model.double_blocks.0.img_attn.qkv.lora_A.weight": QKV_DOWN,
            "diffusion_model.double_blocks.0.img_attn.qkv.lora_B.weight": QKV_UP,
        },
        {},
        "transformer_blocks.0.attn.to_k",
        (QKV_UP @ QKV_DOWN)[WIDTH : 2 * WIDTH],
    ),
    (
        "comfyui, bare",
        {
            "diffusion_model.single_blocks.1.linear1.lora_A": SINGLE_DOWN,
            "diffusion_model.single_blocks.1.linear1.lora_B": SINGLE_UP,
        },
        {},
        "single_transformer_blocks.1.attn.to_qkv_mlp_proj",
        SINGLE_UP @ SINGLE_DOWN,
    ),
    (
        "lokr",
        {
            "transformer.transformer_blocks.0.attn.to_v.lokr_w1": DOWN[:, :8],
            "transformer.transformer_blocks.0.attn.to_v.lokr_w2_a": UP[: WIDTH // 4, :2],
            "transformer.transformer_blocks.0.attn.to_v.lokr_w2_b": DOWN[:2, : WIDTH // 8],
            "transformer.transformer_blocks.0.attn.to_v.alpha": mx.array(1.0),
        },
        {},
        "transformer_blocks.0.attn.to_v",
        0.5 * mx.kron(DOWN[:, :8], UP[: WIDTH // 4, :2] @ DOWN[:2, : WIDTH // 8]),
    ),
    (
        "lokr, fused",
        {
            "lycoris_double_blocks_0_img_attn_qkv.lokr_w1": DOWN[:, :8],
            "lycoris_double_blocks_0_img_attn_qkv.lokr_w2": QKV_UP[: 3 * WIDTH // 4, :4] @ DOWN[:, : WIDTH // 8],
        },
        {},
        "transformer_blocks.0.attn.to_v",
        mx.kron(DOWN[:, :8], QKV_UP[: 3 * WIDTH // 4, :4] @ DOWN[:, : WIDTH // 8])[2 * WIDTH :],
    ),
]


@pytest.mark.parametrize(
    ("tensors", "metadata", "target", "update"), [each[1:] for each in NAMINGS], ids=[each[0] for each in NAMINGS]
)
def test_naming_is_recognised(
    tiny: Components,
    tmp_path: Path,
    tensors: dict[str, mx.array],
    metadata: dict[str, str],
    target: str,
    update: mx.array,
) -> None:
    path = save(tmp_path / "a.safetensors", tensors, metadata)
    np.testing.assert_allclose(delta(tiny, path, target, 0.5), 0.5 * update.T, atol=1e-4)


def test_lokr_with_magnitudes_is_mfluxs(tiny: Components, tmp_path: Path) -> None:
    left, right = DOWN[:, :8], UP[: WIDTH // 4, :4] @ DOWN[:, : WIDTH // 8]
    name = "lora_unet_transformer_blocks_0_attn_to_q"
    magnitude = mx.ones((WIDTH, 1)) * 3
    path = save(
        tmp_path / "a.safetensors",
        {f"{name}.lokr_w1": left, f"{name}.lokr_w2": right, f"{name}.dora_scale": magnitude},
    )
    base = tiny.transformer.transformer_blocks[0].attn.to_q.weight
    merged = base + mx.kron(left, right)
    expected = 3 * merged / mx.linalg.norm(merged, axis=1, keepdims=True) - base
    np.testing.assert_allclose(delta(tiny, path, "transformer_blocks.0.attn.to_q"), expected.T, atol=1e-4)


@pytest.mark.parametrize("bits", [3, 4, 6, 8])
def test_quantized_base_takes_a_lora_and_a_lokr_and_loses_them_without_a_trace(
    tiny_folder: Path, device: Device, tmp_path: Path, bits: int
) -> None:
    components = load_components(tiny_folder)
    nn.quantize(components.transformer, group_size=64, bits=bits)
    pipeline = Pipeline(components, device)
    before = generate(pipeline, REQUEST)[0]
    parameters = weights(components.transformer)
    for _, tensors, metadata, target, update in NAMINGS:
        path = save(tmp_path / "a.safetensors", tensors, metadata)
        np.testing.assert_allclose(delta(components, path, target), update.T, atol=1e-4)
        (adapted,) = generate(pipeline, attrs.evolve(REQUEST, loras=(Lora(path), Lora(path, 0.5))))
        assert distance(adapted, before) > 0
    assert generate(pipeline, REQUEST)[0].tobytes() == before.tobytes()
    assert weights(components.transformer) == parameters


def test_without_the_lora_again_the_bytes_are_the_same(tiny: Components, device: Device, tmp_path: Path) -> None:
    pipeline = Pipeline(tiny, device)
    parameters = weights(tiny.transformer)
    before = generate(pipeline, REQUEST)[0].tobytes()
    one, other = (Lora(peft(tmp_path / f"{seed}.safetensors", TINY, seed)) for seed in (1, 2))
    images = [generate(pipeline, attrs.evolve(REQUEST, loras=loras))[0].tobytes() for loras in ((one,), (one, other))]
    assert len({before, *images}) == 3
    assert generate(pipeline, REQUEST)[0].tobytes() == before
    assert weights(tiny.transformer) == parameters
    again = [generate(pipeline, attrs.evolve(REQUEST, loras=loras))[0].tobytes() for loras in ((one,), (one, other))]
    assert again == images


def test_effect_of_the_lora_grows_with_its_scale(pipeline: Pipeline, tmp_path: Path) -> None:
    path = peft(tmp_path / "a.safetensors", TINY, scale=0.05)
    base = generate(pipeline, REQUEST)[0]

    def away(scale: float) -> float:
        (generated,) = generate(pipeline, attrs.evolve(REQUEST, loras=(Lora(path, scale),)))
        return float(np.sqrt(np.mean((generated.astype(np.float64) - base) ** 2)))

    distances = [away(scale) for scale in (0.0, 0.25, 0.5, 0.75, 1.0)]
    assert distances[0] == 0
    assert distances == sorted(set(distances))


def test_lora_that_was_saved_again_is_read_again(pipeline: Pipeline, tmp_path: Path) -> None:
    request = attrs.evolve(REQUEST, loras=(Lora(peft(tmp_path / "a.safetensors", TINY, 1)),))
    first = generate(pipeline, request)[0].tobytes()
    assert generate(pipeline, request)[0].tobytes() == first
    peft(tmp_path / "a.safetensors", TINY, 2, prefix="diffusion_model.")
    assert generate(pipeline, request)[0].tobytes() != first


def test_lora_that_took_the_place_of_another_is_read_though_size_and_time_are_the_same(
    pipeline: Pipeline, tmp_path: Path
) -> None:
    path, other = (peft(tmp_path / name, TINY, seed) for seed, name in enumerate(("a.safetensors", "b.safetensors")))
    for file in (path, other):
        os.utime(file, ns=(0, 10**18))
    request = attrs.evolve(REQUEST, loras=(Lora(path),))
    first = generate(pipeline, request)[0].tobytes()
    assert path.stat().st_size == other.stat().st_size
    other.replace(path)
    assert generate(pipeline, request)[0].tobytes() != first


def test_lora_that_lets_numbers_overflow_is_an_error_and_not_a_black_image(pipeline: Pipeline, tmp_path: Path) -> None:
    (before,) = generate(pipeline, REQUEST)
    wild = peft(tmp_path / "wild.safetensors", TINY, scale=1e37)
    with pytest.raises(LoraError, match="overflow"):
        generate(pipeline, attrs.evolve(REQUEST, loras=(Lora(wild),)))
    assert np.array_equal(generate(pipeline, REQUEST)[0], before)


def test_model_that_is_broken_is_blamed_and_not_the_lora_on_it(
    tiny_folder: Path, device: Device, tmp_path: Path
) -> None:
    components = load_components(tiny_folder)
    components.transformer.x_embedder.weight[0, 0] = float("nan")
    lora = peft(tmp_path / "a.safetensors", TINY, 1)
    with pytest.raises(NotFiniteError):
        generate(Pipeline(components, device), attrs.evolve(REQUEST, loras=(Lora(lora),)))


def test_run_stopped_in_the_middle_leaves_no_adapter(tiny: Components, device: Device, tmp_path: Path) -> None:
    pipeline = Pipeline(tiny, device)
    parameters = weights(tiny.transformer)
    before = generate(pipeline, REQUEST)[0].tobytes()
    seen: list[Event] = []
    request = attrs.evolve(REQUEST, steps=4, loras=(Lora(peft(tmp_path / "a.safetensors", TINY)),))
    with pytest.raises(Stopped):
        consume(pipeline.run(request, lambda: StepEvent(2, 4) in seen), seen)
    assert weights(tiny.transformer) == parameters
    assert generate(pipeline, REQUEST)[0].tobytes() == before


def test_adapter_is_on_only_while_the_transformer_is_called(
    tiny: Components, pipeline: Pipeline, tmp_path: Path
) -> None:
    parameters = weights(tiny.transformer)
    request = attrs.evolve(REQUEST, loras=(Lora(peft(tmp_path / "a.safetensors", TINY)),))
    assert all(weights(tiny.transformer) == parameters for _ in pipeline.run(request, never))


def test_lora_that_came_after_a_compiled_run_is_not_ignored(
    tiny: Components, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A compiled function goes on with the layers that it met at its first call."""
    compiled: list[list[tuple[str, int]]] = []

    def compile_once(function: Callable[..., mx.array], inputs: list[Any]) -> Callable[..., mx.array]:
        met: list[tuple[str, int]] = []
        compiled.append(met)

        def call(*arguments: mx.array) -> mx.array:
            assert inputs == [tiny.transformer]
            met[:] = met or weights(tiny.transformer)
            assert met == weights(tiny.transformer), "this would be an old compiled function with other layers"
            return function(*arguments)

        return call

    monkeypatch.setattr(mx, "compile", compile_once)
    monkeypatch.setattr("mflux_api.engine.sampling.transformer_function.AppleSiliconUtil.is_m1_or_m2", lambda: False)
    pipeline = Pipeline(tiny, Device(kind="metal", name="any"))
    one, other = (Lora(peft(tmp_path / f"{seed}.safetensors", TINY, seed)) for seed in (1, 2))
    for loras in ((), (one,), (one,), (one, other), (attrs.evolve(one, scale=0.5),), ()):
        generate(pipeline, attrs.evolve(REQUEST, loras=loras))
    # Without, one, both, half.
    assert len(compiled) == 4


KEY = "transformer.transformer_blocks.0.attn.to_q"


def _damaged(path: Path) -> Path:
    whole = peft(path, TINY).read_bytes()
    path.write_bytes(whole[:-10])
    return path


def _junk(path: Path) -> Path:
    path.write_bytes(b"\xff" * 100)
    return path


def _with(tensors: dict[str, mx.array], metadata: dict[str, str] | None = None) -> Callable[[Path], Path]:
    return lambda path: save(path, tensors, metadata)


PAIR = {f"{KEY}.lora_A.weight": DOWN, f"{KEY}.lora_B.weight": UP}


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda path: path, "gone or cannot be read"),
        (_damaged, "not a whole safetensors file"),
        (_junk, "not a whole safetensors file"),
        (_with({"text_model.encoder.lora_A.weight": DOWN}), "a text encoder and no layer of the transformer"),
        (_with({f"{KEY}.lora_A.weight": DOWN}), "no complete update"),
        (_with({f"{KEY}.lora_A.weight": DOWN[:3], f"{KEY}.lora_B.weight": UP}), "ranks of its factors differ, 3 and 4"),
        (_with({**PAIR, f"{KEY}.alpha": mx.ones(2)}), "its alpha is not one number"),
        (_with({f"{KEY}.lora_A.weight": DOWN[:0], f"{KEY}.lora_B.weight": UP[:, :0]}), "is empty"),
        (_with({f"{KEY}.lora_A.weight": DOWN[:, :64], f"{KEY}.lora_B.weight": UP}), "another kind or size of model"),
        (_with({f"{KEY}.lora_A.weight": DOWN, f"{KEY}.lora_B.weight": UP[:64]}), "another kind or size of model"),
        (_with({f"{KEY}.lora_A.weight": DOWN[None], f"{KEY}.lora_B.weight": UP}), "is not a matrix"),
        (_with({name.replace("s.0", "s.7"): each for name, each in PAIR.items()}), "does not have"),
        (_with({**PAIR, f"{KEY}.dora_scale": mx.ones((WIDTH - 1,))}), "magnitudes"),
        (_with({**PAIR, f"{KEY}.lora_up.weight": UP}), "two updates"),
        (_with({name: each.astype(mx.complex64) for name, each in PAIR.items()}), "as C64: save it as one of F32"),
        (_with(PAIR, {"lora_adapter_metadata": json.dumps({"lora_alpha": "much"})}), "metadata"),
        (_with(PAIR, {"lora_adapter_metadata": '{"lora_alpha": 4'}), "metadata that cannot be read"),
        (
            _with(PAIR, {"lora_adapter_metadata": json.dumps({"lora_alpha": 1, "alpha_pattern": {"(a+)+$": 2}})}),
            "alpha pattern",
        ),
        (_with({f"{KEY}.lokr_w1": DOWN, f"{KEY}.lokr_w2": UP}), "another kind or size of model"),
        (_with({f"{KEY}.lokr_w1": DOWN}), "no complete update"),
        (
            _with({f"{KEY}.lokr_w1": DOWN, f"{KEY}.lokr_w2_a": DOWN, f"{KEY}.lokr_w2_b": DOWN}),
            "factors for transformer_blocks.0.attn.to_q that do not fit each other",
        ),
        (_with({**PAIR, f"{KEY}.lora_A.weight": mx.full(DOWN.shape, mx.nan)}), "NaN or infinite"),
        (_with({**PAIR, f"{KEY}.lora_B.weight": mx.full(UP.shape, -mx.inf)}), "NaN or infinite"),
        (_with({**PAIR, f"{KEY}.alpha": mx.array(mx.nan)}), "NaN or infinite"),
    ],
)
def test_adapter_that_cannot_be_used_is_refused_and_leaves_the_model_as_it_was(
    tiny: Components, pipeline: Pipeline, tmp_path: Path, make: Callable[[Path], Path], words: str
) -> None:
    parameters = weights(tiny.transformer)
    good = peft(tmp_path / "good.safetensors", TINY)
    request = attrs.evolve(REQUEST, loras=(Lora(good), Lora(make(tmp_path / "secret-folder.safetensors"), 0.0)))
    with pytest.raises(LoraError, match=words) as caught:
        generate(pipeline, request)
    assert str(tmp_path) not in str(caught.value)
    assert caught.value.__cause__ is None
    assert weights(tiny.transformer) == parameters


def test_known_names_are_found_in_a_large_file_at_once(tmp_path: Path) -> None:
    tensors: dict[str, mx.array] = {}
    for block in range(300):
        for layer in ("to_q", "to_k", "to_v", "to_add_out"):
            name = f"transformer.transformer_blocks.{block}.attn.{layer}"
            tensors |= {f"{name}.lora_A.weight": DOWN[:1, :8], f"{name}.lora_B.weight": UP[:8, :1]}
    found = read_adapter(save(tmp_path / "a.safetensors", tensors)).updates
    assert len(found) == 1200
    assert all(isinstance(each, LowRank) for (each,) in found.values())


def test_third_of_a_fused_layer_is_remembered(tmp_path: Path) -> None:
    found = read_adapter(save(tmp_path / "a.safetensors", NAMINGS[-1][1])).updates
    rows = {path.rsplit(".", 1)[1]: each.rows for path, (each,) in found.items() if isinstance(each, Kronecker)}
    assert rows == {"to_q": Rows(3, (0,)), "to_k": Rows(3, (1,)), "to_v": Rows(3, (2,))}


def test_inpainting_obeys_a_lora_in_its_half_alone(pipeline: Pipeline, tmp_path: Path) -> None:
    source = rgb_image(64, 48, 7)
    request = attrs.evolve(REQUEST, references=(source,), start=source, inpainting=inpaint_right_half(source))
    lora = Lora(peft(tmp_path / "one.safetensors", TINY, 1), 1.0)
    images = [generate(pipeline, attrs.evolve(request, loras=loras))[0] for loras in ((), (lora,))]
    assert all(keeps_left_half(image, source) for image in images)
    assert distance(*images) > 1
