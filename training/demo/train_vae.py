"""The autoencoder's training: painted pictures in and out, through 32 channels at an eighth of the size."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as functional
from torch import Tensor

from mflux_api.engine.demo.layout import CheckpointShape
from training.demo.data import Scenes
from training.demo.state import Average, Clock, load, save
from training.demo.vae import Autoencoder, patchify
from training.demo.world.render import render

_PEAK_RATE = 1e-3
_KL_WEIGHT = 3e-4
# (height, width, share, pictures a step, pictures kept)
_SIZES = (
    (256, 256, 0.8, 14, 3072),
    (256, 384, 0.07, 10, 512),
    (384, 256, 0.07, 10, 512),
    (512, 512, 0.06, 4, 192),
)
_TINY_SIZES = ((64, 64, 0.5, 4, 16), (64, 96, 0.5, 4, 16))
# Of the steps on 256 x 256, this share sees crops of half the side, four times as many.
_CROPS = 0.6
# Painting has a high cost a call and a low one a picture.
_PAINTED_AT_ONCE = 512
_RENEW_EVERY = 250


def vae_loss(vae: Autoencoder, pixels: Tensor) -> tuple[Tensor, Tensor]:
    """The loss, and the squared error of the reconstruction."""
    mean, log_variance = vae.encode(pixels)
    mean, log_variance = mean.float(), log_variance.float()
    latents = mean + torch.randn_like(mean) * torch.exp(0.5 * log_variance)
    found = vae.decode(latents).float()
    across = functional.l1_loss(found[..., 1:] - found[..., :-1], pixels[..., 1:] - pixels[..., :-1])
    down = functional.l1_loss(found[:, :, 1:] - found[:, :, :-1], pixels[:, :, 1:] - pixels[:, :, :-1])
    kl = 0.5 * (mean**2 + log_variance.exp() - 1 - log_variance).mean()
    squared = functional.mse_loss(found, pixels)
    return functional.l1_loss(found, pixels) + 0.5 * (across + down) + squared + _KL_WEIGHT * kl, squared.detach()


def train_vae(
    shape: CheckpointShape,
    scenes: Scenes,
    generator: torch.Generator,
    state: Path,
    clock: Callable[[float], Clock],
    log: Callable[[str], None],
    device: torch.device,
    tiny: bool,
) -> dict[str, Any]:
    """Train for the clock's time and save ``vae.pt``."""
    vae = Autoencoder(shape).to(device)
    average = Average({"vae": vae}, 0.998)
    optimizer = torch.optim.AdamW(
        vae.parameters(), lr=_PEAK_RATE, betas=(0.9, 0.99), weight_decay=1e-3, fused=device.type == "cuda"
    )
    saved = load(state / "vae.pt", device)
    step, spent = 0, 0.0
    if saved is not None:
        vae.load_state_dict(saved["vae"])
        optimizer.load_state_dict(saved["optimizer"])
        average.restore({"vae": saved["average"]}, saved["step"])
        step, spent = saved["step"], saved["spent"]
    timer = clock(spent)
    sizes = _TINY_SIZES if tiny else _SIZES
    chooser = torch.Generator().manual_seed(step + 1)
    shares = torch.tensor([size[2] for size in sizes])
    pools = [_paint(scenes, height, width, kept, generator) for height, width, _, _, kept in sizes]
    log(f"painted {sum(len(pool) for pool in pools)} pictures")
    pictures, error, logged = 0, torch.zeros((), device=device), timer.spent
    timer.begin()
    while not timer.over:
        if (step + 1) % _RENEW_EVERY == 0:
            height, width, _, _, kept = sizes[0]
            fresh = _paint(scenes, height, width, min(_PAINTED_AT_ONCE, kept), generator)
            pools[0] = torch.cat([pools[0][len(fresh) :], fresh])
        number = int(torch.multinomial(shares, 1, generator=chooser))
        crop = number == 0 and float(torch.rand((), generator=chooser)) < _CROPS
        pixels = _draw(pools[number], sizes[number][3], crop, chooser)
        warm = min(1.0, (step + 1) / 100)
        rate = _PEAK_RATE * warm * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * timer.progress)))
        for group in optimizer.param_groups:
            group["lr"] = rate
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            loss, squared = vae_loss(vae, pixels)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        average.update()
        step, pictures = step + 1, pictures + pixels.shape[0]
        error = error * 0.98 + squared * 0.02
        if step % 10 == 0:
            if device.type == "cuda":
                torch.cuda.synchronize()
            timer.tick()
            if timer.spent - logged > 10 or tiny:
                decibels = 10 * math.log10(4 / max(float(error) / (1 - 0.98**step), 1e-9))
                speed = pictures / max(timer.spent - spent, 1e-3)
                log(f"vae step {step} {timer.spent:.0f} s, {speed:.0f} pictures/s, psnr {decibels:.1f} dB")
                logged = timer.spent
    _measure_latents(vae, average, scenes, generator, sizes, device)
    decibels = _measure_psnr(vae, average, scenes, generator, device, tiny)
    log(f"vae done: step {step}, average weights {decibels:.2f} dB")
    save(
        state / "vae.pt",
        {
            "vae": vae.state_dict(),
            "optimizer": optimizer.state_dict(),
            "average": average.values["vae"],
            "step": step,
            "spent": timer.spent,
        },
    )
    return {"vae_steps": step, "vae_seconds": round(timer.spent), "vae_psnr": round(decibels, 2)}


