"""The routes by which A1111's clients find out what there is: checkpoints, samplers, LoRAs, memory, flags.

Of what this service has none the list is empty; a client that finds no route takes the server for another one.
"""

from collections.abc import Mapping
from typing import Any

import attrs
import psutil
from quart import Blueprint, Response, request

from mflux_api.access.keys import Scope
from mflux_api.gateway.gateway import Gateway
from mflux_api.gateway.models import EngineView
from mflux_api.http.a1111.checkpoints import usable
from mflux_api.http.a1111.client_options import ClientOptions
from mflux_api.http.a1111.discovery_schemas import (
    CheckpointItem,
    ChoiceComponent,
    ChoiceProps,
    ConfigResponse,
    EmbeddingsResponse,
    FlagsResponse,
    LoraItem,
    MemoryResponse,
    NamedItem,
    RootResponse,
    SamplerItem,
    SchedulerItem,
    ScriptsResponse,
)
from mflux_api.http.a1111.options import chosen_model
from mflux_api.http.browser_files import BrowserFile
from mflux_api.http.forwarded import external_prefix
from mflux_api.http.operations import Operation
from mflux_api.http.page_files import INDEX, page_response, wants_page
from mflux_api.http.responses import json_response
from mflux_api.images.infotext import SAMPLER, SCHEDULE, SUFFIX
from mflux_api.version import package_version

_SAMPLERS = (SamplerItem(name=SAMPLER, aliases=("euler", "k_euler")),)
_SCHEDULERS = (SchedulerItem(name=SCHEDULE.lower(), label=SCHEDULE),)

_NONE_OF = {
    "latent-upscale-modes": "ways to upscale latents",
    "sd-vae": "VAEs to choose from: each model has its own",
    "sd-modules": "Forge's modules to choose from: each model has its own",
    "hypernetworks": "hypernetworks",
    "face-restorers": "restorers of faces",
    "realesrgan-models": "RealESRGAN models; GET /sdapi/v1/upscalers has what there is",
    "script-info": "scripts, with their arguments",
    "extensions": "extensions",
}
"""Paths of lists that are always empty."""


def _get(path: str, summary: str, response: type[Any], *, is_list: bool = False) -> Operation:
    return Operation(method="get", path=path, summary=summary, scope=Scope.READ, response=response, is_list=is_list)


OPERATIONS = (
    attrs.evolve(_get("/", "What this server is; for browsers the page", RootResponse), scope=None),
    _get("/config", "What Gradio's clients read", ConfigResponse),
    _get("/sdapi/v1/sd-models", "The models that calls may name", CheckpointItem, is_list=True),
    _get("/sdapi/v1/samplers", "The samplers", SamplerItem, is_list=True),
    _get("/sdapi/v1/schedulers", "The schedulers", SchedulerItem, is_list=True),
    _get("/sdapi/v1/loras", "The LoRAs", LoraItem, is_list=True),
    _get("/sdapi/v1/embeddings", "No embeddings", EmbeddingsResponse),
    _get("/sdapi/v1/scripts", "No scripts", ScriptsResponse),
    _get("/sdapi/v1/cmd-flags", "How the server was started", FlagsResponse),
    _get("/sdapi/v1/memory", "Memory of the machine and of the first engine's GPU", MemoryResponse),
    *(_get(f"/sdapi/v1/{name}", f"No {what}", NamedItem, is_list=True) for name, what in _NONE_OF.items()),
)


def blueprint(gateway: Gateway, options: ClientOptions, pages: Mapping[str, BrowserFile]) -> Blueprint:
    """Build the routes."""
    routes = Blueprint("discovery", __name__)
    settings = gateway.settings

    async def lora_items() -> tuple[LoraItem, ...]:
        listing = await gateway.read_loras(gateway.loras.look)
        return tuple(
            LoraItem(
                name=file.name.removesuffix(SUFFIX), alias=file.alias.removesuffix(SUFFIX), path=file.name, metadata={}
            )
            for file in listing.files
        )

    @routes.get("/")
    async def root() -> Response:
        """Return the page to a browser, and to machines what this is."""
        if wants_page():
            return await page_response(pages[INDEX], external_prefix()).make_conditional(request)
        model = chosen_model(options) or settings.models.default
        return json_response(
            RootResponse(service="mflux-api", version=package_version(), model=model, api="/openapi.json")
        )

    @routes.get("/config")
    async def config() -> Response:
        names = tuple(item.name for item in await lora_items())
        choices = {"setting_sd_lora": names, "txt2img_hr_upscaler": ()}
        components = tuple(
            ChoiceComponent(id=number, props=ChoiceProps(elem_id=element, choices=of))
            for number, (element, of) in enumerate(choices.items(), 1)
        )
        return json_response(ConfigResponse(version=f"mflux-api {package_version()}", components=components))

    @routes.get("/sdapi/v1/sd-models")
    async def checkpoints() -> Response:
        items = (
            CheckpointItem(
                title=each.title,
                model_name=each.model.alias,
                hash=each.state.short_hash,
                sha256=each.state.sha256,
                filename=f"{each.model.alias}{SUFFIX}",
            )
            for each in await usable(gateway)
        )
        return json_response(tuple(items))

    @routes.get("/sdapi/v1/samplers")
    async def samplers() -> Response:
        return json_response(_SAMPLERS)

    @routes.get("/sdapi/v1/schedulers")
    async def schedulers() -> Response:
        return json_response(_SCHEDULERS)

    @routes.get("/sdapi/v1/loras")
    async def loras() -> Response:
        return json_response(await lora_items())

    @routes.get("/sdapi/v1/embeddings")
    async def embeddings() -> Response:
        return json_response(EmbeddingsResponse())

    @routes.get("/sdapi/v1/scripts")
    async def scripts() -> Response:
        return json_response(ScriptsResponse())

    @routes.get("/sdapi/v1/cmd-flags")
    async def flags() -> Response:
        server, security = settings.server, settings.security
        answer = FlagsResponse(
            api=True,
            listen=server.host not in ("127.0.0.1", "::1", "localhost"),
            port=server.port,
            api_auth=bool(security.api_keys or security.keys_file),
        )
        return json_response(answer)

    @routes.get("/sdapi/v1/memory")
    async def memory() -> Response:
        machine = psutil.virtual_memory()
        ram = {"free": machine.available, "used": machine.total - machine.available, "total": machine.total}
        return json_response(MemoryResponse(ram=ram, cuda=_gpu((await gateway.engines())[0])))

    async def nothing() -> Response:
        return json_response(())

    for name in _NONE_OF:
        routes.add_url_rule(f"/sdapi/v1/{name}", name, nothing)
    return routes


def _gpu(engine: EngineView) -> dict[str, Any]:
    state, info = engine.state, engine.info
    if state is None or info is None or info.device == "cpu":
        return {"error": "there is no GPU" if info is not None else "the engine is starting"}
    free = info.free_bytes or 0
    return {
        "system": {"free": free, "used": max(0, info.memory_bytes - free), "total": info.memory_bytes},
        "active": {"current": state.active_bytes, "peak": state.peak_bytes},
    }
