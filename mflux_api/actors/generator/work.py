"""What an engine child is given to do, one after another."""

import copy

import attrs
import trio

from mflux_api.actors import messages as m


@attrs.frozen(eq=False)
class RunAtWork:
    """A run on its way through the child."""

    run: m.Run
    stop: trio.Event = attrs.field(factory=trio.Event)
    """Set when it is not wanted any more."""
    show: trio.Event = attrs.field()
    """Set when someone follows its previews."""

    @show.default
    def _begin_with_followers(self) -> trio.Event:
        followed = trio.Event()
        if self.run.previews:
            followed.set()
        return followed


@attrs.frozen(eq=False)
class Runs:
    """Runs that share their passes; as a rule one."""

    runs: tuple[RunAtWork, ...]

    def get(self, run_id: int) -> RunAtWork | None:
        """Return one of them."""
        return next((each for each in self.runs if each.run.run_id == run_id), None)


Work = m.LoadModel | m.UnloadModel | Runs


def unanswered(work: Work | m.AwaitEngine) -> list[m.LoadModel | m.UnloadModel | m.Run | m.AwaitEngine]:
    """Return the questions that some work has to answer yet."""
    questions = [each.run for each in work.runs] if isinstance(work, Runs) else [work]
    return [question for question in questions if not question.reply.answered]


def fail_unanswered(work: Work | m.AwaitEngine, error: Exception) -> None:
    """Answer those who wait for some work yet with an error."""
    for question in unanswered(work):
        # Each asker gets an exception of its own: a traceback belongs to one task.
        question.reply.fail(copy.copy(error))
