"""One adapter in every trainer's spelling, and what else a file may hold: the same numbers, or a sentence about it."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import attrs
import mlx.core as mx
import numpy as np
import pytest
from mflux.models.flux2.model.flux2_transformer.transformer import Flux2Transformer
from mlx import nn

from mflux_api.engine.device import Device
from mflux_api.engine.lora.adapter_files import read_adapter
from mflux_api.engine.lora.applying import Lora, LoraError, LoraStack
from mflux_api.engine.lora.factors import Factors, LowRank
from mflux_api.engine.lora.layers import with_updates
from mflux_api.engine.sampling.pipeline import Event, Pipeline, PipelineRequest, WarningEvent
from mflux_api.engine.weights.components import Components, load_components
from mflux_api.engine.weights.parameters import named_arrays
from tests.support.adapter_files import factors, save
from tests.support.checkpoint_shapes import TINY
from tests.support.pipeline_runs import consume, generate, never
from tests.support.safetensors_bytes import safetensors_of

pytestmark = pytest.mark.slow

WIDTH, MLP = TINY.width, int(TINY.width * TINY.mlp_ratio)
TEXT = TINY.text_width * len(TINY.text_out_layers)
REQUEST = PipelineRequest(prompt="a red cat", seeds=(3,), width=64, height=64, steps=2)

# BFL's name, diffusers' names, (outputs, inputs)
LAYERS: dict[str, tuple[tuple[str, ...], tuple[int, int]]] = {
    "img_in": (("x_embedder",), (WIDTH, 128)),
    "txt_in": (("context_embedder",), (WIDTH, TEXT)),
    "time_in.in_layer": (("time_guidance_embed.timestep_embedder.linear_1",), (WIDTH, 256)),
    "time_in.out_layer": (("time_guidance_embed.timestep_embedder.linear_2",), (WIDTH, WIDTH)),
    "double_stream_modulation_img.lin": (("double_stream_modulation_img.linear",), (6 * WIDTH, WIDTH)),
    "double_stream_modulation_txt.lin": (("double_stream_modulation_txt.linear",), (6 * WIDTH, WIDTH)),
    "single_stream_modulation.lin": (("single_stream_modulation.linear",), (3 * WIDTH, WIDTH)),
    "final_layer.adaLN_modulation.1": (("norm_out.linear",), (2 * WIDTH, WIDTH)),
    "final_layer.linear": (("proj_out",), (128, WIDTH)),
    "double_blocks.0.img_attn.qkv": (
        tuple(f"transformer_blocks.0.attn.to_{each}" for each in "qkv"),
        (3 * WIDTH, WIDTH),
    ),
    "double_blocks.0.txt_attn.qkv": (
        tuple(f"transformer_blocks.0.attn.add_{each}_proj" for each in "qkv"),
        (3 * WIDTH, WIDTH),
    ),
    "double_blocks.0.img_attn.proj": (("transformer_blocks.0.attn.to_out.0",), (WIDTH, WIDTH)),
    "double_blocks.0.txt_attn.proj": (("transformer_blocks.0.attn.to_add_out",), (WIDTH, WIDTH)),
    "double_blocks.0.img_mlp.0": (("transformer_blocks.0.ff.linear_in",), (2 * MLP, WIDTH)),
    "double_blocks.0.img_mlp.2": (("transformer_blocks.0.ff.linear_out",), (WIDTH, MLP)),
    "double_blocks.0.txt_mlp.0": (("transformer_blocks.0.ff_context.linear_in",), (2 * MLP, WIDTH)),
    "double_blocks.0.txt_mlp.2": (("transformer_blocks.0.ff_context.linear_out",), (WIDTH, MLP)),
    "single_blocks.1.linear1": (("single_transformer_blocks.1.attn.to_qkv_mlp_proj",), (3 * WIDTH + 2 * MLP, WIDTH)),
    "single_blocks.0.linear2": (("single_transformer_blocks.0.attn.to_out",), (WIDTH, WIDTH + MLP)),
}
OURS = {
    "time_guidance_embed.timestep_embedder.linear_1": "time_guidance_embed.linear_1",
    "time_guidance_embed.timestep_embedder.linear_2": "time_guidance_embed.linear_2",
    "transformer_blocks.0.attn.to_out.0": "transformer_blocks.0.attn.to_out",
}
"""Where mflux's path is not diffusers'."""
ROWS = ("lora_B", "hada_w1_a", "hada_w2_a")

Parts = dict[str, mx.array]


def low_rank(outputs: int, inputs: int, seed: int) -> Parts:
    down, up = factors(outputs, inputs, seed)
    return {"lora_A": down, "lora_B": up, "alpha": mx.array(3.0)}


def hadamard(outputs: int, inputs: int, seed: int, rank: int = 4) -> Parts:
    right, left = factors(outputs, inputs, seed, rank)
    other_right, other_left = factors(outputs, inputs, seed + 500, rank)
    return {
        **{"hada_w1_a": left, "hada_w1_b": right, "hada_w2_a": other_left, "hada_w2_b": other_right},
        "alpha": mx.array(3.0),
    }


def kronecker(outputs: int, inputs: int, seed: int) -> Parts:
    right, left = factors(outputs // 2, inputs // 4, seed)
    return {"lokr_w1": mx.array([[0.5, -1.0, 2.0, 1.0], [1.5, 0.25, -0.5, 1.0]]), "lokr_w2_a": left} | {
        "lokr_w2_b": right,
        "alpha": mx.array(2.0),
    }


def swapped(tensor: mx.array) -> mx.array:
    """Return a tensor's second half of rows, then its first."""
    half = tensor.shape[0] // 2
    return mx.concatenate([tensor[half:], tensor[:half]])


