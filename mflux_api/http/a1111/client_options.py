"""The options that A1111's clients set: each client has its own, and the least recently used are forgotten."""

from collections import OrderedDict

MOST_CLIENTS = 1000


class ClientOptions:
    """The model that each client has chosen; one app's."""

    def __init__(self, most: int = MOST_CLIENTS) -> None:
        self._most = most
        self._models = OrderedDict[str, str]()

    def choose(self, client: str, model: str) -> None:
        """Keep a client's model."""
        self._models[client] = model
        self._models.move_to_end(client)
        if len(self._models) > self._most:
            self._models.popitem(last=False)

    def model_of(self, *clients: str | None) -> str | None:
        """Return the model of the first of these who has chosen one."""
        for client in clients:
            if client is not None and client in self._models:
                self._models.move_to_end(client)
                return self._models[client]
        return None
