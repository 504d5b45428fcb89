"""Colour profiles: followed when an image is decoded, and a word about those that cannot be."""

import struct
import zlib
from collections.abc import Callable, Mapping
from typing import Any

import pytest
from PIL import Image, ImageCms

from mflux_api.images.child.decode import decode_image
from mflux_api.images.child.formats.refused import MAX_PROFILE
from tests.support import icc_profiles as icc
from tests.support.hostile_images import chunk, saved

COLOUR = (200, 60, 30)
KINDS = ["PNG", "JPEG", "WEBP", "TIFF", "AVIF"]
LOSSLESS: Mapping[str, Mapping[str, Any]] = {"WEBP": {"lossless": True}, "JPEG": {"quality": 98, "subsampling": 0}}


def decoded(data: bytes) -> tuple[Image.Image, list[str]]:
    warnings = list[str]()
    return decode_image(data, 0, warn=warnings.append), warnings


def image(mode: str = "RGB") -> Image.Image:
    return Image.new("I;16", (32, 32), 20000) if mode == "I;16" else Image.new("RGB", (32, 32), COLOUR).convert(mode)


def near(pixel: Any, colour: tuple[int, int, int], distance: int = 6) -> bool:
    return all(abs(a - b) <= distance for a, b in zip(pixel, colour, strict=True))


def with_profile_in_bmp(profile: bytes) -> bytes:
    data = saved(image(), "BMP")
    header = struct.pack("<I", 124) + data[18:54] + bytes(16) + b"DEBM" + bytes(48)
    pixels = data[54:]
    header += struct.pack("<4I", 4, 124 + len(pixels), len(profile), 0)
    return data[:10] + struct.pack("<I", 14 + len(header)) + header + pixels + profile


def with_profile_in_gif(profile: bytes) -> bytes:
    data = saved(image("P"), "GIF")
    at = 13 + 3 * 2 ** ((data[10] & 7) + 1)
    blocks = b"".join(bytes((len(profile[n : n + 255]),)) + profile[n : n + 255] for n in range(0, len(profile), 255))
    return data[:at] + b"\x21\xff\x0bICCRGBG1012" + blocks + b"\0" + data[at:]


@pytest.mark.parametrize("kind", KINDS)
def test_image_with_another_profile_has_the_colours_that_it_means(kind: str) -> None:
    out, warnings = decoded(saved(image(), kind, icc_profile=icc.swapped(), **LOSSLESS.get(kind, {})))
    assert near(out.getpixel((9, 9)), (30, 60, 200), 12)
    assert (out.mode, warnings) == ("RGB", [])


@pytest.mark.parametrize("made", [with_profile_in_bmp, with_profile_in_gif])
def test_profiles_that_few_programs_write_are_followed_too(made: Callable[[bytes], bytes]) -> None:
    out, warnings = decoded(made(icc.swapped()))
    red, _, blue = out.getpixel((9, 9))  # type: ignore[misc]  # three levels
    assert (red < 60 < 180 < blue, warnings) == (True, [])
    out, warnings = decoded(made(icc.swapped()[:200]))
    assert (near(out.getpixel((9, 9)), COLOUR, 40), len(warnings)) == (True, 1)


@pytest.mark.parametrize("mode", ["RGBA", "P", "PA"])
def test_colours_change_and_transparency_does_not(mode: str) -> None:
    half = Image.new("RGBA", (32, 32), (*COLOUR, 255))
    half.paste((0, 0, 0, 0), (0, 0, 16, 32))
    source = half.quantize() if mode == "P" else half.convert(mode)
    out, _ = decoded(saved(source, "TIFF" if mode == "PA" else "PNG", icc_profile=icc.swapped()))
    assert (out.getpixel((3, 3)), near(out.getpixel((29, 3)), (30, 60, 200))) == ((255, 255, 255), True)


def test_colour_that_stands_for_transparency_stands_for_it_before_it_changes() -> None:
    source = image()
    source.paste((1, 2, 3), (0, 0, 16, 32))
    out, _ = decoded(saved(source, "PNG", icc_profile=icc.swapped(), transparency=(1, 2, 3)))
    assert (out.getpixel((3, 3)), near(out.getpixel((29, 3)), (30, 60, 200))) == ((255, 255, 255), True)