def bfl(make: Callable[[int, int, int], Parts], layers: Mapping[str, Any]) -> dict[str, Parts]:
    """Return an adapter's parts by BFL's names."""
    return {name: make(size[0], size[1], seed) for seed, (name, (_, size)) in enumerate(layers.items())}


def diffusers(adapter: dict[str, Parts]) -> dict[str, Parts]:
    """Return the same adapter by diffusers' names, in which query, key and value are layers of their own."""
    found: dict[str, Parts] = {}
    for name, parts in adapter.items():
        names = LAYERS[name][0]
        for index, each in enumerate(names):
            found[each] = {
                part: mx.split(tensor, 3)[index] if len(names) == 3 and part in ROWS else tensor
                for part, tensor in parts.items()
            }
        if "adaLN" in name:
            found[names[0]] = {part: swapped(each) if part in ROWS else each for part, each in parts.items()}
    return found


PEFT = {"lora_A": ".lora_A.weight", "lora_B": ".lora_B.weight"}
DEFAULT = {part: f".{part}.default.weight" for part in ("lora_A", "lora_B")}
NAMED = {"lora_A": ".lora_A.my-style_2.weight", "lora_B": ".lora_B.my-style_2.weight"}
BARE = {"lora_A": ".lora_A", "lora_B": ".lora_B"}
KOHYA = {"lora_A": ".lora_down.weight", "lora_B": ".lora_up.weight"}
OLD = {"lora_A": ".lora.down.weight", "lora_B": ".lora.up.weight"}

# prefix, whether dots are underscores, suffixes of the parts; for both families of names
SPELLINGS: dict[str, tuple[str, bool, dict[str, str]]] = {
    "bare": ("", False, PEFT),
    "bare, bare": ("", False, BARE),
    "diffusion_model": ("diffusion_model.", False, PEFT),
    "diffusion_model, kohya": ("diffusion_model.", False, KOHYA),
    "model.diffusion_model": ("model.diffusion_model.", False, BARE),
    "transformer": ("transformer.", False, PEFT),
    "transformer, old": ("transformer.", False, OLD),
    "peft": ("base_model.model.", False, PEFT),
    "peft, default": ("base_model.model.", False, DEFAULT),
    "peft, named": ("base_model.model.transformer.", False, NAMED),
    "kohya": ("lora_unet_", True, KOHYA),
    "onetrainer": ("lora_transformer_", True, KOHYA),
    "lycoris": ("lycoris_", True, KOHYA),
    "unet": ("unet.", False, KOHYA),
    "net": ("net.", False, PEFT),
    "net, underscores": ("net_", True, PEFT),
}


def spell(adapter: dict[str, Parts], spelling: tuple[str, bool, dict[str, str]]) -> Parts:
    """Return a file's tensors."""
    prefix, underscores, suffixes = spelling
    return {
        f"{prefix}{layer.replace('.', '_') if underscores else layer}{suffixes.get(part, f'.{part}')}": tensor
        for layer, parts in adapter.items()
        for part, tensor in parts.items()
    }


def mixed(adapter: dict[str, Parts]) -> Parts:
    """Return a file's tensors with another prefix for each layer."""
    found: Parts = {}
    spellings = list(SPELLINGS.values())
    for number, (layer, parts) in enumerate(adapter.items()):
        found |= spell({layer: parts}, spellings[number % len(spellings)])
    return found


def arrays(updates: tuple[Factors, ...]) -> list[Any]:
    """Return the content of updates so that it can be compared."""
    return [
        (type(each), [np.array(value) if isinstance(value, mx.array) else value for value in fields(each)])
        for each in updates
    ]


def fields(update: Factors) -> tuple[Any, ...]:
    return attrs.astuple(update, recurse=False)


def same(one: Mapping[str, tuple[Factors, ...]], other: Mapping[str, tuple[Factors, ...]]) -> bool:
    """Whether two adapters have the very same numbers for the same layers."""
    if one.keys() != other.keys():
        return False
    for path, updates in one.items():
        for (kind, values), (other_kind, other_values) in zip(arrays(updates), arrays(other[path]), strict=True):
            if kind is not other_kind or not all(
                np.array_equal(value, against) if isinstance(value, np.ndarray) else value == against
                for value, against in zip(values, other_values, strict=True)
            ):
                return False
    return True


@pytest.mark.parametrize("make", [low_rank, hadamard, kronecker], ids=["lora", "loha", "lokr"])
def test_every_spelling_of_an_adapter_is_the_same_numbers(
    tmp_path: Path, make: Callable[[int, int, int], Parts]
) -> None:
    # A LoKr of a fused layer has no spelling with three layers, and one whose halves change places has one name.
    both = {
        name: each
        for name, each in LAYERS.items()
        if make is not kronecker or (len(each[0]) == 1 and "adaLN" not in name)
    }
    adapter = bfl(make, both)
    expected = read_adapter(save(tmp_path / "a.safetensors", spell(adapter, SPELLINGS["kohya"]))).updates
    assert len(expected) == sum(len(names) for names, _ in both.values())
    for family in (adapter, diffusers(adapter)):
        for name, spelling in SPELLINGS.items():
            found = read_adapter(save(tmp_path / "a.safetensors", spell(family, spelling)))
            assert same(found.updates, expected), name
            assert found.names.left_over == ()
        assert same(read_adapter(save(tmp_path / "a.safetensors", mixed(family))).updates, expected)
    whole = bfl(make, LAYERS)
    expected = read_adapter(save(tmp_path / "a.safetensors", spell(whole, SPELLINGS["kohya"]))).updates
    assert len(expected) == sum(len(names) for names, _ in LAYERS.values())
    for name, spelling in SPELLINGS.items():
        assert same(read_adapter(save(tmp_path / "a.safetensors", spell(whole, spelling))).updates, expected), name


