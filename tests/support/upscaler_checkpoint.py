"""A small random SeedVR2 under the names of the released files, and mflux's own model on the same weights."""

from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from mflux.callbacks.callback_registry import CallbackRegistry
from mflux.models.common.config.model_config import ModelConfig
from mflux.models.common.vae.tiling_config import TilingConfig
from mflux.models.common.weights.mapping.weight_mapper import WeightMapper
from mflux.models.seedvr2.model.seedvr2_transformer.transformer import SeedVR2Transformer
from mflux.models.seedvr2.model.seedvr2_vae.vae import SeedVR2VAE
from mflux.models.seedvr2.variants.upscale.seedvr2 import SeedVR2
from mflux.models.seedvr2.weights.seedvr2_weight_mapping import SeedVR2WeightMapping
from mlx import nn

from mflux_api.catalog.files import UPSCALER_FILES
from mflux_api.engine.weights.parameters import expected_tensors

LAYERS, SEPARATE_LAYERS = 4, 2
VAE_WIDTHS = (32, 32, 64, 64)


def _transformer() -> Any:
    return SeedVR2Transformer(
        vid_dim=64, heads=2, head_dim=32, rope_dim=32, num_layers=LAYERS, mm_layers=SEPARATE_LAYERS
    )


def _vae() -> Any:
    return SeedVR2VAE(block_out_channels=VAE_WIDTHS)


def write_upscaler(folder: Path) -> Path:
    """Write both files, float32, and return the folder."""
    folder.mkdir(parents=True)
    random = np.random.default_rng(0)
    mappings = {
        "transformer": (_transformer(), SeedVR2WeightMapping.get_transformer_mapping(num_blocks=LAYERS)),
        "vae": (_vae(), SeedVR2WeightMapping.get_vae_mapping()),
    }
    for part, (module, mapping) in mappings.items():
        tensors = {}
        for name, tensor in expected_tensors(module, mapping).items():
            values = random.standard_normal(tensor.shape).astype(np.float32)
            if name.endswith(".freqs"):
                values = np.asarray(module.blocks[0].attn.rope.freqs)
            elif "norm" in name:
                values = 0.1 * values + (1 if name.endswith("weight") else 0)
            elif values.ndim > 1:
                values /= np.sqrt(values[0].size)
            else:
                values = 0.2 * values + ("scale" in name)
            tensors[_released_name(name)] = mx.array(values)
        mx.save_safetensors(str(folder / UPSCALER_FILES[part]), tensors)
    return folder


def _released_name(name: str) -> str:
    """Return the name in the released file, where layers that both streams share are stored once."""
    block = int(name.split(".")[1]) if name.startswith("blocks.") else 0
    if block < SEPARATE_LAYERS or ".attn." not in name:
        return name
    return name.replace(".vid.", ".all.").replace(".txt.", ".all.")


def load_stock(folder: Path) -> Any:
    """Mflux's SeedVR2, its weights mapped by mflux's mapper; its initializer knows only the released dimensions."""
    stock = SeedVR2.__new__(SeedVR2)
    nn.Module.__init__(stock)
    stock.model_config, stock.callbacks, stock.tiling_config = (
        ModelConfig.seedvr2_3b(),
        CallbackRegistry(),
        TilingConfig(),
    )
    stock.bits = None
    stock.transformer, stock.vae = _transformer(), _vae()
    transformer: Any = mx.load(str(folder / UPSCALER_FILES["transformer"]))
    mapping = SeedVR2WeightMapping.get_transformer_mapping(num_blocks=LAYERS)
    stock.transformer.update(WeightMapper.apply_mapping(transformer, mapping, num_blocks=LAYERS))
    vae: Any = mx.load(str(folder / UPSCALER_FILES["vae"]))
    stock.vae.update(WeightMapper.apply_mapping(vae, SeedVR2WeightMapping.get_vae_mapping(), num_blocks=4))
    return stock
