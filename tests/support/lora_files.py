"""Small LoRAs for the embedded checkpoint, with an effect that can be seen."""

from pathlib import Path

import numpy as np
from safetensors import safe_open
from safetensors.numpy import save, save_file

from mflux_api.storage.checkpoints import EMBEDDED

LAYERS = ("single_transformer_blocks.0.attn.to_out", "transformer_blocks.0.attn.to_q", "x_embedder")
RANK = 2


def lora_tensors(seed: int, scale: float = 1.0) -> dict[str, np.ndarray]:
    """Return tensors of the checkpoint's own shapes, as PEFT names them."""
    random = np.random.default_rng(seed)
    tensors: dict[str, np.ndarray] = {}
    (weights,) = (EMBEDDED / "transformer").glob("*.safetensors")
    with safe_open(str(weights), framework="numpy") as file:
        for layer in LAYERS:
            outputs, inputs = file.get_slice(f"{layer}.weight").get_shape()
            tensors[f"transformer.{layer}.lora_A.weight"] = random.normal(0, inputs**-0.5, (RANK, inputs))
            tensors[f"transformer.{layer}.lora_B.weight"] = random.normal(0, scale, (outputs, RANK))
    return {name: tensor.astype(np.float32) for name, tensor in tensors.items()}


def lora_bytes(seed: int) -> bytes:
    """Return a LoRA as a file's content."""
    return bytes(save(lora_tensors(seed)))


def write_lora(path: Path, seed: int) -> Path:
    """Write a LoRA to a file and return its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(lora_tensors(seed), str(path))
    return path
