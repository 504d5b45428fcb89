"""The tools' arguments: the fields of a request under their own names, with the limits of the REST API."""

import copy
from collections.abc import Collection, Mapping
from typing import Annotated, Any, Final

import attrs
import msgspec
from msgspec import Meta

from mflux_api.errors import InvalidParameter
from mflux_api.ipc.printable import printable
from mflux_api.jobs.request import MAX_INIT_IMAGES, EncodedImage, Extend, GenerateRequest, Mask
from mflux_api.mcp.shown_images import Shown

GENERATE: Final = (
    "prompt",
    "model",
    "width",
    "height",
    "num_images",
    "seed",
    "steps",
    "guidance",
    "negative_prompt",
    "lora_files",
    "lora_scales",
    "low_ram",
)
EDIT: Final = (
    *GENERATE,
    "init_images",
    "image_strength",
    "mask",
    "mask_blur",
    "inpainting_mask_invert",
    "inpainting_fill",
    "inpaint_full_res",
    "inpaint_full_res_padding",
    "extend",
)
UPSCALE: Final = ("init_images", "model", "upscale", "resolution", "softness", "seed", "low_ram")

MAX_WAIT_SECONDS: Final = 50.0
"""Clients give up a call after 60 s by default."""

_IMAGE: Final = "a path on this machine (with a file name that has a suffix, or as file:///…), base64, or a data URL"
_DESCRIPTIONS: Final[Mapping[str, str]] = {
    "prompt": "What the image shows, in plain English. For an edit: what to change, such as 'make it night'",
    "model": "A name of list_models; the default model if left out",
    "width": "Pixels, a multiple of 16; 512 if left out, or as wide as the first of init_images",
    "height": "Pixels, a multiple of 16; 512 if left out, or as high as the first of init_images",
    "num_images": "How many images, each with a seed of its own",
    "seed": "The same seed with the same arguments gives the same image; random if left out",
    "steps": "Denoising steps; the model's own number if left out, which is right as a rule",
    "guidance": "How strictly to follow the prompt; only base models obey it",
    "lora_files": "Names of LoRA files on the service",
    "lora_scales": "Strength of each LoRA, in the same order; 1.0 if left out",
    "low_ram": "Take longer and less memory",
    "init_images": f"The image to edit, and up to three more that the prompt refers to; each {_IMAGE}",
    "mask": f"What of the first image is changed is white in it, black is kept; {_IMAGE}",
    "inpainting_mask_invert": "Black of the mask is changed, and white is kept",
    "inpaint_full_res": "Generate the masked part alone, at width and height",
    "extend": "Outpainting: pixels to add on each side of the first image",
}


@attrs.frozen(kw_only=True)
class Answering:
    """How a tool that makes images answers."""

    image_content: Annotated[
        Shown,
        Meta(
            description="Images in the answer: a small JPEG of each, the whole image, or none; files are written anyway"
        ),
    ] = "thumbnail"
    background: Annotated[
        bool, Meta(description="Answer at once with the job's id; job_status tells when it is done, with its images")
    ] = False


@attrs.frozen(kw_only=True)
class JobArguments:
    """Arguments of cancel_job."""

    job_id: Annotated[str, Meta(max_length=64, description="The id that a tool answered with")]


@attrs.frozen(kw_only=True)
class StatusArguments:
    """Arguments of job_status."""

    job_id: Annotated[str, Meta(max_length=64, description="The id that a tool answered with")]
    wait_seconds: Annotated[
        float, Meta(ge=0.0, le=MAX_WAIT_SECONDS, description="Wait so long for the job's end before answering")
    ] = 0.0
    image_content: Annotated[Shown, Meta(description="Images of a finished job in the answer")] = "thumbnail"


@attrs.frozen(kw_only=True)
class ImageInputs:
    """The images among a tool's arguments."""

    init_images: Annotated[tuple[EncodedImage, ...], Meta(max_length=MAX_INIT_IMAGES)] = ()
    mask: Mask | None = None


def request_schema(names: Collection[str], required: Collection[str], max_images: int | None) -> dict[str, Any]:
    """Return the JSON schema of a tool whose arguments are fields of a request.

    Args:
        names: the fields.
        required: those that have to be there.
        max_images: most images of a request, where that is known.
    """
    _, components = msgspec.json.schema_components([GenerateRequest, Extend, Answering])
    fields = components["GenerateRequest"]["properties"] | components["Answering"]["properties"]
    chosen = (*names, *(field.name for field in attrs.fields(Answering)))
    properties = {name: _property(fields[name], components) for name in chosen}
    for name in names:
        if name in _DESCRIPTIONS:
            properties[name]["description"] = _DESCRIPTIONS[name]
    if max_images is not None and "num_images" in properties:
        properties["num_images"]["maximum"] = max_images
    for name in required:
        properties[name].pop("default", None)
        properties[name] |= {"minItems": 1} if properties[name].get("type") == "array" else {}
    return _object(properties, required)


def schema_of(kind: type[Any]) -> dict[str, Any]:
    """Return the JSON schema of a tool whose arguments are a class."""
    _, components = msgspec.json.schema_components([kind])
    component = components[kind.__name__]
    return _object(component["properties"], component.get("required", ()))


def _object(properties: Mapping[str, Any], required: Collection[str]) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "object", "properties": dict(properties), "additionalProperties": False}
    return schema | ({"required": list(required)} if required else {})


def _property(schema: Mapping[str, Any], components: Mapping[str, Any]) -> dict[str, Any]:
    """Return a field's schema as an assistant reads it best: without null, and in one piece."""
    made = copy.deepcopy(dict(schema))
    kinds = [each for each in made.pop("anyOf", ()) if each.get("type") != "null"]
    if len(kinds) > 1:
        # A boolean that A1111's clients send as 0 or 1.
        kinds = [each for each in kinds if each.get("type") == "boolean"]
    if kinds:
        made = kinds[0] | made
    if (reference := made.pop("$ref", None)) is not None:
        extend = components[reference.rpartition("/")[2]]
        made |= _object(extend["properties"], ())
    if made.get("default") is None:
        made.pop("default", None)
    return made | ({"type": "string"} if "enum" in made else {})


def check_names(tool: str, arguments: Mapping[str, Any], known: Collection[str]) -> dict[str, Any]:
    """Return a call's arguments without those that are null, which are absent.

    Raises:
        InvalidParameter: one of them is not of this tool.
    """
    for name in arguments:
        if name not in known:
            shown = printable(name, 64)
            expected = f"expected {', '.join(known)}" if known else "it takes none"
            problem = f"is not an argument of {tool}; {expected}"
            raise InvalidParameter.for_field(shown, problem, limit=", ".join(known))
    return {name: value for name, value in arguments.items() if value is not None}
