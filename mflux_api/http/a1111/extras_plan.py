"""A1111's extras: their options and limits, how large an image becomes, and how that is told. No pixels."""

from collections.abc import Mapping

import attrs

from mflux_api.errors import InvalidParameter
from mflux_api.http.a1111.sdapi_schemas import ExtrasOptions
from mflux_api.images.child.protocol import Filter
from mflux_api.jobs.request import MIN_RESOLUTION
from mflux_api.jobs.upscaling import MAX_PIXELS, MOST, upscaled_size

MAX_BATCH_PIXELS = 4 * MAX_PIXELS
"""Pixels of all results of one call: its answer is put together in memory."""

PLAIN: Mapping[str, Filter] = {"None": "lanczos", "Lanczos": "lanczos", "Nearest": "nearest"}
"""Upscalers that need no model: A1111's names, and how they resize."""


@attrs.frozen
class Plan:
    """How large one image becomes."""

    scaled: tuple[int, int]
    """What plain resizing gives."""
    resolution: int
    """What a model is asked for: its result covers what is wanted."""
    wanted: tuple[int, int] | None
    """What is cut out of the middle in the end; ``None``: nothing is cut."""

    @property
    def pixels(self) -> int:
        """Pixels of the result."""
        width, height = self.wanted or self.scaled
        return width * height


def make_plan(options: ExtrasOptions, width: int, height: int, *, field: str = "image") -> Plan:
    """Return what becomes of an image of that size.

    Args:
        options: what is asked for.
        width: width of the image.
        height: height of the image.
        field: what the client calls the image, for the error.

    Raises:
        InvalidParameter: it is too large, or would become too large or too small.
    """
    if width * height > MAX_PIXELS:
        raise InvalidParameter.for_field(
            field, f"is invalid: an image has {width} × {height} pixels; scale it down to {MOST}", limit=MAX_PIXELS
        )
    if options.resize_mode == 0:
        field, factor = "upscaling_resize", options.upscaling_resize
        scaled = round(width * factor), round(height * factor)
        wanted, resolution = None, round(min(width, height) * factor)
    else:
        size = options.upscaling_resize_w, options.upscaling_resize_h
        # The side that decides is the one to name.
        factor, field = max((size[0] / width, "upscaling_resize_w"), (size[1] / height, "upscaling_resize_h"))
        scaled = max(size[0], round(width * factor)), max(size[1], round(height * factor))
        wanted, resolution = size if options.upscaling_crop else scaled, _covering_resolution(width, height, scaled)
    largest = max(scaled, upscaled_size(width, height, resolution), key=lambda sides: sides[0] * sides[1])
    if largest[0] * largest[1] > MAX_PIXELS:
        raise InvalidParameter.for_field(
            field,
            f"is invalid: an image of {width} × {height} pixels would become {largest[0]} × {largest[1]}; "
            f"the limit is {MOST}",
            value=getattr(options, field),
            limit=MAX_PIXELS,
        )
    if min(resolution, *scaled) < MIN_RESOLUTION:
        raise InvalidParameter.for_field(
            field,
            f"is invalid: a side would have less than {MIN_RESOLUTION} pixels",
            value=getattr(options, field),
            limit=MIN_RESOLUTION,
        )
    return Plan(scaled, resolution, wanted)


def _covering_resolution(width: int, height: int, least: tuple[int, int]) -> int:
    """Return the smallest resolution at which neither of an upscaler's even sides is shorter than ``least``."""
    resolution = min(least)
    while any(side < wanted for side, wanted in zip(upscaled_size(width, height, resolution), least, strict=True)):
        resolution += 1
    return resolution


def describe(options: ExtrasOptions, plan: Plan, seed: int | None = None) -> str:
    """Say what was done, as A1111's infotext does.

    Args:
        options: what was asked for.
        plan: the sizes.
        seed: the seed of a model's job; ``None`` where no model was at work.
    """
    if options.resize_mode == 0:
        pairs: dict[str, object] = {"Postprocess upscale by": f"{options.upscaling_resize:g}"}
    else:
        pairs = {"Postprocess upscale to": f"{options.upscaling_resize_w}x{options.upscaling_resize_h}"}
        if options.upscaling_crop and plan.wanted is not None:
            pairs["Postprocess crop to"] = "{}x{}".format(*plan.wanted)
    pairs["Postprocess upscaler"] = options.upscaler_1
    if options.blends:
        pairs["Postprocess upscaler 2"] = options.upscaler_2
    if seed is not None:
        pairs |= {"Seed": seed, "Softness": f"{options.softness:g}"}
    return ", ".join(f"{key}: {value}" for key, value in pairs.items())
