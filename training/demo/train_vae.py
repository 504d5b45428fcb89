"""The stage that trains the autoencoder: rendered images in and out, through 32 channels at an eighth of the size."""

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
from training.demo.checkpoint import load_checkpoint, save_checkpoint
from training.demo.clock import Clock
from training.demo.data import Scenes
from training.demo.graphed_step import GraphedStep
from training.demo.train_state import VAE_FILE
from training.demo.vae import Autoencoder, patchify
from training.demo.world.render import render

_PEAK_RATE = 1.2e-3
_KL_WEIGHT = 1e-4
_EMA_STEPS = 500
# A call of the renderer has a high fixed cost, so many images are rendered together: this many of 256 x 256.
_RENDERED_AT_ONCE = 512
_RENEW_EVERY = 1500


@dataclass(frozen=True)
class _View:
    """What a step sees: images of a size, or crops of them.

    Many small steps teach more than few large ones: 38 dB instead of 29 in the same time.
    """

    height: int
    width: int
    kept: int
    """Images in the pool."""
    batch: int
    crop: int
    """The side of a square crop in pixels, or 0 for whole images."""
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
    """Compute the loss on images [n, 3, h, w] in -1..1.

    It is the absolute error of the pixels and of their differences across and down, the squared error, and a little of
    the Kullback-Leibler divergence from the standard normal distribution.

    Returns:
        The loss, and the mean squared error of the reconstruction.
    """
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
    """The autoencoder with its optimizer and its averaged weights; a step never waits for the device."""

    def __init__(self, shape: CheckpointShape, device: torch.device) -> None:
        self.device = device
        self.vae = Autoencoder(shape).to(device)
        self.ema = copy.deepcopy(self.vae).requires_grad_(False)
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
            torch._foreach_lerp_(list(self.ema.parameters()), list(self.vae.parameters()), 1 / _EMA_STEPS)
            self.error.lerp_(squared, 0.01)

    def set_rate(self, rate: float) -> None:
        """Set the learning rate of the next steps."""
        self.rate.fill_(rate)
        if self.device.type != "cuda":
            self.optimizer.param_groups[0]["lr"] = rate

    def restore(self, saved: dict[str, Any]) -> None:
        """Continue from a checkpoint."""
        self.vae.load_state_dict(saved["vae"])
        self.ema.load_state_dict(saved["average"])
        self.optimizer.load_state_dict(saved["optimizer"])
        if self.device.type == "cuda":
            self.optimizer.param_groups[0]["lr"] = self.rate

    def export(self) -> Autoencoder:
        """Return the averaged autoencoder as it is shipped, rounded to bfloat16."""
        vae: Autoencoder = copy.deepcopy(self.ema)
        rounded = {name: value.to(torch.bfloat16).float() for name, value in self.ema.state_dict().items()}
        vae.load_state_dict(rounded)
        vae.eval()
        return vae


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
    folder: Path,
) -> dict[str, Any]:
    """Train until the clock says so, and save vae.pt.

    Args:
        shape: The autoencoder's dimensions.
        scenes: The source of scenes.
        generator: Of the renderer's random numbers.
        clock: Starts the clock of a stage that has had so many seconds.
        log: Prints a line.
        device: Where to train.
        tiny: Whether to train on few and small images, to try everything out.
        graphed: Whether to record steps as CUDA graphs, where there is a GPU.
        folder: Where vae.pt is.

    Returns:
        Figures for metrics.json.
    """
    learner = _Learner(shape, device)
    saved = load_checkpoint(folder / VAE_FILE, device)
    number, spent = 0, 0.0
    if saved is not None:
        learner.restore(saved)
        number, spent = saved["step"], saved["spent"]
    views = _TINY_VIEWS if tiny else _VIEWS
    chooser = torch.Generator().manual_seed(number + 1)
    pools: dict[tuple[int, int], Tensor] = {}
    for view in views:
        if (view.height, view.width) not in pools:
            pools[view.height, view.width] = _render_images(scenes, view.height, view.width, view.kept, generator)
    log(f"rendered {sum(len(pool) for pool in pools.values())} images")
    step = GraphedStep(learner.step, graphed=graphed and device.type == "cuda")
    timer = clock(spent)
    logged, first, begun = timer.spent, number, timer.spent
    while not timer.over:
        if (number + 1) % _RENEW_EVERY == 0:
            height, width, kept = views[0].height, views[0].width, views[0].kept
            fresh = _render_images(scenes, height, width, min(_RENDERED_AT_ONCE, kept), generator)
            pools[height, width] = torch.cat([pools[height, width][len(fresh) :], fresh])
        late = int(timer.progress > 2 / 3)
        view = views[int(torch.multinomial(torch.tensor([v.shares[late] for v in views]), 1, generator=chooser))]
        warm = min(1.0, (number + 1) / 200)
        learner.set_rate(_PEAK_RATE * warm * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * timer.progress))))
        step(_sample_batch(pools[view.height, view.width], view.batch, view.crop, chooser))
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
    decibels = _measure_psnr(learner.export(), scenes, generator, tiny)
    log(f"vae done: step {number}, average weights {decibels:.2f} dB")
    save_checkpoint(
        folder / VAE_FILE,
        {
            "vae": learner.vae.state_dict(),
            "optimizer": learner.optimizer.state_dict(),
            "average": learner.ema.state_dict(),
            "step": number,
            "spent": timer.spent,
        },
    )
    return {"vae_steps": number, "vae_seconds": round(timer.spent), "vae_psnr": round(decibels, 2)}


