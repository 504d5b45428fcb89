"""The options that A1111's clients set: each client has its own, and the least recently used are forgotten."""

from collections import OrderedDict, defaultdict

import attrs

MOST_CLIENTS = 1000
MOST_OF_ONE_SOURCE = 64
"""A client that keeps no cookies is handed one with each choice: it must not push out those of all others."""


@attrs.frozen
class _Choice:
    """A model, and where its client chose it."""

    model: str
    source: str


class ClientOptions:
    """The model that each client has chosen; one app's."""

    def __init__(self, most: int = MOST_CLIENTS, most_of_one_source: int = MOST_OF_ONE_SOURCE) -> None:
        self._most = most
        self._most_of_one_source = most_of_one_source
        self._choices = OrderedDict[str, _Choice]()
        self._of_source = defaultdict[str, OrderedDict[str, None]](OrderedDict)

    def choose(self, client: str, model: str, *, source: str) -> None:
        """Keep a client's model.

        Args:
            client: who chooses.
            model: its alias.
            source: the address that it comes from, or its key: of one source only so many clients are kept.
        """
        self._forget(client)
        self._choices[client] = _Choice(model, source)
        own = self._of_source[source]
        own[client] = None
        if len(own) > self._most_of_one_source:
            self._forget(next(iter(own)))
        if len(self._choices) > self._most:
            self._forget(next(iter(self._choices)))

    def model_of(self, *clients: str | None) -> str | None:
        """Return the model of the first of these who has chosen one."""
        for client in clients:
            if client is not None and (choice := self._choices.get(client)) is not None:
                self._choices.move_to_end(client)
                self._of_source[choice.source].move_to_end(client)
                return choice.model
        return None

    def _forget(self, client: str) -> None:
        choice = self._choices.pop(client, None)
        if choice is None:
            return
        own = self._of_source[choice.source]
        del own[client]
        if not own:
            del self._of_source[choice.source]
