"""What any free engine may take next, jobs or callers: which is due, and how often each was overtaken."""

from collections import defaultdict
from collections.abc import Hashable, Iterable, MutableMapping
from typing import TypeVar

import attrs

from mflux_api.actors.scheduler.ordered_sums import OrderedSums

K = TypeVar("K", bound=Hashable)


@attrs.frozen
class _Ready:
    models: tuple[str, ...]
    missed: int
    """Overtakings of its number that it did not take part in; it was not here."""


class ReadyJobs:
    """Numbers in their order, by model: those of jobs, or the turns of callers, each under the models of its jobs.

    An overtaking counts for every job here before the one that overtakes. It is written down once, not in each of them:
    a job's count is the number of overtakings by later jobs, less those from before it came here.
    """

    def __init__(self) -> None:
        self._ready: dict[int, _Ready] = {}
        self._by_model: defaultdict[str, OrderedSums] = defaultdict(OrderedSums)
        # Of those that missed equally many the first was overtaken most often: so it is enough to look at that one.
        self._by_missed: defaultdict[int, OrderedSums] = defaultdict(OrderedSums)
        self._overtakings = OrderedSums()

    def __contains__(self, number: int) -> bool:
        return number in self._ready

    def add(self, number: int, models: Iterable[str], overtaken: int) -> None:
        """Add a job that was overtaken so often before."""
        missed = self._overtakings_of(number) - overtaken
        ready = self._ready[number] = _Ready(tuple(models), missed)
        for model in ready.models:
            self._by_model[model].add(number)
        self._by_missed[missed].add(number)

    def remove(self, number: int) -> int:
        """Take a job out and return how often it was overtaken."""
        overtaken = self.overtaken(number)
        ready = self._ready.pop(number)
        for model in ready.models:
            _remove(self._by_model, model, number)
        _remove(self._by_missed, ready.missed, number)
        return overtaken

    def models(self, number: int) -> tuple[str, ...]:
        """Return the models under which a job is here."""
        return self._ready[number].models

    def overtaken(self, number: int) -> int:
        """Return how often a job here was overtaken."""
        return self._overtakings_of(number) - self._ready[number].missed

    def first(self) -> int | None:
        """Return the first of all."""
        return min(self._firsts(), default=None)

    def first_of(self, models: Iterable[str]) -> int | None:
        """Return the first job on one of the models."""
        firsts = [self._by_model[model].first() for model in models if model in self._by_model]
        return min((first for first in firsts if first is not None), default=None)

    def most_overtaken_before(self, number: int) -> int:
        """Return how often that job was overtaken, of those before a number, that was it most often; -1 without any."""
        return max((self.overtaken(first) for first in self._firsts() if first < number), default=-1)

    def overtake(self, number: int) -> None:
        """Count an overtaking of all before a number."""
        first = self.first()
        while (oldest := self._overtakings.first()) is not None and (first is None or oldest <= first):
            # It is of no job here, and none that comes later counts it.
            self._overtakings.remove(oldest)
        if first is not None and first < number:
            self._overtakings.add(number)

    def _firsts(self) -> Iterable[int]:
        for numbers in self._by_missed.values():
            first = numbers.first()
            if first is not None:
                yield first

    def _overtakings_of(self, number: int) -> int:
        return self._overtakings.total() - self._overtakings.before(number + 1)


def _remove(numbers_by: MutableMapping[K, OrderedSums], key: K, number: int) -> None:
    numbers = numbers_by[key]
    numbers.remove(number)
    if not numbers:
        del numbers_by[key]
