"""The stage that trains the transformer and the text encoder: rectified flow (arXiv:2209.03003) over all sizes."""

import functools
import itertools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as functional
from torch import Tensor

from training.demo.clock import Clock
from training.demo.data import Scenes, Size
from training.demo.distillation import add_noise
from training.demo.models import predict_velocity
from training.demo.sampler import schedule
from training.demo.sources import scene_source
from training.demo.train_state import TrainState, save_state

_PEAK_RATE = 1.0e-3
_PEAK_MATRIX_RATE = 3.0e-3
# New images a step, as a share of the batch: each is used about twenty times, with other noise.
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


def sample_sigmas(count: int, tokens: int, device: torch.device) -> Tensor:
    """Sample the noise levels to train at.

    25 % lie at those of the 4- and 8-step schedules, 40 % are uniform with a shift of 3, and 35 % are logit-normal
    (arXiv:2403.03206).

    Returns:
        Sigmas [count], 0.002..1.
    """
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
            # Half evenly, half by how far the step goes.
            weights.append(share * (0.5 / steps + 0.5 * (sigma - following)))
    return torch.tensor(points, device=device), torch.tensor(weights, device=device)


def flow_loss(state: TrainState, size: Size, clean: Tensor, tokens: Tensor) -> Tensor:
    """Return the mean squared error of the velocity from images to noise."""
    sigma = sample_sigmas(clean.shape[0], clean.shape[1], clean.device)
    latents, noise = add_noise(clean, sigma)
    return functional.mse_loss(
        predict_velocity(state.models, (size.height, size.width), latents, tokens, sigma), noise - clean
    )


def train_flow(
    state: TrainState,
    scenes: Scenes,
    generator: torch.Generator,
    clock: Callable[[float], Clock],
    log: Callable[[str], None],
    device: torch.device,
    *,
    tiny: bool,
    folder: Path,
) -> dict[str, Any]:
    """Train until the clock says so, and save the state every minute and at the end.

    Args:
        state: What is trained.
        scenes: The source of scenes with captions.
        generator: Of the renderer's random numbers.
        clock: Starts the clock of a stage that has had so many seconds.
        log: Prints a line.
        device: Where to train.
        tiny: Whether to train tiny batches, to try everything out.
        folder: Where the state is saved.

    Returns:
        Figures for metrics.json.
    """
    sizes = TINY_SIZES if tiny else SIZES
    source = scene_source(sizes, scenes, state.vae, generator, _FRESH)
    spent = state.spent
    timer = clock(spent)
    chooser = torch.Generator().manual_seed(state.step + 1)
    images, mean_loss, logged, saved, first = (
        0,
        torch.zeros((), device=device),
        timer.spent,
        timer.spent,
        state.step,
    )
    while not timer.over:
        size, pool = source.choose(timer.progress, chooser)
        clean, tokens = pool.sample(size.batch)
        rate = _rate(timer.progress, state.step - first)
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            loss = flow_loss(state, size, clean, tokens)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(state.optimizer.parameters, 1.0)
        state.optimizer.step(rate * _PEAK_RATE, rate * _PEAK_MATRIX_RATE)
        state.ema.update()
        state.step, images = state.step + 1, images + size.batch
        done = state.step - first
        mean_loss = mean_loss * 0.98 + loss.detach() * 0.02
        if done % 10 == 0:
            if device.type == "cuda":
                torch.cuda.synchronize()
            timer.tick()
            if timer.spent - logged > 15 or tiny:
                speed = images / max(timer.spent - spent, 1e-3)
                loss_now = float(mean_loss) / (1 - 0.98**done)
                log(
                    f"flow step {state.step} {timer.spent:.0f} s, "
                    f"{speed:.0f} images/s, loss {loss_now:.4f}, norm {float(norm):.2f}, rate {rate:.2f}"
                )
                logged = timer.spent
            if timer.spent - saved > 60:
                state.spent = timer.spent
                save_state(state, folder)
                saved = timer.spent
    state.spent = timer.spent
    save_state(state, folder)
    done = max(1, state.step - first)
    return {
        "flow_steps": state.step,
        "flow_seconds": round(timer.spent),
        "flow_loss": round(float(mean_loss) / (1 - 0.98**done), 4),
    }


def _rate(progress: float, done: int) -> float:
    """Return the share of the peak rates: warm up, hold, and fall to 1 % over the last 45 % of the planned time."""
    warm = min(1.0, (done + 1) / 250)
    fall = max(0.0, (progress - 0.55) / 0.45)
    return warm * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * fall)))
