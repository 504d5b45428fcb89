"""Which layers the example LoRA changes, and what its file calls them; this module does not need torch."""

from mflux_api.engine.demo.layout import CheckpointShape

RANK = 8


def lora_layers(shape: CheckpointShape) -> dict[str, tuple[int, int]]:
    """Return the adapted layers with their numbers of inputs and outputs.

    They are the attention of the image's stream in the double blocks, and the single blocks.
    """
    width, mlp = shape.width, int(shape.width * shape.mlp_ratio)
    found: dict[str, tuple[int, int]] = {}
    for number in range(shape.double_blocks):
        for name in ("to_q", "to_k", "to_v", "to_out.0"):
            found[f"transformer_blocks.{number}.attn.{name}"] = (width, width)
    for number in range(shape.single_blocks):
        block = f"single_transformer_blocks.{number}.attn"
        found[f"{block}.to_qkv_mlp_proj"] = (width, 3 * width + 2 * mlp)
        found[f"{block}.to_out"] = (width + mlp, width)
    return found


def lora_tensors(shape: CheckpointShape, rank: int = RANK) -> dict[str, tuple[int, int]]:
    """Return the names and shapes in the file.

    The names are PEFT's keys under diffusers' prefix, which mflux and diffusers both read. The file has
    no alpha: both take the rank for it, so that scale 1 is what was trained.
    """
    found: dict[str, tuple[int, int]] = {}
    for layer, (inputs, outputs) in lora_layers(shape).items():
        found[f"transformer.{layer}.lora_A.weight"] = (rank, inputs)
        found[f"transformer.{layer}.lora_B.weight"] = (outputs, rank)
    return found
