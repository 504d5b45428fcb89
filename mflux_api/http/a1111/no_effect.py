"""A1111's fields without an effect here: which values ask for nothing, and what a client is told of the others.

Clients send fifty fields in each call, most of them neutral. A field that counts only beside another one (``hr_scale``
beside ``enable_hr``, ``subseed`` beside ``subseed_strength``) is neutral here: the other one is told.
"""

from collections.abc import Callable, Mapping
from typing import Any, Final

import attrs

from mflux_api.ipc.printable import printable
from mflux_api.jobs import unknown_fields
from mflux_api.jobs.json_fields import PRESENCE, SCALAR, Field, Fields
from mflux_api.jobs.unknown_fields import FieldName

MAX_NAMES: Final = 5
"""Names of scripts and settings in one sentence."""
MAX_NAME_LENGTH: Final = 48

_BRIEF = Field(brief=1024)
_OBJECT = Field(brief=16 * 1024)
"""All of it becomes objects, in 0.3 ms at most."""

Neutral = Callable[[Any], bool]


_FALSE: Final = ("false", "off", "no")


def _plain(value: Any) -> Any:
    """Return a value as it is compared: numbers may be texts, and letters small."""
    if isinstance(value, str):
        text = value.strip().casefold()
        try:
            return float(text)
        except ValueError:
            return text
    return value


def _is(*values: float | str) -> Neutral:
    """Return a check for these values; what is empty or null asks for nothing in any case."""

    def check(value: Any) -> bool:
        if isinstance(value, list | tuple):
            return all(not isinstance(item, list) and check(item) for item in value)
        return value is None or value in ("", {}) or _plain(value) in (*_FALSE, *values)

    return check


def _at_most_0(value: Any) -> bool:
    plain = _plain(value)
    return plain is None or plain == "" or (isinstance(plain, int | float) and plain <= 0)


_OFF = _is(0.0)
_NOTHING = _is("none", "null")
_SAMPLER = _is("euler", "euler a", "k_euler", "k_euler_a", "euler_a", "ddim", "automatic", "default", "none")
"""Euler; the names that clients send when nothing was chosen; and DDIM, which is Euler for this kind of model."""
_SCHEDULER = _is("simple", "automatic", "normal", "default", "none", "use same scheduler")
_VAE = _is("automatic", "none", "n/a", "auto")


@attrs.frozen
class _Rule:
    neutral: Neutral
    why: str


_RULES: Final[Mapping[str, _Rule]] = {
    "enable_hr": _Rule(_OFF, "images have one pass; ask for their size, or use /sdapi/v1/extra-single-image"),
    "tiling": _Rule(_OFF, "images are not made to tile"),
    "restore_faces": _Rule(_OFF, "faces are not restored"),
    "script_name": _Rule(_NOTHING, "there are no scripts"),
    "subseed_strength": _Rule(_at_most_0, "seeds are not mixed"),
    "seed_resize_from_w": _Rule(_at_most_0, "noise is not resized"),
    "seed_resize_from_h": _Rule(_at_most_0, "noise is not resized"),
    "scheduler": _Rule(_SCHEDULER, "the scheduler is Simple"),
    "eta": _Rule(_is(0.0, 1.0), "the sampler adds no noise"),
    "s_churn": _Rule(_OFF, "the sampler adds no noise"),
    "s_min_uncond": _Rule(_OFF, "all steps are guided alike"),
    "distilled_cfg_scale": _Rule(_is(0.0, 1.0, 3.0, 3.5), "this kind of model has no such input"),
    "image_cfg_scale": _Rule(_is(0.0, 1.0, 1.5), "images have no guidance of their own"),
    "initial_noise_multiplier": _Rule(_is(0.0, 1.0), "the noise is that of the strength"),
    "refiner_checkpoint": _Rule(_NOTHING, "there is no refiner"),
    "disable_extra_networks": _Rule(_OFF, "LoRA tags of the prompt are used"),
    "firstpass_image": _Rule(_NOTHING, "send images to /sdapi/v1/img2img"),
    "resize_mode": _Rule(_is(0.0, 1.0), "an init image is scaled until it covers the size, and cropped"),
    "latent_mask": _Rule(_NOTHING, "only 'mask' is read"),
    "include_init_images": _Rule(_OFF, "answers hold results only"),
    "do_not_save_samples": _Rule(_OFF, "the server keeps every image (jobs.delete_images, jobs.ttl_hours)"),
    "clip_skip": _Rule(_is(0.0, 1.0), "the text encoder has no such input"),
}

