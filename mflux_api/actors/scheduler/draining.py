"""Draining: no new work, an answer for every synchronous caller, and a word to the caller when all is quiet."""

from mflux_api.actors import messages as m
from mflux_api.actors.scheduler.endings import Endings
from mflux_api.actors.scheduler.entries import JobEvent, JobState
from mflux_api.actors.scheduler.job_queue import JobQueue
from mflux_api.errors import ShuttingDown


class Draining:
    """What a drain does to the jobs; the scheduler asks it before it takes or starts any."""

    def __init__(self, queue: JobQueue, endings: Endings, *, begun: bool) -> None:
        self._queue = queue
        self._endings = endings
        self._waiting: list[m.Drain] = []
        self.begun = begun
        """Whether no new work is taken; a scheduler that was restarted remembers it."""

    def drain(self, message: m.Drain) -> None:
        """Begin, or go further; the message is answered when nothing runs any more."""
        self.begun = True
        self._waiting.append(message)
        self.fail_waiting_sync()
        if message.halt:
            self._halt()
        self.answer_when_quiet()

    def fail_waiting_sync(self) -> None:
        """Fail the synchronous jobs that wait: a restart would lose them."""
        self._endings.fail_waiting_sync(shutting_down())

    def answer_when_quiet(self) -> None:
        """Answer those who wait for the drain, if it is done."""
        if self._queue.quiet():
            while self._waiting:
                self._waiting.pop().reply.ok(None)

    def _halt(self) -> None:
        for entry in self._queue.at_work():
            # What is being saved, or is ending, is over in a moment, and would be lost.
            if entry.state is JobState.RUNNING:
                entry.on(JobEvent.HALT)
                entry.scope.cancel()


def shutting_down() -> ShuttingDown:
    """Return the error for work that is refused or given up during a drain."""
    return ShuttingDown("The service is shutting down and takes no new work; try again when it is back")
