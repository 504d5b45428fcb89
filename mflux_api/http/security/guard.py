"""The check of every request before its route: Host, key, origin, scope; and who the caller is, for the route."""

from collections.abc import Callable, Collection, Sequence
from functools import partial
from typing import NoReturn, cast

from quart import Response, g, request
from quart_trio import QuartTrio

from mflux_api.access.access import Access
from mflux_api.access.keys import Caller, Key, Scope
from mflux_api.errors import Forbidden, HostNotAllowed, OriginNotAllowed, Unauthorized
from mflux_api.http.forwarded import client_address, external_host
from mflux_api.http.held import held
from mflux_api.http.operations import Operation
from mflux_api.http.pace import PacedBody
from mflux_api.http.security.credentials import Offers, read_offers
from mflux_api.http.security.hosts import HostRules, name_in
from mflux_api.http.security.origins import OriginRules, PageHeaders
from mflux_api.http.security.scopes import RouteScopes
from mflux_api.http.security.tokens import SECRET_PARAMETERS, Tokens
from mflux_api.http.security.wrong_keys import WrongKeys

_SAFE_METHODS = frozenset({"GET", "HEAD"})


class Guard:
    """The rules of one app."""

    def __init__(
        self, access: Access, hosts: HostRules, origins: OriginRules, scopes: RouteScopes, tokens: Tokens
    ) -> None:
        self._access = access
        self._tokens = tokens
        self._hosts = hosts
        self._origins = origins
        self._scopes = scopes
        self._wrong_keys = WrongKeys()

    async def check(self) -> None:
        """Let the current request through to its route, or refuse it.

        Raises:
            HostNotAllowed: it is for a host name that is not this service's.
            Unauthorized: it needs a key and has none that is valid.
            OriginNotAllowed: it comes from a page that may not ask for this.
            Forbidden: its key lacks the scope.
        """
        self._wrong_keys.flush()
        offers = _offers()
        keys = self._access.keys
        sent = keys.find(offers.by_program) if keys else None
        await self._check_host(sent, offers)
        g.access, g.guard = self._access, self
        g.caller = self._access.caller(None, client_address())
        if request.method == "OPTIONS":
            # A browser's preflight carries no credentials.
            return
        scope, page = self._scopes.of(request), _page()
        if keys and sent is None and (offers.by_browser or offers.malformed):
            _refuse_resent(page)
        if keys and scope is not None:
            key = sent or keys.find(offers.by_browser) or await self._holder(page, scope)
            if key is None:
                await self._refuse_session(page, offers)
                key = await self._refuse(offers)
            g.caller = self._access.caller(key, client_address())
            self._check_page(page, scope, has_key=sent is not None)
            if not key.allows(scope):
                raise Forbidden(
                    f"The API key '{key.name}' lacks the scope '{scope}'; ask for a key that has it",
                    {"scope": scope.value},
                )
        else:
            self._check_page(page, scope, has_key=sent is not None)

    async def _holder(self, page: PageHeaders, scope: Scope) -> Key | None:
        """Return the key that a token stands for: a session's cookie counts for this server's own pages only."""
        # Browsers say Origin with all that changes something; what says none is a program with a jar of cookies.
        return await self._tokens.holder(self._access.keys, scope, own_page=not page.foreign)

    async def _refuse_session(self, page: PageHeaders, offers: Offers) -> None:
        """Say why a session's cookie, right or wrong, does not count, where there is nothing else to say it of."""
        if offers or not SECRET_PARAMETERS.isdisjoint(request.args) or not await self._tokens.has_cookie():
            return
        if page.foreign:
            raise _refused(page, "A session counts from this server's own pages only; send the key as a header")
        raise Unauthorized("The session has ended; open another by POST /api/v1/session with an API key")

    async def wrong_key(self) -> NoReturn:
        """Refuse a key that came in a body, as one in a header is refused.

        Raises:
            Unauthorized: after a while, where there were many.
        """
        await self._refuse(Offers(malformed=True))

    def keeps_secret(self) -> bool:
        """Whether the answer to the current request belongs to a key."""
        return bool(self._access.keys) and self._scopes.of(request) is not None

    async def _check_host(self, key: Key | None, offers: Offers) -> None:
        # HTTP/1.0 may do without; a browser always says it.
        host = request.headers.get("Host")
        if key is None and host and not self._hosts.allow(host):
            if offers.by_program:
                # A right one would have passed, so that this answer tells as much as a 401.
                await self._note_wrong_key(offers)
            name = name_in(host)[:64]
            raise HostNotAllowed(
                f"This service does not answer to the host name '{name}'; add it to security.allowed_hosts, or use "
                "the server's address",
                {"host": name, "setting": "security.allowed_hosts"},
            )

    async def _refuse(self, offers: Offers) -> NoReturn:
        await self._note_wrong_key(offers)
        if not offers and not SECRET_PARAMETERS.isdisjoint(request.args):
            raise Unauthorized("This link has expired, or was changed; ask for a new one with an API key")
        problem = "The API key is not valid; send one" if offers else "A valid API key is required: send it"
        raise Unauthorized(f"{problem} as 'Authorization: Bearer KEY'")

    async def _note_wrong_key(self, offers: Offers) -> None:
        """Slow down and count a request whose answer tells that its key is wrong."""
        if offers and self._access.keys:
            # The answer may take a while: the body takes no room meanwhile.
            if isinstance(request.body, PacedBody):
                request.body.discard()
            held().body.release()
            await self._wrong_keys.note(client_address())

    def _check_page(self, page: PageHeaders, scope: Scope | None, *, has_key: bool) -> None:
        """Refuse what a page of another origin may not do: some content types let any page send without asking.

        Args:
            page: where the request comes from.
            scope: what the route needs.
            has_key: whether a valid key came in a header that only the page's own code sends.
        """
        if not page.foreign or self._origins.names(page.origin):
            return
        if scope is Scope.MANAGE:
            if has_key:
                # A program, such as an application that has an origin; a page that is not listed sees no answer.
                return
            raise _refused(
                page, "Pages of other origins may not manage the service; list theirs by name in server.cors_origins"
            )
        # Who lists pages means these, whatever key the others have.
        if request.method not in _SAFE_METHODS and not self._origins.allows(page.origin):
            raise _refused(page, "This page's origin is not in server.cors_origins")