_SETTINGS: Final[Mapping[str, Neutral]] = {
    "sd_checkpoint_hash": lambda _: True,
    "face_restoration_model": lambda _: True,
    "clip_stop_at_last_layers": _is(0.0, 1.0),
    "sd_vae": _VAE,
    "forge_additional_modules": _VAE,
    "eta_noise_seed_delta": _OFF,
    "token_merging_ratio": _OFF,
    "samples_format": _is("png", "jpg", "jpeg", "webp"),
    "filter_nsfw": _OFF,
}
"""Those of ``override_settings`` that clients send, by their small letters."""
_OF_FILES_AND_PAGES = (
    "samples_",
    "grid_",
    "save_",
    "outdir_",
    "show_",
    "live_preview",
    "return_",
    "enable_pnginfo",
)
"""How names of settings begin that say what A1111 does with its own files and pages."""

_OF_THE_PAGE: Final = frozenset({"sampler", "seed"})
"""Scripts of A1111's own that do nothing in a call of its API; what shows a page's settings as one sends them along."""

_EXTRAS: Final[Mapping[str, _Rule]] = {
    "gfpgan_visibility": _Rule(_at_most_0, "faces are not restored"),
    "codeformer_visibility": _Rule(_at_most_0, "faces are not restored"),
    "show_extras_results": _Rule(_is(1.0, "true"), "the images are always in the answer"),
}
_EXTRAS_NEUTRAL: Final = frozenset({"codeformer_weight", "upscale_first"})
"""What counts only where faces are restored."""

CARRIED: Final = frozenset({"url", "auth"})
"""Fields of a client's own that one sends along with A1111's (SillyTavern)."""

READ: Final[Mapping[str, Field]] = {
    **dict.fromkeys(_RULES, _BRIEF),
    **dict.fromkeys(("sampler_name", "sampler_index", "override_settings_restore_afterwards"), _BRIEF),
    "alwayson_scripts": _OBJECT,
    "override_settings": attrs.evolve(
        _OBJECT, fields=Fields({"sd_model_checkpoint": SCALAR, "samples_format": SCALAR})
    ),
    **dict.fromkeys(CARRIED, PRESENCE),
}
"""The fields whose value is looked at here."""

SETTINGS_READ: Final[Mapping[str, Field]] = dict.fromkeys(
    (
        "CLIP_stop_at_last_layers",
        "eta_noise_seed_delta",
        "forge_additional_modules",
        "samples_format",
        "sd_checkpoint_hash",
        "sd_vae",
    ),
    _BRIEF,
)
"""Those of A1111's options whose value is looked at; the model's is not among them."""

EXTRAS_READ: Final[Mapping[str, Field]] = {
    **dict.fromkeys(_EXTRAS, _BRIEF),
    **dict.fromkeys(_EXTRAS_NEUTRAL, PRESENCE),
}
"""The same of calls of extras."""


def explain(body: Mapping[str, Any]) -> tuple[str, ...]:
    """Return a sentence for each field that asks for something and has no effect.

    Args:
        body: a request in A1111's dialect.
    """
    return (
        *_told(body, _RULES),
        *_of_sampler(body),
        *_of_scripts(body.get("alwayson_scripts")),
        *_of_settings(body),
    )


