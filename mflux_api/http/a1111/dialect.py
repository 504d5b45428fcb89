"""A1111's dialect of txt2img and img2img: which requests speak it, what its fields mean, its ``info``."""

import json
import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import attrs
import msgspec
from msgspec import Meta

from mflux_api.errors import InvalidParameter, shorten_value
from mflux_api.http.a1111 import no_effect
from mflux_api.images.encode import ImageFormat
from mflux_api.images.infotext import SAMPLER, infotext, inpainting_pairs, parse_infotext
from mflux_api.images.sizes import MULTIPLE
from mflux_api.jobs.ignored import asked_twice
from mflux_api.jobs.job import Job
from mflux_api.jobs.json_fields import OMITTED, PRESENCE, SCALAR, Field, Fields
from mflux_api.jobs.request import MAX_SIDE, MIN_SIDE, MODIFIERS_OF_MASKS, GenerateRequest
from mflux_api.jobs.whole_numbers import whole_number
from mflux_api.version import package_version

_FIELDS = """
    styles subseed subseed_strength seed_resize_from_h seed_resize_from_w sampler_name sampler_index scheduler
    batch_size n_iter cfg_scale distilled_cfg_scale restore_faces tiling do_not_save_samples do_not_save_grid eta
    s_min_uncond s_churn s_tmax s_tmin s_noise override_settings override_settings_restore_afterwards
    refiner_checkpoint refiner_switch_at disable_extra_networks firstpass_image comments enable_hr firstphase_width
    firstphase_height hr_scale hr_upscaler hr_second_pass_steps hr_resize_x hr_resize_y hr_checkpoint_name
    hr_sampler_name hr_scheduler hr_prompt hr_negative_prompt force_task_id script_name script_args send_images
    save_images alwayson_scripts infotext resize_mode image_cfg_scale mask mask_blur mask_blur_x mask_blur_y
    inpainting_fill inpaint_full_res inpaint_full_res_padding inpainting_mask_invert initial_noise_multiplier
    latent_mask include_init_images clip_skip hr_cfg hr_distilled_cfg hr_additional_modules
"""
ONLY_FIELDS = frozenset(_FIELDS.split())
"""Fields that only A1111's clients send; one of them, even as null, makes a request speak the dialect."""

ALIASES: Mapping[str, str] = {"model": "sd_model_checkpoint", "image_strength": "denoising_strength"}
"""Our fields by the names that SD-WebUI has for them; taken in any request."""

DIALECT_ALIASES: Mapping[str, str] = {**ALIASES, "guidance": "cfg_scale"}
"""Our fields by A1111's names for them, in a request that speaks the dialect."""

MAX_STYLES = 16 * 1024
MAX_INFOTEXT = 64 * 1024

_OURS = Fields.of(GenerateRequest)

_READ: Mapping[str, Field] = {
    **no_effect.READ,
    **dict.fromkeys(("batch_size", "n_iter", "send_images", "force_task_id"), SCALAR),
    "styles": Field(brief=MAX_STYLES),
    "infotext": Field(brief=MAX_INFOTEXT),
    **dict.fromkeys((*ALIASES.values(), *DIALECT_ALIASES.values()), SCALAR),
}
"""Those of A1111's fields whose value counts; of the others it is enough that they are there."""

PLAIN_FIELDS = _OURS.with_fields(dict.fromkeys(ALIASES.values(), SCALAR))
"""What a request that never speaks the dialect may hold."""

IMG2IMG_FIELDS = _OURS.with_fields({**dict.fromkeys(ONLY_FIELDS - _OURS.names(), PRESENCE), **_READ})
TXT2IMG_FIELDS = IMG2IMG_FIELDS.without("init_images", "mask", "extend")
"""A1111's img2img alone takes images; a stray field must not turn this into an edit."""

_MAX_COUNT = 64
_OF_INFOTEXT: Mapping[str, str] = {
    "prompt": "Prompt",
    "negative_prompt": "Negative prompt",
    "steps": "Steps",
    "cfg_scale": "CFG scale",
    "seed": "Seed",
    "width": "Size-1",
    "height": "Size-2",
    "denoising_strength": "Denoising strength",
}
_TEXTS = ("prompt", "negative_prompt")
_FORMATS: Mapping[str, ImageFormat] = {"png": "png", "jpg": "jpeg", "jpeg": "jpeg", "webp": "webp"}
_LARGEST_SHOWN = 10**9
_MAX_TASK = 128
_Count = Annotated[int, Meta(ge=1, le=_MAX_COUNT)]


