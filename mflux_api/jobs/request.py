"""What a job asks for, with every limit in one place."""

import re
import secrets
from collections.abc import Callable, Mapping
from typing import Annotated, Any, TypeVar, get_type_hints

import attrs
import msgspec
from msgspec import Meta

from mflux_api.catalog import Catalog, Model, is_flux1
from mflux_api.errors import InvalidModel, InvalidParameter, ModelNotDownloaded, ModelNotFound
from mflux_api.jobs.schedule import steps_to_run

T = TypeVar("T")

MAX_SEED = 2**53 - 5
"""Largest seed: seed + 3 (the fourth image) is still exact in a JSON number."""

Prompt = Annotated[str, Meta(max_length=10_000, description="Text description of the image; an upscaler needs none")]
NegativePrompt = Annotated[str, Meta(max_length=10_000, description="What the image should not show (base models)")]
Seed = Annotated[int, Meta(ge=-1, le=MAX_SEED, description="Random seed; null or -1: random")]
MIN_SIDE, MAX_SIDE = 64, 2048
Side = Annotated[
    int, Meta(ge=MIN_SIDE, le=MAX_SIDE, multiple_of=16, description="Pixels; null: 512, or the first init image's")
]
Steps = Annotated[int, Meta(ge=1, le=200, description="Denoising steps; null: the model's default")]
Guidance = Annotated[float, Meta(ge=0.0, le=30.0, description="Guidance; distilled models always run at 1.0")]
# How many at most is a setting: see `validate`.
ImageCount = Annotated[int, Meta(ge=1, description="Number of images")]
MIN_LORA_SCALE, MAX_LORA_SCALE = 0.0, 2.0
LoraScale = Annotated[float, Meta(ge=MIN_LORA_SCALE, le=MAX_LORA_SCALE)]
Strength = Annotated[
    float, Meta(ge=0.0, le=1.0, description="How much to transform the init image (0.75); 0 keeps it, 1 ignores it")
]

MIN_RESOLUTION, MAX_RESOLUTION = 16, 8192
Resolution = Annotated[
    int, Meta(ge=MIN_RESOLUTION, le=MAX_RESOLUTION, description="Upscalers: the result's shorter side in pixels")
]
MIN_FACTOR, MAX_FACTOR = 0.1, 8.0
Factor = Annotated[float, Meta(ge=MIN_FACTOR, le=MAX_FACTOR, description="Upscalers: times as large (2)")]
Softness = Annotated[
    float, Meta(ge=0.0, le=1.0, description="Upscalers: how much detail is taken away first, to be invented anew (0)")
]

DEFAULT_SIDE = 512
DEFAULT_STRENGTH = 0.75
MAX_INIT_IMAGES = 4
MAX_LORAS = 16

ALIASES: Mapping[str, str] = {"model": "sd_model_checkpoint", "image_strength": "denoising_strength"}
"""Our fields by the names that SD-WebUI has for them."""


ONLY_OF_UPSCALERS = ("resolution", "upscale", "softness")
NOT_OF_UPSCALERS = ("negative_prompt", "width", "height", "steps", "guidance", "image_strength")
"""Fields that mean nothing to the other kind of model, which ignores them whatever they hold."""


