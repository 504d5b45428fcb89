"""Compare the modules written here with diffusers' and transformers' own, on an exported checkpoint folder.

    python -m training.demo.verify FOLDER

Needs diffusers and transformers beside the recipe's packages; prints the largest difference of every part.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from training.demo.export import shape_of
from training.demo.models import TextEncoder, Transformer
from training.demo.sampler import denoise, encode_reference, schedule
from training.demo.shape import SEQUENCE_LENGTH
from training.demo.tokenizer import PromptTokenizer
from training.demo.vae import Autoencoder

_PROMPTS = ("a red house on the left", "", " ", "ein Haus, 猫; Straße! " * 12, "Sunset over mountains, vibrant colors")
_TOLERANCE = 2e-3
_LEAST_DECIBELS = 60.0


@torch.no_grad()
def compare(folder: Path) -> dict[str, float]:
    """Return the largest absolute difference of each part."""
    from diffusers import Flux2KleinPipeline

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
    images = modules["vae"].decode(modules["vae"].unpack(latents, height // 16, width // 16)) / 2 + 0.5
    originals = pipeline(
        prompt_embeds=theirs,
        height=height,
        width=width,
        num_inference_steps=4,
        guidance_scale=1.0,
        latents=noise,
        output_type="pt",
    ).images
    found["image"] = float((images.clamp(0, 1) - originals).abs().max())
    return found | _edits(pipeline, modules)


def _edits(pipeline: Any, modules: dict[str, Any]) -> dict[str, float]:
    """Compare edits with one and with two references, of the result's size and of others."""
    shape = modules["text_encoder"].out_layers
    found = {}
    for name, sizes in (("one reference", ((128, 192),)), ("two references", ((128, 128), (192, 64)))):
        rng = np.random.default_rng(len(sizes))
        given = [rng.integers(0, 256, (height, width, 3), dtype=np.uint8) for height, width in sizes]
        references = [
            encode_reference(modules["vae"], torch.from_numpy(pixels).permute(2, 0, 1)[None].float() / 255)
            for pixels in given
        ]
        theirs, _ = pipeline.encode_prompt(
            "make it night", text_encoder_out_layers=shape, max_sequence_length=SEQUENCE_LENGTH
        )
        noise = torch.randn(1, 128, 8, 12, generator=torch.Generator().manual_seed(3))
        packed = noise.flatten(2).transpose(1, 2)
        latents = denoise(modules["transformer"], theirs, packed, 8, 12, schedule(96, 4), references=references)
        image = (modules["vae"].decode(modules["vae"].unpack(latents, 8, 12)) / 2 + 0.5).clamp(0, 1)
        original = pipeline(
            image=[Image.fromarray(pixels) for pixels in given],
            prompt_embeds=theirs,
            height=128,
            width=192,
            num_inference_steps=4,
            guidance_scale=1.0,
            latents=noise,
            output_type="pt",
        ).images
        found[name] = float((image - original).abs().max())
        # An image may differ in single pixels, but has to reach 60 dB over all.
        if _decibels(image, original) < _LEAST_DECIBELS:
            found[name] = max(found[name], _TOLERANCE)
    return found


def _decibels(one: Tensor, other: Tensor) -> float:
    """Return the PSNR of images in 0..1, in dB."""
    return float(-10 * torch.log10((one - other).square().mean().clamp(min=1e-20)))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Compare with diffusers.")
    parser.add_argument("folder", type=Path)
    result = compare(parser.parse_args().folder)
    for part, difference in result.items():
        print(f"{part}: {difference:.2e}")
    sys.exit(0 if max(result.values()) < _TOLERANCE else 1)
