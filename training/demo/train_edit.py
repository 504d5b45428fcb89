"""The stage that teaches editing, and then both, drawing and editing, in four steps.

References are fed as diffusers' Flux2KleinPipeline and mflux's Flux2KleinEdit feed them: clean packed latents behind
the noised ones, told apart by the first axis of their positions; only the noised ones' velocity counts.

Text alone, one reference and two are learnt side by side: as a plain flow first, then, from the averaged weights, in
leaps. That is progressive distillation (arXiv:2202.00512) with guidance in the teacher (arXiv:2210.03142), which sees
the same references: nothing but the flow itself teaches the fine steps, and one that only knows four steps leaps from
sigma 0.7 to a mean of images, which is soft.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as functional
from torch import Tensor

from training.demo.data import Scenes
from training.demo.edit_data import EditPool, Edits, EditSize, encode_edits
from training.demo.leaps import Models, averaged, leap_sigmas, leap_velocity, noised
from training.demo.models import rope_of
from training.demo.optimizer import Optimizer
from training.demo.sources import Source, scene_source
from training.demo.state import Clock, load, save
from training.demo.team import Team
from training.demo.tokenizer import PromptTokenizer
from training.demo.train_flow import draw_sigmas
from training.demo.trainee import Size, Trainee, velocity

FILE = "edit.pt"
_PEAK_RATE, _PEAK_MATRIX_RATE = 7.0e-4, 2.0e-3
_WARM_STEPS = 150
_LEAPS_FROM = 0.66
"""The share of the plan after which leaps are learnt."""
_TEACHER_STEPS, _GUIDANCE, _ON_SCHEDULE = 3, 1.5, 0.7
_FRESH_TEXT, _FRESH_EDITS = 0.05, 0.1
_TEXT_SHARE, _ONE_SHARE = 0.36, 0.46

_TEXT_SIZES = (
    Size(128, 128, 384, 16384, (0.2, 0.12, 0.1)),
    Size(192, 192, 200, 8192, (0.1, 0.08, 0.08)),
    Size(256, 256, 160, 24576, (0.42, 0.42, 0.42)),
    Size(256, 384, 104, 8192, (0.12, 0.14, 0.14)),
    Size(384, 256, 104, 8192, (0.12, 0.14, 0.14)),
    Size(512, 512, 44, 4096, (0.04, 0.1, 0.12)),
)


def _same(side: tuple[int, int], count: int, batch: int, capacity: int, shares: tuple[float, float, float]) -> EditSize:
    return EditSize(side, (side,) * count, batch, capacity, shares)


_ONE_SIZES = (
    _same((128, 128), 1, 224, 12288, (0.26, 0.08, 0.05)),
    _same((192, 192), 1, 128, 8192, (0.12, 0.06, 0.05)),
    _same((256, 256), 1, 96, 16384, (0.32, 0.32, 0.32)),
    _same((256, 384), 1, 64, 4096, (0.05, 0.08, 0.08)),
    _same((384, 256), 1, 64, 4096, (0.05, 0.08, 0.08)),
    EditSize((256, 256), ((256, 384),), 80, 3072, (0.03, 0.04, 0.04)),
    EditSize((256, 384), ((256, 256),), 72, 3072, (0.03, 0.05, 0.05)),
    EditSize((384, 256), ((256, 256),), 72, 3072, (0.03, 0.05, 0.05)),
    EditSize((512, 512), ((256, 256),), 36, 2048, (0.04, 0.09, 0.11)),
    EditSize((256, 256), ((512, 512),), 36, 2048, (0.03, 0.05, 0.06)),
    _same((512, 512), 1, 24, 2048, (0.04, 0.10, 0.11)),
)
_TWO_SIZES = (
    _same((128, 128), 2, 176, 12288, (0.45, 0.2, 0.15)),
    _same((192, 192), 2, 88, 6144, (0.15, 0.12, 0.1)),
    _same((256, 256), 2, 64, 12288, (0.34, 0.5, 0.5)),
    EditSize((256, 384), ((256, 384), (256, 256)), 48, 3072, (0.03, 0.09, 0.12)),
    EditSize((384, 256), ((384, 256), (256, 256)), 48, 3072, (0.03, 0.09, 0.12)),
)
_TINY_TEXT = (Size(64, 64, 4, 64, (1.0, 1.0, 1.0)),)
_TINY_ONE = (_same((64, 64), 1, 4, 64, (0.5, 0.5, 0.5)), EditSize((64, 96), ((64, 64),), 4, 64, (0.5, 0.5, 0.5)))
_TINY_TWO = (_same((64, 64), 2, 4, 64, (0.5, 0.5, 0.5)), EditSize((64, 64), ((96, 64), (64, 64)), 4, 64, (0.5,) * 3))


def edit_velocity(
    models: Models, size: Size | EditSize, latents: Tensor, references: list[Tensor], tokens: Tensor, sigma: Tensor
) -> Tensor:
    """The velocity [n, tokens, 128] of the noised ``latents``, seen with clean ``references``, which may be none."""
    if isinstance(size, Size):
        return velocity(models, size, latents, tokens, sigma)
    grids = tuple((height // 16, width // 16) for height, width in size.references)
    height, width = size.target
    text, transformer = models
    rope = rope_of(height // 16, width // 16, tokens.shape[1], transformer.axes, latents.device, grids)
    found = transformer(torch.cat([latents, *references], dim=1), text(tokens), sigma, rope)
    return found[:, : latents.shape[1]].float()


def shipped(trainee: Trainee) -> Models:
    """The averaged weights as they are exported: rounded to bfloat16."""
    models = averaged(trainee)
    for model in models:
        model.load_state_dict({name: value.to(torch.bfloat16).float() for name, value in model.state_dict().items()})
    return models


@dataclass(frozen=True)
class _Batch:
    """What a step learns from: references (none for text alone) and the clean image, packed, with token rows."""

    size: Size | EditSize
    references: list[Tensor]
    clean: Tensor
    tokens: Tensor

    def velocity(self, models: Models, latents: Tensor, sigma: Tensor) -> Tensor:
        """What ``models`` find at ``latents``."""
        return edit_velocity(models, self.size, latents, self.references, self.tokens, sigma)


def plain_loss(models: Models, batch: _Batch) -> Tensor:
    """The squared error of the velocity from an image to noise."""
    sigma = draw_sigmas(batch.clean.shape[0], batch.clean.shape[1], batch.clean.device)
    latents, noise = noised(batch.clean, sigma)
    return functional.mse_loss(batch.velocity(models, latents, sigma), noise - batch.clean)


def leap_loss(models: Models, teacher: Models, empty: Tensor, batch: _Batch) -> Tensor:
    """The squared error of the velocity to where the teacher's path is one leap later; ``empty`` says nothing."""
    count, device = batch.clean.shape[0], batch.clean.device
    sigma, end = leap_sigmas(count, batch.clean.shape[1], _ON_SCHEDULE, device)
    latents, _ = noised(batch.clean, sigma)
    both = _Batch(
        batch.size,
        [reference.repeat(2, 1, 1) for reference in batch.references],
        batch.clean,
        torch.cat([batch.tokens, empty.expand(count, -1)]),
    )

    def guided(here: Tensor, at: Tensor) -> Tensor:
        asked, free = both.velocity(teacher, here.repeat(2, 1, 1), at.repeat(2)).chunk(2)
        return free + _GUIDANCE * (asked - free)

    target = leap_velocity(guided, latents, sigma, end, _TEACHER_STEPS)
    return functional.mse_loss(batch.velocity(models, latents, sigma), target)