def explain_settings(settings: Mapping[str, Any]) -> tuple[str, ...]:
    """Return a sentence for each of a client's options that asks for something and has no effect."""
    without = [name for name, value in settings.items() if not _is_neutral_setting(name, value)]
    if not _is("png")(settings.get("samples_format")) and "samples_format" not in without:
        # It counts in override_settings of a call.
        without.append("samples_format")
    return tuple(f"'{printable(name, MAX_NAME_LENGTH)}' has no effect" for name in without[:MAX_NAMES])


def explain_extras(body: Mapping[str, Any]) -> tuple[str, ...]:
    """Return a sentence for each field of a call of extras that asks for something and has no effect."""
    return _told(body, _EXTRAS)


def _told(body: Mapping[str, Any], rules: Mapping[str, _Rule]) -> tuple[str, ...]:
    wanting = ((name, rule.why) for name, rule in rules.items() if not rule.neutral(body.get(name)))
    return tuple(f"'{name}' has no effect: {why}" for name, why in wanting)


def explain_plain(body: Mapping[str, Any]) -> tuple[str, ...]:
    """Return what is said of a request that is not in the dialect: what a client of A1111 carries along is unknown."""
    return unknown_fields.explain([FieldName(name) for name in sorted(CARRIED) if name in body], {})


def _of_sampler(body: Mapping[str, Any]) -> tuple[str, ...]:
    # The older field counts where the newer one is empty.
    name = "sampler_name" if body.get("sampler_name") else "sampler_index"
    return () if _SAMPLER(body.get(name)) else (f"'{name}' has no effect: the sampler is Euler",)


def _of_scripts(value: Any) -> tuple[str, ...]:
    if not isinstance(value, dict):
        return () if _NOTHING(value) else ("'alwayson_scripts' has no effect: there are no scripts",)
    used = [name for name, script in value.items() if name.casefold() not in _OF_THE_PAGE and not _is_unused(script)]
    return (f"'alwayson_scripts' has no effect: there is no {_listed(used)}",) if used else ()


def _is_unused(script: Any) -> bool:
    """Whether a script is switched off: it has no arguments, its first one is false, or all of its units are off.

    A unit of ControlNet is off by its ``enabled``, one of ADetailer by its model.
    """
    arguments = script.get("args") if isinstance(script, dict) else script
    if isinstance(arguments, dict):
        arguments = [arguments] if arguments else []
    if not isinstance(arguments, list) or not arguments:
        return not arguments
    # ADetailer's units come behind flags of the whole.
    units = [unit for unit in arguments if not isinstance(unit, bool)]
    off = bool(units) and all(map(_is_off, units))
    return off or arguments[0] is False or all(map(_NOTHING, arguments))


def _is_off(unit: Any) -> bool:
    return isinstance(unit, dict) and (unit.get("enabled") is False or unit.get("ad_model") == "None")


def _of_settings(body: Mapping[str, Any]) -> tuple[str, ...]:
    settings = body.get("override_settings")
    if not isinstance(settings, dict):
        return () if _NOTHING(settings) else ("'override_settings' has no effect but for its model",)
    told = list[str]()
    without = [name for name, value in settings.items() if not _is_neutral_setting(name, value)]
    if without:
        told.append(f"'override_settings': {_listed(without)} {'has' if len(without) == 1 else 'have'} no effect")
    if settings.get("sd_model_checkpoint") and not _is(1.0, "true")(body.get("override_settings_restore_afterwards")):
        told.append("'override_settings_restore_afterwards' has no effect: the model is that of this request alone")
    return tuple(told)


def _is_neutral_setting(name: str, value: Any) -> bool:
    if name == "sd_model_checkpoint":
        return True
    small = name.casefold()
    known = _SETTINGS.get(small)
    if known is not None:
        return known(value)
    return value is None or small.startswith(_OF_FILES_AND_PAGES)


def _listed(names: list[str]) -> str:
    shown = ", ".join(f"'{printable(name, MAX_NAME_LENGTH)}'" for name in names[:MAX_NAMES])
    return shown + (f" and {len(names) - MAX_NAMES} more" if len(names) > MAX_NAMES else "")