@pytest.mark.parametrize("make", [low_rank, hadamard, kronecker], ids=["lora", "loha", "lokr"])
def test_every_spelling_is_the_same_pixels(
    pipeline: Pipeline, tmp_path: Path, make: Callable[[int, int, int], Parts]
) -> None:
    adapter = {
        name: {part: each * 0.1 if part in (*ROWS, "lokr_w1") else each for part, each in parts.items()}
        for name, parts in bfl(make, LAYERS).items()
    }
    images = set()
    for number, spelling in enumerate(("kohya", "bare", "peft, default", "onetrainer")):
        path = save(tmp_path / f"{number}.safetensors", spell(adapter, SPELLINGS[spelling]))
        images.add(generate(pipeline, attrs.evolve(REQUEST, loras=(Lora(path),)))[0].tobytes())
    if make is low_rank:
        path = save(tmp_path / "d.safetensors", spell(diffusers(adapter), SPELLINGS["transformer"]))
        images.add(generate(pipeline, attrs.evolve(REQUEST, loras=(Lora(path),)))[0].tobytes())
    assert len(images) == 1
    assert generate(pipeline, REQUEST)[0].tobytes() not in images


# --- every layer is changed, by what the file says ---


def layer_at(transformer: Any, path: str) -> Any:
    found = transformer
    for part in path.split("."):
        found = found[int(part)] if part.isdigit() else getattr(found, part)
    return found


def changes(components: Components, path: Path, scale: float = 1.0) -> dict[str, np.ndarray]:
    """Return what an adapter adds to each layer's outputs for the unit vectors, transposed: [outputs, inputs]."""
    plain = {ours: layer_at(components.transformer, ours) for ours in read_adapter(path).updates}
    found = {}
    with LoraStack(components.transformer, [Lora(path, scale)]).applied():
        for ours, layer in plain.items():
            wrapped = layer_at(components.transformer, ours)
            assert wrapped is not layer
            inputs = layer.weight.shape[1] if not isinstance(layer, nn.QuantizedLinear) else layer.scales.shape[1] * 64
            found[ours] = np.array((wrapped(mx.eye(inputs)) - layer(mx.eye(inputs))).T)
    return found


def expected_rows(name: str, update: mx.array) -> dict[str, np.ndarray]:
    """Return a BFL layer's update by mflux's paths."""
    paths = [OURS.get(each, each) for each in LAYERS[name][0]]
    if "adaLN" in name:
        update = swapped(update)
    return {path: np.array(piece) for path, piece in zip(paths, mx.split(update, len(paths)), strict=True)}


@pytest.mark.parametrize("name", LAYERS)
def test_every_linear_layer_takes_a_lora_a_loha_and_a_lokr(tiny: Components, tmp_path: Path, name: str) -> None:
    path = tmp_path / "a.safetensors"
    for make in (low_rank, hadamard, kronecker):
        parts = make(*LAYERS[name][1], 7)
        if make is low_rank:
            update = 0.75 * parts["lora_B"] @ parts["lora_A"]
        elif make is hadamard:
            update = 0.75 * (parts["hada_w1_a"] @ parts["hada_w1_b"]) * (parts["hada_w2_a"] @ parts["hada_w2_b"])
        else:
            update = 0.5 * mx.kron(parts["lokr_w1"], parts["lokr_w2_a"] @ parts["lokr_w2_b"])
        found = changes(tiny, save(path, spell({name: parts}, SPELLINGS["lycoris"])), 0.5)
        expected = expected_rows(name, 0.5 * update)
        assert found.keys() == expected.keys()
        for each in found:
            np.testing.assert_allclose(found[each], expected[each], atol=2e-4)


def test_every_linear_layer_of_the_transformer_is_known(tiny: Components) -> None:
    kinds = (nn.Linear, nn.QuantizedLinear)
    linear = {path for path, module in tiny.transformer.named_modules() if isinstance(module, kinds)}
    known = {OURS.get(each, each) for names, _ in LAYERS.values() for each in names}
    others = {path.replace("blocks.1", "blocks.0") for path in linear} - {
        path.replace("blocks.1", "blocks.0") for path in known
    }
    assert not others


@pytest.mark.parametrize(
    "names",
    [("guidance_in.in_layer", "guidance_in.out_layer"), ("guidance_embedder.linear_1", "guidance_embedder.linear_2")],
)
def test_guidance_embedder_of_dev_takes_an_adapter(tmp_path: Path, names: tuple[str, str]) -> None:
    transformer = Flux2Transformer(
        num_layers=1, num_single_layers=1, num_attention_heads=1, joint_attention_dim=64, guidance_embeds=True
    )
    prefix = "" if names[0].startswith("guidance_in") else "time_guidance_embed."
    adapter = {f"{prefix}{name}": low_rank(128, inputs, 1) for name, inputs in zip(names, (256, 128), strict=True)}
    path = save(tmp_path / "a.safetensors", spell(adapter, SPELLINGS["kohya"]))
    embedder = transformer.time_guidance_embed
    before = embedder(mx.array([500.0]), mx.array([4000.0]))
    stack = LoraStack(transformer, [Lora(path)])
    with stack.applied():
        assert not mx.allclose(embedder(mx.array([500.0]), mx.array([4000.0])), before)
    assert mx.array_equal(embedder(mx.array([500.0]), mx.array([4000.0])), before)
    assert (len(stack), stack.warnings) == (2, ())


@pytest.mark.parametrize("rank", [2, 4, 32])
def test_loha_without_alpha_is_as_it_is(tiny: Components, tmp_path: Path, rank: int) -> None:
    parts = {part: each for part, each in hadamard(WIDTH, WIDTH, 1, rank).items() if part != "alpha"}
    update = (parts["hada_w1_a"] @ parts["hada_w1_b"]) * (parts["hada_w2_a"] @ parts["hada_w2_b"])
    path = save(tmp_path / "a.safetensors", spell({"double_blocks.0.img_attn.proj": parts}, SPELLINGS["lycoris"]))
    np.testing.assert_allclose(changes(tiny, path)["transformer_blocks.0.attn.to_out"], update, atol=1e-4)


