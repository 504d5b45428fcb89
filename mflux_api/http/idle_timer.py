"""How long a connection may be idle, without a turn of the loop for each start and stop."""

from collections.abc import Awaitable, Callable

import trio
from hypercorn.trio.task_group import TaskGroup


class IdleTimer:
    """In place of Hypercorn's, which takes five turns of the loop for each request.

    Under attack each turn takes milliseconds, and an honest client waits for all of those that its request has.
    """

    def __init__(self) -> None:
        self._scope = trio.CancelScope()

    async def restart(self, task_group: TaskGroup, action: Callable[[], Awaitable[None]]) -> None:
        """Run the action in place of the one before."""
        self._scope.cancel("another takes its place")
        scope = self._scope = trio.CancelScope()

        async def run() -> None:
            with scope:
                await action()

        task_group.spawn(run)

    async def stop(self) -> None:
        """End the action."""
        self._scope.cancel("no longer idle")
