"""What can go wrong between a client and a server; a refusal of the server is a class of ``mflux_api.errors``."""


class ServerUnreachable(ConnectionError):
    """No server answers at the address, or it left before its answer was whole."""

    def __init__(self, url: str, reason: str | None, *, connected: bool = True) -> None:
        super().__init__(
            f"no server answers at {url} ({reason})" if reason else f"{url} left before its answer was whole"
        )
        self.url = url
        self.reason = reason
        """Why none answers; ``None`` where one began to."""
        self.connected = connected
        """Whether there was a connection, and so a server or something like it."""

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (self.url, self.reason), {"connected": self.connected}


class UnexpectedAnswer(ConnectionError):
    """Something answers there, and not as an mflux-api server of this version or a near one does."""

    def __init__(self, url: str, status: int | None = None) -> None:
        said = "" if status is None else f" (it says {status})"
        super().__init__(f"what answers at {url} is not an mflux-api server{said}")
        self.url = url
        self.status = status
        """Of the answer, where that was not 200."""

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (self.url, self.status)