@attrs.frozen(kw_only=True)
class GenerateRequest:
    """One job: a prompt and how to generate it.

    Build one directly when embedding; :func:`validate` says whether it is within the limits. The field names and
    defaults are those of the HTTP API.
    """

    prompt: Prompt = ""
    """Only an upscaler goes without."""
    model: str | None = None
    """An alias of the catalog; ``None`` means ``models.default``."""
    negative_prompt: NegativePrompt | None = None
    seed: Seed | None = None
    width: Side | None = None
    """``None``: 512 or, with init images, the first one's own, snapped and at most 1 MP."""
    height: Side | None = None
    steps: Steps | None = None
    guidance: Guidance | None = None
    num_images: ImageCount = 1
    lora_files: tuple[str, ...] = ()
    lora_scales: tuple[LoraScale, ...] = ()
    low_ram: bool = False
    init_images: tuple[str, ...] = ()
    """Base64 or data URLs: the first is what gets generated over, all are what the prompt may speak of."""
    image_strength: Strength | None = None
    """Only with init images; ``None`` is 0.75 then."""
    resolution: Resolution | None = None
    """This and the next two: only of an upscaler, and ignored by every other model. Give this or ``upscale``."""
    upscale: Factor | None = None
    softness: Softness | None = None

    @property
    def upscales(self) -> bool:
        """Whether a resolved request upscales its init image; then ``width`` and ``height`` are the result's."""
        return self.resolution is not None

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of a resolved request."""
        if self.width is None or self.height is None:
            raise ValueError("the request is not resolved: it has no size yet")
        return self.width, self.height

    @property
    def steps_run(self) -> int:
        """How many steps a resolved request runs: an image strength below 1 leaves out the first ones."""
        return steps_to_run(self.steps or 0, 1.0 if self.image_strength is None else self.image_strength)

    def seeds(self) -> tuple[int, ...]:
        """The seed of every image of a resolved request: image i uses seed + i."""
        if self.seed is None:
            raise ValueError("the request is not resolved: it has no seed yet")
        return tuple(self.seed + index for index in range(self.num_images))


def convert(
    body: Mapping[str, Any], target: type[T], *, strict: bool = True, names: Mapping[str, str] | None = None
) -> T:
    """Convert a JSON object to a request class; nulls are absent, unknown fields are ignored.

    Args:
        body: the decoded JSON object.
        target: a frozen attrs class whose annotations carry the limits.
        strict: ``False`` also takes numbers written as strings, which A1111's clients send.
        names: what the client calls a field, where it has a name of its own; errors use it.

    Raises:
        InvalidParameter: a field is missing, of the wrong type or outside its limits.
    """
    known = {field.name for field in attrs.fields(target)}  # type: ignore[arg-type]
    cleaned = {name: _stripped(name, value) for name, value in body.items() if name in known and value is not None}
    for name in ("prompt", "negative_prompt"):
        if isinstance(text := cleaned.get(name), str) and not _is_unicode(text):
            raise InvalidParameter(
                f"'{name}' is invalid: expected Unicode text without lone surrogates",
                {"field": name, "value": "…", "limit": "Unicode text"},
            )
    try:
        return msgspec.convert(cleaned, target, strict=strict)
    except msgspec.ValidationError as error:
        raise _invalid(str(error), cleaned, target, names or {}) from None


def from_body(
    body: Mapping[str, Any],
    *,
    upscales: Callable[[Any], bool],
    strict: bool = True,
    aliases: Mapping[str, str] = ALIASES,
) -> GenerateRequest:
    """Read a generation request from a JSON object; a field that is not there is looked for under its other name.

    Args:
        body: the decoded JSON object.
        upscales: whether what ``model`` holds, if anything, names an upscaler.
        strict: see :func:`convert`.
        aliases: our fields' other names.

    Raises:
        InvalidParameter: a field is missing, of the wrong type or outside its limits.
    """
    fields = dict(body)
    names: dict[str, str] = {}
    for ours, theirs in aliases.items():
        if fields.get(ours) in (None, ""):
            fields[ours] = fields.get(theirs)
            names[ours] = theirs
    for meaningless in NOT_OF_UPSCALERS if upscales(fields.get("model")) else ONLY_OF_UPSCALERS:
        fields.pop(meaningless, None)
    return convert(fields, GenerateRequest, strict=strict, names=names)


def _stripped(name: str, value: Any) -> Any:
    return value.strip() if name == "prompt" and isinstance(value, str) else value


def _invalid(message: str, body: Mapping[str, Any], target: type[Any], names: Mapping[str, str]) -> InvalidParameter:
    missing = re.search(r"missing required field `(\w+)`", message)
    if missing:
        field = missing.group(1)
        return InvalidParameter(f"'{field}' is required", {"field": field, "value": None, "limit": "required"})
    path = re.search(r"`\$\.(\w+)", message)
    field = path.group(1) if path else "body"
    reason = re.sub(r" - at `.*`$", "", message).replace("`", "").replace(" | null", "").removeprefix("Expected ")
    value = "…" if "prompt" in field else _shown(body.get(field))
    shown = names.get(field, field)
    return InvalidParameter(
        f"'{shown}' is invalid: expected {reason}",
        {"field": shown, "value": value, "limit": reason.partition(", got")[0], **_bounds(target, field)},
    )


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


_MOST_SHOWN = 10**20
"""Larger numbers may have thousands of digits."""


def _shown(value: Any) -> Any:
    """Return the value for the error's details, cut so that an error stays small."""
    if isinstance(value, str):
        return value if len(value) <= 64 else value[:64] + "…"
    if isinstance(value, int) and abs(value) > _MOST_SHOWN:
        return "int"
    if value is None or isinstance(value, bool | int | float):
        return value
    return type(value).__name__


