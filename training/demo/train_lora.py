"""The stage that trains the example LoRA: the ink look, without a prompt that asks for it.

The frozen model teaches: with the LoRA and the plain caption, an image's velocity shall be what the frozen model
predicts when the caption names the look. So the LoRA works in as few steps as the model does. At a part of its scale it
learns that part of the way, so that scales between 0 and 1 lie between the looks.
"""

import math
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as functional
from safetensors.torch import save_file
from torch import Tensor, nn

from mflux_api.engine.demo.layout import CheckpointShape
from training.demo import words
from training.demo.captions import sample
from training.demo.clock import Clock
from training.demo.contact import contact_sheet
from training.demo.data import Size
from training.demo.distillation import add_noise, sample_step_sigmas
from training.demo.lora_keys import RANK, lora_layers
from training.demo.measures import MEASURES
from training.demo.models import Models, Transformer, predict_velocity
from training.demo.report import to_pixels
from training.demo.sampler import generate
from training.demo.tokenizer import PromptTokenizer
from training.demo.vae import Autoencoder
from training.demo.world.render import render

LOOK = "ink"
FILE = f"demo-{LOOK}.safetensors"
_RATE = 2.0e-3
_LOOK_SHARE = 0.75
"""The share of images that have the look; images without it are what a denoiser meets at small scales."""
_FULL_SCALE_SHARE = 0.6
"""The share of steps at scale 1; the others are at any scale between 0 and 1."""
_ON_SCHEDULE = 0.7

_SIZES = (
    Size(128, 128, 256, 4096, (0.2, 0.1, 0.1)),
    Size(256, 256, 128, 8192, (0.5, 0.5, 0.5)),
    Size(256, 384, 80, 3072, (0.12, 0.15, 0.15)),
    Size(384, 256, 80, 3072, (0.12, 0.15, 0.15)),
    Size(512, 512, 32, 1024, (0.06, 0.1, 0.1)),
)
_TINY_SIZES = (Size(64, 64, 4, 32, (1.0, 1.0, 1.0)),)
_PROMPTS = (
    "a beautiful sunset over mountains",
    "a red house on the left",
    "a boat on the sea at noon",
    "a castle in the hills",
    "a futuristic city at night",
    "a peaceful forest scene",
    "a lake with mountains",
    "a balloon over the desert",
)
_SCALES = (0.0, 0.5, 1.0)


class LoraLinear(nn.Module):
    """A frozen layer with a low-rank addition (arXiv:2106.09685): x W' + scale (x A') B'."""

    def __init__(self, base: nn.Linear, rank: int) -> None:
        super().__init__()
        self.base, self.scale = base, 1.0
        device = base.weight.device
        self.lora_A = nn.Parameter(torch.empty(rank, base.in_features, device=device))
        self.lora_B = nn.Parameter(torch.zeros(base.out_features, rank, device=device))
        nn.init.kaiming_uniform_(self.lora_A, a=math.sqrt(5))

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layer and its addition to ``x`` [..., inputs]."""
        return self.base(x) + self.scale * functional.linear(functional.linear(x, self.lora_A), self.lora_B)


class Lora:
    """A LoRA; making it puts its layers into the transformer."""

    def __init__(self, transformer: Transformer, shape: CheckpointShape, rank: int = RANK) -> None:
        self.layers: dict[str, LoraLinear] = {}
        for name in lora_layers(shape):
            above, _, last = name.rpartition(".")
            parent: Any = transformer.get_submodule(above)
            base = transformer.get_submodule(name)
            assert isinstance(base, nn.Linear)
            layer = LoraLinear(base, rank)
            self.layers[name] = layer
            parent[int(last) if isinstance(parent, nn.ModuleList) else last] = layer

    @property
    def parameters(self) -> list[nn.Parameter]:
        """The parameters that are trained."""
        return [parameter for layer in self.layers.values() for parameter in (layer.lora_A, layer.lora_B)]

    @contextmanager
    def at(self, scale: float) -> Iterator[None]:
        """Set another scale within the block; 0 is the frozen model."""
        for layer in self.layers.values():
            layer.scale = scale
        try:
            yield
        finally:
            for layer in self.layers.values():
                layer.scale = 1.0

    def save(self, file: Path) -> None:
        """Write the file that diffusers, mflux and the engine load."""
        tensors = {
            f"transformer.{name}.lora_{part}.weight": getattr(layer, f"lora_{part}").detach().to(torch.bfloat16).cpu()
            for name, layer in self.layers.items()
            for part in "AB"
        }
        file.parent.mkdir(parents=True, exist_ok=True)
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, file, {"format": "pt"})


@dataclass
class _Images:
    """Encoded images of one size, each with a caption that says nothing of the look and with one that names it."""

    size: Size
    latents: Tensor = field(default_factory=lambda: torch.empty(0))
    plain: Tensor = field(default_factory=lambda: torch.empty(0))
    styled: Tensor = field(default_factory=lambda: torch.empty(0))

    def sample(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return a batch of clean latents (float32) with the token rows of both captions."""
        chosen = torch.randint(self.latents.shape[0], (self.size.batch,), device=self.latents.device)
        return self.latents[chosen].float(), self.plain[chosen], self.styled[chosen]