def _sources(
    trainee: Trainee, scenes: Scenes, streams: tuple[Edits, Edits], generator: torch.Generator, *, tiny: bool
) -> list[Source]:
    text_sizes, one_sizes, two_sizes = (
        (_TINY_TEXT, _TINY_ONE, _TINY_TWO) if tiny else (_TEXT_SIZES, _ONE_SIZES, _TWO_SIZES)
    )

    def edit_source(sizes: tuple[EditSize, ...], edits: Edits) -> Source:
        def fill(size: EditSize, pool: EditPool) -> None:
            encode_edits(edits, trainee.vae, pool, size.drawn_at_once, generator)

        return Source(sizes, [EditPool(size) for size in sizes], fill, _FRESH_EDITS)

    return [
        scene_source(text_sizes, scenes, trainee.vae, generator, _FRESH_TEXT),
        edit_source(one_sizes, streams[0]),
        edit_source(two_sizes, streams[1]),
    ]


def train_edit(
    trainee: Trainee,
    scenes: Scenes,
    streams: tuple[Edits, Edits],
    generator: torch.Generator,
    clock: Callable[[float], Clock],
    log: Callable[[str], None],
    device: torch.device,
    team: Team,
    *,
    tiny: bool,
    keep_to: Path,
) -> dict[str, Any]:
    """Train for the clock's time from ``trainee``, whose averaged weights are the flow's (or go on from edit.pt)."""
    run = _Run(trainee, keep_to / FILE, device)
    log(f"edit: {'continuing' if run.resumed else 'beginning'} at step {run.step}")
    sources = _sources(trainee, scenes, streams, generator, tiny=tiny)
    log("pools are filled")
    empty = torch.from_numpy(PromptTokenizer()([""])).long().to(device)
    team.wait()
    timer = clock(run.spent)
    # The same for all members, so that nobody waits for another's larger images.
    chooser = torch.Generator().manual_seed(run.step + 1)
    weights = torch.tensor([_TEXT_SHARE, _ONE_SHARE, 1 - _TEXT_SHARE - _ONE_SHARE])
    losses, counts = torch.zeros(3, device=device), [0, 0, 0]
    logged = saved = timer.spent
    first, over = run.step, False
    while not over:
        if timer.progress >= _LEAPS_FROM and run.teacher is None:
            run.teacher = averaged(trainee)
            log(f"edit step {run.step}: from here on in leaps")
        kind = int(torch.multinomial(weights, 1, generator=chooser))
        size, pool = sources[kind].choose(timer.progress, chooser)
        rate = _rate(timer.progress, run.step - first)
        *references, clean, tokens = pool.draw(size.batch)
        batch = _Batch(size, references[0] if references else [], clean, tokens)
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            if run.teacher is None:
                loss = plain_loss(trainee.models, batch)
            else:
                loss = leap_loss(trainee.models, run.teacher, empty, batch)
        loss.backward()
        team.average_gradients(trainee.optimizer.parameters)
        torch.nn.utils.clip_grad_norm_(trainee.optimizer.parameters, 1.0)
        trainee.optimizer.step(rate * _PEAK_RATE, rate * _PEAK_MATRIX_RATE)
        trainee.average.update()
        run.step += 1
        losses[kind] = losses[kind] * 0.98 + loss.detach() * 0.02
        counts[kind] += 1
        if run.step % 10 == 0:
            if device.type == "cuda":
                torch.cuda.synchronize()
            timer.tick()
            timer.spent, ended = team.agree(timer.spent, float(timer.over))
            over = ended > 0
            if timer.spent - logged > 15 or tiny:
                log(
                    f"edit step {run.step} {timer.spent:.0f} s, losses (text, one, two) "
                    f"{_means(losses, counts)}, rate {rate:.2f}"
                )
                logged = timer.spent
            if timer.spent - saved > 60 and team.leads:
                run.keep(timer.spent)
                saved = timer.spent
    if team.leads:
        run.keep(timer.spent)
    return {"edit_steps": run.step, "edit_seconds": round(timer.spent), "edit_losses": _means(losses, counts)}


