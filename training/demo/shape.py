"""The demo model's dimensions, in the form that ``mflux_api.engine.demo.layout`` takes."""

from typing import Any

import attrs

from mflux_api.engine.demo import layout
from mflux_api.engine.demo.layout import CheckpointShape

VOCABULARY_SIZE = 3072
SEQUENCE_LENGTH = 64
# Special tokens stand first in the vocabulary.
PAD, START, END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"

SHAPE = CheckpointShape(
    vae_widths=(32, 64, 96, 128),
    double_blocks=3,
    single_blocks=8,
    heads=4,
    head_dim=64,
    text_width=192,
    text_heads=3,
    text_key_value_heads=1,
    text_mlp_width=512,
    max_sequence_length=SEQUENCE_LENGTH,
)
# The same graph, small enough to train a few steps on a CPU.
TINY = attrs.evolve(
    SHAPE,
    vae_widths=(16, 16, 32, 32),
    double_blocks=1,
    single_blocks=1,
    heads=1,
    text_width=64,
    text_heads=1,
    text_mlp_width=64,
)


def configs(shape: CheckpointShape, *, distilled: bool = True) -> dict[str, dict[str, Any]]:
    """Return the checkpoint's JSON files by name, for the vocabulary of ``tokenizer.py``."""
    text = layout.text_encoder_config(shape, "bfloat16")
    text |= {"vocab_size": VOCABULARY_SIZE, "pad_token_id": 0, "eos_token_id": 2}
    return {
        "model_index.json": layout.model_index(attrs.evolve(shape, is_distilled=distilled)),
        "transformer/config.json": layout.transformer_config(shape),
        "vae/config.json": layout.vae_config(shape),
        "text_encoder/config.json": text,
        "scheduler/scheduler_config.json": layout.scheduler_config(),
    }
