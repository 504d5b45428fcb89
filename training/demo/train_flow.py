"""The transformer's and text encoder's training: rectified flow over all sizes, then straightening for few steps."""

import copy
import functools
import itertools
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as functional
from torch import Tensor, nn

from mflux_api.engine.demo.layout import CheckpointShape
from training.demo.data import Pool, Scenes, encode_new
from training.demo.models import TextEncoder, Transformer, rope_of
from training.demo.sampler import schedule
from training.demo.state import Average, Clock, load, save
from training.demo.vae import Autoencoder

_PEAK_RATE = 1.0e-3
_REFINE_RATE = 2.0e-4
# New pictures a step, as a share of the batch: each is used about five times, with other noise.
_FRESH = 0.18
# Below this sigma the refinement teaches the end of the path, above it the flow as before.
_STRAIGHT_BELOW = 0.8
_TEACHER_STEPS = 5


@dataclass(frozen=True)
class Size:
    """A picture size with its pictures a step, its pool, and its share of the steps early, in the middle and late."""

    height: int
    width: int
    batch: int
    capacity: int
    shares: tuple[float, float, float]

    @property
    def painted_at_once(self) -> int:
        """Painting has a high cost a call and a low one a picture, so it is done for many pictures together."""
        return min(self.capacity, max(self.batch, 1024 * 256 * 256 // (self.height * self.width)), 2048)


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


@dataclass
class Trainee:
    """The models of the run and everything that changes."""

    vae: Autoencoder
    text: TextEncoder
    transformer: Transformer
    average: Average
    optimizer: torch.optim.Optimizer
    step: int = 0
    spent: float = 0.0
    refine_spent: float = 0.0


def build(shape: CheckpointShape, device: torch.device, decay: float) -> Trainee:
    """Fresh models."""
    vae = Autoencoder(shape).to(device).eval().requires_grad_(False)
    text, transformer = TextEncoder(shape).to(device), Transformer(shape).to(device)
    parameters = [*text.parameters(), *transformer.parameters()]
    decayed = [p for p in parameters if p.ndim > 1]
    others = [p for p in parameters if p.ndim <= 1]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": 0.02}, {"params": others, "weight_decay": 0.0}],
        lr=_PEAK_RATE,
        betas=(0.9, 0.98),
        fused=device.type == "cuda",
    )
    average = Average({"text_encoder": text, "transformer": transformer}, decay)
    return Trainee(vae, text, transformer, average, optimizer)


def resume(trainee: Trainee, state: Path, device: torch.device) -> bool:
    """Load the autoencoder and, where one was saved, the run; whether there was a run."""
    saved_vae = load(state / "vae.pt", device)
    if saved_vae is None:
        raise SystemExit(f"{state / 'vae.pt'} is missing: train the autoencoder first.")
    # What is exported is bfloat16, so the latents are those of the rounded weights.
    trainee.vae.load_state_dict(
        {name: value.to(torch.bfloat16).float() for name, value in saved_vae["average"].items()}
    )
    saved = load(state / "flow.pt", device)
    if saved is None:
        return False
    trainee.text.load_state_dict(saved["text"])
    trainee.transformer.load_state_dict(saved["transformer"])
    trainee.average.restore(saved["average"], saved["step"])
    if saved["optimizer"] is not None:
        trainee.optimizer.load_state_dict(saved["optimizer"])
    trainee.step, trainee.spent, trainee.refine_spent = saved["step"], saved["spent"], saved["refine_spent"]
    return True


def keep(trainee: Trainee, state: Path) -> None:
    """Save the run."""
    save(
        state / "flow.pt",
        {
            "text": trainee.text.state_dict(),
            "transformer": trainee.transformer.state_dict(),
            "average": trainee.average.values,
            "optimizer": trainee.optimizer.state_dict(),
            "step": trainee.step,
            "spent": trainee.spent,
            "refine_spent": trainee.refine_spent,
        },
    )


def exported(trainee: Trainee) -> dict[str, dict[str, Tensor]]:
    """The components' weights as they are shipped."""
    return {"vae": trainee.vae.state_dict(), **trainee.average.values}


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
    sigma = torch.where(way < 0.4, at_points, torch.where(way < 0.75, shifted, normal))
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


def _velocity(trainee: Trainee, size: Size, latents: Tensor, tokens: Tensor, sigma: Tensor) -> Tensor:
    text = trainee.text(tokens)
    rope = rope_of(size.height // 16, size.width // 16, tokens.shape[1], trainee.transformer.axes, latents.device)
    return trainee.transformer(latents, text, sigma, rope).float()


def flow_loss(trainee: Trainee, size: Size, clean: Tensor, tokens: Tensor) -> Tensor:
    """The squared error of the velocity from a picture to noise."""
    sigma = draw_sigmas(clean.shape[0], clean.shape[1], clean.device)
    noise = torch.randn_like(clean)
    at = sigma[:, None, None]
    found = _velocity(trainee, size, clean + at * (noise - clean), tokens, sigma)
    return functional.mse_loss(found, noise - clean)


def refine_loss(
    trainee: Trainee, teacher: tuple[TextEncoder, Transformer], size: Size, clean: Tensor, tokens: Tensor
) -> Tensor:
    """At low noise the way to where the teacher's own path ends (a sharp picture, not a mean); else the flow."""
    sigma = draw_sigmas(clean.shape[0], clean.shape[1], clean.device)
    noise = torch.randn_like(clean)
    at = sigma[:, None, None]
    latents = clean + at * (noise - clean)
    low = sigma < _STRAIGHT_BELOW
    target = noise - clean
    with torch.no_grad():
        rope = rope_of(size.height // 16, size.width // 16, tokens.shape[1], trainee.transformer.axes, clean.device)
        text = teacher[0](tokens)
        x = latents
        for number in range(_TEACHER_STEPS):
            here, there = (sigma * (1 - i / _TEACHER_STEPS) for i in (number, number + 1))
            x = x + (there - here)[:, None, None] * teacher[1](x, text, here.clamp(min=0.001), rope).float()
        target = torch.where(low[:, None, None], (latents - x) / at, target)
    found = _velocity(trainee, size, latents, tokens, sigma)
    weight = torch.where(sigma < 0.1, sigma * 10, torch.ones_like(sigma))[:, None, None]
    return (weight * (found - target) ** 2).mean()


def train_flow(
    trainee: Trainee,
    scenes: Scenes,
    generator: torch.Generator,
    clock: Callable[[float], Clock],
    log: Callable[[str], None],
    device: torch.device,
    *,
    refine: bool,
    compiled: bool,
    tiny: bool,
    keep_to: Path,
) -> dict[str, Any]:
    """Train for the clock's time; every minute the run is saved."""
    sizes = TINY_SIZES if tiny else SIZES
    pools = [Pool(size.height, size.width, size.capacity) for size in sizes]
    teacher = _teacher(trainee) if refine else None
    if compiled:
        _compile(trainee, teacher, device, log)
    for size, pool in zip(sizes, pools, strict=True):
        encode_new(scenes, trainee.vae, pool, size.painted_at_once, generator)
    owed = [0.0] * len(sizes)
    spent = trainee.refine_spent if refine else trainee.spent
    timer = clock(spent)
    chooser = torch.Generator().manual_seed(trainee.step + 1)
    pictures, mean_loss, logged, saved, first = (
        0,
        torch.zeros((), device=device),
        timer.spent,
        timer.spent,
        trainee.step,
    )
    timer.begin()
    while not timer.over:
        shares = torch.tensor([size.shares[min(2, int(timer.progress * 3)) if not refine else 2] for size in sizes])
        number = int(torch.multinomial(shares, 1, generator=chooser))
        size, pool = sizes[number], pools[number]
        owed[number] += _FRESH * size.batch
        if owed[number] >= size.painted_at_once:
            owed[number] -= size.painted_at_once
            encode_new(scenes, trainee.vae, pool, size.painted_at_once, generator)
        clean, tokens = pool.draw(size.batch)
        rate = _rate(timer.progress, trainee.step - first, refine)
        for group in trainee.optimizer.param_groups:
            group["lr"] = rate
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            loss = (
                flow_loss(trainee, size, clean, tokens)
                if teacher is None
                else refine_loss(trainee, teacher, size, clean, tokens)
            )
        trainee.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_([*trainee.text.parameters(), *trainee.transformer.parameters()], 1.0)
        trainee.optimizer.step()
        trainee.average.update()
        trainee.step, pictures = trainee.step + 1, pictures + size.batch
        done = trainee.step - first
        mean_loss = mean_loss * 0.98 + loss.detach() * 0.02
        if done % 10 == 0:
            if device.type == "cuda":
                torch.cuda.synchronize()
            timer.tick()
            if timer.spent - logged > 15 or tiny:
                speed = pictures / max(timer.spent - spent, 1e-3)
                loss_now = float(mean_loss) / (1 - 0.98**done)
                log(
                    f"{'refine' if refine else 'flow'} step {trainee.step} {timer.spent:.0f} s, "
                    f"{speed:.0f} pictures/s, loss {loss_now:.4f}, norm {float(norm):.2f}, rate {rate:.1e}"
                )
                logged = timer.spent
            if timer.spent - saved > 60:
                _note(trainee, timer, refine)
                keep(trainee, keep_to)
                saved = timer.spent
    _note(trainee, timer, refine)
    keep(trainee, keep_to)
    name = "refine" if refine else "flow"
    done = max(1, trainee.step - first)
    return {
        f"{name}_steps": trainee.step,
        f"{name}_seconds": round(timer.spent),
        f"{name}_loss": round(float(mean_loss) / (1 - 0.98**done), 4),
    }


def _note(trainee: Trainee, timer: Clock, refine: bool) -> None:
    if refine:
        trainee.refine_spent = timer.spent
    else:
        trainee.spent = timer.spent


def _rate(progress: float, done: int, refine: bool) -> float:
    """Warm up, hold, and fall to nothing over the last 45 % of the planned time."""
    warm = min(1.0, (done + 1) / 250)
    if refine:
        return _REFINE_RATE * warm * (1 - 0.95 * progress)
    fall = max(0.0, (progress - 0.55) / 0.45)
    return _PEAK_RATE * warm * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * fall)))