@torch.no_grad()
def _render_images(scenes: Scenes, height: int, width: int, count: int, generator: torch.Generator) -> Tensor:
    """Render new images [count, 3, height, width] as bytes."""
    part = max(1, _RENDERED_AT_ONCE * 256 * 256 // (height * width))
    rows = scenes.take(count)[0]
    rendered = [(render(some, height, width, generator) * 255).round().to(torch.uint8) for some in rows.split(part)]
    return torch.cat(rendered)


def _sample_batch(pool: Tensor, count: int, crop: int, chooser: torch.Generator) -> Tensor:
    """Return images of a pool in -1..1, or crops of them; each quarter of a batch is cropped at one place."""
    chosen = torch.randint(len(pool), (count,), generator=chooser).to(pool.device)
    if not crop:
        return pool[chosen].float() / 127.5 - 1
    parts = []
    for quarter in chosen.chunk(4):
        top = int(torch.randint(pool.shape[-2] - crop + 1, (), generator=chooser))
        left = int(torch.randint(pool.shape[-1] - crop + 1, (), generator=chooser))
        parts.append(pool[quarter, :, top : top + crop, left : left + crop])
    return torch.cat(parts).float() / 127.5 - 1


@torch.no_grad()
def _measure_latents(learner: _Learner, scenes: Scenes, generator: torch.Generator, views: tuple[_View, ...]) -> None:
    """Measure the mean and variance of the patched latents over many images; they normalise the latents from now on."""
    exported, device = learner.export(), learner.device
    sums, squares, count = torch.zeros(128, device=device), torch.zeros(128, device=device), 0
    for number in range(16):
        view = views[number % len(views)]
        pixels = render(scenes.take(min(32, view.kept))[0], view.height, view.width, generator) * 2 - 1
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            mean, _ = exported.encode(pixels)
        flat = patchify(mean.float()).transpose(0, 1).flatten(1)
        sums, squares, count = sums + flat.sum(1), squares + (flat**2).sum(1), count + flat.shape[1]
    found = sums / count
    for name, values in (("running_mean", found), ("running_var", squares / count - found**2)):
        # They are exported in bfloat16, so they are used in bfloat16.
        for vae in (learner.vae, learner.ema):
            getattr(vae.bn, name).copy_(values.to(torch.bfloat16).float())


@torch.no_grad()
def _measure_psnr(vae: Autoencoder, scenes: Scenes, generator: torch.Generator, tiny: bool) -> float:
    side = 64 if tiny else 256
    pixels = render(scenes.take(16 if tiny else 128)[0], side, side, generator) * 2 - 1
    found = torch.cat([vae.decode(vae.encode(part)[0]) for part in pixels.split(16)]).clamp(-1, 1)
    errors = ((found - pixels) ** 2).mean((1, 2, 3)).clamp(min=1e-9)
    return float((10 * torch.log10(4 / errors)).mean())