@pytest.mark.parametrize("bits", [0, 4])
def test_differences_and_biases_are_added_and_leave_no_trace(
    tiny_folder: Path, device: Device, tmp_path: Path, bits: int
) -> None:
    components = load_components(tiny_folder)
    if bits:
        nn.quantize(components.transformer, group_size=64, bits=bits)
    before = [(name, id(array)) for name, array in named_arrays(components.transformer)]
    down, up = factors(3 * WIDTH, WIDTH, 1)
    bias, difference = mx.arange(3 * WIDTH) / 100, mx.sin(mx.arange(WIDTH * WIDTH).reshape(WIDTH, WIDTH))
    moved = mx.arange(2 * WIDTH) / 50
    path = save(
        tmp_path / "a.safetensors",
        {
            "double_blocks.0.img_attn.qkv.lora_A.weight": down,
            "double_blocks.0.img_attn.qkv.lora_B.weight": up,
            "double_blocks.0.img_attn.qkv.lora_B.bias": bias,
            "double_blocks.0.img_attn.qkv.alpha": mx.array(2.0),
            "double_blocks.0.img_attn.proj.diff": difference,
            "double_blocks.0.img_attn.proj.diff_b": mx.arange(WIDTH) / 10,
            "final_layer.adaLN_modulation.1.diff_b": moved,
        },
    )
    found = changes(components, path, -2.0)
    thirds = mx.split(-2.0 * 0.5 * (up @ down + bias[:, None]), 3)
    expected = {
        **{f"transformer_blocks.0.attn.to_{each}": third for each, third in zip("qkv", thirds, strict=True)},
        "transformer_blocks.0.attn.to_out": -2.0 * (difference + mx.arange(WIDTH)[:, None] / 10),
        "norm_out.linear": mx.broadcast_to(-2.0 * swapped(moved)[:, None], (2 * WIDTH, WIDTH)),
    }
    assert found.keys() == expected.keys()
    for each in found:
        np.testing.assert_allclose(found[each], expected[each], atol=1e-3)
    assert [(name, id(array)) for name, array in named_arrays(components.transformer)] == before
    adapted = generate(Pipeline(components, device), attrs.evolve(REQUEST, loras=(Lora(path, 0.01),)))
    assert not np.array_equal(adapted[0], generate(Pipeline(components, device), REQUEST)[0])


@pytest.mark.parametrize("bits", [0, 8])
def test_adapters_of_every_kind_add_up_on_one_layer(
    tiny_folder: Path, device: Device, tmp_path: Path, bits: int
) -> None:
    components = load_components(tiny_folder)
    if bits:
        nn.quantize(components.transformer, group_size=64, bits=bits)
    name = "double_blocks.0.img_attn.qkv"
    adapters: list[Parts] = [make(3 * WIDTH, WIDTH, 1) for make in (low_rank, hadamard, kronecker)]
    adapters.append({"diff_b": mx.arange(3 * WIDTH) / 10})
    adapters.append({**low_rank(3 * WIDTH, WIDTH, 2), "diff": mx.ones((3 * WIDTH, WIDTH))})
    loras = [
        Lora(save(tmp_path / f"{number}.safetensors", spell({name: parts}, SPELLINGS["lycoris"])), 0.5)
        for number, parts in enumerate(adapters)
    ]
    apart = [changes(components, lora.path, lora.scale) for lora in loras]
    layer = components.transformer.transformer_blocks[0].attn.to_k
    with LoraStack(components.transformer, loras).applied():
        together = (components.transformer.transformer_blocks[0].attn.to_k(mx.eye(WIDTH)) - layer(mx.eye(WIDTH))).T
    assert components.transformer.transformer_blocks[0].attn.to_k is layer
    expected = sum(each["transformer_blocks.0.attn.to_k"] for each in apart)
    np.testing.assert_allclose(together, expected, atol=1e-3)


@pytest.mark.parametrize(
    "suffix", [".dora_scale", ".magnitude", ".lora_magnitude_vector", ".lora_magnitude_vector.default.weight"]
)
@pytest.mark.parametrize("axis", [0, 1])
def test_dora_scales_the_rows_or_columns_of_the_sum(tiny: Components, tmp_path: Path, suffix: str, axis: int) -> None:
    down, up = factors(WIDTH, WIDTH, 1)
    magnitude = mx.random.uniform(1, 2, (1, WIDTH) if axis == 0 else (WIDTH, 1), key=mx.random.key(1))
    layer = "transformer.transformer_blocks.0.attn.to_q"
    path = save(
        tmp_path / "a.safetensors",
        {
            f"{layer}.lora_A.weight": down,
            f"{layer}.lora_B.weight": up,
            f"{layer}.alpha": mx.array(2.0),
            f"{layer}{suffix}": magnitude,
        },
    )
    base = tiny.transformer.transformer_blocks[0].attn.to_q.weight
    merged = base + 0.5 * up @ down
    expected = 0.5 * (magnitude * merged / mx.linalg.norm(merged, axis=axis, keepdims=True) - base)
    np.testing.assert_allclose(changes(tiny, path, 0.5)["transformer_blocks.0.attn.to_q"], expected, atol=1e-4)


