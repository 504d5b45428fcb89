"""Learning in leaps: each step of the schedule of four learns where a teacher gets in several small ones."""

import copy
import math
from collections.abc import Callable

import torch
from torch import Tensor

from training.demo.models import TextEncoder, Transformer
from training.demo.sampler import empirical_mu
from training.demo.trainee import Trainee

LEAPS = 4

Models = tuple[TextEncoder, Transformer]


def averaged(trainee: Trainee) -> Models:
    """A frozen copy of the averaged weights, to teach."""
    models = copy.deepcopy(trainee.text), copy.deepcopy(trainee.transformer)
    for name, model in zip(("text_encoder", "transformer"), models, strict=True):
        model.load_state_dict(trainee.average.values[name])
        model.eval().requires_grad_(False)
    return models


def leap_sigmas(count: int, tokens: int, on_schedule: float, device: torch.device) -> tuple[Tensor, Tensor]:
    """Where ``count`` leaps begin and end, sigmas [count] each.

    The share ``on_schedule`` of them are those of the schedule; the rest are as long and begin anywhere on the path,
    for other numbers of steps.
    """
    anywhere = torch.rand(count, device=device) * 0.98 + 0.02
    scheduled = torch.randint(1, LEAPS + 1, (count,), device=device) / LEAPS
    time = torch.where(torch.rand(count, device=device) < on_schedule, scheduled, anywhere)
    shift = math.exp(empirical_mu(tokens, LEAPS))
    start, end = (shift * t / (1 + (shift - 1) * t) for t in (time, (time - 1 / LEAPS).clamp(min=0)))
    return start, end


def noised(clean: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
    """Latents on the way from ``clean`` at each ``sigma``, and the noise."""
    noise = torch.randn_like(clean)
    return clean + sigma[:, None, None] * (noise - clean), noise


@torch.no_grad()
def leap_velocity(
    teacher: Callable[[Tensor, Tensor], Tensor], latents: Tensor, start: Tensor, end: Tensor, steps: int
) -> Tensor:
    """The one velocity that leads from ``latents`` at ``start`` to where ``teacher`` gets at ``end`` in ``steps``.

    ``teacher`` finds the velocity [n, tokens, 128] at latents and their sigmas [n].
    """
    step, reached = (start - end) / steps, latents
    for number in range(steps):
        reached = reached - step[:, None, None] * teacher(reached, start - number * step)
    return (latents - reached) / (start - end)[:, None, None]