def _teacher(trainee: Trainee) -> tuple[TextEncoder, Transformer]:
    models: list[nn.Module] = []
    for name, module in (("text_encoder", trainee.text), ("transformer", trainee.transformer)):
        copied = copy.deepcopy(module)
        copied.load_state_dict(trainee.average.values[name])
        module.load_state_dict(trainee.average.values[name])
        models.append(copied.eval().requires_grad_(False))
    return models[0], models[1]  # type: ignore[return-value]


def _compile(
    trainee: Trainee, teacher: tuple[TextEncoder, Transformer] | None, device: torch.device, log: Callable[[str], None]
) -> None:
    """Compile the blocks (one graph per kind of block, any length); where that fails or is no faster, go on without."""
    begun = time.perf_counter()
    models = [trainee.transformer] + ([teacher[1]] if teacher else [])
    blocks = [block for model in models for block in (*model.transformer_blocks, *model.single_transformer_blocks)]
    torch._dynamo.config.cache_size_limit = 64
    eager = _trial(trainee, teacher, device, 6)
    try:
        for block in blocks:
            block.compile(dynamic=True)
        for height, width, batch in ((256, 256, 32), (128, 128, 48), (256, 384, 24)):
            _trial_step(trainee, teacher, device, height, width, batch)
        took = time.perf_counter() - begun
        found = _trial(trainee, teacher, device, 6)
        log(f"compiled in {took:.0f} s: a step of 128 takes {found * 1000:.0f} ms, before {eager * 1000:.0f} ms")
        if found < eager:
            return
    except Exception as problem:  # noqa: BLE001 - whatever the compiler raises, training is possible without it
        log(f"not compiled: {type(problem).__name__}: {str(problem)[:300]}")
    for block in blocks:
        block._compiled_call_impl = None


