"""API keys as digests, with their names, scopes and limits: values only."""

import hashlib
import hmac
from collections.abc import Iterable
from enum import StrEnum

import attrs

from mflux_api.access.visibility import ALL_JOBS, Visibility


class Scope(StrEnum):
    """What a key may do."""

    GENERATE = "generate"
    """Submit jobs; look at its own jobs and cancel them."""
    READ = "read"
    """Look at models, LoRAs, the queue and the machine, and at its own jobs."""
    PRIORITIZE = "prioritize"
    """Have the priority of its jobs count among the jobs of all callers; to submit them takes ``generate``."""
    MANAGE = "manage"
    """Everything: also load and delete models, upload LoRAs, and see and cancel the jobs of others."""


ALL_SCOPES = frozenset(Scope)

_IMPLIED: dict[Scope, frozenset[Scope]] = {
    Scope.GENERATE: frozenset({Scope.GENERATE, Scope.READ}),
    Scope.READ: frozenset({Scope.READ}),
    Scope.PRIORITIZE: frozenset({Scope.PRIORITIZE}),
    Scope.MANAGE: ALL_SCOPES,
}


def digest_of(secret: bytes) -> bytes:
    """Return what is kept of a key. A key is long and random, so that SHA-256 alone cannot be guessed backwards."""
    return hashlib.sha256(secret).digest()


@attrs.frozen(kw_only=True)
class Key:
    """One key, without its secret."""

    name: str
    digest: bytes = attrs.field(repr=False)
    scopes: frozenset[Scope] = ALL_SCOPES
    max_jobs: int | None = None
    """How many of its jobs may wait in the queue; ``None``: what the scheduler allows."""
    unnamed_secret: str | None = attrs.field(default=None, repr=False)
    """Where it comes from ``security.api_keys``: the key itself, which its idempotency keys have always belonged to."""

    @property
    def owner(self) -> str:
        """The owner of the jobs that it submits."""
        return f"key {self.name}"

    def allows(self, scope: Scope) -> bool:
        """Whether it has a scope, by itself or implied by another."""
        return any(scope in _IMPLIED[each] for each in self.scopes)


@attrs.frozen
class KeyRing:
    """All keys of a service; without any, everything is open."""

    keys: tuple[Key, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.keys)

    def find(self, offers: Iterable[bytes]) -> Key | None:
        """Return the key of the first secret that is one; the time it takes tells nothing of the keys."""
        found: Key | None = None
        for offer in offers:
            digest = digest_of(offer)
            for key in self.keys:
                if hmac.compare_digest(digest, key.digest) and found is None:
                    found = key
        return found

    def has(self, key: Key) -> bool:
        """Whether a key is one of them still, whatever else has changed of it."""
        return any(hmac.compare_digest(each.digest, key.digest) for each in self.keys)


@attrs.frozen(kw_only=True)
class Caller:
    """Who sends a request: a key, or where there are none an address."""

    owner: str
    """The owner of the jobs that it submits."""
    sees: Visibility
    """Which jobs are there for it."""
    key: Key | None = None

    @property
    def most_queued(self) -> int | None:
        """How many of its jobs may wait in the queue; ``None``: what the scheduler allows."""
        return None if self.key is None else self.key.max_jobs

    @property
    def prioritizes(self) -> bool:
        """Whether the priority of its jobs counts among the jobs of all callers; never without a key."""
        return self.key is not None and self.key.allows(Scope.PRIORITIZE)

    @property
    def identity(self) -> str:
        """What its idempotency keys belong to; callers without a key share theirs."""
        return "" if self.key is None else self.key.unnamed_secret or self.key.owner


PROGRAM = Caller(owner="", sees=ALL_JOBS)
"""The program that embeds the service: it has no share of the queue, and no limit but the queue's."""
