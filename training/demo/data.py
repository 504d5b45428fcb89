"""Scenes and captions from worker processes, and pools of encoded images that batches are sampled from."""

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

from training.demo.captions import sample
from training.demo.tokenizer import PromptTokenizer
from training.demo.vae import Autoencoder
from training.demo.world.render import render

Chunk = tuple[npt.NDArray[np.int16], npt.NDArray[np.int16]]
_CHUNK = 1024
# A call of the renderer has a high fixed cost, so many images are rendered together: this many of 256 x 256.
_RENDERED_AT_ONCE = 2048
EMPTY = ("", " ")
"""Prompts without content, as the unconditional branch of guidance sees them."""


def make_chunk(rng: random.Random, tokenizer: PromptTokenizer, dropout: float, size: int = _CHUNK) -> Chunk:
    """Make scenes with captions, of which the share ``dropout`` is dropped.

    Returns:
        Scene rows [size, fields] and token rows [size, 64].
    """
    scenes, captions = zip(*(sample(rng) for _ in range(size)), strict=True)
    kept = [rng.choice(EMPTY) if rng.random() < dropout else caption for caption in captions]
    return np.array([scene.row() for scene in scenes], dtype=np.int16), tokenizer(kept)


def _produce(seed: int, dropout: float, chunks: "Queue[Chunk]") -> None:
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    rng, tokenizer = random.Random(seed), PromptTokenizer()
    while True:
        chunks.put(make_chunk(rng, tokenizer, dropout))


class Scenes:
    """An endless stream of scenes with captions.

    The workers are forked, so it has to be made before the first use of a GPU.

    Args:
        workers: How many processes make scenes; with 0 they are made in this process.
        seed: What the scenes and captions depend on.
        dropout: The share of captions that are dropped.
        device: Where the scenes are needed.
    """

    def __init__(self, workers: int, seed: int, dropout: float, device: torch.device) -> None:
        self._device, self._dropout = device, dropout
        self._chance, self._tokenizer = random.Random(seed), PromptTokenizer()
        self._rows = torch.empty(0, 0, dtype=torch.long)
        self._tokens = torch.empty(0, 0, dtype=torch.long)
        context = multiprocessing.get_context("fork")
        self._queue: Queue[Chunk] | None = context.Queue(maxsize=32) if workers else None
        self._processes = [
            context.Process(target=_produce, args=(seed * 1000 + i, dropout, self._queue), daemon=True)
            for i in range(workers)
        ]
        for process in self._processes:
            process.start()

    def take(self, count: int) -> tuple[Tensor, Tensor]:
        """Return the next ``count`` scene rows and token rows, on the device."""
        while self._rows.shape[0] < count:
            rows, tokens = self._next()
            rows, tokens = torch.from_numpy(rows).long(), torch.from_numpy(tokens).long()
            self._rows = torch.cat([self._rows, rows]) if self._rows.numel() else rows
            self._tokens = torch.cat([self._tokens, tokens]) if self._tokens.numel() else tokens
        taken = self._rows[:count].to(self._device), self._tokens[:count].to(self._device)
        self._rows, self._tokens = self._rows[count:], self._tokens[count:]
        return taken

    def _next(self) -> Chunk:
        if self._queue is None:
            return make_chunk(self._chance, self._tokenizer, self._dropout, 64)
        try:
            return self._queue.get(timeout=60)
        except queue.Empty:
            # The workers died or never started; slower is better than not at all.
            self._queue = None
            return make_chunk(self._chance, self._tokenizer, self._dropout)

    def close(self) -> None:
        """End the workers."""
        for process in self._processes:
            process.terminate()


@dataclass(frozen=True)
class Size:
    """An image size in pixels, its images a step, the images in its pool, and its shares of the steps."""

    height: int
    width: int
    batch: int
    capacity: int
    shares: tuple[float, float, float]
    """Early, in the middle and late."""

    @property
    def rendered_at_once(self) -> int:
        """How many images are rendered together."""
        return min(self.capacity, max(self.batch, _RENDERED_AT_ONCE * 256 * 256 // (self.height * self.width)), 4096)


@dataclass
class Pool:
    """Encoded images of one size with their captions: a ring buffer, whose oldest images are overwritten.

    Rendering and encoding an image costs as much as training on it, so each is used several times, with other noise.
    """

    height: int
    width: int
    capacity: int
    filled: int = 0
    position: int = 0
    latents: Tensor = field(default_factory=lambda: torch.empty(0))
    tokens: Tensor = field(default_factory=lambda: torch.empty(0))

    def add(self, latents: Tensor, tokens: Tensor) -> None:
        """Overwrite the oldest images."""
        if not self.latents.numel():
            self.latents = torch.empty(self.capacity, *latents.shape[1:], dtype=torch.bfloat16, device=latents.device)
            self.tokens = torch.zeros(self.capacity, tokens.shape[1], dtype=torch.long, device=tokens.device)
        places = (torch.arange(latents.shape[0], device=latents.device) + self.position) % self.capacity
        self.latents[places], self.tokens[places] = latents.to(torch.bfloat16), tokens
        self.position = (self.position + latents.shape[0]) % self.capacity
        self.filled = min(self.capacity, self.filled + latents.shape[0])

    def sample(self, count: int) -> tuple[Tensor, Tensor]:
        """Return packed latents (float32) and token rows of ``count`` random images."""
        chosen = torch.randint(self.filled, (count,), device=self.latents.device)
        return self.latents[chosen].float(), self.tokens[chosen]


@torch.no_grad()
def fill_pool(
    scenes: Scenes, vae: Autoencoder, pool: Pool, count: int, generator: torch.Generator, part: int = 128
) -> None:
    """Render ``count`` new images, encode them ``part`` at a time, and put them into ``pool``."""
    rows, tokens = scenes.take(count)
    images = render(rows, pool.height, pool.width, generator)
    packed = []
    for pixels in images.split(part):
        with torch.autocast(pixels.device.type, torch.bfloat16, enabled=pixels.is_cuda):
            mean, _ = vae.encode(pixels * 2 - 1)
        packed.append(vae.pack(mean))
    pool.add(torch.cat(packed), tokens)
