"""Progressive distillation (arXiv:2202.00512) into the schedule of four steps.

The student learns one step of the schedule from the several smaller ones in which a frozen teacher gets there.
"""

import copy
import math
from collections.abc import Callable

import torch
from torch import Tensor

from training.demo.models import Models
from training.demo.sampler import empirical_mu
from training.demo.train_state import TrainState

STUDENT_STEPS = 4


def copy_ema_models(state: TrainState) -> Models:
    """Return a frozen copy of the models with the averaged weights, to teach."""
    text, transformer = copy.deepcopy(state.text), copy.deepcopy(state.transformer)
    text.load_state_dict(state.ema.values["text_encoder"])
    transformer.load_state_dict(state.ema.values["transformer"])
    return text.eval().requires_grad_(False), transformer.eval().requires_grad_(False)


def copy_shipped_models(state: TrainState) -> Models:
    """Return the models with the averaged weights as they are exported: rounded to bfloat16."""
    models = copy_ema_models(state)
    for model in models:
        model.load_state_dict({name: value.to(torch.bfloat16).float() for name, value in model.state_dict().items()})
    return models


def sample_step_sigmas(count: int, tokens: int, on_schedule: float, device: torch.device) -> tuple[Tensor, Tensor]:
    """Sample the steps that the student learns.

    Args:
        count: How many steps.
        tokens: Image tokens; the schedule's shift depends on them.
        on_schedule: The share of steps of the schedule itself; the rest are as long and begin anywhere on the path,
            for other numbers of steps.
        device: Where the sigmas are made.

    Returns:
        Where each step begins and where it ends, sigmas [count] each.
    """
    anywhere = torch.rand(count, device=device) * 0.98 + 0.02
    scheduled = torch.randint(1, STUDENT_STEPS + 1, (count,), device=device) / STUDENT_STEPS
    time = torch.where(torch.rand(count, device=device) < on_schedule, scheduled, anywhere)
    shift = math.exp(empirical_mu(tokens, STUDENT_STEPS))
    start, end = (shift * t / (1 + (shift - 1) * t) for t in (time, (time - 1 / STUDENT_STEPS).clamp(min=0)))
    return start, end


def add_noise(clean: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
    """Return the latents between ``clean`` [n, tokens, 128] and noise at each ``sigma`` [n], and that noise."""
    noise = torch.randn_like(clean)
    return clean + sigma[:, None, None] * (noise - clean), noise


@torch.no_grad()
def find_target_velocity(
    teacher: Callable[[Tensor, Tensor], Tensor], latents: Tensor, start: Tensor, end: Tensor, steps: int
) -> Tensor:
    """Find the one velocity that leads to where the teacher gets in several steps.

    Args:
        teacher: Predicts the velocity [n, tokens, 128] at latents and their sigmas [n].
        latents: Where the step begins, [n, tokens, 128].
        start: Their sigmas [n].
        end: The sigmas [n] where the step ends.
        steps: How many steps the teacher takes.

    Returns:
        The velocity [n, tokens, 128].
    """
    step, reached = (start - end) / steps, latents
    for number in range(steps):
        reached = reached - step[:, None, None] * teacher(reached, start - number * step)
    return (latents - reached) / (start - end)[:, None, None]