def _bounds(target: type[Any], field: str) -> dict[str, Any]:
    hint = get_type_hints(target, include_extras=True).get(field)
    candidates = (hint, *getattr(hint, "__args__", ()))
    metas = (meta for candidate in candidates for meta in getattr(candidate, "__metadata__", ()))
    names = {"ge": "minimum", "le": "maximum", "multiple_of": "multiple_of", "max_length": "max_length"}
    return {
        label: getattr(meta, name)
        for meta in metas
        if isinstance(meta, Meta)
        for name, label in names.items()
        if getattr(meta, name) is not None
    }


def validate(request: GenerateRequest, *, max_images: int, needs_prompt: bool = True) -> GenerateRequest:
    """Check a request made in Python against the same limits as one that came over HTTP.

    Args:
        request: what was asked for.
        max_images: ``generation.max_batch_size``.
        needs_prompt: whether its model cannot go without.

    Raises:
        InvalidParameter: a field is outside its limits.
    """
    checked = convert(attrs.asdict(request, filter=lambda _, value: value is not None), GenerateRequest)
    if needs_prompt and not checked.prompt:
        raise InvalidParameter("'prompt' is required", {"field": "prompt", "value": None, "limit": "required"})
    if checked.num_images > max_images:
        raise InvalidParameter(
            f"'num_images' is invalid: expected at most {max_images} (generation.max_batch_size)",
            {"field": "num_images", "value": checked.num_images, "limit": max_images, "minimum": 1},
        )
    if len(checked.lora_scales) > len(checked.lora_files):
        raise InvalidParameter(
            "'lora_scales' has more entries than 'lora_files'",
            {"field": "lora_scales", "value": len(checked.lora_scales), "limit": len(checked.lora_files)},
        )
    _at_most("init_images", len(checked.init_images), MAX_INIT_IMAGES)
    _at_most("lora_files", len(checked.lora_files), MAX_LORAS)
    return checked


def _at_most(field: str, count: int, limit: int) -> None:
    if count > limit:
        raise InvalidParameter(
            f"'{field}' is invalid: expected at most {limit} entries", {"field": field, "value": count, "limit": limit}
        )


def find_model(alias: str, catalog: Catalog) -> Model:
    """Return the catalog entry that a generation request names.

    Raises:
        ModelNotFound: the name is a Flux1 model's.
        InvalidModel: no model has this name.
    """
    model = catalog.get(alias)
    if model is not None:
        return model
    if is_flux1(alias):
        raise ModelNotFound(
            f"Model '{_shown(alias)}' not found. Flux1 models removed. Use flux2-klein-4b or flux2-klein-9b"
        )
    raise InvalidModel("Invalid model specified", {"model": _shown(alias), "available_models": catalog.aliases()})


def not_downloaded(model: Model) -> ModelNotDownloaded:
    """Return the error for a model that is not on disk and may not be fetched unasked."""
    return ModelNotDownloaded(
        f"Model '{model.alias}' is not on disk and models.auto_download is off; run "
        f"`mflux-api models download {model.alias}` or POST /api/v1/models/{model.alias}/download first",
        {
            "model": model.alias,
            "command": f"mflux-api models download {model.alias}",
            "endpoint": f"POST /api/v1/models/{model.alias}/download",
        },
    )


def resolve(
    request: GenerateRequest, model: Model, *, default_steps: int, default_size: tuple[int, int] | None = None
) -> GenerateRequest:
    """Fill in what the request leaves to the service; the result runs as it stands.

    Args:
        request: a checked request.
        model: the catalog entry that it names, which generates.
        default_steps: ``generation.default_steps``.
        default_size: of an image whose size nobody named; by default 512 by 512.
    """
    width, height = default_size or (DEFAULT_SIDE, DEFAULT_SIDE)
    strength = DEFAULT_STRENGTH if request.image_strength is None else request.image_strength
    missing = len(request.lora_files) - len(request.lora_scales)
    steps = request.steps if request.steps is not None else (model.default_steps or default_steps)
    guidance = request.guidance if request.guidance is not None else model.default_guidance
    if model.family == "flux2-klein":
        # At 1 and below there is no second branch: it is all the same image.
        guidance = max(guidance, 1.0)
    seed = request.seed if request.seed not in (None, -1) else secrets.randbelow(2**32)
    return attrs.evolve(
        request,
        model=model.alias,
        seed=seed,
        width=width if request.width is None else request.width,
        height=height if request.height is None else request.height,
        steps=steps,
        guidance=guidance if model.supports_guidance else 1.0,
        lora_scales=(*request.lora_scales, *[1.0] * missing),
        image_strength=strength if request.init_images else None,
        resolution=None,
        upscale=None,
        softness=None,
    )
