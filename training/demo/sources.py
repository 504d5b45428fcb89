"""Where batches come from: sizes by their shares, each with a pool that gets new images as old ones are used."""

from collections.abc import Callable
from typing import Any

import torch

from training.demo.data import Pool, Scenes, encode_new
from training.demo.trainee import Size
from training.demo.vae import Autoencoder


class Source:
    """A kind of batch: its sizes, and the pools that they are drawn from."""

    def __init__(
        self, sizes: tuple[Any, ...], pools: list[Any], fill: Callable[[Any, Any], None], fresh: float
    ) -> None:
        """``fill`` draws and encodes a size's images into its pool; ``fresh`` of a batch are due anew each step."""
        self._sizes, self._pools, self._fill, self._fresh = sizes, pools, fill, fresh
        self._owed = [0.0] * len(sizes)
        for size, pool in zip(sizes, pools, strict=True):
            fill(size, pool)

    def choose(self, progress: float, chooser: torch.Generator) -> tuple[Any, Any]:
        """A size by its share, and its pool with the new images that are due."""
        shares = torch.tensor([size.shares[min(2, int(progress * 3))] for size in self._sizes])
        number = int(torch.multinomial(shares, 1, generator=chooser))
        size, pool = self._sizes[number], self._pools[number]
        self._owed[number] += self._fresh * size.batch
        if self._owed[number] >= size.drawn_at_once:
            self._owed[number] -= size.drawn_at_once
            self._fill(size, pool)
        return size, pool


def scene_source(
    sizes: tuple[Size, ...], scenes: Scenes, vae: Autoencoder, generator: torch.Generator, fresh: float
) -> Source:
    """Images with captions."""

    def fill(size: Size, pool: Pool) -> None:
        encode_new(scenes, vae, pool, size.drawn_at_once, generator)

    return Source(sizes, [Pool(size.height, size.width, size.capacity) for size in sizes], fill, fresh)
