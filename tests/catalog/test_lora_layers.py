"""What a LoRA's file holds by its names: layers are counted, and what is not known is named."""

from collections.abc import Iterable

import pytest

from mflux_api.catalog.lora_layers import LoraContents, describe, sort_names
from mflux_api.catalog.safetensors_rules import Header, TensorPlace


def header(names: Iterable[str], metadata: dict[str, str] | None = None, shape: tuple[int, ...] = (8, 64)) -> Header:
    return Header({name: TensorPlace("F32", shape, 0, 2048) for name in names}, metadata or {}, 0)


def pair(layer: str) -> list[str]:
    return [f"{layer}.lora_A.weight", f"{layer}.lora_B.weight"]


def test_contents_of_a_lora_are_counted_by_its_layers() -> None:
    names = [*pair("double_blocks.0.img_attn.qkv"), *pair("img_in"), *pair("transformer.no.such.layer")]
    names += ["double_blocks.0.img_attn.qkv.alpha", *pair("text_encoder.model.layers.0.mlp.up_proj")]
    metadata = {"ss_base_model_version": "", "base_model": "C:\\models\\flux2-klein-4b.safetensors"}
    assert describe(header(names, metadata)) == LoraContents(
        format="lora",
        rank=8,
        base="flux2-klein-4b.safetensors",
        layers=3,
        understood=2,
        text_encoder_layers=1,
        unknown=("transformer.no.such.layer",),
    )


@pytest.mark.parametrize(
    ("metadata", "base"),
    [
        ({}, None),
        ({"modelspec.architecture": "flux-2-klein/lora", "base_model": "x"}, "flux-2-klein"),
        ({"ss_base_model_version": "flux2_klein_9b"}, "flux2_klein_9b"),
        ({"base_model": "black-forest-labs/FLUX.2-klein-4B"}, "black-forest-labs/FLUX.2-klein-4B"),
        ({"ss_sd_model_name": "/home/me/flux2.safetensors"}, "flux2.safetensors"),
        ({"ss_sd_model_name": " \n"}, None),
        ({"base_model": "\x1b[31m" + "x" * 1000}, "\ufffd[31m" + "x" * 74 + "…"),
    ],
)
def test_base_is_what_the_trainer_wrote(metadata: dict[str, str], base: str | None) -> None:
    assert describe(header(pair("img_in"), metadata)).base == base


@pytest.mark.parametrize(
    ("parts", "format_", "rank"),
    [
        (("lora_A.weight", "lora_B.weight", "alpha"), "lora", 8),
        (("lora_down.weight", "lora_up.weight", "dora_scale"), "dora", 8),
        (("lora_A.weight", "lora_B.weight", "lora_magnitude_vector.weight"), "dora", 8),
        (("lokr_w1", "lokr_w2"), "lokr", None),
        (("lokr_w1", "lokr_w2_a", "lokr_w2_b", "dora_scale"), "lokr", 8),
        (("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"), "loha", 8),
        (("oft_blocks",), "unknown", None),
        (("weight",), "unknown", None),
    ],
)
def test_format_is_known_by_the_parts(parts: tuple[str, ...], format_: str, rank: int | None) -> None:
    contents = describe(header(f"lora_unet_double_blocks_0_img_attn_qkv.{part}" for part in parts))
    assert (contents.format, contents.rank, contents.layers) == (format_, rank, 1)
    assert contents.understood == (format_ != "unknown")


def test_adapters_of_other_kinds_are_known_by_their_names() -> None:
    names = header(["single_blocks.0.linear1.oft_blocks", "img_in.weight", "single_blocks.1.linear1.hada_t1"])
    assert sort_names(names.tensors).unsupported == ("OFT", "checkpoint", "Tucker decomposition")
    assert not sort_names(names.tensors).mostly_understood
    adalora = [f"img_in.{part}" for part in ("lora_A", "lora_B", "lora_E")]
    assert sort_names(header(adalora).tensors).unsupported == ("AdaLoRA",)
    assert sort_names(header(["some.layer.a1", "some.layer.oft_blocks"]).tensors).unsupported == ()


def test_part_that_is_not_known_is_left_over_and_its_layer_is_used() -> None:
    names = sort_names(header([*pair("img_in"), "img_in.weight", "double_blocks.0.img_attn.qkv.scale_of_it"]).tensors)
    assert sorted(names.used) == pair("img_in")
    assert names.left_over == ("img_in.weight", "double_blocks.0.img_attn.qkv.scale_of_it")


def test_bias_of_a_checkpoint_is_not_a_loras() -> None:
    names = sort_names(header([*pair("img_in"), "img_in.bias", "txt_in.bias"]).tensors)
    assert sorted(names.used) == pair("img_in")
    assert (names.layers, names.understood, names.left_over) == (2, 1, ("img_in.bias", "txt_in"))


def test_single_numbers_and_nothing_at_all_are_not_left_over() -> None:
    for shape in ((), (1,), (0,)):
        assert sort_names(header(["steps", "notes"], shape=shape).tensors).left_over == ()
    assert sort_names(header(["steps"]).tensors).left_over == ("steps",)


def test_examples_are_few_short_and_printable() -> None:
    names = [f"\x1b\n{'x' * 180}{number}.lora_A.weight" for number in range(100)]
    contents = describe(header(names))
    assert (contents.layers, contents.understood, len(contents.unknown)) == (100, 0, 3)
    assert all(len(each) <= 80 and each.isprintable() for each in contents.unknown)


def test_half_of_the_layers_is_enough() -> None:
    known, other = pair("img_in"), pair("no.such")
    assert sort_names(header([*known, *other]).tensors).mostly_understood
    assert not sort_names(header([*known, *other, *pair("no.other")]).tensors).mostly_understood
    assert sort_names(header([*known, *(f"{number}.weight" for number in range(100))]).tensors).mostly_understood
    for prefix in ("transformer.", "diffusion_model.", "model.diffusion_model.", "lora_unet_", "base_model.model."):
        others = [f"{prefix}{number}.weight" for number in range(3)]
        assert not sort_names(header([*known, *others]).tensors).mostly_understood
        assert sort_names(header([*known, *others], shape=(1,)).tensors).mostly_understood
