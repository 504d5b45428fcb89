"""The transformer's and text encoder's training: rectified flow over all sizes."""

import functools
import itertools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as functional
from torch import Tensor

from training.demo.data import Scenes
from training.demo.leaps import noised
from training.demo.sampler import schedule
from training.demo.sources import scene_source
from training.demo.state import Clock
from training.demo.trainee import Size, Trainee, keep, velocity

_PEAK_RATE = 1.0e-3
_PEAK_MATRIX_RATE = 3.0e-3
# New images a step, as a share of the batch: each is used some twenty times, with other noise.
_FRESH = 0.045

SIZES = (
    Size(64, 64, 256, 8192, (0.02, 0.01, 0.01)),
    Size(128, 128, 384, 24576, (0.40, 0.14, 0.10)),
    Size(192, 192, 240, 24576, (0.20, 0.12, 0.08)),
    Size(256, 256, 176, 32768, (0.30, 0.42, 0.42)),
    Size(256, 384, 112, 16384, (0.035, 0.12, 0.13)),
    Size(384, 256, 112, 16384, (0.035, 0.12, 0.13)),
    Size(512, 512, 48, 8192, (0.01, 0.07, 0.13)),
)
TINY_SIZES = (Size(64, 64, 4, 64, (0.5, 0.5, 0.5)), Size(64, 96, 4, 64, (0.5, 0.5, 0.5)))


def draw_sigmas(count: int, tokens: int, device: torch.device) -> Tensor:
    """Noise levels: those of the 4- and 8-step schedules, the shifted middle, and all of the path evenly."""
    points, weights = _schedule_points(tokens, device)
    chosen = torch.multinomial(weights, count, replacement=True)
    at_points = points[chosen] + 0.012 * torch.randn(count, device=device)
    t = torch.rand(count, device=device)
    shift = 3.0
    shifted = shift * t / (1 + (shift - 1) * t)
    normal = torch.sigmoid(torch.randn(count, device=device))
    way = torch.rand(count, device=device)
    sigma = torch.where(way < 0.25, at_points, torch.where(way < 0.65, shifted, normal))
    return sigma.clamp(0.002, 1.0)


@functools.cache
def _schedule_points(tokens: int, device: torch.device) -> tuple[Tensor, Tensor]:
    points, weights = [], []
    for steps, share in ((4, 0.7), (8, 0.3)):
        sigmas = schedule(tokens, steps)
        for sigma, following in itertools.pairwise(sigmas):
            points.append(sigma)
            # Half evenly, half by how far the step leaps.
            weights.append(share * (0.5 / steps + 0.5 * (sigma - following)))
    return torch.tensor(points, device=device), torch.tensor(weights, device=device)


def flow_loss(trainee: Trainee, size: Size, clean: Tensor, tokens: Tensor) -> Tensor:
    """The squared error of the velocity from an image to noise."""
    sigma = draw_sigmas(clean.shape[0], clean.shape[1], clean.device)
    latents, noise = noised(clean, sigma)
    return functional.mse_loss(velocity(trainee.models, size, latents, tokens, sigma), noise - clean)


def train_flow(
    trainee: Trainee,
    scenes: Scenes,
    generator: torch.Generator,
    clock: Callable[[float], Clock],
    log: Callable[[str], None],
    device: torch.device,
    *,
    tiny: bool,
    keep_to: Path,
) -> dict[str, Any]:
    """Train for the clock's time; every minute the run is saved."""
    sizes = TINY_SIZES if tiny else SIZES
    source = scene_source(sizes, scenes, trainee.vae, generator, _FRESH)
    spent = trainee.spent
    timer = clock(spent)
    chooser = torch.Generator().manual_seed(trainee.step + 1)
    images, mean_loss, logged, saved, first = (
        0,
        torch.zeros((), device=device),
        timer.spent,
        timer.spent,
        trainee.step,
    )
    while not timer.over:
        size, pool = source.choose(timer.progress, chooser)
        clean, tokens = pool.draw(size.batch)
        rate = _rate(timer.progress, trainee.step - first)
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            loss = flow_loss(trainee, size, clean, tokens)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(trainee.optimizer.parameters, 1.0)
        trainee.optimizer.step(rate * _PEAK_RATE, rate * _PEAK_MATRIX_RATE)
        trainee.average.update()
        trainee.step, images = trainee.step + 1, images + size.batch
        done = trainee.step - first
        mean_loss = mean_loss * 0.98 + loss.detach() * 0.02
        if done % 10 == 0:
            if device.type == "cuda":
                torch.cuda.synchronize()
            timer.tick()
            if timer.spent - logged > 15 or tiny:
                speed = images / max(timer.spent - spent, 1e-3)
                loss_now = float(mean_loss) / (1 - 0.98**done)
                log(
                    f"flow step {trainee.step} {timer.spent:.0f} s, "
                    f"{speed:.0f} images/s, loss {loss_now:.4f}, norm {float(norm):.2f}, rate {rate:.2f}"
                )
                logged = timer.spent
            if timer.spent - saved > 60:
                trainee.spent = timer.spent
                keep(trainee, keep_to)
                saved = timer.spent
    trainee.spent = timer.spent
    keep(trainee, keep_to)
    done = max(1, trainee.step - first)
    return {
        "flow_steps": trainee.step,
        "flow_seconds": round(timer.spent),
        "flow_loss": round(float(mean_loss) / (1 - 0.98**done), 4),
    }


def _rate(progress: float, done: int) -> float:
    """The share of the peak rates: warm up, hold, and fall to nothing over the last 45 % of the planned time."""
    warm = min(1.0, (done + 1) / 250)
    fall = max(0.0, (progress - 0.55) / 0.45)
    return warm * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * fall)))
