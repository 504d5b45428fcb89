"""The keys of one service as they are now: read at its start, and again on request."""

from pathlib import Path

import trio

from mflux_api.access.addresses import client_of
from mflux_api.access.keys import Caller, Key, KeyRing, Scope
from mflux_api.access.keys_file import read_keys
from mflux_api.access.visibility import ALL_JOBS, Visibility
from mflux_api.config import SecuritySettings
from mflux_api.errors import ConfigError
from mflux_api.system.threads import read_in_thread


class Access:
    """Who may ask for what. Each service has its own; its apps see a reload at once."""

    def __init__(self, security: SecuritySettings, state_dir: Path | None = None) -> None:
        """Read the keys.

        Args:
            security: the settings.
            state_dir: where what outlives the process is kept; nothing does without.

        Raises:
            ConfigError: the file of keys cannot be used.
        """
        self._shared = security.shared_jobs
        self._security = security
        self.state_dir = state_dir
        self.keys: KeyRing = read_keys(security)

    def reload(self, security: SecuritySettings | None = None) -> int:
        """Read the keys again, and return how many there are now; this waits for the disk.

        Args:
            security: settings that were read again; by default those of the start.

        Raises:
            ConfigError: they cannot be used, or none is left; the keys stay as they were.
        """
        found = read_keys(security or self._security)
        if self.keys and not found:
            raise ConfigError("no key is left; restart the service if it is to be open to all")
        self.keys = found
        return len(found.keys)

    def caller(self, key: Key | None, address: str) -> Caller:
        """Return who a request comes from: its key, or its address where the service has no keys."""
        if key is None:
            owner = client_of(address)
            return Caller(owner=owner, sees=Visibility(only=owner) if self.keys else ALL_JOBS)
        return Caller(owner=key.owner, sees=self._sees(key), key=key)

    def _sees(self, key: Key) -> Visibility:
        """Return which jobs are there for a key.

        Keys of ``security.api_keys`` may all manage, because they could before there were scopes. They see what no
        other key has, such as jobs from before there were keys, but not one another's.
        """
        if self._shared:
            return ALL_JOBS
        if key.unnamed_secret is not None:
            return Visibility(hidden=tuple(each.owner for each in self.keys.keys if each.owner != key.owner))
        return ALL_JOBS if key.allows(Scope.MANAGE) else Visibility(only=key.owner)

    def holds(self, caller: Caller) -> bool:
        """Whether a caller of a while ago would still be let in."""
        return not self.keys if caller.key is None else self.keys.has(caller.key)


class SharedAccess:
    """The keys of one service for every part of it that needs them, so that a reload reaches all."""

    def __init__(self, security: SecuritySettings, state_dir: Path | None) -> None:
        """Take what :class:`Access` takes; it is read at the first use."""
        self._security = security
        self._state_dir = state_dir
        self._reading = trio.Lock()
        self.current: Access | None = None
        """What was read; ``None`` while nothing has needed it."""

    async def get(self) -> Access:
        """Return the keys.

        Raises:
            ConfigError: the file of keys cannot be used.
        """
        async with self._reading:
            if self.current is None:
                self.current = await read_in_thread(Access, self._security, self._state_dir)
            return self.current
