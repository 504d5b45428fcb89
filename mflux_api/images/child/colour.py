"""Colours of an image that has a profile become those of sRGB, which is what models and browsers take pixels for."""

from io import BytesIO

from PIL import Image, ImageChops, ImageCms

from mflux_api.images.child.formats.refused import BadProfile

_HEADER_BYTES = 128
_MODES = {b"RGB ": "RGB", b"GRAY": "L", b"CMYK": "CMYK", b"Lab ": "LAB"}
"""Pillow's name for the pixels that a profile is for, by what it says."""
_FITTING = {
    "RGB": frozenset(("RGB", "RGBA", "RGBX", "P", "PA", "L", "LA", "1", "YCbCr")),
    "L": frozenset(("L", "LA", "1")),
    "CMYK": frozenset(("CMYK",)),
    "LAB": frozenset(("LAB",)),
}
_CLASSES = (b"scnr", b"mntr", b"prtr", b"spac")
"""Profiles of devices and colour spaces; links, abstract ones and named colours say nothing about pixels."""
_ABSTRACT = b"abst"
"""The class of LittleCMS's own profile of Lab, which programs write beside such pixels."""
_SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))
_SAME = 1
"""Levels by which a profile may differ from sRGB and is taken for it: what rounding makes of its curves."""
_STEPS = range(0, 256, 15)
_PROBES = {
    "RGB": bytes(level for red in _STEPS for green in _STEPS for blue in _STEPS for level in (red, green, blue)),
    "L": bytes(range(256)),
}


def to_srgb(image: Image.Image, profile: bytes) -> Image.Image:
    """Return an image of 8 bits a channel with the colours that its profile means, by its perceptual intent.

    One whose profile is sRGB already is returned as it is.

    Raises:
        BadProfile: the profile is damaged, or not for such an image.
    """
    if len(profile) < _HEADER_BYTES or profile[36:40] != b"acsp":
        raise BadProfile("is damaged")
    mode = _MODES.get(profile[16:20])
    if mode is None:
        raise BadProfile("is for colours that are not known")
    if profile[12:16] not in _CLASSES and (mode, profile[12:16]) != ("LAB", _ABSTRACT):
        raise BadProfile("is a link between devices, or an effect, and says nothing about pixels")
    if image.mode not in _FITTING[mode] and not (mode == "L" and _is_grey(image)):
        raise BadProfile("does not fit its pixels")
    transform = _transform(profile, mode)
    if _changes_nothing(transform, mode):
        return image
    alpha = image.convert("RGBA").getchannel("A") if image.has_transparency_data else None
    if alpha is not None:
        # A colour that stands for transparency is not that colour afterwards.
        image = image.convert("RGBA").convert("RGB")
    if mode == "L" and image.mode == "RGB":
        image = image.getchannel(0)
    elif image.mode != mode:
        image = image.convert(mode)
    converted = _apply(transform, image)
    if alpha is not None:
        converted.putalpha(alpha)
    return converted


def _is_grey(image: Image.Image) -> bool:
    """Whether an image of another mode has greys alone: WebP has no mode for them, nor Pillow for 16 bits and alpha."""
    if image.mode not in _FITTING["RGB"]:
        return False
    red, green, blue = image.convert("RGBA").convert("RGB").split()
    return not any(ImageChops.difference(red, other).getbbox() for other in (green, blue))


def lab_to_rgb(image: Image.Image) -> Image.Image:
    """Return an image of Lab, which has no profile, as RGB."""
    lab = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB"))
    return _apply(ImageCms.buildTransform(lab, _SRGB, "LAB", "RGB", ImageCms.Intent.PERCEPTUAL), image)


def _transform(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform:
    try:
        source = ImageCms.ImageCmsProfile(BytesIO(profile))
        return ImageCms.buildTransform(source, _SRGB, mode, "RGB", ImageCms.Intent.PERCEPTUAL)
    except MemoryError:
        raise
    except Exception:  # noqa: BLE001 - the library may raise anything on bytes from outside, and it means one thing
        raise BadProfile("is damaged") from None


def _changes_nothing(transform: ImageCms.ImageCmsTransform, mode: str) -> bool:
    levels = _PROBES.get(mode)
    if levels is None:
        return False
    probe = Image.frombytes(mode, (len(levels) // len(mode), 1), levels)
    difference = ImageChops.difference(_apply(transform, probe), probe.convert("RGB"))
    return max(difference.tobytes()) <= _SAME


def _apply(transform: ImageCms.ImageCmsTransform, image: Image.Image) -> Image.Image:
    converted = ImageCms.applyTransform(image, transform)
    assert converted is not None
    return converted
