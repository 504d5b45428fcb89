"""The sizes in the catalog, computed again from the shapes of mflux's modules; nothing is allocated."""

from typing import Any

import pytest

from mflux_api.catalog import Catalog
from mflux_api.catalog.safetensors_rules import TensorPlace
from mflux_api.storage.footprint import _is_used, _tensor_bytes

BF16_BYTES = 2
MISTRAL_PARAMETERS = 24_011_361_280
"""Mistral Small 3.2 24B with its vision tower, as published: FLUX.2-dev's text encoder."""
MISTRAL_VOCABULARY_PARAMETERS = 131_072 * 5120
MISTRAL_LAYER_PARAMETERS = 2 * 5120 * 32 * 128 + 2 * 5120 * 8 * 128 + 3 * 5120 * 32_768
"""Of its 40 layers a prompt needs 30; neither the others nor the half that sees images are kept."""
QWEN_LAYERS = 27
UNQUANTIZED_SHARE = 0.008
"""Norms, biases and convolutions of a Klein model, which quantization leaves alone."""


def count(module: Any) -> int:
    """Return the number of parameters; MLX is lazy, so this costs no memory."""
    from mflux_api.engine.weights.parameters import named_arrays

    return sum(array.size for _, array in named_arrays(module))


def size(alias: str) -> float:
    model = Catalog().get(alias)
    assert model is not None
    assert model.size_gb is not None
    return model.size_gb


def quantized_size(parameters: float, bits: int) -> float:
    """Return gigabytes in groups of 64 with a bf16 scale and bias each."""
    return parameters * (bits / 8 + 2 * BF16_BYTES / 64) / 1e9


def kept_size(module: Any, bits: int) -> float:
    """Return gigabytes as the service counts a checkpoint's tensors, for those of a module that are kept."""
    from mflux_api.engine.weights.parameters import named_arrays

    tensors = [(name, TensorPlace("BF16", tuple(array.shape), 0, array.nbytes)) for name, array in named_arrays(module)]
    used = [(name, tensor) for name, tensor in tensors if _is_used(name, QWEN_LAYERS, dev=False)]
    return sum(_tensor_bytes(name, tensor, BF16_BYTES, bits) for name, tensor in used) / 1e9


@pytest.mark.parametrize("alias", ["flux2-klein-4b", "flux2-klein-9b"])
def test_klein(alias: str) -> None:
    from mflux.models.common.config.model_config import AVAILABLE_MODELS
    from mflux.models.flux2.model.flux2_text_encoder.qwen3_text_encoder import Qwen3TextEncoder
    from mflux.models.flux2.model.flux2_transformer.transformer import Flux2Transformer
    from mflux.models.flux2.model.flux2_vae.vae import Flux2VAE

    config = AVAILABLE_MODELS[alias]
    modules = (
        Flux2Transformer(**config.transformer_overrides),
        Qwen3TextEncoder(**config.text_encoder_overrides),
        Flux2VAE(),
    )
    parameters = sum(count(module) for module in modules)
    assert size(alias) == pytest.approx(parameters * BF16_BYTES / 1e9, abs=0.01)
    rest = parameters * UNQUANTIZED_SHARE
    for bits in (4, 8):
        expected = quantized_size(parameters - rest, bits) + rest * BF16_BYTES / 1e9
        if Catalog().get(f"{alias}-mlx-{bits}bit") is not None:
            assert size(f"{alias}-mlx-{bits}bit") == pytest.approx(expected, rel=0.02)
    for bits in (3, 4, 6, 8):
        assert size(f"{alias}-{bits}-bit") == pytest.approx(
            sum(kept_size(module, bits) for module in modules), abs=0.006
        )


def test_dev() -> None:
    from mflux.models.flux2.model.flux2_transformer.transformer import Flux2Transformer
    from mflux.models.flux2.model.flux2_vae.vae import Flux2VAE

    transformer = count(
        Flux2Transformer(
            num_layers=8, num_single_layers=48, num_attention_heads=48, joint_attention_dim=15360, guidance_embeds=True
        )
    )
    vae = count(Flux2VAE())
    assert size("flux2-dev") == pytest.approx((transformer + MISTRAL_PARAMETERS + vae) * BF16_BYTES / 1e9, abs=0.01)
    layers = 30 * MISTRAL_LAYER_PARAMETERS + MISTRAL_VOCABULARY_PARAMETERS
    for bits in (4, 8):
        expected = quantized_size(transformer + layers, bits) + vae * BF16_BYTES / 1e9
        assert size(f"flux2-dev-{bits}-bit") == pytest.approx(expected, abs=0.01 * size(f"flux2-dev-{bits}-bit"))


def test_seedvr2() -> None:
    from mflux.models.seedvr2.model.seedvr2_transformer.transformer import SeedVR2Transformer
    from mflux.models.seedvr2.model.seedvr2_vae.vae import SeedVR2VAE

    transformer = SeedVR2Transformer()
    parameters = count(transformer) + count(SeedVR2VAE())
    # From block 10 on the file stores one attention for both streams; mflux fills two modules from it.
    shared = sum(
        count(getattr(block.attn, name))
        for block in transformer.blocks[10:]
        for name in ("proj_qkv_txt", "proj_out_txt")
    )
    assert size("seedvr2") == pytest.approx((parameters - shared) * BF16_BYTES / 1e9, abs=0.01)