@pytest.mark.parametrize("make", [low_rank, hadamard, kronecker], ids=["lora", "loha", "lokr"])
def test_faint_update_is_not_lost_beside_a_dora(
    tmp_path: Path, device: Device, make: Callable[[int, int, int], Parts]
) -> None:
    """In the precision of the weight it would be rounded away."""
    name, path = "double_blocks.0.img_attn.proj", "transformer_blocks.0.attn.to_out"
    linear = nn.Linear(WIDTH, WIDTH, bias=False)
    linear.weight = factors(WIDTH, WIDTH, 3, rank=WIDTH)[0].astype(mx.bfloat16)
    down, up = factors(WIDTH, WIDTH, 1)
    # Magnitudes that leave the sum as it is.
    magnitude = mx.linalg.norm(linear.weight.astype(mx.float32) + 0.1 * up @ down, axis=1)
    parts = ({"lora_A": down, "lora_B": 0.1 * up, "dora_scale": magnitude}, make(WIDTH, WIDTH, 2))
    dora, faint = (
        (
            read_adapter(save(tmp_path / "a.safetensors", spell({name: each}, SPELLINGS["lycoris"]))).updates[path][0],
            scale,
        )
        for each, scale in zip(parts, (1.0, 0.0005), strict=True)
    )
    inputs = mx.eye(WIDTH)
    alone = with_updates(linear, [faint])(inputs) - linear(inputs)
    for both in ([dora, faint], [faint, dora]):
        beside = with_updates(linear, both)(inputs) - with_updates(linear, [dora])(inputs)
        assert mx.linalg.norm(beside - alone) < 0.1 * mx.linalg.norm(alone)


def test_magnitudes_of_a_fused_layer_are_cut_with_its_rows(tiny: Components, tmp_path: Path) -> None:
    magnitude = mx.arange(3 * WIDTH) / WIDTH + 1
    for make in (low_rank, kronecker):
        parts = make(3 * WIDTH, WIDTH, 1)
        if make is low_rank:
            update = 0.75 * parts["lora_B"] @ parts["lora_A"]
        else:
            update = 0.5 * mx.kron(parts["lokr_w1"], parts["lokr_w2_a"] @ parts["lokr_w2_b"])
        adapter = {"double_blocks.0.img_attn.qkv": {**parts, "dora_scale": magnitude}}
        found = changes(tiny, save(tmp_path / "a.safetensors", spell(adapter, SPELLINGS["kohya"])))
        attn = tiny.transformer.transformer_blocks[0].attn
        base = mx.concatenate([attn.to_q.weight, attn.to_k.weight, attn.to_v.weight])
        merged = base + update
        expected = magnitude[:, None] * merged / mx.linalg.norm(merged, axis=1, keepdims=True) - base
        for name, third in zip("qkv", mx.split(expected, 3), strict=True):
            np.testing.assert_allclose(found[f"transformer_blocks.0.attn.to_{name}"], third, atol=1e-4)


@pytest.mark.parametrize("make", [low_rank, hadamard, kronecker], ids=["lora", "loha", "lokr"])
def test_magnitudes_of_a_fused_layers_inputs_are_of_all_its_rows(
    tiny: Components, tmp_path: Path, make: Callable[[int, int, int], Parts]
) -> None:
    """As OneTrainer writes a DoRA."""
    magnitude = mx.arange(WIDTH)[None] / WIDTH + 1
    parts = make(3 * WIDTH, WIDTH, 1)
    adapter = {"double_blocks.0.img_attn.qkv": {**parts, "dora_scale": magnitude}}
    found = changes(tiny, save(tmp_path / "a.safetensors", spell(adapter, SPELLINGS["diffusion_model"])), 0.5)
    if make is low_rank:
        update = 0.75 * parts["lora_B"] @ parts["lora_A"]
    elif make is hadamard:
        update = 0.75 * (parts["hada_w1_a"] @ parts["hada_w1_b"]) * (parts["hada_w2_a"] @ parts["hada_w2_b"])
    else:
        update = 0.5 * mx.kron(parts["lokr_w1"], parts["lokr_w2_a"] @ parts["lokr_w2_b"])
    attn = tiny.transformer.transformer_blocks[0].attn
    base = mx.concatenate([attn.to_q.weight, attn.to_k.weight, attn.to_v.weight])
    merged = base + update
    expected = 0.5 * (magnitude * merged / mx.linalg.norm(merged, axis=0, keepdims=True) - base)
    for name, third in zip("qkv", mx.split(expected, 3), strict=True):
        np.testing.assert_allclose(found[f"transformer_blocks.0.attn.to_{name}"], third, atol=1e-4)


def test_alpha_of_the_metadata_counts_in_every_spelling(tmp_path: Path) -> None:
    down, up = factors(WIDTH, WIDTH, 1)
    config = {"transformer.lora_alpha": 8, "text_encoder.lora_alpha": 100}
    metadata = {"lora_adapter_metadata": json.dumps(config)}
    for spelling in ("transformer", "transformer, old", "bare", "bare, bare", "peft, default", "onetrainer"):
        adapter = {"transformer_blocks.0.attn.to_q": {"lora_A": down, "lora_B": up}}
        path = save(tmp_path / "a.safetensors", spell(adapter, SPELLINGS[spelling]), metadata)
        (found,) = read_adapter(path).updates["transformer_blocks.0.attn.to_q"]
        assert isinstance(found, LowRank)
        assert np.array_equal(found.up, 2 * up.T)


def scale_of_peft(path: Path, metadata: Mapping[str, object] | None = None) -> float:
    """How strongly a LoRA of rank 4 that PEFT writes to a file works, beside its factors as they are.

    Args:
        path: the file.
        metadata: what diffusers puts into it of PEFT's configuration.
    """
    down, up = factors(WIDTH, WIDTH, 1)
    adapter = spell({"transformer_blocks.0.attn.to_q": {"lora_A": down, "lora_B": up}}, SPELLINGS["peft"])
    notes = None if metadata is None else {"lora_adapter_metadata": json.dumps(metadata)}
    (found,) = read_adapter(save(path, adapter, notes)).updates["transformer_blocks.0.attn.to_q"]
    assert isinstance(found, LowRank)
    return float(np.array(found.up[0, 0] / up[0, 0]))