@torch.no_grad()
def _paint(scenes: Scenes, height: int, width: int, count: int, generator: torch.Generator) -> Tensor:
    """New pictures as bytes."""
    part = max(1, _PAINTED_AT_ONCE * 256 * 256 // (height * width))
    rows = scenes.take(count)[0]
    painted = [(render(some, height, width, generator) * 255).round().to(torch.uint8) for some in rows.split(part)]
    return torch.cat(painted)


def _draw(pool: Tensor, count: int, crop: bool, chooser: torch.Generator) -> Tensor:
    """Pictures of a pool in -1..1; or four times as many crops of half the side."""
    if crop:
        half = pool.shape[-1] // 2
        top, left = (int(torch.randint(half + 1, (), generator=chooser)) for _ in range(2))
        count, pool = 4 * count, pool[..., top : top + half, left : left + half]
    chosen = torch.randint(len(pool), (count,), generator=chooser).to(pool.device)
    return pool[chosen].float() / 127.5 - 1


@torch.no_grad()
def _measure_latents(
    vae: Autoencoder,
    average: Average,
    scenes: Scenes,
    generator: torch.Generator,
    sizes: tuple[Any, ...],
    device: torch.device,
) -> None:
    """Mean and variance of the patched latents over many pictures: what normalises them from now on."""
    worker = _averaged(vae, average)
    sums, squares, count = torch.zeros(128, device=device), torch.zeros(128, device=device), 0
    for number in range(16):
        height, width, _, _, kept = sizes[number % len(sizes)]
        pixels = render(scenes.take(min(32, kept))[0], height, width, generator) * 2 - 1
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            mean, _ = worker.encode(pixels)
        flat = patchify(mean.float()).transpose(0, 1).flatten(1)
        sums, squares, count = sums + flat.sum(1), squares + (flat**2).sum(1), count + flat.shape[1]
    found = sums / count
    statistics = {"bn.running_mean": found, "bn.running_var": squares / count - found**2}
    for name, values in statistics.items():
        # Exported in bfloat16, so used in bfloat16.
        rounded = values.to(torch.bfloat16).float()
        average.values["vae"][name].copy_(rounded)
        vae.state_dict()[name].copy_(rounded)


def _averaged(vae: Autoencoder, average: Average) -> Autoencoder:
    import copy

    worker = copy.deepcopy(vae)
    worker.load_state_dict({name: value.to(torch.bfloat16).float() for name, value in average.values["vae"].items()})
    return worker.eval()


@torch.no_grad()
def _measure_psnr(
    vae: Autoencoder, average: Average, scenes: Scenes, generator: torch.Generator, device: torch.device, tiny: bool
) -> float:
    worker = _averaged(vae, average)
    side = 64 if tiny else 256
    pixels = render(scenes.take(16 if tiny else 128)[0], side, side, generator) * 2 - 1
    found = torch.cat([worker.decode(worker.encode(part)[0]) for part in pixels.split(16)]).clamp(-1, 1)
    errors = ((found - pixels) ** 2).mean((1, 2, 3)).clamp(min=1e-9)
    return float((10 * torch.log10(4 / errors)).mean())
