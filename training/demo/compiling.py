"""Compiled transformer blocks: one graph for each kind of block, whatever the batch and the picture's size."""

import time
from collections.abc import Callable

import torch

from training.demo.models import Transformer, rope_of

_BATCHES = ((32, 16, 16), (48, 8, 8), (24, 16, 24))


def compile_blocks(models: list[Transformer], device: torch.device, log: Callable[[str], None]) -> None:
    """Compile the blocks of ``models``; where that fails, go on without."""
    begun = time.perf_counter()
    torch._dynamo.config.cache_size_limit = 64
    blocks = [block for model in models for block in (*model.transformer_blocks, *model.single_transformer_blocks)]
    try:
        eager = _trial(models[0], device)
        for block in blocks:
            block.compile(dynamic=True)
        for model in models:
            for batch, rows, columns in _BATCHES:
                _pass(model, device, batch, rows, columns)
        took = time.perf_counter() - begun
        log(f"compiled in {took:.0f} s: {_trial(models[0], device) * 1000:.0f} ms, before {eager * 1000:.0f} ms")
    except Exception as problem:  # noqa: BLE001 - whatever the compiler raises, training is possible without it
        log(f"not compiled: {type(problem).__name__}: {str(problem)[:300]}")
        for block in blocks:
            block._compiled_call_impl = None


def _trial(model: Transformer, device: torch.device) -> float:
    """Seconds of a pass forth and back over pictures of 256 x 256."""
    repeats, batch = (8, 128) if device.type == "cuda" else (1, 2)
    for number in range(repeats + 2):
        if number == 2:
            if device.type == "cuda":
                torch.cuda.synchronize()
            begun = time.perf_counter()
        _pass(model, device, batch, 16, 16)
    if device.type == "cuda":
        torch.cuda.synchronize()
    return (time.perf_counter() - begun) / repeats


def _pass(model: Transformer, device: torch.device, batch: int, rows: int, columns: int) -> None:
    latents = torch.randn(batch, rows * columns, 128, device=device)
    text = torch.randn(batch, 64, model.context_embedder.in_features, device=device)
    rope = rope_of(rows, columns, 64, model.axes, device)
    learning = next(model.parameters()).requires_grad
    with (
        torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"),
        torch.set_grad_enabled(learning),
    ):
        found = model(latents, text, torch.rand(batch, device=device), rope)
    if learning:
        found.float().pow(2).mean().backward()
        model.zero_grad(set_to_none=True)
