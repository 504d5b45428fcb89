"""Errors of the service in the words of the command line: options for fields, commands for routes."""

import re
from collections.abc import Callable, Mapping
from difflib import get_close_matches

import attrs

from mflux_api.errors import (
    EngineUnavailable,
    InvalidModel,
    InvalidParameter,
    ModelNotDownloaded,
    OutOfMemory,
    ServiceError,
)
from mflux_api.jobs.request import GenerateRequest

_OPTIONS: Mapping[str, str] = {
    **{field.name: f"--{field.name.replace('_', '-')}" for field in attrs.fields(GenerateRequest)},
    "prompt": "the prompt",
    "init_images": "--init-image",
    "lora_files": "--lora",
    "lora_scales": "--lora (NAME:SCALE)",
}
"""What a field of a request is called here."""

_ROUTES: tuple[tuple[re.Pattern[str], str | Callable[[re.Match[str]], str]], ...] = (
    (re.compile(r"\bset low_ram=true"), "add --low-ram"),
    (re.compile(r"\bSet low_ram=true"), "Add --low-ram"),
    (re.compile(r"\blow_ram mode"), "--low-ram"),
    (re.compile(r"give it as init_images to \S+ or \S+, or as --init-image"), "give one"),
    (re.compile(r"; GET /api/v1/loras lists them( all)?"), " or a file's path"),
    (re.compile(r"POST /api/v1/models/([^\s/]+)/(download|load|unload)"), r"`mflux-api models \2 \1`"),
    (re.compile(r"DELETE /api/v1/models/([^\s/;,]+)"), r"`mflux-api models delete \1`"),
    (re.compile(r"GET /api/v1/models\S*"), "`mflux-api models list`"),
    (re.compile(r"GET /api/v1/(health|system)( and the log)?"), "`mflux-api doctor`"),
    (re.compile(r"(GET|POST|DELETE) /(api|sdapi)/\S+"), "the server's log"),
)
"""Advice that names a route or a field, and what helps here."""


def describe(error: ServiceError) -> str:
    """Return what a person who typed a command can read and act on."""
    if isinstance(error, InvalidModel):
        return _unknown_model(error)
    if isinstance(error, ModelNotDownloaded) and "command" in error.details:
        model, command = error.details["model"], error.details["command"]
        return f"Model '{model}' is not on disk and models.auto_download is off; run `{command}`"
    if isinstance(error, EngineUnavailable) and error.details.get("reason"):
        return f"The engine does not start ({error.details['reason']}); `mflux-api doctor` looks at this machine"
    text = error.message
    if isinstance(error, OutOfMemory) and "suggestion" in error.details:
        # Of this model, where the message has the document's own words for any.
        text = re.sub(r"Try using .*$", str(error.details["suggestion"]), text)
    for pattern, words in _ROUTES:
        text = pattern.sub(words, text)
    if isinstance(error, InvalidParameter) and error.details.get("field") in _OPTIONS:
        text = name_options(text)
    return text


def name_options(text: str) -> str:
    """Return a sentence in which fields of a request are called as the options here."""
    text = re.sub(r"'(\w+)'", lambda name: _OPTIONS.get(name[1], name[0]), text)
    return text[:1].upper() + text[1:] if text.startswith("the prompt") else text


def _unknown_model(error: InvalidModel) -> str:
    asked, known = str(error.details.get("model")), error.details.get("available_models") or ()
    # Upper and lower case are distinguished, and are what people mix up.
    names = {str(name).lower(): str(name) for name in known}
    close = get_close_matches(asked.lower(), names, n=1)
    guess = f"did you mean '{names[close[0]]}'? " if close else ""
    return f"No model is called '{asked}'; {guess}`mflux-api models list` shows them all"
