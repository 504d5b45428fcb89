"""Edits from worker processes, and pools of their encoded images."""

import multiprocessing
import os
import queue
import random
from dataclasses import dataclass, field
from multiprocessing.queues import Queue

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from training.demo.data import EMPTY
from training.demo.edits import sample_edit
from training.demo.tokenizer import PromptTokenizer
from training.demo.vae import Autoencoder
from training.demo.world.render import render

_CHUNK = 512
_WAIT_SECONDS = 60
# A call of the renderer has a high fixed cost, so many images are rendered together: this many of 256 x 256.
_RENDERED_AT_ONCE = 2048

Chunk = tuple[npt.NDArray[np.int16], npt.NDArray[np.int64], npt.NDArray[np.int16]]


def make_edits(
    rng: random.Random, tokenizer: PromptTokenizer, references: int, dropout: float, size: int = _CHUNK
) -> Chunk:
    """Make edits, of whose instructions the share ``dropout`` is dropped.

    Returns:
        Scene rows [size, references + 1, fields], the target last; their seeds [size, references + 1]; and token rows
        [size, 64].
    """
    edits = [sample_edit(rng, references) for _ in range(size)]
    views = [(*edit.references, edit.target) for edit in edits]
    said = [rng.choice(EMPTY) if rng.random() < dropout else edit.instruction for edit in edits]
    rows = np.array([[view.scene.row() for view in group] for group in views], dtype=np.int16)
    return rows, np.array([[view.seed for view in group] for group in views], dtype=np.int64), tokenizer(said)


def _produce(seed: int, references: int, dropout: float, chunks: "Queue[Chunk]") -> None:
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    rng, tokenizer = random.Random(seed), PromptTokenizer()
    while True:
        chunks.put(make_edits(rng, tokenizer, references, dropout))


class Edits:
    """An endless stream of edits with one number of references.

    The workers are forked, so it has to be made before the first use of a GPU.

    Args:
        workers: How many processes make edits; with 0 they are made in this process.
        seed: What the edits depend on.
        references: How many images each edit is given.
        dropout: The share of instructions that are dropped.
        device: Where the edits are needed.
    """

    def __init__(self, workers: int, seed: int, references: int, dropout: float, device: torch.device) -> None:
        self.references = references
        self._device, self._dropout = device, dropout
        self._chance, self._tokenizer = random.Random(seed + references), PromptTokenizer()
        self._held: list[Tensor] | None = None
        context = multiprocessing.get_context("fork")
        self._queue: Queue[Chunk] | None = context.Queue(maxsize=16) if workers else None
        self._processes = [
            context.Process(
                target=_produce, args=(seed * 1000 + 100 * references + i, references, dropout, self._queue)
            )
            for i in range(workers)
        ]
        for process in self._processes:
            process.daemon = True
            process.start()

    def take(self, count: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return the scene rows, seeds and token rows of the next ``count`` edits, on the device."""
        while self._held is None or self._held[0].shape[0] < count:
            new = [torch.from_numpy(part).long() for part in self._next()]
            self._held = new if self._held is None else [torch.cat(pair) for pair in zip(self._held, new, strict=True)]
        rows, seeds, tokens = (part[:count].to(self._device) for part in self._held)
        self._held = [part[count:] for part in self._held]
        return rows, seeds, tokens

    def _next(self) -> Chunk:
        if self._queue is None:
            return make_edits(self._chance, self._tokenizer, self.references, self._dropout, 64)
        try:
            return self._queue.get(timeout=_WAIT_SECONDS)
        except queue.Empty:
            # The workers died or never started; slower is better than not at all.
            self._queue = None
            return self._next()

    def close(self) -> None:
        """End the workers."""
        for process in self._processes:
            process.terminate()


@dataclass(frozen=True)
class EditSize:
    """Sizes of the target and its references, (height, width) in pixels, edits a step, and the edits in their pool."""

    target: tuple[int, int]
    references: tuple[tuple[int, int], ...]
    batch: int
    capacity: int
    shares: tuple[float, float, float]
    """Of the steps: early, in the middle and late."""

    @property
    def rendered_at_once(self) -> int:
        """How many edits are rendered together."""
        pixels = sum(height * width for height, width in (*self.references, self.target))
        return min(self.capacity, max(self.batch, _RENDERED_AT_ONCE * 256 * 256 // pixels))


@dataclass
class EditPool:
    """Encoded edits of one size: a ring buffer, whose oldest edits are overwritten."""

    size: EditSize
    filled: int = 0
    position: int = 0
    parts: list[Tensor] = field(default_factory=list)
    """Packed latents of the references and the target, [capacity, tokens, 128] each."""
    tokens: Tensor = field(default_factory=lambda: torch.empty(0))

    def add(self, parts: list[Tensor], tokens: Tensor) -> None:
        """Overwrite the oldest edits."""
        capacity, count, device = self.size.capacity, tokens.shape[0], tokens.device
        if not self.parts:
            self.parts = [torch.empty(capacity, *part.shape[1:], dtype=torch.bfloat16, device=device) for part in parts]
            self.tokens = torch.zeros(capacity, tokens.shape[1], dtype=torch.long, device=device)
        places = (torch.arange(count, device=device) + self.position) % capacity
        for own, part in zip(self.parts, parts, strict=True):
            own[places] = part.to(torch.bfloat16)
        self.tokens[places] = tokens
        self.position = (self.position + count) % capacity
        self.filled = min(capacity, self.filled + count)

    def sample(self, count: int) -> tuple[list[Tensor], Tensor, Tensor]:
        """Return references and clean targets (packed, float32) and token rows of ``count`` random edits."""
        chosen = torch.randint(self.filled, (count,), device=self.tokens.device)
        *references, target = (part[chosen].float() for part in self.parts)
        return references, target, self.tokens[chosen]


@torch.no_grad()
def fill_edit_pool(
    edits: Edits, vae: Autoencoder, pool: EditPool, count: int, generator: torch.Generator, part: int = 128
) -> None:
    """Render the images of ``count`` new edits, encode them ``part`` at a time, and put them into ``pool``."""
    rows, seeds, tokens = edits.take(count)
    sizes = (*pool.size.references, pool.size.target)
    packed: list[Tensor] = [torch.empty(0)] * len(sizes)
    for height, width in set(sizes):
        # Images of one size are rendered in one call.
        members = [number for number, size in enumerate(sizes) if size == (height, width)]
        images = render(
            torch.cat([rows[:, number] for number in members]),
            height,
            width,
            generator,
            torch.cat([seeds[:, number] for number in members]),
        )
        encoded = []
        for pixels in images.split(part):
            with torch.autocast(pixels.device.type, torch.bfloat16, enabled=pixels.is_cuda):
                mean, _ = vae.encode(pixels * 2 - 1)
            encoded.append(vae.pack(mean))
        for number, latents in zip(members, torch.cat(encoded).chunk(len(members)), strict=True):
            packed[number] = latents
    pool.add(packed, tokens)
