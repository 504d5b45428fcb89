"""What each route needs, as its ``Operation`` declares it; a route without a declaration does not start."""

import re
from collections.abc import Mapping

from quart import Request
from werkzeug.routing import Map, Rule

from mflux_api.access.keys import Scope

_PARAMETER = re.compile(r"<(?:\w+:)?(\w+)>")


class RouteScopes:
    """Scopes by method and path; ``None`` is open without a key."""

    def __init__(self, scopes: Mapping[tuple[str, str], Scope | None]) -> None:
        self._scopes = scopes

    def of(self, request: Request) -> Scope | None:
        """Return the scope of a request; where no route takes it, any key may learn that."""
        if request.method == "OPTIONS":
            return None
        rule = request.url_rule
        return Scope.READ if rule is None else self._of_rule(request.method, rule)

    def check(self, routes: Map) -> None:
        """Check that every route has a declaration.

        Raises:
            LookupError: one has none; the message names it.
        """
        for rule in routes.iter_rules():
            for method in sorted((rule.methods or set()) - {"OPTIONS"}):
                self._of_rule(method, rule)

    def _of_rule(self, method: str, rule: Rule) -> Scope | None:
        path = _PARAMETER.sub(r"{\1}", rule.rule)
        for each in (method, "GET") if method == "HEAD" else (method,):
            if (each, path) in self._scopes:
                return self._scopes[each, path]
        raise LookupError(f"{method} {path} has no Operation, so nothing says who may ask for it")