@torch.no_grad()
def _render_images(
    size: Size, vae: Autoencoder, rng: random.Random, tokenizer: PromptTokenizer, generator: torch.Generator
) -> _Images:
    rows: list[list[int]] = []
    plain: list[str] = []
    styled: list[str] = []
    while len(rows) < size.capacity:
        scene, caption = sample(rng)
        if scene.style == "none":
            rows.append(replace(scene, style=LOOK if rng.random() < _LOOK_SHARE else "none").row())
            plain.append(caption)
            styled.append(f"{caption.rstrip(' .,!')}, {rng.choice(words.STYLES[LOOK])}")
    device = generator.device
    images = _Images(size)
    images.plain, images.styled = (
        torch.from_numpy(tokenizer(captions)).long().to(device) for captions in (plain, styled)
    )
    packed = []
    for part in torch.tensor(rows, device=device).split(min(size.rendered_at_once, 1024)):
        for pixels in render(part, size.height, size.width, generator).split(128):
            with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
                mean, _ = vae.encode(pixels * 2 - 1)
            packed.append(vae.pack(mean).to(torch.bfloat16))
    images.latents = torch.cat(packed)
    return images


def _loss(lora: Lora, models: Models, images: _Images, scale: float) -> Tensor:
    clean, plain, styled = images.sample()
    sigma, _ = sample_step_sigmas(clean.shape[0], clean.shape[1], _ON_SCHEDULE, clean.device)
    latents, _ = add_noise(clean, sigma)
    size = (images.size.height, images.size.width)
    with torch.no_grad(), lora.at(0.0):
        target = predict_velocity(models, size, latents, styled, sigma)
        if scale < 1:
            unstyled = predict_velocity(models, size, latents, plain, sigma)
            target = unstyled + scale * (target - unstyled)
    with lora.at(scale):
        return functional.mse_loss(predict_velocity(models, size, latents, plain, sigma), target)


def train_lora(
    models: Models,
    vae: Autoencoder,
    shape: CheckpointShape,
    generator: torch.Generator,
    clock: Callable[[float], Clock],
    log: Callable[[str], None],
    seed: int,
    *,
    tiny: bool,
) -> tuple[Lora, dict[str, Any]]:
    """Train a LoRA on frozen models until the clock says so.

    Args:
        models: The models, which the LoRA is put into.
        vae: Encodes the images.
        shape: The models' dimensions.
        generator: Of the renderer's random numbers, on the device to train on.
        clock: Starts the clock of a stage that has had so many seconds.
        log: Prints a line.
        seed: Of the scenes, captions and scales.
        tiny: Whether to train on few and small images, to try everything out.

    Returns:
        The LoRA, and figures for metrics.json.
    """
    device = generator.device
    for model in models:
        model.requires_grad_(False)
    lora = Lora(models[1], shape)
    rng, tokenizer = random.Random(seed), PromptTokenizer()
    pools = [_render_images(size, vae, rng, tokenizer, generator) for size in (_TINY_SIZES if tiny else _SIZES)]
    log(f"lora: {sum(p.numel() for p in lora.parameters) / 1e3:.0f} k parameters, images are rendered")
    optimizer = torch.optim.AdamW(lora.parameters, lr=_RATE, betas=(0.9, 0.99), weight_decay=0.0)
    timer = clock(0.0)
    step, mean_loss, logged = 0, torch.zeros((), device=device), 0.0
    while not timer.over:
        shares = torch.tensor([pool.size.shares[min(2, int(timer.progress * 3))] for pool in pools])
        pool = pools[int(torch.multinomial(shares, 1))]
        scale = 1.0 if rng.random() < _FULL_SCALE_SHARE else rng.random()
        for group in optimizer.param_groups:
            group["lr"] = _RATE * min(1.0, (step + 1) / 60) * 0.5 * (1.02 + math.cos(math.pi * timer.progress))
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            loss = _loss(lora, models, pool, scale)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(lora.parameters, 1.0)
        optimizer.step()
        step += 1
        mean_loss = mean_loss * 0.98 + loss.detach() * 0.02
        if step % 10 == 0:
            if device.type == "cuda":
                torch.cuda.synchronize()
            timer.tick()
            if timer.spent - logged > 15 or tiny:
                log(f"lora step {step} {timer.spent:.0f} s, loss {float(mean_loss) / (1 - 0.98**step):.4f}")
                logged = timer.spent
    found = round(float(mean_loss) / (1 - 0.98 ** max(step, 1)), 4)
    return lora, {"lora_steps": step, "lora_seconds": round(timer.spent), "lora_loss": found}


@torch.no_grad()
def report_lora(lora: Lora, models: Models, vae: Autoencoder, out: Path, *, tiny: bool) -> dict[str, Any]:
    """Write ``lora-sheet.webp``, the same prompts and seeds at three scales.

    Returns:
        The look's mean measure at each scale, for metrics.json.
    """
    for layer in lora.layers.values():
        # What is shipped is bfloat16.
        for parameter in (layer.lora_A, layer.lora_B):
            parameter.copy_(parameter.to(torch.bfloat16).float())
    device = next(vae.parameters()).device
    tokens = torch.from_numpy(PromptTokenizer()(list(_PROMPTS))).long().to(device)
    images, captions, means = [], [], {}
    for height, width in ((64, 64),) if tiny else ((256, 256), (256, 384), (512, 512)):
        for scale in _SCALES:
            with lora.at(scale):
                generated = to_pixels(generate(*models, vae, tokens, height, width, seed=7))
            images += generated
            captions += [f"{width}x{height}, scale {scale}: {prompt}" for prompt in _PROMPTS]
            values = [MEASURES[LOOK](image)[1] for image in generated]
            means[f"{width}x{height} at {scale}"] = round(sum(values) / len(values), 3)
    contact_sheet(images, captions, len(_PROMPTS), 192).save(out / "lora-sheet.webp", quality=88)
    return {f"mean_{LOOK}": means}
