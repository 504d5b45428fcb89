"""Compare the modules written here with diffusers' and transformers' own, on an exported checkpoint folder.

    python -m training.demo.verify FOLDER

Needs diffusers and transformers beside the recipe's packages; prints the largest difference of every part.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from training.demo.export import shape_of
from training.demo.models import TextEncoder, Transformer
from training.demo.sampler import denoise, schedule
from training.demo.tokenizer import PromptTokenizer
from training.demo.vae import Autoencoder

_PROMPTS = ("a red house on the left", "", " ", "ein Haus, 猫; Straße! " * 12, "Sunset over mountains, vibrant colors")
_TOLERANCE = 2e-3


@torch.no_grad()
def differences(folder: Path) -> dict[str, float]:
    """The largest absolute differences, by part."""
    from diffusers import Flux2KleinPipeline  # type: ignore[import-not-found, unused-ignore]

    pipeline: Any = Flux2KleinPipeline.from_pretrained(str(folder), torch_dtype=torch.float32, local_files_only=True)
    pipeline.set_progress_bar_config(disable=True)
    values = {
        name: {key: tensor.float() for key, tensor in load_file(next((folder / name).glob("*.safetensors"))).items()}
        for name in ("transformer", "vae", "text_encoder")
    }
    shape = shape_of(values)
    modules: dict[str, Any] = {
        "transformer": Transformer(shape),
        "vae": Autoencoder(shape),
        "text_encoder": TextEncoder(shape),
    }
    for name, module in modules.items():
        module.load_state_dict(values[name])
        module.eval()
    found = {}
    tokens = torch.from_numpy(PromptTokenizer()(list(_PROMPTS))).long()
    text = modules["text_encoder"](tokens)
    theirs, _ = pipeline.encode_prompt(
        list(_PROMPTS), text_encoder_out_layers=shape.text_out_layers, max_sequence_length=shape.max_sequence_length
    )
    found["prompt embedding"] = float((text - theirs).abs().max())
    height, width = 128, 192
    pixels = torch.rand(2, 3, height, width) * 2 - 1
    mean, _ = modules["vae"].encode(pixels)
    found["encoder"] = float((mean - pipeline.vae.encode(pixels).latent_dist.mode()).abs().max())
    noise = torch.randn(len(_PROMPTS), 128, height // 16, width // 16)
    latents = denoise(
        modules["transformer"], text, noise.flatten(2).transpose(1, 2), height // 16, width // 16, schedule(96, 4)
    )
    pictures = modules["vae"].decode(modules["vae"].unpack(latents, height // 16, width // 16)) / 2 + 0.5
    originals = pipeline(
        prompt_embeds=theirs,
        height=height,
        width=width,
        num_inference_steps=4,
        guidance_scale=1.0,
        latents=noise,
        output_type="pt",
    ).images
    found["picture"] = float((pictures.clamp(0, 1) - originals).abs().max())
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Compare with diffusers.")
    parser.add_argument("folder", type=Path)
    result = differences(parser.parse_args().folder)
    for part, difference in result.items():
        print(f"{part}: {difference:.2e}")
    sys.exit(0 if max(result.values()) < _TOLERANCE else 1)
