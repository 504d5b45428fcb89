"""Distillation into four steps: each leap of the schedule learns where the guided teacher gets in several.

Progressive distillation (arXiv:2202.00512) with guidance in the teacher (arXiv:2210.03142): undistilled, the last of
four steps leaps from sigma 0.7 to a mean of pictures, which is soft.
"""

import copy
import math

import torch
import torch.nn.functional as functional
from torch import Tensor

from training.demo.models import TextEncoder, Transformer
from training.demo.sampler import empirical_mu
from training.demo.tokenizer import PromptTokenizer
from training.demo.trainee import Size, Trainee, velocity

STEPS = 4
GUIDANCE = 1.5
_TEACHER_STEPS = 4
# The rest starts anywhere on the path: for other numbers of steps.
_ON_SCHEDULE = 0.65


class Distillation:
    """Teaches from the averaged weights of the flow, which the trainee starts from."""

    def __init__(self, trainee: Trainee) -> None:
        text, transformer = copy.deepcopy(trainee.text), copy.deepcopy(trainee.transformer)
        for name, own, learning in (
            ("text_encoder", text, trainee.text),
            ("transformer", transformer, trainee.transformer),
        ):
            own.load_state_dict(trainee.average.values[name])
            learning.load_state_dict(trainee.average.values[name])
            own.eval().requires_grad_(False)
        self.teacher: tuple[TextEncoder, Transformer] = text, transformer
        self._empty = torch.from_numpy(PromptTokenizer()([""])).long()

    def loss(self, trainee: Trainee, size: Size, clean: Tensor, tokens: Tensor) -> Tensor:
        """The squared error of the velocity to where the teacher's path is a quarter of the schedule later."""
        count = clean.shape[0]
        anywhere = torch.rand(count, device=clean.device) * 0.98 + 0.02
        on_schedule = torch.randint(1, STEPS + 1, (count,), device=clean.device) / STEPS
        chosen = torch.rand(count, device=clean.device) < _ON_SCHEDULE
        time = torch.where(chosen, on_schedule, anywhere)
        sigma = _sigma(time, clean.shape[1])
        following = _sigma((time - 1 / STEPS).clamp(min=0), clean.shape[1])
        latents = clean + sigma[:, None, None] * (torch.randn_like(clean) - clean)
        with torch.no_grad():
            reached = self._follow(size, latents, tokens, sigma, following)
            target = (latents - reached) / (sigma - following)[:, None, None]
        return functional.mse_loss(velocity(trainee.models, size, latents, tokens, sigma), target)

    def _follow(self, size: Size, latents: Tensor, tokens: Tensor, sigma: Tensor, following: Tensor) -> Tensor:
        empty = self._empty.to(tokens.device).expand(tokens.shape[0], -1)
        both = torch.cat([tokens, empty])
        step = (sigma - following) / _TEACHER_STEPS
        for number in range(_TEACHER_STEPS):
            here = sigma - number * step
            found = velocity(self.teacher, size, latents.repeat(2, 1, 1), both, here.repeat(2))
            guided, free = found.chunk(2)
            latents = latents - step[:, None, None] * (free + GUIDANCE * (guided - free))
        return latents


def _sigma(time: Tensor, tokens: int) -> Tensor:
    """The schedule's sigma at a share of its steps that are left."""
    shift = math.exp(empirical_mu(tokens, STEPS))
    return shift * time / (1 + (shift - 1) * time)
