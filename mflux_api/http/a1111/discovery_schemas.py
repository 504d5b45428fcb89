"""JSON of the routes by which A1111's clients find out what a server has; the names are theirs."""

from collections.abc import Mapping
from typing import Any

import attrs


@attrs.frozen(kw_only=True)
class OptionsRequest:
    """``POST /sdapi/v1/options``."""

    sd_model_checkpoint: str | None = None
    """A title of ``GET /sdapi/v1/sd-models``, an alias or a hash: the model of this client's calls that name none."""


@attrs.frozen(kw_only=True)
class OptionsResponse:
    """``GET /sdapi/v1/options``."""

    sd_model_checkpoint: str
    """A title of ``GET /sdapi/v1/sd-models``."""
    sd_checkpoint_hash: str
    """Empty while the model is not on disk."""
    sd_vae: str = "Automatic"
    samples_format: str = "png"
    CLIP_stop_at_last_layers: int = 1


@attrs.frozen(kw_only=True)
class OptionsChanged:
    """``POST /sdapi/v1/options``."""

    warnings: tuple[str, ...]
    """Sentences about options that have no effect here."""


@attrs.frozen(kw_only=True)
class CheckpointItem:
    """One of ``GET /sdapi/v1/sd-models``."""

    title: str
    """What ``POST /sdapi/v1/options`` takes, and ``GET`` shows."""
    model_name: str
    hash: str | None
    """``null`` while the model is not on disk; a request may still name it."""
    sha256: str | None
    filename: str
    """A name, not a place on the server's disk."""
    config: str | None = None


@attrs.frozen(kw_only=True)
class SamplerItem:
    """One of ``GET /sdapi/v1/samplers``."""

    name: str
    aliases: tuple[str, ...]
    options: Mapping[str, str] = attrs.field(factory=dict)


@attrs.frozen(kw_only=True)
class SchedulerItem:
    """One of ``GET /sdapi/v1/schedulers``."""

    name: str
    label: str
    aliases: tuple[str, ...] = ()
    default_rho: float = -1.0
    need_inner_model: bool = False


@attrs.frozen(kw_only=True)
class NamedItem:
    """One of a list of what this service has none of: modules, VAEs, restorers of faces."""

    name: str


@attrs.frozen(kw_only=True)
class LoraItem:
    """One of ``GET /sdapi/v1/loras``."""

    name: str
    """What ``<lora:NAME:1>`` in a prompt takes."""
    alias: str
    path: str
    """Its path in its folder of ``lora.dirs``."""
    metadata: Mapping[str, Any]


@attrs.frozen(kw_only=True)
class EmbeddingsResponse:
    """``GET /sdapi/v1/embeddings``."""

    loaded: Mapping[str, Any] = attrs.field(factory=dict)
    skipped: Mapping[str, Any] = attrs.field(factory=dict)


@attrs.frozen(kw_only=True)
class ScriptsResponse:
    """``GET /sdapi/v1/scripts``."""

    txt2img: tuple[str, ...] = ()
    img2img: tuple[str, ...] = ()


@attrs.frozen(kw_only=True)
class FlagsResponse:
    """``GET /sdapi/v1/cmd-flags``: how the server was started, in A1111's words."""

    api: bool
    listen: bool
    port: int
    api_auth: bool
    """Whether calls need a key; A1111 shows the key itself."""
    lowvram: bool = False
    medvram: bool = False
    nowebui: bool = True


@attrs.frozen(kw_only=True)
class MemoryResponse:
    """``GET /sdapi/v1/memory``: bytes."""

    ram: Mapping[str, Any]
    """``free``, ``used`` and ``total`` of the machine."""
    cuda: Mapping[str, Any]
    """Of the first engine's GPU: ``system`` (``free``, ``used``, ``total``) and what MLX uses of it (``active``);
    ``error`` where there is none."""


@attrs.frozen(kw_only=True)
class LoginRequest:
    """``POST /login``: an API key is either of the two."""

    username: str | None = attrs.field(default=None, repr=False)
    password: str | None = attrs.field(default=None, repr=False)


@attrs.frozen(kw_only=True)
class LoginResponse:
    """``POST /login``."""

    success: bool = True


@attrs.frozen(kw_only=True)
class ChoiceProps:
    """What clients read of a component: which choice it is, and what there is to choose from."""

    elem_id: str
    choices: tuple[str, ...]


@attrs.frozen(kw_only=True)
class ChoiceComponent:
    """A choice on A1111's page."""

    id: int
    props: ChoiceProps
    type: str = "dropdown"


@attrs.frozen(kw_only=True)
class ConfigResponse:
    """``GET /config``: what Gradio says of a page; this service's page is not made with it."""

    version: str
    components: tuple[ChoiceComponent, ...]
    """Those of A1111's choices that clients take from here, as no other route of A1111's had them once."""
    mode: str = "blocks"


@attrs.frozen(kw_only=True)
class RootResponse:
    """``GET /``."""

    service: str
    version: str
    model: str
    """The model of calls that name none."""
    api: str
    """Where this service is described."""


@attrs.frozen(kw_only=True)
class RefreshResponse:
    """``POST /sdapi/v1/refresh-…``, ``unload-checkpoint`` and ``reload-checkpoint``."""

    models: tuple[str, ...]
    """The models in memory now."""
