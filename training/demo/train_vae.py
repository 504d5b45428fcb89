"""The autoencoder's training: drawn images in and out, through 32 channels at an eighth of the size."""

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as functional
from torch import Tensor

from mflux_api.engine.demo.layout import CheckpointShape
from training.demo.data import Scenes
from training.demo.replay import Replayed
from training.demo.state import Clock, load, save
from training.demo.vae import Autoencoder, patchify
from training.demo.world.render import render

_PEAK_RATE = 1.2e-3
_KL_WEIGHT = 1e-4
_AVERAGED_STEPS = 500
# Drawing has a high cost a call and a low one an image.
_DRAWN_AT_ONCE = 512
_RENEW_EVERY = 1500


@dataclass(frozen=True)
class _View:
    """What a step sees: images of a size, or crops of them; many small steps teach more than few large ones."""

    height: int
    width: int
    kept: int
    batch: int
    crop: int
    shares: tuple[float, float]
    """Of the steps, at the beginning and in the last third."""


_VIEWS = (
    _View(256, 256, 4096, 32, 128, (0.74, 0.42)),
    _View(256, 256, 4096, 8, 0, (0.14, 0.30)),
    _View(256, 384, 512, 5, 0, (0.04, 0.09)),
    _View(384, 256, 512, 5, 0, (0.04, 0.09)),
    _View(512, 512, 256, 2, 0, (0.04, 0.10)),
)
_TINY_VIEWS = (_View(64, 64, 16, 4, 32, (0.5, 0.2)), _View(64, 96, 16, 4, 0, (0.5, 0.8)))


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


class _Learner:
    """The autoencoder with its optimizer and average: one step on one batch, with no wait for the device."""

    def __init__(self, shape: CheckpointShape, device: torch.device) -> None:
        self.device = device
        self.vae = Autoencoder(shape).to(device)
        self.average = copy.deepcopy(self.vae).requires_grad_(False)
        graphed = device.type == "cuda"
        self.rate = torch.tensor(_PEAK_RATE, device=device)
        self.optimizer = torch.optim.AdamW(
            self.vae.parameters(),
            lr=self.rate if graphed else _PEAK_RATE,
            betas=(0.9, 0.99),
            weight_decay=1e-3,
            fused=graphed,
            capturable=graphed,
        )
        self.error = torch.zeros((), device=device)

    def step(self, pixels: Tensor) -> None:
        """Learn from ``pixels`` [n, 3, h, w] in -1..1."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda", cache_enabled=False):
            loss, squared = vae_loss(self.vae, pixels)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.vae.parameters(), 1.0)
        self.optimizer.step()
        with torch.no_grad():
            torch._foreach_lerp_(list(self.average.parameters()), list(self.vae.parameters()), 1 / _AVERAGED_STEPS)
            self.error.lerp_(squared, 0.01)

    def set_rate(self, rate: float) -> None:
        """The learning rate from here on."""
        self.rate.fill_(rate)
        if self.device.type != "cuda":
            self.optimizer.param_groups[0]["lr"] = rate

    def restore(self, saved: dict[str, Any]) -> None:
        """Continue from a checkpoint."""
        self.vae.load_state_dict(saved["vae"])
        self.average.load_state_dict(saved["average"])
        self.optimizer.load_state_dict(saved["optimizer"])
        if self.device.type == "cuda":
            self.optimizer.param_groups[0]["lr"] = self.rate

    def exported(self) -> Autoencoder:
        """The averaged autoencoder with bfloat16's values, as it is shipped."""
        worker = copy.deepcopy(self.average)
        rounded = {name: value.to(torch.bfloat16).float() for name, value in self.average.state_dict().items()}
        worker.load_state_dict(rounded)
        return worker.eval()


