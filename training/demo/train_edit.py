"""The stage that teaches editing, and then both, generating and editing, in four steps.

References are fed as diffusers' Flux2KleinPipeline and mflux's Flux2KleinEdit feed them: clean packed latents behind
the noised ones, told apart by the first axis of their positions; only the noised ones' velocity counts.

Text alone, one reference and two are learnt side by side: as a plain flow first, then by progressive distillation
(arXiv:2202.00512) from the averaged weights, with guidance in the teacher (arXiv:2210.03142), which sees the same
references. The flow comes first because only it teaches the fine steps: a model that knows nothing but four steps goes
from sigma 0.7 to a mean of images, which is soft.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as functional
from torch import Tensor

from training.demo.checkpoint import load_checkpoint, save_checkpoint
from training.demo.clock import Clock
from training.demo.data import Scenes, Size
from training.demo.distillation import add_noise, copy_ema_models, find_target_velocity, sample_step_sigmas
from training.demo.distributed import DistributedContext
from training.demo.edit_data import EditPool, Edits, EditSize, fill_edit_pool
from training.demo.models import Models, predict_velocity
from training.demo.optimizer import Optimizer
from training.demo.sources import Source, scene_source
from training.demo.tokenizer import PromptTokenizer
from training.demo.train_flow import sample_sigmas
from training.demo.train_state import TrainState

FILE = "edit.pt"
_PEAK_RATE, _PEAK_MATRIX_RATE = 7.0e-4, 2.0e-3
_WARM_STEPS = 150
_DISTILL_FROM = 0.66
"""The share of the plan after which distillation begins."""
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


def _same_size(
    side: tuple[int, int], count: int, batch: int, capacity: int, shares: tuple[float, float, float]
) -> EditSize:
    return EditSize(side, (side,) * count, batch, capacity, shares)


_ONE_SIZES = (
    _same_size((128, 128), 1, 224, 12288, (0.26, 0.08, 0.05)),
    _same_size((192, 192), 1, 128, 8192, (0.12, 0.06, 0.05)),
    _same_size((256, 256), 1, 96, 16384, (0.32, 0.32, 0.32)),
    _same_size((256, 384), 1, 64, 4096, (0.05, 0.08, 0.08)),
    _same_size((384, 256), 1, 64, 4096, (0.05, 0.08, 0.08)),
    EditSize((256, 256), ((256, 384),), 80, 3072, (0.03, 0.04, 0.04)),
    EditSize((256, 384), ((256, 256),), 72, 3072, (0.03, 0.05, 0.05)),
    EditSize((384, 256), ((256, 256),), 72, 3072, (0.03, 0.05, 0.05)),
    EditSize((512, 512), ((256, 256),), 36, 2048, (0.04, 0.09, 0.11)),
    EditSize((256, 256), ((512, 512),), 36, 2048, (0.03, 0.05, 0.06)),
    _same_size((512, 512), 1, 24, 2048, (0.04, 0.10, 0.11)),
)
_TWO_SIZES = (
    _same_size((128, 128), 2, 176, 12288, (0.45, 0.2, 0.15)),
    _same_size((192, 192), 2, 88, 6144, (0.15, 0.12, 0.1)),
    _same_size((256, 256), 2, 64, 12288, (0.34, 0.5, 0.5)),
    EditSize((256, 384), ((256, 384), (256, 256)), 48, 3072, (0.03, 0.09, 0.12)),
    EditSize((384, 256), ((384, 256), (256, 256)), 48, 3072, (0.03, 0.09, 0.12)),
)
_TINY_TEXT = (Size(64, 64, 4, 64, (1.0, 1.0, 1.0)),)
_TINY_ONE = (_same_size((64, 64), 1, 4, 64, (0.5, 0.5, 0.5)), EditSize((64, 96), ((64, 64),), 4, 64, (0.5, 0.5, 0.5)))
_TINY_TWO = (
    _same_size((64, 64), 2, 4, 64, (0.5, 0.5, 0.5)),
    EditSize((64, 64), ((96, 64), (64, 64)), 4, 64, (0.5,) * 3),
)


@dataclass(frozen=True)
class _Batch:
    """What a step learns from: clean images with their references (none for text alone) and token rows."""

    size: tuple[int, int]
    """Height and width of the images in pixels."""
    reference_sizes: tuple[tuple[int, int], ...]
    references: list[Tensor]
    """Packed latents [n, tokens, 128] of each reference."""
    clean: Tensor
    """Packed latents [n, tokens, 128] of the images."""
    tokens: Tensor
    """Token rows [n, 64]."""

    def predict(self, models: Models, latents: Tensor, sigma: Tensor) -> Tensor:
        """Predict the velocity at noised ``latents``, which see the references."""
        return predict_velocity(models, self.size, latents, self.tokens, sigma, self.references, self.reference_sizes)


def plain_loss(models: Models, batch: _Batch) -> Tensor:
    """Return the mean squared error of the velocity from images to noise."""
    sigma = sample_sigmas(batch.clean.shape[0], batch.clean.shape[1], batch.clean.device)
    latents, noise = add_noise(batch.clean, sigma)
    return functional.mse_loss(batch.predict(models, latents, sigma), noise - batch.clean)


def distillation_loss(models: Models, teacher: Models, empty: Tensor, batch: _Batch) -> Tensor:
    """Return the mean squared error of the velocity to where the teacher's path is one step of the schedule later.

    Args:
        models: The student.
        teacher: The frozen teacher.
        empty: The token row [1, 64] of the empty prompt, which guidance leads away from.
        batch: What both see.
    """
    count, device = batch.clean.shape[0], batch.clean.device
    sigma, end = sample_step_sigmas(count, batch.clean.shape[1], _ON_SCHEDULE, device)
    latents, _ = add_noise(batch.clean, sigma)
    both = _Batch(
        batch.size,
        batch.reference_sizes,
        [reference.repeat(2, 1, 1) for reference in batch.references],
        batch.clean,
        torch.cat([batch.tokens, empty.expand(count, -1)]),
    )

    def predict_guided(here: Tensor, at: Tensor) -> Tensor:
        asked, unconditional = both.predict(teacher, here.repeat(2, 1, 1), at.repeat(2)).chunk(2)
        return unconditional + _GUIDANCE * (asked - unconditional)

    target = find_target_velocity(predict_guided, latents, sigma, end, _TEACHER_STEPS)
    return functional.mse_loss(batch.predict(models, latents, sigma), target)


class _Sources:
    """The three kinds of batch: text alone, one reference, and two."""

    def __init__(
        self, state: TrainState, scenes: Scenes, streams: tuple[Edits, Edits], generator: torch.Generator, *, tiny: bool
    ) -> None:
        def fill_from(edits: Edits) -> Callable[[EditSize, EditPool], None]:
            return lambda size, pool: fill_edit_pool(edits, state.vae, pool, size.rendered_at_once, generator)

        text_sizes = _TINY_TEXT if tiny else _TEXT_SIZES
        edit_sizes = (_TINY_ONE, _TINY_TWO) if tiny else (_ONE_SIZES, _TWO_SIZES)
        self._text = scene_source(text_sizes, scenes, state.vae, generator, _FRESH_TEXT)
        self._edits = [
            Source(sizes, [EditPool(size) for size in sizes], fill_from(edits), _FRESH_EDITS)
            for sizes, edits in zip(edit_sizes, streams, strict=True)
        ]

    def sample(self, references: int, progress: float, chooser: torch.Generator) -> _Batch:
        """Return a batch with so many ``references``, in a size chosen by its share at this ``progress``."""
        if references == 0:
            size, pool = self._text.choose(progress, chooser)
            clean, tokens = pool.sample(size.batch)
            return _Batch((size.height, size.width), (), [], clean, tokens)
        edit_size, edit_pool = self._edits[references - 1].choose(progress, chooser)
        given, clean, tokens = edit_pool.sample(edit_size.batch)
        return _Batch(edit_size.target, edit_size.references, given, clean, tokens)


def train_edit(
    state: TrainState,
    scenes: Scenes,
    streams: tuple[Edits, Edits],
    generator: torch.Generator,
    clock: Callable[[float], Clock],
    log: Callable[[str], None],
    device: torch.device,
    distributed: DistributedContext,
    *,
    tiny: bool,
    folder: Path,
) -> dict[str, Any]:
    """Train until the clock says so, from the flow's averaged weights or from edit.pt, and save edit.pt.

    Args:
        state: What is trained, as the flow left it.
        scenes: The source of scenes with captions.
        streams: The sources of edits with one reference and with two.
        generator: Of the renderer's random numbers.
        clock: Starts the clock of a stage that has had so many seconds.
        log: Prints a line.
        device: Where to train.
        distributed: The processes that train together.
        tiny: Whether to train tiny batches, to try everything out.
        folder: Where edit.pt is.

    Returns:
        Figures for metrics.json.
    """
    stage = _EditState(state, folder / FILE, device)
    log(f"edit: {'continuing' if stage.resumed else 'beginning'} at step {stage.step}")
    sources = _Sources(state, scenes, streams, generator, tiny=tiny)
    log("pools are filled")
    empty = torch.from_numpy(PromptTokenizer()([""])).long().to(device)
    distributed.wait_for_everyone()
    timer = clock(stage.spent)
    # The same in all processes, so that none waits for another's larger images.
    chooser = torch.Generator().manual_seed(stage.step + 1)
    weights = torch.tensor([_TEXT_SHARE, _ONE_SHARE, 1 - _TEXT_SHARE - _ONE_SHARE])
    losses, counts = torch.zeros(3, device=device), [0, 0, 0]
    logged = saved = timer.spent
    first, over = stage.step, False
    while not over:
        if timer.progress >= _DISTILL_FROM and stage.teacher is None:
            stage.teacher = copy_ema_models(state)
            log(f"edit step {stage.step}: distillation begins")
        kind = int(torch.multinomial(weights, 1, generator=chooser))
        rate = _rate(timer.progress, stage.step - first)
        batch = sources.sample(kind, timer.progress, chooser)
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            if stage.teacher is None:
                loss = plain_loss(state.models, batch)
            else:
                loss = distillation_loss(state.models, stage.teacher, empty, batch)
        loss.backward()
        distributed.average_gradients(state.optimizer.parameters)
        torch.nn.utils.clip_grad_norm_(state.optimizer.parameters, 1.0)
        state.optimizer.step(rate * _PEAK_RATE, rate * _PEAK_MATRIX_RATE)
        state.ema.update()
        stage.step += 1
        losses[kind] = losses[kind] * 0.98 + loss.detach() * 0.02
        counts[kind] += 1
        if stage.step % 10 == 0:
            if device.type == "cuda":
                torch.cuda.synchronize()
            timer.tick()
            timer.spent, ended = distributed.broadcast(timer.spent, float(timer.over))
            over = ended > 0
            if timer.spent - logged > 15 or tiny:
                log(
                    f"edit step {stage.step} {timer.spent:.0f} s, losses (text, one, two) "
                    f"{_correct_means(losses, counts)}, rate {rate:.2f}"
                )
                logged = timer.spent
            if timer.spent - saved > 60 and distributed.is_main_process:
                stage.save(timer.spent)
                saved = timer.spent
    if distributed.is_main_process:
        stage.save(timer.spent)
    return {"edit_steps": stage.step, "edit_seconds": round(timer.spent), "edit_losses": _correct_means(losses, counts)}


def _correct_means(losses: Tensor, counts: list[int]) -> list[float]:
    """Correct the moving means for their beginning at 0."""
    return [
        round(value / max(1 - 0.98**count, 1e-9), 4) if count else 0.0
        for value, count in zip(losses.tolist(), counts, strict=True)
    ]


def _rate(progress: float, done: int) -> float:
    """Return the share of the peak rates: warm up, hold, and fall to 1 % over the last 60 % of the planned time."""
    fall = max(0.0, (progress - 0.4) / 0.6)
    return min(1.0, (done + 1) / _WARM_STEPS) * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * fall)))


def _weights_of(models: Models) -> dict[str, Any]:
    text, transformer = models
    return {"text_encoder": text.state_dict(), "transformer": transformer.state_dict()}


def _load_weights(models: Models, weights: dict[str, Any]) -> None:
    text, transformer = models
    text.load_state_dict(weights["text_encoder"])
    transformer.load_state_dict(weights["transformer"])


class _EditState:
    """What the stage keeps from one training run to the next, in ``file``."""

    def __init__(self, state: TrainState, file: Path, device: torch.device) -> None:
        self._state, self._file = state, file
        self.step, self.spent = 0, 0.0
        self.teacher: Models | None = None
        """The averaged weights as they were when distillation began; None before."""
        saved = load_checkpoint(file, device)
        self.resumed = saved is not None
        _load_weights(state.models, saved["models"] if saved else state.ema.values)
        # The flow's moments fit neither the new task nor the averaged weights.
        state.optimizer = Optimizer(list(state.models), fused=device.type == "cuda")
        if saved:
            state.optimizer.load_state_dict(saved["optimizer"])
            self.step, self.spent = saved["step"], saved["spent"]
            state.ema.restore(saved["average"], self.step)
            if saved["teacher"] is not None:
                self.teacher = copy_ema_models(state)
                _load_weights(self.teacher, saved["teacher"])
        else:
            state.ema.updates = 0

    def save(self, spent: float) -> None:
        """Write what the next run continues from; ``spent`` are the seconds of the plan so far."""
        self.spent = spent
        save_checkpoint(
            self._file,
            {
                "models": _weights_of(self._state.models),
                "average": self._state.ema.values,
                "optimizer": self._state.optimizer.state_dict(),
                "teacher": None if self.teacher is None else _weights_of(self.teacher),
                "step": self.step,
                "spent": spent,
            },
        )