def install(app: QuartTrio, guard: Guard) -> None:
    """Check every request before its route."""

    @app.before_request
    async def check() -> None:
        await guard.check()

    @app.after_request
    async def keep_out_of_caches(response: Response) -> Response:
        # A proxy's cache, or the next user of a browser, gets neither errors nor what belongs to a key.
        if response.status_code >= 400 or guard.keeps_secret():
            response.headers["Cache-Control"] = "no-store"
        return response


def caller() -> Caller:
    """Return who sends the current request."""
    return cast("Caller", g.caller)


def from_foreign_page() -> bool:
    """Whether a page of another origin sends the current request."""
    return _page().foreign


def tokens() -> Tokens:
    """Return what makes the tokens of the current request's app."""
    return cast("Guard", g.guard)._tokens


def key_in_body(secret: str) -> Key | None:
    """Return the key that a body names; ``None`` where it is none."""
    return cast("Access", g.access).keys.find([secret.encode("utf-8", "surrogatepass")])


def key_in_headers() -> Key | None:
    """Return the key that the headers of the current request have, also where its route needs none."""
    offers = _offers()
    return cast("Access", g.access).keys.find((*offers.by_program, *offers.by_browser))


def offers_key() -> bool:
    """Whether the headers of the current request have what may be a key, right or wrong."""
    return bool(_offers())


def refuse_foreign_page() -> None:
    """Refuse the current request where a page of another origin sends it.

    Raises:
        OriginNotAllowed: one does.
    """
    page = _page()
    if page.foreign:
        raise _refused(page, "Sessions are for this server's own pages; send the key as a header")


async def session_expires() -> int | None:
    """Return when the session that the current request came in by ends; ``None`` where its key came otherwise."""
    if key_in_headers() is not None:
        return None
    return await tokens().expires(cast("Access", g.access).keys)


async def end_session(response: Response, *, secure: bool) -> None:
    """End the session of the current request, where it has one, and have the answer take its cookie away."""
    await tokens().end_session(response, cast("Access", g.access).keys, secure=secure)


def refuse_unlisted_page() -> None:
    """Refuse the current request where a page sends it that may not manage the service, whatever its route's scope.

    Raises:
        OriginNotAllowed: one does.
    """
    guard = cast("Guard", g.guard)
    sent = cast("Access", g.access).keys.find(_offers().by_program)
    guard._check_page(_page(), Scope.MANAGE, has_key=sent is not None)


def has_keys() -> bool:
    """Whether the service has keys, so that a caller needs one."""
    return bool(cast("Access", g.access).keys)


async def refuse_key() -> NoReturn:
    """Refuse a key that came in a body.

    Raises:
        Unauthorized: after a while, where there were many.
    """
    await cast("Guard", g.guard).wrong_key()


def still_allowed() -> Callable[[], bool]:
    """Return a question for later: whether the caller of the current request would still be let in."""
    return partial(cast("Access", g.access).holds, caller())


def _offers() -> Offers:
    return read_offers(request.headers.getlist("X-API-Key"), request.headers.getlist("Authorization"))


def _page() -> PageHeaders:
    return PageHeaders(
        host=external_host(),
        origin=request.headers.get("Origin"),
        fetch_site=request.headers.get("Sec-Fetch-Site"),
    )


def _refuse_resent(page: PageHeaders) -> None:
    """Refuse Basic credentials of a foreign page, right or wrong: the browser may have added them by itself."""
    # A link to this server, or an image of it, is let through: the page sees nothing of the answer.
    if page.foreign and not (page.origin is None and request.method in _SAFE_METHODS):
        raise _refused(page, "Basic credentials count from this server's own pages only; send the key as a header")


def _refused(page: PageHeaders, why: str) -> OriginNotAllowed:
    return OriginNotAllowed(why, {"origin": (page.origin or "")[:128]})


def route_scopes(operations: Sequence[Operation], *, open_paths: Collection[str] = ()) -> RouteScopes:
    """Return what each route needs, as its operation declares it.

    Args:
        operations: all routes.
        open_paths: those that the settings open to callers without a key.
    """
    return RouteScopes(
        {(each.method.upper(), each.path): None if each.path in open_paths else each.scope for each in operations}
    )
