"""The loader: dimensions from the files, and every mismatch named before anything is used."""

import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import mlx.core as mx
import pytest

from mflux_api.engine.demo.random_checkpoint import CheckpointShape, write_random_checkpoint
from mflux_api.engine.device import Device
from mflux_api.engine.weights.components import CheckpointError, Components, load_components
from tests.support.checkpoint_shapes import TINY

pytestmark = pytest.mark.usefixtures("device")

TRANSFORMER = "transformer/diffusion_pytorch_model.safetensors"
VAE = "vae/diffusion_pytorch_model.safetensors"
TEXT = "text_encoder/model.safetensors"


@pytest.fixture
def folder(tiny_folder: Path, tmp_path: Path) -> Path:
    """A copy of the tiny checkpoint that a test may damage."""
    return Path(shutil.copytree(tiny_folder, tmp_path / "model"))


def edit_json(file: Path, **changes: object) -> None:
    values = json.loads(file.read_text())
    values.update(changes)
    file.write_text(json.dumps({key: value for key, value in values.items() if value is not ...}))


def edit_tensors(
    file: Path, change: Callable[[dict[str, mx.array]], None], metadata: dict[str, str] | None = None
) -> None:
    loaded: Any = mx.load(str(file))
    mx.eval(loaded)
    change(loaded)
    mx.save_safetensors(str(file), loaded, metadata=metadata or {"format": "pt"})


def message(folder: Path) -> str:
    """Return the loader's complaint, which must be one sentence without absolute paths."""
    with pytest.raises(CheckpointError) as caught:
        load_components(folder)
    text = str(caught.value)
    assert str(folder.parent) not in text
    assert text.endswith(".")
    assert "\n" not in text
    return text


def test_dimensions_and_counts_come_from_the_files(tiny: Components) -> None:
    assert tiny.info.text_encoder_out_layers == (1, 2, 3)
    assert tiny.info.max_sequence_length == 48
    assert tiny.info.latent_channels == 32
    assert tiny.info.is_distilled is True
    assert len(tiny.transformer.transformer_blocks) == 1
    assert len(tiny.transformer.single_transformer_blocks) == 2
    assert tiny.info.transformer_parameters > 300_000


def test_text_layers_after_the_last_used_one_are_not_loaded(tmp_path: Path) -> None:
    shape = attrs.evolve(TINY, text_layers=6, text_out_layers=(1, 2, 2))
    components = load_components(write_random_checkpoint(tmp_path / "model", shape))
    assert len(components.text_encoder.layers) == 2


def test_defaults_of_model_index(folder: Path) -> None:
    edit_json(folder / "model_index.json", text_encoder_out_layers=..., max_sequence_length=..., is_distilled=...)
    # The defaults are Klein's own layers, which this small text encoder does not have.
    assert "layer 27 of 4" in message(folder)


@pytest.mark.parametrize(
    "change",
    [
        {"vae_widths": (16, 16, 48, 32), "vae_layers_per_block": 3},
        {"vae_widths": (32, 32, 32, 32), "vae_norm_groups": 8},
        {"double_blocks": 0, "single_blocks": 5},
        {"text_out_layers": (2,)},
        {"text_out_layers": (3, 1)},
        {"is_distilled": False, "head_dim": 32, "axes_dims_rope": (4, 12, 12, 4), "heads": 4},
    ],
)
def test_other_layouts_load(tmp_path: Path, change: dict[str, Any]) -> None:
    shape: CheckpointShape = attrs.evolve(TINY, **change)
    components = load_components(write_random_checkpoint(tmp_path / "model", shape))
    assert components.info.text_encoder_out_layers == shape.text_out_layers
    assert components.info.is_distilled is shape.is_distilled


def test_bfloat16_files_are_loaded_in_the_engines_precision(tmp_path: Path, device: Device) -> None:
    components = load_components(write_random_checkpoint(tmp_path / "model", TINY, dtype="bfloat16"))
    assert components.transformer.proj_out.weight.dtype == (mx.bfloat16 if device.is_gpu else mx.float32)


def test_shards_with_and_without_an_index(folder: Path, tiny: Components) -> None:
    file = folder / TRANSFORMER
    loaded: Any = mx.load(str(file))
    names = sorted(loaded)
    halves = {
        "diffusion_pytorch_model-00001-of-00002.safetensors": names[::2],
        "diffusion_pytorch_model-00002-of-00002.safetensors": names[1::2],
    }
    for name, keys in halves.items():
        mx.save_safetensors(str(file.parent / name), {key: loaded[key] for key in keys}, metadata={"format": "pt"})
    file.unlink()
    without = load_components(folder)
    assert mx.array_equal(without.transformer.proj_out.weight, tiny.transformer.proj_out.weight)

    index = file.parent / "diffusion_pytorch_model.safetensors.index.json"
    weight_map = {key: name for name, keys in halves.items() for key in keys}
    index.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    # The index decides, so a leftover beside its files does not count.
    shutil.copy(folder / VAE, file.parent / "leftover.safetensors")
    assert load_components(folder).info == tiny.info

    weight_map[names[0]] = next(name for name, keys in halves.items() if names[0] not in keys)
    index.write_text(json.dumps({"weight_map": weight_map}))
    assert f"lacks {names[0]}" in message(folder)
    weight_map[names[0]] = "gone.safetensors"
    index.write_text(json.dumps({"weight_map": weight_map}))
    assert message(folder) == "transformer/gone.safetensors is missing."
    weight_map[names[0]] = "../vae/diffusion_pytorch_model.safetensors"
    index.write_text(json.dumps({"weight_map": weight_map}))
    assert "not a safetensors file beside it" in message(folder)


