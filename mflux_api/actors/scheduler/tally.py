"""How many jobs wait, what their init images take, and which LoRAs they name, counted as jobs change."""

from collections import Counter
from collections.abc import Iterable

from mflux_api.access.addresses import client_of
from mflux_api.actors.scheduler.entries import ACCEPTED, Entry, JobState


class Tally:
    """Sums over the unfinished jobs; a caller without any costs nothing."""

    def __init__(self) -> None:
        self._queued = 0
        self._queued_of = Counter[str]()
        self._input_bytes = 0
        self._input_bytes_of = Counter[str]()
        self._inputs: dict[int, int] = {}
        self._with_lora: dict[str, set[int]] = {}

    def queued(self) -> int:
        """Return how many jobs wait or are on their way into the store."""
        return self._queued

    def queued_of(self, owner: str) -> int:
        """Return how many of them are those of an owner's caller."""
        return self._queued_of[client_of(owner)]

    def callers(self) -> int:
        """Return how many callers have one."""
        return len(self._queued_of)

    def input_bytes(self) -> int:
        """Return how much text the init images of all unfinished jobs were that came since the start."""
        return self._input_bytes

    def input_bytes_of(self, owner: str) -> int:
        """Return how much of that was that of an owner's caller."""
        return self._input_bytes_of[client_of(owner)]

    def jobs_with_loras(self, names: Iterable[str]) -> int:
        """Return how many unfinished jobs name one of these LoRAs."""
        return len(set[int]().union(*(self._with_lora.get(name, ()) for name in names)))

    def add(self, entry: Entry) -> None:
        """Count a new entry."""
        self._count(entry, entry.state, 1)
        for name in entry.job.request.lora_files:
            self._with_lora.setdefault(name, set()).add(entry.number)
        # Counted as they are now: a job that waits has none in memory.
        size = sum(len(text) for text in entry.job.request.inputs)
        if size:
            self._inputs[entry.number] = size
            self._count_inputs(entry, size)

    def change(self, entry: Entry, state: JobState) -> None:
        """Count an entry's next state in place of its present one."""
        self._count(entry, entry.state, -1)
        self._count(entry, state, 1)

    def remove(self, entry: Entry) -> None:
        """Count an entry no more."""
        self._count(entry, entry.state, -1)
        self._count_inputs(entry, -self._inputs.pop(entry.number, 0))
        for name in set(entry.job.request.lora_files):
            self._with_lora[name].discard(entry.number)
            if not self._with_lora[name]:
                del self._with_lora[name]

    def _count(self, entry: Entry, state: JobState, more: int) -> None:
        if state in ACCEPTED:
            self._queued += more
            _add(self._queued_of, client_of(entry.job.owner), more)

    def _count_inputs(self, entry: Entry, more: int) -> None:
        self._input_bytes += more
        _add(self._input_bytes_of, client_of(entry.job.owner), more)


def _add(counter: Counter[str], caller: str, more: int) -> None:
    counter[caller] += more
    if not counter[caller]:
        del counter[caller]
