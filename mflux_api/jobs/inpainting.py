"""Requests that keep a part of their first init image: what is masked and how, with every default filled in."""

from typing import Final

import attrs

from mflux_api.jobs.request import MODIFIERS_OF_MASKS, GenerateRequest

# Those of A1111's web page. Its API has others (0, the masked part alone, no padding), which suit no client in general.
DEFAULT_BLUR: Final = 4.0
DEFAULT_FILL: Final = 1
DEFAULT_PADDING: Final = 32


@attrs.frozen(kw_only=True)
class Inpainting:
    """The parameters of a run that keeps a part of its first init image."""

    result: tuple[int, int]
    """Width and height of the result in pixels, which need not be multiples of 16."""
    masked: bool = False
    """Whether there is a mask; without one the image is extended alone."""
    transparent: bool = False
    """Whether of a mask with transparency that is inpainted which is transparent."""
    invert: bool = False
    """Whether the mask's black is inpainted."""
    blur: tuple[float, float] = (DEFAULT_BLUR, DEFAULT_BLUR)
    """Radius of the mask's edge in pixels of the result, across and down."""
    fill: int = DEFAULT_FILL
    """What the masked part starts from, as A1111 counts: 0 its surroundings' colours, 1 itself, 2 noise, 3 nothing."""
    padding: int | None = None
    """Pixels around the masked part that are generated with it; ``None``: the whole image is."""
    extend: tuple[int, int, int, int] = (0, 0, 0, 0)
    """Pixels that are added left, above, right and below."""

    @property
    def margins(self) -> dict[str, int] | None:
        """``extend`` as a request has it; ``None`` where nothing is added."""
        if not any(self.extend):
            return None
        return dict(zip(("left", "top", "right", "bottom"), self.extend, strict=True))


def wants_inpainting(request: GenerateRequest) -> bool:
    """Whether a checked request keeps a part of its first init image."""
    return bool(request.mask or request.extend)


def resolve_inpainting(request: GenerateRequest, source: tuple[int, int], run: tuple[int, int]) -> Inpainting:
    """Fill in what a request for inpainting leaves to the service.

    Args:
        request: a checked request.
        source: size of the first init image, extended.
        run: the size to generate at.
    """
    cropped = bool(request.inpaint_full_res)
    as_given = cropped or (request.width is None and request.height is None)
    blur_x, blur_y = (DEFAULT_BLUR if blur is None else blur for blur in (request.mask_blur_x, request.mask_blur_y))
    padding = request.inpaint_full_res_padding
    extend = request.extend
    return Inpainting(
        result=source if as_given else run,
        masked=bool(request.mask),
        transparent=request.mask_alpha == "transparent",
        invert=bool(request.inpainting_mask_invert),
        blur=(blur_x, blur_y) if request.mask_blur is None else (request.mask_blur, request.mask_blur),
        fill=DEFAULT_FILL if request.inpainting_fill is None else request.inpainting_fill,
        padding=None if not cropped else DEFAULT_PADDING if padding is None else padding,
        extend=(0, 0, 0, 0) if extend is None else (extend.left, extend.top, extend.right, extend.bottom),
    )


_FLAGS = ("inpainting_mask_invert", "inpaint_full_res")


def unused_modifiers(request: GenerateRequest) -> tuple[str, ...]:
    """Return a sentence for each field about masks that a checked request has and that counts for nothing."""
    if not wants_inpainting(request):
        values = {name: getattr(request, name) for name in MODIFIERS_OF_MASKS}
        given = [name for name, value in values.items() if value or (value == 0 and name not in _FLAGS)]
        names = ", ".join(f"'{name}'" for name in given)
        return (f"Without 'mask' or 'extend' nothing is masked; ignored: {names}",) if given else ()
    sentences = list[str]()
    blur = request.mask_blur
    for name in ("mask_blur_x", "mask_blur_y"):
        # A1111's clients send its default beside the other.
        if blur is not None and getattr(request, name) not in (None, blur, DEFAULT_BLUR):
            sentences.append(f"'{name}' is not used: 'mask_blur' counts for both directions")
    if request.inpaint_full_res_padding is not None and not request.inpaint_full_res:
        sentences.append("'inpaint_full_res_padding' is not used: 'inpaint_full_res' is not set")
    if request.inpainting_fill in (2, 3) and request.image_strength == 0:
        sentences.append("'inpainting_fill' is not used: at strength 0 no step runs that would make something of it")
    if request.inpainting_mask_invert and not request.mask:
        sentences.append("'inpainting_mask_invert' is not used: there is no 'mask'")
    return tuple(sentences)