def _trial(
    trainee: Trainee, teacher: tuple[TextEncoder, Transformer] | None, device: torch.device, repeats: int
) -> float:
    """Seconds of a step of 128 pictures of 256 x 256."""
    batch = 128 if device.type == "cuda" else 2
    for number in range(repeats + 2):
        if number == 2:
            if device.type == "cuda":
                torch.cuda.synchronize()
            begun = time.perf_counter()
        _trial_step(trainee, teacher, device, 256, 256, batch)
    if device.type == "cuda":
        torch.cuda.synchronize()
    return (time.perf_counter() - begun) / repeats


def _trial_step(
    trainee: Trainee,
    teacher: tuple[TextEncoder, Transformer] | None,
    device: torch.device,
    height: int,
    width: int,
    batch: int,
) -> None:
    size = Size(height, width, batch, batch, (1.0, 1.0, 1.0))
    clean = torch.randn(batch, height // 16 * (width // 16), 128, device=device)
    tokens = torch.ones(batch, 64, dtype=torch.long, device=device)
    with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
        loss = flow_loss(trainee, size, clean, tokens)
        if teacher is not None:
            loss = loss + refine_loss(trainee, teacher, size, clean, tokens)
    loss.backward()
    trainee.optimizer.zero_grad(set_to_none=True)