def test_alpha_of_an_adapter_that_peft_saved_is_in_the_file_beside_it(tmp_path: Path) -> None:
    config, path = tmp_path / "adapter_config.json", tmp_path / "adapter_model.safetensors"
    assert scale_of_peft(path) == 1
    config.write_text(json.dumps({"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["to_q"]}))
    assert scale_of_peft(path) == 2
    config.write_text(json.dumps({"lora_alpha": 8, "use_rslora": True, "alpha_pattern": {"to_q": 16}}))
    assert scale_of_peft(path) == 8
    assert scale_of_peft(tmp_path / "another.safetensors") == 1
    config.write_bytes(b"\xff")
    with pytest.raises(
        LoraError, match=r"adapter_config.json beside the LoRA adapter_model.safetensors cannot be read"
    ):
        scale_of_peft(path)


@pytest.mark.parametrize(
    ("pattern", "scale"),
    [
        ("to_q", 4),
        (r"^transformer_blocks\.\d+\.attn\.to_q$", 4),
        ("transformer_blocks.[0-9]+.attn.(to_q|to_k)", 4),
        ("attn.to_q|ff.linear_in", 4),
        (r"transformer_blocks\.1\.attn\.to_q", 2),
        ("(to_k|to_v)", 2),
    ],
)
def test_alpha_pattern_of_peft_may_be_an_expression(pattern: str, scale: float, tmp_path: Path) -> None:
    config = {"r": 4, "lora_alpha": 8, "alpha_pattern": {pattern: 16}}
    assert scale_of_peft(tmp_path / "a.safetensors", config) == scale


def test_alpha_of_null_in_pefts_metadata_is_none(tmp_path: Path) -> None:
    assert scale_of_peft(tmp_path / "a.safetensors", {"r": 4, "lora_alpha": None}) == 1


def test_alpha_beside_a_loha_and_a_lokr_of_peft_is_its_part_of_the_rank(tiny: Components, tmp_path: Path) -> None:
    right, left = factors(WIDTH // 2, WIDTH // 4, 1)
    whole = {"lokr_w1": mx.array([[0.5, -1.0, 2.0, 1.0], [1.5, 0.25, -0.5, 1.0]]), "lokr_w2": left @ right}
    for kind, parts in (("LOHA", hadamard(WIDTH, WIDTH, 1)), ("LOKR", kronecker(WIDTH, WIDTH, 1)), ("LOKR", whole)):
        found = []
        for alpha in (4, 8):
            config = {"peft_type": kind, "r": 4, "alpha": alpha, "alpha_pattern": {}}
            (tmp_path / "adapter_config.json").write_text(json.dumps(config))
            plain = {part: each for part, each in parts.items() if part != "alpha"}
            path = tmp_path / "adapter_model.safetensors"
            save(path, spell({"transformer_blocks.0.attn.to_q": plain}, SPELLINGS["peft"]))
            found.append(changes(tiny, path)["transformer_blocks.0.attn.to_q"])
        assert np.abs(found[0]).max() > 0.1
        np.testing.assert_allclose(found[1], 2 * found[0], atol=1e-3)


def test_alpha_beside_an_adapter_that_was_changed_is_read_again(pipeline: Pipeline, tmp_path: Path) -> None:
    path = save(tmp_path / "adapter_model.safetensors", PAIR_WITHOUT_ALPHA)
    request = attrs.evolve(REQUEST, loras=(Lora(path, 0.1),))
    images = [generate(pipeline, request)[0].tobytes()]
    for alpha in (8, 4):
        (tmp_path / "adapter_config.json").write_text(json.dumps({"lora_alpha": alpha}))
        images.append(generate(pipeline, request)[0].tobytes())
    assert images[0] == images[2] != images[1]


# --- what is left over ---

PAIR = spell({"double_blocks.0.img_attn.proj": low_rank(WIDTH, WIDTH, 1)}, SPELLINGS["diffusion_model"])
PAIR_WITHOUT_ALPHA = {key: each for key, each in PAIR.items() if not key.endswith("alpha")}
QWEN = spell(
    {f"model.layers.{n}.self_attn.q_proj": low_rank(64, 64, n) for n in range(2)}, ("text_encoder.", False, PEFT)
)
GUIDANCE = spell({"guidance_in.in_layer": low_rank(WIDTH, 256, 1)}, SPELLINGS["bare"])
OTHER = spell({"double_blocks.0.img_mod.lin": low_rank(WIDTH, WIDTH, 1)}, SPELLINGS["bare"])


def warnings(components: Components, tmp_path: Path, *files: Parts) -> tuple[str, ...]:
    loras = [Lora(save(tmp_path / f"{number}.safetensors", each)) for number, each in enumerate(files)]
    return LoraStack(components.transformer, loras).warnings


def test_what_is_not_used_is_said(tiny: Components, tmp_path: Path) -> None:
    assert warnings(tiny, tmp_path, PAIR, PAIR) == ()
    assert warnings(tiny, tmp_path, PAIR | {"steps": mx.array(3)}) == ()
    assert warnings(tiny, tmp_path, PAIR | QWEN) == (
        "The LoRA 0.safetensors is used in part: its 2 text-encoder layers are not used, only the transformer's.",
    )
    assert warnings(tiny, tmp_path, PAIR, PAIR | OTHER) == (
        "The LoRA 1.safetensors is used in part: one of its names is not known or not supported: "
        "double_blocks.0.img_mod.lin.",
    )
    assert warnings(tiny, tmp_path, PAIR | GUIDANCE) == (
        "The LoRA 0.safetensors is used in part: one of its names is not known or not supported: "
        "time_guidance_embed.guidance_linear_1.",
    )
    # The model has these, and they cannot be changed here.
    for name in ("double_blocks.0.img_attn.norm.query_norm.diff", "single_blocks.0.linear2.alpha"):
        (said,) = warnings(tiny, tmp_path, PAIR | {name: mx.ones(4)})
        assert f"one of its names is not known or not supported: {name.rpartition('.')[0]}" in said
    many = {f"extra.{number}": mx.zeros((4, 4)) for number in range(5)}
    assert warnings(tiny, tmp_path, PAIR | many) == (
        "The LoRA 0.safetensors is used in part: 5 of its names are not known or not supported, for example "
        "extra.0, extra.1, extra.2.",
    )


def test_lora_of_another_model_whose_layers_fit_is_told_by_its_metadata(tiny: Components, tmp_path: Path) -> None:
    for metadata, other in (
        ({"modelspec.architecture": "flux-1-dev/lora"}, "flux-1-dev"),
        ({"ss_base_model_version": "flux1"}, "flux1"),
        ({"modelspec.architecture": "Qwen-Image-Edit"}, "Qwen-Image-Edit"),
        ({"modelspec.architecture": "Flux.2-klein-4b"}, None),
        ({"ss_base_model_version": "flux2_klein_9b"}, None),
        ({"ss_sd_model_name": "/models/flux-1-and-flux.2-merge.safetensors"}, None),
        ({"base_model": "mine"}, None),
    ):
        path = save(tmp_path / "a.safetensors", PAIR, metadata)
        told = LoraStack(tiny.transformer, [Lora(path)]).warnings
        assert [f"was made for {other}, as its metadata says" in each for each in told] == ([True] if other else [])


def test_lora_whose_updates_are_all_0_is_said_to_have_no_effect(tiny: Components, tmp_path: Path) -> None:
    said = ("The LoRA 0.safetensors has no effect: all its updates are 0, or their alpha is.",)
    name = "double_blocks.0.img_attn.proj"
    for parts in (low_rank(WIDTH, WIDTH, 1), hadamard(WIDTH, WIDTH, 1), kronecker(WIDTH, WIDTH, 1)):
        assert warnings(tiny, tmp_path, spell({name: parts | {"alpha": mx.array(0.0)}}, SPELLINGS["lycoris"])) == said
    untrained = {key: each * 0 if "lora_B" in key else each for key, each in PAIR.items()}
    assert warnings(tiny, tmp_path, untrained) == said
    assert (
        warnings(tiny, tmp_path, {f"{name}.diff": mx.zeros((WIDTH, WIDTH)), f"{name}.diff_b": mx.zeros(WIDTH)}) == said
    )
    # One layer is enough, and magnitudes change a layer by themselves. At 0 none was asked for.
    assert warnings(tiny, tmp_path, {**untrained, f"{name}.diff_b": mx.ones(WIDTH)}) == ()
    assert warnings(tiny, tmp_path, {**untrained, f"diffusion_model.{name}.dora_scale": mx.ones(WIDTH)}) == ()
    assert LoraStack(tiny.transformer, [Lora(save(tmp_path / "a.safetensors", untrained), 0.0)]).warnings == ()


@pytest.mark.parametrize(
    ("tensors", "words"),
    [
        (QWEN, "a text encoder and no layer of the transformer"),
        (GUIDANCE, r"only layers that this model does not have \(time_guidance_embed.guidance_linear_1\)"),
        (OTHER, "its names are not known, for example double_blocks.0.img_mod.lin;"),
        (
            {f"lora_unet_down_blocks_{n}_attn.lora_down.weight": mx.ones((4, 4)) for n in range(4)},
            "names are not known, for example lora_unet_down_blocks_0_attn, lora_unet_down_blocks_1_attn, ",
        ),
        (
            PAIR | OTHER | {f"double_blocks.{n}.txt_mod.lin.lora_A.weight": mx.ones((4, 4)) for n in range(2)},
            "1 of its 4 layers are known and the other names are not, for example double_blocks.0.img_mod.lin",
        ),
        (
            PAIR | {f"single_blocks.{n}.linear1.oft_blocks": mx.ones((4, 4, 4)) for n in range(2)},
            r"1 of its 3 layers are known and the others are of a kind that is not supported \(OFT\), for",
        ),
        ({"img_in.oft_blocks": mx.ones((4, 4, 4))}, r"of a kind that is not supported \(OFT\)"),
        (
            {"img_in.weight": mx.ones((4, 4)), "img_in.a1": mx.ones((4, 4))},
            r"of a kind that is not supported \(GLoRA\)",
        ),
        ({"some.layer.a1": mx.ones((4, 4))}, "its names are not known, for example some.layer;"),
        ({"double_blocks.0.img_attn.proj.weight": mx.ones((WIDTH, WIDTH))}, "it is a checkpoint"),
        ({"steps": mx.array(4)}, "single numbers and no updates"),
        (
            spell({"double_blocks.0.img_attn.proj": low_rank(3072, 3072, 1)}, SPELLINGS["bare"]),
            rf"shape \(3072, 3072\), and this model's has \({WIDTH}, {WIDTH}\): it was made for another kind",
        ),
        (
            spell({"double_blocks.18.img_attn.proj": low_rank(WIDTH, WIDTH, 1)}, SPELLINGS["bare"]) | OTHER | QWEN,
            r"transformer_blocks.18.attn.to_out, which this model does not have \(it has 1 of these blocks\): it was "
            "made for another kind",
        ),
    ],
)
def test_another_kind_of_model_is_said_where_shapes_or_blocks_prove_it(
    tiny: Components, tmp_path: Path, tensors: Parts, words: str
) -> None:
    with pytest.raises(LoraError, match=words) as caught:
        warnings(tiny, tmp_path, tensors)
    assert ("another kind" in str(caught.value)) == ("another kind" in words)


@pytest.mark.parametrize("low_ram", [False, True])
def test_pass_tells_what_of_its_loras_is_not_used(
    tiny_folder: Path, device: Device, tmp_path: Path, low_ram: bool
) -> None:
    pipeline = Pipeline(load_components(tiny_folder), device)
    path = save(tmp_path / "a.safetensors", PAIR | QWEN | OTHER)
    request = attrs.evolve(REQUEST, loras=(Lora(path),), low_ram=low_ram)
    for _ in range(2):
        events: list[Event] = []
        consume(pipeline.run(request, never), events)
        told = [event.message for event in events if isinstance(event, WarningEvent)]
        assert len(told) == 2
        assert "double_blocks.0.img_mod.lin" in told[0]
        assert "2 text-encoder layers" in told[1]
    events = []
    consume(pipeline.run(attrs.evolve(request, loras=()), never), events)
    assert not [event for event in events if isinstance(event, WarningEvent)]


# --- types of numbers ---


def typed(name: str, values: Any) -> bytes:
    """Return a file with one LoRA of that type."""
    layer = "transformer.transformer_blocks.0.attn.to_q"
    down, up = values
    return safetensors_of(
        {
            f"{layer}.lora_A.weight": (name, down.shape, down.tobytes()),
            f"{layer}.lora_B.weight": (name, up.shape, up.tobytes()),
            f"{layer}.alpha": ("I64", (), np.int64(8).tobytes()),
            "unused": ("F4", (2,), b"\0"),
            "nothing": ("I64", (0, 4), b""),
            "step": ("U8", (1,), b"\7"),
        }
    )


@pytest.mark.parametrize("name", ["F64", "I8", "I32", "I64", "U8", "BOOL", "F8_E4M3", "F8_E5M2"])
def test_factors_of_any_number_type_are_converted(tiny: Components, tmp_path: Path, name: str) -> None:
    down, up = (np.resize([1, 0, 0, 1, 1, 0, 1], shape) for shape in ((4, WIDTH), (WIDTH, 4)))
    kinds = {"F64": "f8", "I8": "i1", "I32": "i4", "I64": "i8", "U8": "u1", "BOOL": "?"}
    if name in kinds:
        stored = [each.astype(kinds[name]) for each in (down, up)]
    else:
        stored = [(each * {"F8_E4M3": 0x38, "F8_E5M2": 0x3C}[name]).astype(np.uint8) for each in (down, up)]
    path = tmp_path / "a.safetensors"
    path.write_bytes(typed(name, stored))
    found = changes(tiny, path)["transformer_blocks.0.attn.to_q"]
    np.testing.assert_allclose(found, 2.0 * up @ down, atol=1e-4)
    assert LoraStack(tiny.transformer, [Lora(path)]).warnings == (
        "The LoRA a.safetensors is used in part: one of its names is not known or not supported: unused.",
    )


@pytest.mark.parametrize("shape", [(), (1,), (1, 1)])
@pytest.mark.parametrize(
    ("dtype", "content"),
    [
        ("F64", np.float64(8).tobytes()),
        ("F32", np.float32(8).tobytes()),
        ("F16", np.float16(8).tobytes()),
        ("BF16", np.float32(8).tobytes()[2:]),
        ("F8_E4M3", b"\x50"),
        ("F8_E5M2", b"\x48"),
        ("I16", np.int16(8).tobytes()),
        ("U64", np.uint64(8).tobytes()),
    ],
)
def test_alpha_of_any_number_type_is_read_in_either_spelling(
    tmp_path: Path, dtype: str, content: bytes, shape: tuple[int, ...]
) -> None:
    down, up = (np.ones(each, np.float32) for each in ((4, WIDTH), (WIDTH, 4)))
    path = tmp_path / "a.safetensors"
    path.write_bytes(
        safetensors_of(
            {
                "diffusion_model.double_blocks.0.img_attn.proj.lora_A.weight": ("F32", down.shape, down.tobytes()),
                "transformer.transformer_blocks.0.attn.to_out.0.lora_B.weight": ("F32", up.shape, up.tobytes()),
                "lora_unet_double_blocks_0_img_attn_proj.alpha": (dtype, shape, content),
            }
        )
    )
    adapter = read_adapter(path)
    (found,) = adapter.updates["transformer_blocks.0.attn.to_out"]
    assert isinstance(found, LowRank)
    assert np.array_equal(found.up, 2 * up.T)
    assert (adapter.names.layers, adapter.names.left_over) == (1, ())


def test_eight_bit_floats_are_those_of_mlx(tmp_path: Path) -> None:
    every = np.arange(256, dtype=np.uint8)
    path = tmp_path / "a.safetensors"
    path.write_bytes(typed("F8_E4M3", (every.reshape(4, 64), every.reshape(64, 4))))
    (found,) = read_adapter(path).updates["transformer_blocks.0.attn.to_q"]
    assert isinstance(found, LowRank)
    expected = mx.from_fp8(mx.array(every), dtype=mx.float32).reshape(4, 64).T
    finite = every.reshape(4, 64).T & 127 != 127
    assert np.array_equal(np.array(found.down)[finite], np.array(expected)[finite])
    assert np.isnan(np.array(found.down)[~finite]).all()
    path.write_bytes(typed("F8_E5M2", (np.array([[0x7C, 0xC4, 0x01, 0x7F]], np.uint8), every[:4].reshape(4, 1))))
    (found,) = read_adapter(path).updates["transformer_blocks.0.attn.to_q"]
    assert isinstance(found, LowRank)
    np.testing.assert_array_equal(np.array(found.down)[:, 0], [np.inf, -4.0, 2.0**-16, np.nan])


def test_scales_go_both_ways_and_at_nought_there_is_no_effect(tiny: Components, tmp_path: Path) -> None:
    path = save(tmp_path / "a.safetensors", PAIR)
    ahead, back = (changes(tiny, path, scale)["transformer_blocks.0.attn.to_out"] for scale in (4.0, -4.0))
    np.testing.assert_allclose(ahead, -back, atol=1e-4)
    assert np.abs(ahead).max() > 1
    assert len(LoraStack(tiny.transformer, [Lora(path, 0.0)])) == 0