def speaks_a1111(body: Mapping[str, Any]) -> bool:
    """Return whether a request is in A1111's dialect."""
    return not ONLY_FIELDS.isdisjoint(body)


def translate(body: Mapping[str, Any], *, max_images: int) -> dict[str, Any]:
    """Return the body with those of A1111's fields under our names that are more than :data:`DIALECT_ALIASES`.

    Where a request has both, our field wins.

    Raises:
        InvalidParameter: ``batch_size`` or ``n_iter`` is not a number from 1, or their product is over ``max_images``.
    """
    fields = dict(body)
    if fields.get("num_images") is None:
        fields["num_images"] = _image_count(fields, max_images)
    if not fields.get("sd_model_checkpoint"):
        fields["sd_model_checkpoint"] = _override(body, "sd_model_checkpoint")
    if fields.get("output_format") is None:
        fields["output_format"] = _samples_format(body)
    _translate_masks(fields)
    return fields


def _override(body: Mapping[str, Any], name: str) -> Any:
    settings = body.get("override_settings")
    return settings.get(name) if isinstance(settings, Mapping) else None


def _samples_format(body: Mapping[str, Any]) -> ImageFormat | None:
    """Return the format that the options of one call name; ``None`` for none that is made here."""
    wanted = _override(body, "samples_format")
    return _FORMATS.get(wanted.strip().lower()) if isinstance(wanted, str) else None


def _translate_masks(fields: dict[str, Any]) -> None:
    """Take out what A1111's clients always send and what counts only beside something else."""
    if not fields.get("mask") and not fields.get("extend"):
        for name in MODIFIERS_OF_MASKS:
            fields.pop(name, None)
    elif fields.get("inpaint_full_res") in _OFF:
        fields.pop("inpaint_full_res_padding", None)


_OFF = (None, False, 0, "", "0", "false", "False")


def explain_conflicts(body: Mapping[str, Any], fields: Mapping[str, Any]) -> tuple[str, ...]:
    """Return a sentence for each field of A1111's beside another one of the same meaning, which counts.

    Args:
        body: the request.
        fields: what :func:`translate` made of it.
    """
    told = list[str]()
    for name in ("batch_size", "n_iter"):
        if body.get("num_images") is not None and body.get(name) not in (None, 1, "1", body["num_images"]):
            told.append(asked_twice(name, "num_images"))
    if _samples_format(body) not in (None, fields.get("output_format")):
        told.append(asked_twice("override_settings.samples_format", "output_format"))
    model = _override(body, "sd_model_checkpoint")
    if model not in (None, "", fields["sd_model_checkpoint"]):
        told.append(asked_twice("override_settings.sd_model_checkpoint", "sd_model_checkpoint"))
    return tuple(told)


def sends_images(body: Mapping[str, Any]) -> bool:
    """Return whether the answer is to have the images; the flag may be written as numbers are, 0 or "false".

    Raises:
        InvalidParameter: it is not a flag.
    """
    value = body.get("send_images")
    try:
        return value is None or msgspec.convert(value, bool, strict=False)
    except msgspec.ValidationError:
        raise InvalidParameter.for_field(
            "send_images", "is invalid: expected bool", value=shorten_value(value), limit="bool"
        ) from None


@attrs.frozen
class Infotext:
    """What a call's ``infotext`` says beside the fields that it fills in."""

    models: tuple[str, ...] = ()
    """What it calls the model, where the call names none."""
    warnings: tuple[str, ...] = ()


