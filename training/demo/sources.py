"""Where batches come from: sizes by their shares, each with a pool that gets new images as old ones are used."""

from collections.abc import Callable
from typing import Generic, Protocol, TypeVar

import torch

from training.demo.data import Pool, Scenes, Size, fill_pool
from training.demo.vae import Autoencoder


class _BatchSize(Protocol):
    @property
    def batch(self) -> int: ...

    @property
    def shares(self) -> tuple[float, float, float]: ...

    @property
    def rendered_at_once(self) -> int: ...


SizeT = TypeVar("SizeT", bound=_BatchSize)
PoolT = TypeVar("PoolT")


class Source(Generic[SizeT, PoolT]):
    """A kind of batch: its sizes, and the pool that each size's batches are sampled from.

    Args:
        sizes: The sizes.
        pools: A pool for each of them.
        fill: Renders and encodes a size's images into its pool.
        fresh: How many new images are due at each step, as a share of the batch.
    """

    def __init__(
        self, sizes: tuple[SizeT, ...], pools: list[PoolT], fill: Callable[[SizeT, PoolT], None], fresh: float
    ) -> None:
        self._sizes, self._pools, self._fill, self._fresh = sizes, pools, fill, fresh
        self._owed = [0.0] * len(sizes)
        for size, pool in zip(sizes, pools, strict=True):
            fill(size, pool)

    def choose(self, progress: float, chooser: torch.Generator) -> tuple[SizeT, PoolT]:
        """Choose a size by its share at this ``progress``, and return its pool with the new images that are due."""
        shares = torch.tensor([size.shares[min(2, int(progress * 3))] for size in self._sizes])
        number = int(torch.multinomial(shares, 1, generator=chooser))
        size, pool = self._sizes[number], self._pools[number]
        self._owed[number] += self._fresh * size.batch
        if self._owed[number] >= size.rendered_at_once:
            self._owed[number] -= size.rendered_at_once
            self._fill(size, pool)
        return size, pool


def scene_source(
    sizes: tuple[Size, ...], scenes: Scenes, vae: Autoencoder, generator: torch.Generator, fresh: float
) -> Source[Size, Pool]:
    """Return a source of images with captions."""

    def fill(size: Size, pool: Pool) -> None:
        fill_pool(scenes, vae, pool, size.rendered_at_once, generator)

    return Source(sizes, [Pool(size.height, size.width, size.capacity) for size in sizes], fill, fresh)