@pytest.mark.parametrize(("mode", "kind"), [("L", "PNG"), ("L", "JPEG"), ("LA", "PNG"), ("I;16", "PNG"), ("1", "PNG")])
def test_grey_levels_follow_a_profile_of_grey(mode: str, kind: str) -> None:
    plain, _ = decoded(saved(image(mode), kind))
    out, warnings = decoded(saved(image(mode), kind, icc_profile=icc.grey()))
    before, after = plain.getpixel((9, 9)), out.getpixel((9, 9))
    # Linear light: sRGB's number for it is higher, where it is neither black nor white.
    assert after == before if mode == "1" else after[0] > before[0] + 30  # type: ignore[index]
    assert (out.mode, warnings) == ("RGB", [])


def png_of_grey_and_alpha_in_16_bits(profile: bytes) -> bytes:
    row = b"\0" + b"\x4e\x20\xff\xff" * 32
    parts = {
        b"IHDR": struct.pack(">IIBBBBB", 32, 32, 16, 4, 0, 0, 0),
        b"iCCP": b"grey\0\0" + zlib.compress(profile),
        b"IDAT": zlib.compress(row * 32),
        b"IEND": b"",
    }
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(kind, body) for kind, body in parts.items())


def webp_of_grey(profile: bytes) -> bytes:
    return saved(Image.new("L", (32, 32), 78).convert("RGB"), "WEBP", icc_profile=profile, lossless=True)


@pytest.mark.parametrize("made", [png_of_grey_and_alpha_in_16_bits, webp_of_grey])
def test_profile_of_grey_fits_greys_for_which_the_decoder_has_no_mode(made: Callable[[bytes], bytes]) -> None:
    out, warnings = decoded(made(icc.grey()))
    assert (near(out.getpixel((9, 9)), (150, 150, 150)), warnings) == (True, [])


def test_grey_levels_follow_a_profile_of_rgb() -> None:
    bright = icc.matrix((0.4361, 0.2225, 0.0139), (0.3851, 0.7169, 0.0971), (0.1431, 0.0606, 0.7141), gamma=1.0)
    out, warnings = decoded(saved(image("L"), "PNG", icc_profile=bright))
    assert (near(out.getpixel((9, 9)), (167, 167, 167)), warnings) == (True, [])


@pytest.mark.parametrize("kind", ["JPEG", "TIFF"])
def test_inks_follow_the_profile_of_their_press(kind: str) -> None:
    cyan = Image.new("CMYK", (32, 32), (255, 0, 0, 0))
    out, warnings = decoded(saved(cyan, kind, icc_profile=icc.cmyk(), **LOSSLESS.get(kind, {})))
    red, green, blue = out.getpixel((9, 9))  # type: ignore[misc]  # three levels
    assert green > 120 > max(red, blue)
    assert warnings == []


def test_lab_without_a_profile_is_read() -> None:
    out, warnings = decoded(saved(Image.new("LAB", (32, 32), (255, 128, 128)), "TIFF"))
    assert (near(out.getpixel((9, 9)), (255, 255, 255)), warnings) == (True, [])


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "LA", "P", "1", "I;16"])
def test_profile_that_is_srgb_changes_no_bit(mode: str) -> None:
    source = image(mode) if mode == "I;16" else Image.effect_noise((64, 64), 120).convert("RGB").convert(mode)
    out, warnings = decoded(saved(source, "PNG", icc_profile=icc.srgb()))
    assert (out.tobytes(), warnings) == (decoded(saved(source, "PNG"))[0].tobytes(), [])


def no_tags(profile: bytes) -> bytes:
    return profile[:128] + bytes(4)


BROKEN: Mapping[str, Callable[[], bytes]] = {
    "text": lambda: b"profile",
    "cut": lambda: icc.swapped()[:300],
    "no tags": lambda: no_tags(icc.swapped()),
    "zeros": lambda: bytes(5000),
    "of a device link": lambda: icc.swapped()[:12] + b"link" + icc.swapped()[16:],
    "of named colours": lambda: icc.swapped()[:12] + b"nmcl" + icc.swapped()[16:],
    "of seven inks": lambda: icc.swapped()[:16] + b"7CLR" + icc.swapped()[20:],
    "of a press": icc.cmyk,
    "of grey": icc.grey,
}