def fill_in(fields: dict[str, Any]) -> Infotext:
    """Take from ``infotext`` what the other fields leave out."""
    text = fields.get("infotext")
    if not isinstance(text, str) or not text.strip() or text == OMITTED:
        return Infotext()
    pairs = parse_infotext(text)
    for name, key in _OF_INFOTEXT.items():
        known = fields.get(name) is not None or (name == "cfg_scale" and fields.get("guidance") is not None)
        if not known and pairs.get(key) and (name in _TEXTS or _is_number(pairs[key])):
            fields[name] = pairs[key]
    named = fields.get("model") or fields.get("sd_model_checkpoint")
    models = tuple(pairs[key] for key in ("Model", "Model hash") if pairs.get(key) and not named)
    sampled = fields.get("sampler_name") or fields.get("sampler_index")
    return Infotext(models, () if sampled else no_effect.explain({"sampler_name": pairs.get("Sampler")}))


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def task_of(body: Mapping[str, Any]) -> str | None:
    """Return what a client calls its call, where it does."""
    name = body.get("force_task_id")
    return name[:_MAX_TASK] if isinstance(name, str) and name else None


def snap_size(fields: dict[str, Any]) -> tuple[str, ...]:
    """Bring ``width`` and ``height`` to the nearest multiple of 16, as A1111's clients send any; say what was changed.

    What is further out than that, or is not a number, is left for an error.
    """
    told = list[str]()
    for name in ("width", "height"):
        asked = _whole_number(fields.get(name))
        if asked is None:
            continue
        side = (asked + MULTIPLE // 2) // MULTIPLE * MULTIPLE
        if side != asked and MIN_SIDE <= side <= MAX_SIDE:
            fields[name] = side
            told.append(f"'{name}' {asked} was changed to {side}, the nearest multiple of {MULTIPLE}")
    return tuple(told)


def _whole_number(value: Any) -> int | None:
    try:
        number = msgspec.convert(value, float, strict=False)
    except msgspec.ValidationError:
        return None
    return int(number) if number.is_integer() else None


def _image_count(fields: Mapping[str, Any], limit: int) -> int:
    counts = {name: _count(fields, name) for name in ("batch_size", "n_iter")}
    count = math.prod(counts.values())
    if count > limit:
        # The client does not know num_images.
        name = max(counts, key=lambda each: counts[each])
        raise InvalidParameter.for_field(
            name,
            f"is invalid: expected batch_size times n_iter to be at most {limit} (generation.max_batch_size)",
            value=counts[name],
            limit=limit,
            minimum=1,
        )
    return count


def _count(fields: Mapping[str, Any], name: str) -> int:
    value = fields.get(name)
    try:
        return 1 if value is None else msgspec.convert(whole_number(value, strict=False), _Count, strict=False)
    except msgspec.ValidationError:
        limit = f"1 to {_MAX_COUNT}"
        short = isinstance(value, int | float) and abs(value) <= _LARGEST_SHOWN
        shown = value if short else type(value).__name__
        raise InvalidParameter.for_field(
            name, f"is invalid: expected int from {limit}", value=shown, limit=limit
        ) from None


def info(job: Job, model_hash: str | None, styles: Sequence[str] = ()) -> str:
    """Return the ``info`` of an answer: A1111's JSON in a string. It tells of the images that there are."""
    request = job.request
    seeds = [image.seed for image in job.images]
    count = len(seeds)
    # Clients read a number here, also where a cancel has left no image.
    first = seeds[0] if seeds else request.seed
    negative = request.negative_prompt or ""
    return json.dumps(
        {
            "prompt": request.prompt,
            "all_prompts": [request.prompt] * count,
            "negative_prompt": negative,
            "all_negative_prompts": [negative] * count,
            "seed": first,
            "all_seeds": seeds,
            "subseed": first,
            "all_subseeds": seeds,
            "subseed_strength": 0,
            "width": request.width,
            "height": request.height,
            "sampler_name": SAMPLER,
            "cfg_scale": request.guidance,
            "steps": request.steps,
            "batch_size": count,
            "restore_faces": False,
            "face_restoration_model": None,
            "sd_model_name": job.model,
            "sd_model_hash": model_hash,
            "sd_vae_name": None,
            "sd_vae_hash": None,
            "seed_resize_from_w": -1,
            "seed_resize_from_h": -1,
            "denoising_strength": request.image_strength,
            "extra_generation_params": inpainting_pairs(request),
            "index_of_first_image": 0,
            "infotexts": [infotext(request, seed, model_hash) for seed in seeds],
            "styles": list(styles),
            "job_timestamp": f"{job.created_at:%Y%m%d%H%M%S}",
            "clip_skip": 1,
            "is_using_inpainting_conditioning": False,
            "version": f"mflux-api {package_version()}",
        },
        ensure_ascii=False,
    )
