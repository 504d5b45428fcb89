"""Names of a LoRA's tensors: every trainer's spelling of a layer is that layer, and nothing else is."""

import pytest

from mflux_api.catalog.lora_tensors import SWAPPED, Rows, Target, parse_name

PREFIXES = (
    *("", "diffusion_model.", "transformer.", "model.diffusion_model.", "base_model.model.", "unet.", "net."),
    *("base_model.model.transformer.", "lora_unet_", "lora_transformer_", "lycoris_", "lycoris__", "module."),
    *("student.transformer.", "_forward_module.", "pipeline.transformer.", "student.", "generator.", "denoiser."),
)
# BFL's name, diffusers' names, mflux's layers
LAYERS: tuple[tuple[str, tuple[str, ...], tuple[str, ...]], ...] = (
    ("img_in", ("x_embedder",), ("x_embedder",)),
    ("txt_in", ("context_embedder",), ("context_embedder",)),
    ("time_in.in_layer", ("time_guidance_embed.timestep_embedder.linear_1",), ("time_guidance_embed.linear_1",)),
    ("time_in.out_layer", ("time_guidance_embed.timestep_embedder.linear_2",), ("time_guidance_embed.linear_2",)),
    (
        "guidance_in.in_layer",
        ("time_guidance_embed.guidance_embedder.linear_1",),
        ("time_guidance_embed.guidance_linear_1",),
    ),
    (
        "guidance_in.out_layer",
        ("time_guidance_embed.guidance_embedder.linear_2",),
        ("time_guidance_embed.guidance_linear_2",),
    ),
    *(
        (f"{name}.lin", (f"{name}.linear",), (f"{name}.linear",))
        for name in ("double_stream_modulation_img", "double_stream_modulation_txt", "single_stream_modulation")
    ),
    ("final_layer.linear", ("proj_out",), ("proj_out",)),
    (
        "double_blocks.3.img_attn.qkv",
        ("transformer_blocks.3.attn.to_qkv", "transformer_blocks.3.attn.qkv"),
        tuple(f"transformer_blocks.3.attn.to_{each}" for each in "qkv"),
    ),
    (
        "double_blocks.3.txt_attn.qkv",
        ("transformer_blocks.3.attn.to_added_qkv", "transformer_blocks.3.attn.added_qkv"),
        tuple(f"transformer_blocks.3.attn.add_{each}_proj" for each in "qkv"),
    ),
    (
        "double_blocks.12.img_attn.proj",
        ("transformer_blocks.12.attn.to_out.0", "transformer_blocks.12.attn.to_out"),
        ("transformer_blocks.12.attn.to_out",),
    ),
    (
        "double_blocks.0.txt_attn.proj",
        ("transformer_blocks.0.attn.to_add_out",),
        ("transformer_blocks.0.attn.to_add_out",),
    ),
    ("double_blocks.0.img_mlp.0", ("transformer_blocks.0.ff.linear_in",), ("transformer_blocks.0.ff.linear_in",)),
    ("double_blocks.0.img_mlp.2", ("transformer_blocks.0.ff.linear_out",), ("transformer_blocks.0.ff.linear_out",)),
    (
        "double_blocks.0.txt_mlp.0",
        ("transformer_blocks.0.ff_context.linear_in",),
        ("transformer_blocks.0.ff_context.linear_in",),
    ),
    (
        "double_blocks.0.txt_mlp.2",
        ("transformer_blocks.0.ff_context.linear_out",),
        ("transformer_blocks.0.ff_context.linear_out",),
    ),
    (
        "single_blocks.23.linear1",
        ("single_transformer_blocks.23.attn.to_qkv_mlp_proj",),
        ("single_transformer_blocks.23.attn.to_qkv_mlp_proj",),
    ),
    (
        "single_blocks.0.linear2",
        ("single_transformer_blocks.0.attn.to_out",),
        ("single_transformer_blocks.0.attn.to_out",),
    ),
)
# As the file has it, as it is called here
PARTS = {
    ".lora_A.weight": "lora_A",
    ".lora_A": "lora_A",
    ".lora_A.default.weight": "lora_A",
    ".lora_A.my-style_2.weight": "lora_A",
    ".lora_down.weight": "lora_A",
    ".lora.down.weight": "lora_A",
    "_lora_down_weight": "lora_A",
    ".lora_linear_layer.down.weight": "lora_A",
    ".lora_B.weight": "lora_B",
    ".lora_up": "lora_B",
    ".lora_B.bias": "lora_B_bias",
    ".lora_B.default.bias": "lora_B_bias",
    ".lora_up.bias": "lora_B_bias",
    ".alpha": "alpha",
    ".diff": "diff",
    ".diff_b": "diff_b",
    ".dora_scale": "magnitude",
    ".magnitude": "magnitude",
    ".lora_magnitude_vector": "magnitude",
    ".lora_magnitude_vector.default.weight": "magnitude",
    ".lokr_w1": "lokr_w1",
    ".lokr_w1.default": "lokr_w1",
    ".lokr_w2_b": "lokr_w2_b",
    ".lokr_t2": "lokr_t2",
    ".hada_w1_a": "hada_w1_a",
    ".hada_w2_b.default": "hada_w2_b",
}


