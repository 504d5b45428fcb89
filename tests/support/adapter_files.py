"""LoRA files for the test checkpoints."""

from collections.abc import Mapping
from pathlib import Path

import mlx.core as mx
import numpy as np

from mflux_api.engine.demo.random_checkpoint import CheckpointShape

RANK = 4


def factors(outputs: int, inputs: int, seed: int, rank: int = RANK) -> tuple[mx.array, mx.array]:
    """Return PEFT's ``lora_A`` [rank, inputs] and ``lora_B`` [outputs, rank], of an update as large as the weight."""
    random = np.random.default_rng(seed)
    down = random.normal(0, inputs**-0.5, (rank, inputs)).astype(np.float32)
    up = random.normal(0, 1, (outputs, rank)).astype(np.float32)
    return mx.array(down), mx.array(up)


def save(path: Path, tensors: Mapping[str, mx.array], metadata: Mapping[str, str] | None = None) -> Path:
    """Write a safetensors file."""
    mx.save_safetensors(str(path), dict(tensors), dict(metadata or {}))
    return path


def layers(shape: CheckpointShape) -> dict[str, tuple[int, int]]:
    """Return some layers of every kind by diffusers' name, with (outputs, inputs)."""
    width, mlp = shape.width, int(shape.width * shape.mlp_ratio)
    found = {"x_embedder": (width, 128), "single_transformer_blocks.1.attn.to_out": (width, width + mlp)}
    for name in ("attn.to_q", "attn.add_k_proj", "attn.to_out.0", "attn.to_add_out"):
        found[f"transformer_blocks.0.{name}"] = (width, width)
    found["transformer_blocks.0.ff.linear_in"] = (2 * mlp, width)
    found["single_transformer_blocks.0.attn.to_qkv_mlp_proj"] = (3 * width + 2 * mlp, width)
    return found


def peft(path: Path, shape: CheckpointShape, seed: int = 0, prefix: str = "transformer.", scale: float = 1.0) -> Path:
    """Write a LoRA as diffusers and PEFT save it."""
    tensors = {}
    for index, (name, size) in enumerate(layers(shape).items()):
        down, up = factors(*size, seed=100 * seed + index)
        tensors[f"{prefix}{name}.lora_A.weight"] = down
        tensors[f"{prefix}{name}.lora_B.weight"] = up * scale
    return save(path, tensors)
