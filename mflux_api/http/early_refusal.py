"""Jobs for which there is no place are refused before their body is read."""

from quart import request
from quart_trio import QuartTrio

from mflux_api.gateway.gateway import Gateway
from mflux_api.http.held import SMALL_BYTES
from mflux_api.http.security.guard import caller
from mflux_api.jobs.idempotency import HEADER

SYNCHRONOUS = {"/api/v1/generate": False, "/sdapi/v1/txt2img": True, "/sdapi/v1/img2img": True}
"""Routes whose body always becomes one job, and whether its caller waits for that."""


def install(app: QuartTrio, gateway: Gateway) -> None:
    """Check every large submission before its route."""

    @app.before_request
    async def check() -> None:
        synchronous = SYNCHRONOUS.get(request.url_rule.rule) if request.url_rule is not None else None
        if synchronous is None or request.method != "POST":
            return
        length = request.content_length
        if length is not None and length <= SMALL_BYTES:
            # Reading it costs less than the question.
            return
        if HEADER in request.headers:
            # It may be a job that was accepted before, which only the body tells.
            return
        await gateway.check_admission(caller=caller(), synchronous=synchronous, init_images=False)
