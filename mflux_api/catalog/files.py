"""What a folder with SeedVR2 holds: known to the engine, which reads it, and to the service, which looks for it."""

from collections.abc import Mapping

UPSCALER_FILES: Mapping[str, str] = {
    "transformer": "seedvr2_ema_3b_fp16.safetensors",
    "vae": "ema_vae_fp16.safetensors",
}
"""The two files, side by side, by what is in them."""