def test_a_tensor_in_two_files(folder: Path) -> None:
    shutil.copy(folder / VAE, folder / "vae" / "diffusion_pytorch_model.fp16.safetensors")
    assert "is in both vae/diffusion_pytorch_model.fp16.safetensors and vae/" in message(folder)


def test_text_encoder_saved_without_its_head_prefix(folder: Path, tiny: Components) -> None:
    def strip(tensors: dict[str, mx.array]) -> None:
        for name in list(tensors):
            tensors[name.removeprefix("model.")] = tensors.pop(name)
        tensors["lm_head.weight"] = mx.zeros((4, 4))

    edit_tensors(folder / TEXT, strip)
    assert load_components(folder).info == tiny.info


def test_missing_parameter(folder: Path) -> None:
    def drop(tensors: dict[str, mx.array]) -> None:
        for name in ("proj_out.weight", "transformer_blocks.0.attn.to_q.weight"):
            del tensors[name]

    edit_tensors(folder / TRANSFORMER, drop)
    assert message(folder) == "transformer: transformer_blocks.0.attn.to_q.weight of shape (128, 128) is missing."


def test_missing_convolution_is_named_in_the_files_layout(folder: Path) -> None:
    edit_tensors(folder / VAE, lambda tensors: tensors.__delitem__("decoder.conv_in.weight"))
    assert message(folder) == "vae: decoder.conv_in.weight of shape (48, 32, 3, 3) is missing."


def test_unexpected_parameter(folder: Path) -> None:
    edit_tensors(folder / VAE, lambda tensors: tensors.update(extra=mx.zeros((2, 3))))
    assert message(folder) == "vae: extra of shape (2, 3) is unexpected: the configuration has no such parameter."


def test_known_extras_are_tolerated(folder: Path, tiny: Components) -> None:
    edit_tensors(folder / VAE, lambda tensors: tensors.update({"bn.num_batches_tracked": mx.array(0)}))
    assert load_components(folder).info == tiny.info


@pytest.mark.parametrize(
    ("file", "name", "shape"),
    [
        (TRANSFORMER, "proj_out.weight", (128, 128)),
        (VAE, "encoder.conv_in.weight", (16, 3, 3, 3)),
        (TEXT, "model.layers.2.mlp.up_proj.weight", (128, 64)),
        (TEXT, "model.layers.3.mlp.up_proj.weight", (128, 64)),
    ],
)
def test_wrong_shape(folder: Path, file: str, name: str, shape: tuple[int, ...]) -> None:
    wrong = (5, *shape[1:])
    edit_tensors(folder / file, lambda tensors: tensors.update({name: mx.zeros(wrong)}))
    component = file.split("/")[0]
    assert message(folder) == f"{component}: {name} has shape {wrong}, and the configuration needs {shape}."


def test_a_parameter_that_is_not_floating_point(folder: Path) -> None:
    edit_tensors(
        folder / TRANSFORMER, lambda tensors: tensors.update({"proj_out.weight": mx.zeros((128, 128), dtype=mx.uint32)})
    )
    assert message(folder) == "transformer: proj_out.weight must hold floating-point numbers."