def _means(losses: Tensor, counts: list[int]) -> list[float]:
    """The moving means, without their beginning at 0."""
    return [
        round(value / max(1 - 0.98**count, 1e-9), 4) if count else 0.0
        for value, count in zip(losses.tolist(), counts, strict=True)
    ]


def _rate(progress: float, done: int) -> float:
    """The share of the peak rates: warm up, hold, and fall to nothing over the last 60 % of the planned time."""
    fall = max(0.0, (progress - 0.4) / 0.6)
    return min(1.0, (done + 1) / _WARM_STEPS) * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * fall)))


class _Run:
    """What the stage keeps between calls."""

    def __init__(self, trainee: Trainee, file: Path, device: torch.device) -> None:
        self._trainee, self._file = trainee, file
        self.step, self.spent = 0, 0.0
        self.teacher: Models | None = None
        """Of edits in leaps: the averaged weights when those began."""
        saved = load(file, device)
        self.resumed = saved is not None
        for name, model in zip(("text_encoder", "transformer"), trainee.models, strict=True):
            model.load_state_dict(saved["models"][name] if saved else trainee.average.values[name])
        # The flow's moments fit neither the new task nor the averaged weights.
        trainee.optimizer = Optimizer(list(trainee.models), fused=device.type == "cuda")
        if saved:
            trainee.optimizer.load_state_dict(saved["optimizer"])
            self.step, self.spent = saved["step"], saved["spent"]
            trainee.average.restore(saved["average"], self.step)
            if saved["teacher"] is not None:
                self.teacher = averaged(trainee)
                for name, model in zip(("text_encoder", "transformer"), self.teacher, strict=True):
                    model.load_state_dict(saved["teacher"][name])
        else:
            trainee.average.updates = 0

    def keep(self, spent: float) -> None:
        """Save the run."""
        self.spent = spent
        names = ("text_encoder", "transformer")
        teacher = self.teacher and {name: model.state_dict() for name, model in zip(names, self.teacher, strict=True)}
        save(
            self._file,
            {
                "models": {name: model.state_dict() for name, model in zip(names, self._trainee.models, strict=True)},
                "average": self._trainee.average.values,
                "optimizer": self._trainee.optimizer.state_dict(),
                "teacher": teacher,
                "step": self.step,
                "spent": spent,
            },
        )