def train_vae(
    shape: CheckpointShape,
    scenes: Scenes,
    generator: torch.Generator,
    clock: Callable[[float], Clock],
    log: Callable[[str], None],
    device: torch.device,
    *,
    tiny: bool,
    graphed: bool,
    keep_to: Path,
) -> dict[str, Any]:
    """Train for the clock's time and save ``vae.pt``."""
    learner = _Learner(shape, device)
    saved = load(keep_to / "vae.pt", device)
    number, spent = 0, 0.0
    if saved is not None:
        learner.restore(saved)
        number, spent = saved["step"], saved["spent"]
    views = _TINY_VIEWS if tiny else _VIEWS
    chooser = torch.Generator().manual_seed(number + 1)
    pools: dict[tuple[int, int], Tensor] = {}
    for view in views:
        if (view.height, view.width) not in pools:
            pools[view.height, view.width] = _draw_image(scenes, view.height, view.width, view.kept, generator)
    log(f"drawn {sum(len(pool) for pool in pools.values())} images")
    replayed = Replayed(learner.step, graphed=graphed and device.type == "cuda")
    timer = clock(spent)
    logged, first, begun = timer.spent, number, timer.spent
    while not timer.over:
        if (number + 1) % _RENEW_EVERY == 0:
            height, width, kept = views[0].height, views[0].width, views[0].kept
            fresh = _draw_image(scenes, height, width, min(_DRAWN_AT_ONCE, kept), generator)
            pools[height, width] = torch.cat([pools[height, width][len(fresh) :], fresh])
        late = int(timer.progress > 2 / 3)
        view = views[int(torch.multinomial(torch.tensor([v.shares[late] for v in views]), 1, generator=chooser))]
        warm = min(1.0, (number + 1) / 200)
        learner.set_rate(_PEAK_RATE * warm * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * timer.progress))))
        replayed(_draw(pools[view.height, view.width], view.batch, view.crop, chooser))
        number += 1
        if number % 20 == 0:
            if device.type == "cuda":
                torch.cuda.synchronize()
            timer.tick()
            if timer.spent - logged > 10 or tiny:
                decibels = 10 * math.log10(4 / max(float(learner.error), 1e-9))
                speed = (number - first) / max(timer.spent - begun, 1e-3)
                log(f"vae step {number} {timer.spent:.0f} s, {speed:.0f} steps/s, psnr {decibels:.1f} dB")
                logged = timer.spent
    _measure_latents(learner, scenes, generator, views)
    decibels = _measure_psnr(learner.exported(), scenes, generator, tiny)
    log(f"vae done: step {number}, average weights {decibels:.2f} dB")
    save(
        keep_to / "vae.pt",
        {
            "vae": learner.vae.state_dict(),
            "optimizer": learner.optimizer.state_dict(),
            "average": learner.average.state_dict(),
            "step": number,
            "spent": timer.spent,
        },
    )
    return {"vae_steps": number, "vae_seconds": round(timer.spent), "vae_psnr": round(decibels, 2)}


@torch.no_grad()
def _draw_image(scenes: Scenes, height: int, width: int, count: int, generator: torch.Generator) -> Tensor:
    """New images as bytes."""
    part = max(1, _DRAWN_AT_ONCE * 256 * 256 // (height * width))
    rows = scenes.take(count)[0]
    drawn = [(render(some, height, width, generator) * 255).round().to(torch.uint8) for some in rows.split(part)]
    return torch.cat(drawn)


def _draw(pool: Tensor, count: int, crop: int, chooser: torch.Generator) -> Tensor:
    """Images of a pool in -1..1, or crops of them, two places for each batch."""
    chosen = torch.randint(len(pool), (count,), generator=chooser).to(pool.device)
    if not crop:
        return pool[chosen].float() / 127.5 - 1
    parts = []
    for half in chosen.chunk(4):
        top = int(torch.randint(pool.shape[-2] - crop + 1, (), generator=chooser))
        left = int(torch.randint(pool.shape[-1] - crop + 1, (), generator=chooser))
        parts.append(pool[half, :, top : top + crop, left : left + crop])
    return torch.cat(parts).float() / 127.5 - 1


@torch.no_grad()
def _measure_latents(learner: _Learner, scenes: Scenes, generator: torch.Generator, views: tuple[_View, ...]) -> None:
    """Mean and variance of the patched latents over many images: what normalises them from now on."""
    worker, device = learner.exported(), learner.device
    sums, squares, count = torch.zeros(128, device=device), torch.zeros(128, device=device), 0
    for number in range(16):
        view = views[number % len(views)]
        pixels = render(scenes.take(min(32, view.kept))[0], view.height, view.width, generator) * 2 - 1
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            mean, _ = worker.encode(pixels)
        flat = patchify(mean.float()).transpose(0, 1).flatten(1)
        sums, squares, count = sums + flat.sum(1), squares + (flat**2).sum(1), count + flat.shape[1]
    found = sums / count
    for name, values in (("running_mean", found), ("running_var", squares / count - found**2)):
        # Exported in bfloat16, so used in bfloat16.
        for vae in (learner.vae, learner.average):
            getattr(vae.bn, name).copy_(values.to(torch.bfloat16).float())


@torch.no_grad()
def _measure_psnr(vae: Autoencoder, scenes: Scenes, generator: torch.Generator, tiny: bool) -> float:
    side = 64 if tiny else 256
    pixels = render(scenes.take(16 if tiny else 128)[0], side, side, generator) * 2 - 1
    found = torch.cat([vae.decode(vae.encode(part)[0]) for part in pixels.split(16)]).clamp(-1, 1)
    errors = ((found - pixels) ** 2).mean((1, 2, 3)).clamp(min=1e-9)
    return float((10 * torch.log10(4 / errors)).mean())
