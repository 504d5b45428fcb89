"""How much work the waiting jobs are, in their order, so that it can be said how much lies before any of them."""

import math
from collections import defaultdict

import attrs

from mflux_api.actors.scheduler.ordered_sums import OrderedSums
from mflux_api.jobs.estimates import Estimates, Kind
from mflux_api.jobs.resolve import ResolvedRequest

_BUCKETS_PER_OCTAVE = 4
"""Sizes within a fifth of each other are estimated as one; each counts its own pixels."""


@attrs.frozen
class _SizedKind:
    """Jobs whose seconds are the same multiple of their pixels, steps and images."""

    kind: Kind
    bucket: int

    @property
    def pixels(self) -> int:
        return round(2 ** (self.bucket / _BUCKETS_PER_OCTAVE))


@attrs.define
class _Work:
    jobs: OrderedSums = attrs.field(factory=OrderedSums)
    steps: OrderedSums = attrs.field(factory=OrderedSums)
    """Pixels of each step of each image."""
    images: OrderedSums = attrs.field(factory=OrderedSums)
    """Pixels of each image."""


class WorkAhead:
    """The waiting jobs' work by their numbers. It is kept in pixels: what a pixel costs is learned meanwhile."""

    def __init__(self, estimates: Estimates) -> None:
        self._estimates = estimates
        self._work: defaultdict[_SizedKind, _Work] = defaultdict(_Work)
        self._kinds: dict[int, _SizedKind] = {}

    def add(self, number: int, request: ResolvedRequest) -> None:
        """Add a job that waits."""
        pixels = math.prod(request.size)
        bucket = round(math.log2(pixels) * _BUCKETS_PER_OCTAVE)
        kind = self._kinds[number] = _SizedKind(Kind.of(request), bucket)
        work = self._work[kind]
        work.jobs.add(number)
        work.steps.add(number, pixels * request.steps_run * request.num_images)
        work.images.add(number, pixels * request.num_images)

    def remove(self, number: int) -> None:
        """Take a job out that waits no more, if it is here."""
        kind = self._kinds.pop(number, None)
        if kind is None:
            return
        work = self._work[kind]
        work.jobs.remove(number)
        work.steps.remove(number)
        work.images.remove(number)
        if not work.jobs:
            del self._work[kind]

    def seconds_between(self, first: int | None, end: int | None, device: str | None) -> float | None:
        """Return how long jobs take on a kind of device, one after the other.

        Args:
            first: the number of the first that counts; from the beginning without one.
            end: the number of the first behind them; up to the last without one.
            device: the kind of device.

        Returns:
            ``None`` where nothing is known of one of them.
        """
        seconds = 0.0
        for sized, work in self._work.items():
            jobs = _between(work.jobs, first, end)
            if not jobs:
                continue
            rates = self._estimates.rates(sized.kind, sized.pixels, device)
            if rates is None:
                return None
            steps, images = _between(work.steps, first, end), _between(work.images, first, end)
            seconds += jobs * rates.start + (steps * rates.step + images * rates.rest) / sized.pixels
        return seconds


def _between(sums: OrderedSums, first: int | None, end: int | None) -> int:
    return (sums.total() if end is None else sums.before(end)) - (0 if first is None else sums.before(first))
