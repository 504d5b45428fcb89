"""Distillation into four steps: each leap of the schedule learns where the guided teacher gets in several.

Progressive distillation (arXiv:2202.00512) with guidance in the teacher (arXiv:2210.03142): undistilled, the last of
four steps leaps from sigma 0.7 to a mean of pictures, which is soft.
"""

import torch
import torch.nn.functional as functional
from torch import Tensor

from training.demo.leaps import averaged, leap_sigmas, leap_velocity, noised
from training.demo.tokenizer import PromptTokenizer
from training.demo.trainee import Size, Trainee, velocity

_GUIDANCE = 1.5
_TEACHER_STEPS, _ON_SCHEDULE = 4, 0.65


class Distillation:
    """Teaches from the averaged weights of the flow, which the trainee starts from."""

    def __init__(self, trainee: Trainee) -> None:
        self._teacher = averaged(trainee)
        for learning, own in zip(trainee.models, self._teacher, strict=True):
            learning.load_state_dict(own.state_dict())
        self._empty = torch.from_numpy(PromptTokenizer()([""])).long()

    def loss(self, trainee: Trainee, size: Size, clean: Tensor, tokens: Tensor) -> Tensor:
        """The squared error of the velocity to where the teacher's path is a quarter of the schedule later."""
        sigma, end = leap_sigmas(clean.shape[0], clean.shape[1], _ON_SCHEDULE, clean.device)
        latents, _ = noised(clean, sigma)
        both = torch.cat([tokens, self._empty.to(tokens.device).expand(tokens.shape[0], -1)])

        def guided(here: Tensor, at: Tensor) -> Tensor:
            asked, free = velocity(self._teacher, size, here.repeat(2, 1, 1), both, at.repeat(2)).chunk(2)
            return free + _GUIDANCE * (asked - free)

        target = leap_velocity(guided, latents, sigma, end, _TEACHER_STEPS)
        return functional.mse_loss(velocity(trainee.models, size, latents, tokens, sigma), target)
