"""Checkpoint shapes of the model-side tests."""

from mflux_api.engine.demo.random_checkpoint import CheckpointShape

TINY = CheckpointShape(
    vae_widths=(16, 32, 32, 48),
    double_blocks=1,
    single_blocks=2,
    heads=2,
    text_width=64,
    text_heads=1,
    text_mlp_width=128,
    max_sequence_length=48,
)

STOCK = CheckpointShape(
    vae_widths=(128, 256, 512, 512),
    vae_layers_per_block=2,
    vae_norm_groups=32,
    double_blocks=2,
    single_blocks=3,
    heads=2,
    text_width=64,
    text_layers=28,
    text_out_layers=(9, 18, 27),
    text_heads=1,
    text_mlp_width=64,
    max_sequence_length=512,
)
