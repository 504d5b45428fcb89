"""What a request without a key in its headers may carry in its place: a session's cookie, a ticket, a signed path."""

import secrets
from collections.abc import Mapping, Sequence
from typing import Final
from urllib.parse import quote, urlencode

import trio
from quart import Response, request

from mflux_api.access.access import Access
from mflux_api.access.grants import Grants, new_secret
from mflux_api.access.keys import Key, KeyRing, Scope
from mflux_api.http.forwarded import cookie_path
from mflux_api.storage.ended_sessions import EndedSessions, Session, read_ended, write_ended
from mflux_api.storage.secret_file import read_or_make
from mflux_api.system.threads import read_in_thread, run_in_thread

SESSION_SECONDS: Final = 30 * 24 * 3600
TICKET_SECONDS: Final = 60
TICKET: Final = "ticket"
SIGNATURE: Final = "signature"
SECRET_PARAMETERS: Final = frozenset({TICKET, SIGNATURE})
"""Parameters of the address that no log and no error may show."""

_ID_BYTES: Final = 9
_JOB: Final = "/api/v1/jobs/"
_SAFE_METHODS: Final = frozenset({"GET", "HEAD"})
_MOST_COOKIE: Final = 128


class Tokens:
    """The tokens of one app; their secret is read or made at the first use, in a thread."""

    def __init__(self, access: Access) -> None:
        self._access = access
        self._grants: Grants | None = None
        self._ended = EndedSessions()
        self._making = trio.Lock()
        self._ending = trio.Lock()

    async def grants(self) -> Grants:
        """Return what makes and reads tokens."""
        async with self._making:
            if self._grants is None:
                folder, fresh = self._access.state_dir, new_secret()
                secret = fresh
                if folder is not None:
                    secret = await read_in_thread(read_or_make, folder, fresh)
                    self._ended = await read_in_thread(read_ended, folder)
                self._grants = Grants(secret)
        return self._grants

    async def cookie_name(self) -> str:
        """Return the name of the session's cookie: services on other ports of a host get the cookies of this one."""
        return f"mflux_session_{(await self.grants()).name}"

    async def has_cookie(self) -> bool:
        """Whether the current request has a session's cookie of this service, which may count or not."""
        return bool(request.cookies) and await self.cookie_name() in request.cookies

    async def holder(self, keys: KeyRing, scope: Scope, *, own_page: bool) -> Key | None:
        """Return the key that a token of the current request stands for.

        Args:
            keys: those that are valid now.
            scope: what the route needs.
            own_page: whether no page of another origin sends it.
        """
        safe = request.method in _SAFE_METHODS
        if safe and scope is Scope.READ:
            for name, purpose in ((TICKET, _ticket_purpose(request.path)), (SIGNATURE, _path_purpose())):
                token = request.args.get(name)
                if token and purpose and (key := (await self.grants()).holder(purpose, token, keys)) is not None:
                    return key
        if not own_page:
            return None
        found = await self._session(keys)
        return None if found is None else found[0]

    async def _session(self, keys: KeyRing) -> tuple[Key, Session] | None:
        """Return the session of the current request's cookie, and its key; ``None`` where it has none that counts."""
        if not request.cookies:
            return None
        cookie = request.cookies.get(await self.cookie_name(), "")
        if not cookie or len(cookie) > _MOST_COOKIE:
            return None
        session_id, _, token = cookie.partition(".")
        key = (await self.grants()).holder(_session_purpose(session_id), token, keys)
        if key is None:
            return None
        expires, tag, _ = token.split(".")
        session = Session(int(expires), tag, session_id)
        return None if session in self._ended else (key, session)

    async def session(self, key: Key) -> tuple[str, int]:
        """Return a session's token, and when it ends."""
        session_id = secrets.token_urlsafe(_ID_BYTES)
        token, expires = (await self.grants()).issue(_session_purpose(session_id), key, SESSION_SECONDS)
        return f"{session_id}.{token}", expires

    async def set_cookie(self, response: Response, token: str, *, secure: bool) -> None:
        """Give the client of an answer a session."""
        response.set_cookie(
            await self.cookie_name(),
            token,
            max_age=SESSION_SECONDS,
            httponly=True,
            samesite="Strict",
            secure=secure,
            path=cookie_path(),
        )

    async def expires(self, keys: KeyRing) -> int | None:
        """Return when the session of the current request ends, in seconds since the epoch; ``None`` without one."""
        found = await self._session(keys)
        return None if found is None else found[1].expires

    async def end_session(self, response: Response, keys: KeyRing, *, secure: bool) -> None:
        """End the session of the current request, and take its cookie away; a copy of it counts no more."""
        found = await self._session(keys)
        if found is not None:
            self._ended.add(found[1])
            if self._access.state_dir is not None:
                # One after another: an older list may not replace a newer one.
                async with self._ending:
                    await run_in_thread(write_ended, self._access.state_dir, self._ended.lines())
        name = await self.cookie_name()
        response.delete_cookie(name, path=cookie_path(), httponly=True, samesite="Strict", secure=secure)

    async def ticket(self, job_id: str, key: Key) -> tuple[str, int]:
        """Return a token for one job, its stream and its images, and when it ends."""
        return (await self.grants()).issue(f"job {job_id}", key, TICKET_SECONDS)

    async def sign_path(self, path: str, parameters: Mapping[str, str], key: Key | None, seconds: float) -> str:
        """Return a path, with parameters, that can be read without a key for a while; without keys it needs nothing.

        Args:
            path: of a route whose scope is ``read``.
            parameters: those of its address.
            key: whose it is.
            seconds: how long.
        """
        parameters = dict(sorted(parameters.items()))
        if key is not None:
            purpose = _signed(path, list(parameters.items()))
            parameters[SIGNATURE], _ = (await self.grants()).issue(purpose, key, seconds)
        return quote(path) + (f"?{urlencode(parameters)}" if parameters else "")


def _session_purpose(session_id: str) -> str:
    return f"session {session_id}"


def _ticket_purpose(path: str) -> str | None:
    if not path.startswith(_JOB):
        return None
    return f"job {path.removeprefix(_JOB).partition('/')[0]}"


def _path_purpose() -> str:
    parameters = [(name, value) for name, value in request.args.items(multi=True) if name != SIGNATURE]
    return _signed(request.path, parameters)


def _signed(path: str, parameters: Sequence[tuple[str, str]]) -> str:
    return f"path {path}?{urlencode(sorted(parameters))}"