@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize(("bfl", "diffusers", "layers"), LAYERS, ids=[each[0] for each in LAYERS])
def test_every_spelling_of_a_layer_is_that_layer(
    prefix: str, bfl: str, diffusers: tuple[str, ...], layers: tuple[str, ...]
) -> None:
    rows = [Rows(1, (0,))] if len(layers) == 1 else [Rows(3, (third,)) for third in range(3)]
    expected = tuple(Target(path, each) for path, each in zip(layers, rows, strict=True))
    for layer in (bfl, *diffusers, *(layers if len(layers) == 1 else ())):
        for spelling in {layer, layer.replace(".", "_")}:
            assert parse_name(f"{prefix}{spelling}.lora_A.weight").targets == expected, spelling


@pytest.mark.parametrize(
    "layer",
    [
        "_fsdp_wrapped_module.transformer_blocks.0._fsdp_wrapped_module.attn.to_add_out",
        "transformer.transformer_blocks.0._checkpoint_wrapped_module.attn.to_add_out",
        "base_model.model._orig_mod.transformer_blocks.0._orig_mod.attn.to_add_out",
        "diffusion_model.sformer_blocks.0.attn.to_add_out",
        "lora_transformer_transformer_blocks_0_attn_to_add_out_",
    ],
)
def test_what_tools_leave_in_a_name_does_not_hide_its_layer(layer: str) -> None:
    found = parse_name(f"{layer}.lora_A.weight")
    assert (found.layer, found.targets) == (layer, (Target("transformer_blocks.0.attn.to_add_out"),))


@pytest.mark.parametrize("prefix", PREFIXES)
def test_shift_before_scale_is_bfls_order_and_not_diffusers(prefix: str) -> None:
    for name in ("final_layer.adaLN_modulation.1", "final_layer_adaLN_modulation_1"):
        assert parse_name(f"{prefix}{name}.lora_B.weight").targets == (Target("norm_out.linear", SWAPPED),)
    assert parse_name(f"{prefix}norm_out.linear.lora_B.weight").targets == (Target("norm_out.linear"),)


@pytest.mark.parametrize(("suffix", "part"), PARTS.items(), ids=PARTS)
def test_every_spelling_of_a_part_is_that_part(suffix: str, part: str) -> None:
    for layer in ("diffusion_model.double_blocks.0.img_attn.proj", "lora_unet_double_blocks_0_img_attn_proj"):
        name = parse_name(f"{layer}{suffix}")
        assert (name.layer, name.part) == (layer, part)
        assert name.targets == (Target("transformer_blocks.0.attn.to_out"),)


@pytest.mark.parametrize(
    "name",
    [
        "lora_te_text_model_encoder_layers_0_mlp_fc1.lora_down.weight",
        "lora_te2_layers_0_self_attn_q_proj.lora_down.weight",
        "text_encoder.model.layers.0.self_attn.q_proj.lora_A.weight",
        "text_encoders.qwen3_4b.transformer.model.layers.0.mlp.up_proj.lora_A.weight",
        "base_model.model.model.layers.3.self_attn.q_proj.lora_A.weight",
        "base_model.model.text_model.encoder.layers.0.mlp.fc1.lora_A.weight",
        "clip_l.transformer.text_model.encoder.layers.0.mlp.fc1.lora_A.weight",
    ],
)
def test_text_encoders_layers_are_known_as_such(name: str) -> None:
    assert parse_name(name).text_encoder
    assert parse_name(name).targets == ()


@pytest.mark.parametrize(
    "name",
    [
        "lora_unet_down_blocks_0_attentions_0_proj_in.lora_down.weight",
        "transformer.single_transformer_blocks.0.attn.to_q.lora_A.weight",
        "double_blocks.0.img_mod.lin.lora_A.weight",
        "double_blocks.00000.img_attn.qkv.lora_A.weight",
        "double_blocks.٣.img_attn.qkv.lora_A.weight",
        "vae.proj_out.lora_A.weight",
        "proj_out_2.lora_A.weight",
        "generator_ema.proj_out.lora_A.weight",
    ],
)
def test_layers_of_other_models_are_not_taken_for_flux2s(name: str) -> None:
    assert not parse_name(name).targets
    assert not parse_name(name).text_encoder


def test_names_that_only_look_like_a_layers_are_not_known() -> None:
    for name in ("lora_" * 40, "model." * 33, "_" * 200, "a." * 100, "lora_A." * 28, "transformer_" * 16):
        for suffix in ("", "blocks_0_", ".lora_A.weight", ".alpha"):
            assert parse_name((name + suffix)[:200]).targets == ()