@pytest.mark.parametrize(
    ("name", "kind"), [("cut", "AVIF"), *((name, kind) for name in BROKEN for kind in KINDS if kind != "AVIF")]
)
def test_profile_that_cannot_be_followed_is_ignored_with_a_word(name: str, kind: str) -> None:
    out, warnings = decoded(saved(image(), kind, icc_profile=BROKEN[name](), **LOSSLESS.get(kind, {})))
    assert near(out.getpixel((9, 9)), COLOUR, 12)
    (warning,) = warnings
    assert warning.startswith("Image 1 of 'init_images': its colour profile ")
    assert warning.endswith("; it was ignored")


def test_profile_that_is_damaged_in_its_container_is_ignored_with_a_word() -> None:
    png = saved(image(), "PNG")

    def with_chunk(part: bytes) -> bytes:
        return png[:33] + part + png[33:]

    whole = chunk(b"iCCP", b"p\0\0" + zlib.compress(icc.swapped()))
    jpeg = saved(image(), "JPEG", icc_profile=icc.swapped() + bytes(70_000))
    second = jpeg.index(b"ICC_PROFILE\0\x02\x02")
    webp = saved(image(), "WEBP", lossless=True, icc_profile=icc.swapped())
    profile = webp.index(b"ICCP")
    for data, problem in (
        (with_chunk(whole[:-1] + b"\0"), "is damaged"),
        (with_chunk(chunk(b"iCCP", b"p\0\0no zlib")), "is damaged"),
        (with_chunk(chunk(b"iCCP", b"p\0\0" + zlib.compress(icc.swapped())[:50])), "is damaged"),
        (with_chunk(chunk(b"iCCP", b"")), "is damaged"),
        (with_chunk(chunk(b"iCCP", b"p\0\0" + zlib.compress(bytes(MAX_PROFILE + 1)))), "is too large"),
        (with_chunk(chunk(b"iCCP", b"p\0\0" + bytes(MAX_PROFILE))), "is too large"),
        (jpeg[: second - 4] + jpeg[second + struct.unpack(">H", jpeg[second - 2 : second])[0] - 2 :], "is not whole"),
        (webp + b"", None),
        (webp[:profile] + webp[profile + 8 + len(icc.swapped()) :] + b"ICCP\xff\xff\0\0", "is not whole"),
    ):
        out, warnings = decoded(data)
        assert near(out.getpixel((9, 9)), (30, 60, 200) if problem is None else COLOUR, 12), problem
        assert [problem in warning for warning in warnings if problem] == ([True] if problem else [])


def test_profile_in_parts_out_of_order_is_put_together() -> None:
    profile = icc.swapped()
    parts = [
        b"\xff\xe2" + struct.pack(">H", len(piece) + 16) + b"ICC_PROFILE\0" + bytes((number, 2)) + piece
        for number, piece in ((2, profile[200:]), (1, profile[:200]))
    ]
    jpeg = saved(image(), "JPEG", **LOSSLESS["JPEG"])
    out, warnings = decoded(jpeg[:2] + b"".join(parts) + jpeg[2:])
    assert (near(out.getpixel((9, 9)), (30, 60, 200), 12), warnings) == (True, [])


def test_littlecms_profile_of_lab_is_followed() -> None:
    lab = ImageCms.createProfile("LAB")
    transform = ImageCms.buildTransform(ImageCms.createProfile("sRGB"), lab, "RGB", "LAB")
    pixels = ImageCms.applyTransform(image(), transform)
    assert pixels is not None
    out, warnings = decoded(saved(pixels, "TIFF", icc_profile=ImageCms.ImageCmsProfile(lab).tobytes()))
    assert (near(out.getpixel((9, 9)), COLOUR), warnings) == (True, [])


def test_profile_of_a_link_is_not_called_damaged() -> None:
    link = icc.swapped()[:12] + b"link" + icc.swapped()[16:]
    _, (warning,) = decoded(saved(image(), "PNG", icc_profile=link))
    assert "is a link between devices" in warning