@pytest.mark.parametrize(
    ("config", "key", "value", "expected"),
    [
        ("transformer", "num_layers", 2, "transformer_blocks.1.attn.to_q.weight of shape (128, 128) is missing"),
        ("transformer", "num_single_layers", 1, "single_transformer_blocks.1.attn.norm_k.weight of shape (64,) is un"),
        ("transformer", "mlp_ratio", 2.0, "has shape (768, 128), and the configuration needs (512, 128)"),
        ("transformer", "num_layers", "two", "num_layers must be an integer"),
        ("transformer", "num_layers", 10**9, "num_layers must be an integer from 0 to 512"),
        ("transformer", "num_attention_heads", ..., "transformer/config.json lacks num_attention_heads"),
        ("transformer", "in_channels", 64, "in_channels must be 128, the only value supported, and is 64"),
        ("transformer", "guidance_embeds", True, "guidance_embedder.linear_1.weight of shape (128, 256) is missing"),
        ("transformer", "axes_dims_rope", [16, 16, 16, 32], "axes_dims_rope must be 4 even numbers of sum 64"),
        ("transformer", "axes_dims_rope", [64], "axes_dims_rope must be 4 even numbers of sum 64"),
        ("transformer", "joint_attention_dim", 128, "joint_attention_dim is 128, but 3 outputs of the text encoder"),
        ("vae", "latent_channels", 16, "latent_channels must be 32"),
        ("vae", "layers_per_block", 2, "vae: encoder.down_blocks.0.resnets.1."),
        ("vae", "block_out_channels", [16, 32, 48], "the VAE needs 4 block widths"),
        ("vae", "norm_num_groups", 5, "each a multiple of 5 groups"),
        ("vae", "use_quant_conv", False, "use_quant_conv must be true"),
        (
            "vae",
            "mid_block_add_attention",
            False,
            "mid_block.attentions.0.group_norm.bias of shape (48,) is unexpected",
        ),
        ("text_encoder", "num_hidden_layers", 5, "model.layers.4.input_layernorm.weight of shape (64,) is missing"),
        ("text_encoder", "num_hidden_layers", 3, "layer 3 of 3: the last layer's output is normed"),
        ("text_encoder", "num_key_value_heads", 2, "must be a multiple of num_key_value_heads"),
        ("text_encoder", "rope_parameters", {"rope_type": "yarn"}, 'rope_type must be "default"'),
        ("text_encoder", "rms_norm_eps", "tiny", "rms_norm_eps must be a positive number"),
        ("text_encoder", "vocab_size", 64, "tokens, and the text encoder embeds only 64"),
    ],
)
def test_configuration_that_does_not_fit(folder: Path, config: str, key: str, value: object, expected: str) -> None:
    edit_json(folder / config / "config.json", **{key: value})
    assert expected in message(folder)


def test_more_text_layers_in_the_file_than_in_the_configuration(folder: Path) -> None:
    edit_json(folder / "text_encoder" / "config.json", num_hidden_layers=3)
    edit_json(folder / "model_index.json", text_encoder_out_layers=[1, 2, 2])
    assert "text_encoder: model.layers.3.input_layernorm.weight of shape (64,) is unexpected" in message(folder)


@pytest.mark.parametrize("layers", [[0, 1, 2], [], "9", [1, 2, True], [1, 2, 4], [1, 2, 99]])
def test_output_layers_that_cannot_be_used(folder: Path, layers: object) -> None:
    edit_json(folder / "model_index.json", text_encoder_out_layers=layers)
    assert "layer" in message(folder)


def test_rope_theta_is_read_from_either_place(folder: Path) -> None:
    config = folder / "text_encoder" / "config.json"
    edit_json(config, rope_theta=..., rope_parameters={"rope_type": "default", "rope_theta": 5000.0})
    assert load_components(folder).text_encoder.rotary_emb.base == 5000.0
    edit_json(config, rope_theta=7000.0, rope_parameters=...)
    assert load_components(folder).text_encoder.rotary_emb.base == 7000.0


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("model_index.json", "model_index.json is missing."),
        ("vae/config.json", "vae/config.json is missing."),
        ("tokenizer/tokenizer.json", "tokenizer/tokenizer.json is missing."),
        ("tokenizer/chat_template.jinja", "tokenizer/chat_template.jinja is missing, and"),
        (TRANSFORMER, "transformer holds no safetensors files."),
        (TEXT, "text_encoder holds no safetensors files."),
    ],
)
def test_missing_file(folder: Path, name: str, expected: str) -> None:
    (folder / name).unlink()
    assert message(folder).startswith(expected)


def test_missing_folders(folder: Path) -> None:
    shutil.rmtree(folder / "vae")
    assert message(folder) == "The folder vae is missing."
    with pytest.raises(CheckpointError, match=r"^There is no checkpoint folder nowhere\.$"):
        load_components(folder / "nowhere")


@pytest.mark.parametrize("content", ["{", "[]", "", "\ud800", "[" * 100_000])
def test_corrupt_json(folder: Path, content: str) -> None:
    (folder / "vae" / "config.json").write_bytes(content.encode("utf-8", "surrogatepass"))
    assert message(folder).startswith("vae/config.json ")


def test_corrupt_tokenizer(folder: Path) -> None:
    (folder / "tokenizer" / "tokenizer.json").write_text("{}")
    assert message(folder) == "tokenizer/ holds files that transformers cannot load."


def test_truncated_and_corrupt_safetensors(folder: Path) -> None:
    file = folder / TRANSFORMER
    whole = file.read_bytes()
    file.write_bytes(whole[:-100])
    assert (
        message(folder)
        == f"{TRANSFORMER} has {len(whole) - 100} bytes and should have {len(whole)}: download it again."
    )
    for damaged in (b"", whole[:5], whole[:60], struct.pack("<Q", 1 << 62) + whole[8:], struct.pack("<Q", 2) + b"[]"):
        file.write_bytes(damaged)
        assert message(folder) == f"{TRANSFORMER} is not a safetensors file: download it again."


def test_loading_reaches_for_no_network(tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import socket

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("the loader opened a socket")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    components = load_components(tiny_folder)
    components.load_all()
    assert components.resident == {"transformer", "text_encoder", "vae"}
