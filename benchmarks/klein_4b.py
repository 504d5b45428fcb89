"""Random weights in the shapes of FLUX.2 Klein 4B: what it takes to compute does not depend on what they are."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import mlx.core as mx

    from mflux_api.engine.demo.layout import CheckpointShape

FILES = {
    "transformer": "diffusion_pytorch_model.safetensors",
    "vae": "diffusion_pytorch_model.safetensors",
    "text_encoder": "model.safetensors",
}


CALM = {"decoder.conv_out.weight": 0.004}
"""Deviations of weights that make pixels differ as those of photographs do: a PNG takes 0.55 of them, of noise 0.85."""


def shape() -> "CheckpointShape":
    """Return the released model's dimensions."""
    from mflux_api.engine.demo.layout import CheckpointShape

    return CheckpointShape(
        vae_widths=(128, 256, 512, 512),
        vae_layers_per_block=2,
        vae_norm_groups=32,
        double_blocks=5,
        single_blocks=20,
        heads=24,
        head_dim=128,
        axes_dims_rope=(32, 32, 32, 32),
        text_width=2560,
        text_layers=36,
        text_out_layers=(9, 18, 27),
        text_heads=32,
        text_key_value_heads=8,
        text_head_dim=128,
        text_mlp_width=9728,
        max_sequence_length=512,
    )


def _arrays(tensors: Iterator[tuple[str, tuple[int, ...], float]]) -> "dict[str, mx.array]":
    import mlx.core as mx

    from mflux_api.engine.demo import layout

    def array(dimensions: tuple[int, ...], deviation: float) -> "mx.array":
        if deviation in (layout.ZEROS, layout.ONES):
            return mx.full(dimensions, float(deviation == layout.ONES), dtype=mx.bfloat16)
        return (mx.random.normal(dimensions) * deviation).astype(mx.bfloat16)

    return {name: array(dimensions, CALM.get(name, deviation)) for name, dimensions, deviation in tensors}


def write(folder: Path) -> Path:
    """Write a checkpoint of 13.4 GB in diffusers' layout, with weights that are drawn on the default device."""
    import mlx.core as mx

    from mflux_api.engine.demo import layout
    from mflux_api.engine.demo.byte_tokenizer import write_tokenizer

    dimensions = shape()
    parts: dict[str, tuple[Any, Any]] = {
        "transformer": (layout.transformer_config(dimensions), layout.transformer_tensors(dimensions)),
        "vae": (layout.vae_config(dimensions), layout.vae_tensors(dimensions)),
        "text_encoder": (
            layout.text_encoder_config(dimensions, "bfloat16"),
            layout.text_encoder_tensors(dimensions),
        ),
    }
    mx.random.seed(0)
    for name, (config, tensors) in parts.items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        (folder / name / "config.json").write_text(json.dumps(config), "utf-8")
        mx.save_safetensors(str(folder / name / FILES[name]), _arrays(tensors))
    (folder / "scheduler").mkdir(exist_ok=True)
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(layout.scheduler_config()), "utf-8")
    (folder / "tokenizer").mkdir(exist_ok=True)
    write_tokenizer(folder / "tokenizer", dimensions.max_sequence_length)
    (folder / "model_index.json").write_text(json.dumps(layout.model_index(dimensions)), "utf-8")
    return folder
