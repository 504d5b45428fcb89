"""Images: a small valid seed of each format, then its chunks, scans, frames, sizes and bytes are changed."""

import base64
import json
import random
import struct
import zlib
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from io import BytesIO

from tools.fuzz.case import Case, request
from tools.fuzz.mutate import mutate

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_SIDES = (0, 1, 15, 63, 8000, 65535, 2**31 - 1, 2**32 - 1)

Change = Callable[[random.Random, int], bytes]


def cases(rng: random.Random, most: int) -> Iterator[Case]:
    """Yield requests with a mutated image, mostly to the route that only decodes and resizes."""
    while True:
        how, data = _image(rng, most)
        yield Case("images", how, _to_request(rng, data))


def valid() -> tuple[Case, ...]:
    """Return requests that are right."""
    text = base64.b64encode(seeds()["png"]).decode()
    return tuple(Case("images", "valid", make(text)) for make in (_edit, _inpaint, _upscale))


def _to_request(rng: random.Random, data: bytes) -> bytes:
    text = base64.b64encode(data).decode()
    if rng.random() < 0.1:
        text = f"data:image/png;base64,{text}"
    return rng.choice((_edit, _inpaint))(text) if rng.random() < 0.1 else _upscale(text)


def _inpaint(text: str) -> bytes:
    source = base64.b64encode(seeds()["png"]).decode()
    body = {"prompt": "a house", "model": "demo", "init_images": [source], "mask": text, "steps": 1}
    return request("POST", "/sdapi/v1/img2img", json.dumps(body).encode())


def _edit(text: str) -> bytes:
    body = {"prompt": "a house", "model": "demo", "init_images": [text], "width": 64, "height": 64, "steps": 1}
    return request("POST", "/sdapi/v1/img2img", json.dumps(body).encode())


def _upscale(text: str) -> bytes:
    body = {"image": text, "upscaler_1": "Lanczos", "upscaling_resize": 1}
    return request("POST", "/sdapi/v1/extra-single-image", json.dumps(body).encode())


def _image(rng: random.Random, most: int) -> tuple[str, bytes]:
    if rng.random() < 0.4:
        name, change = rng.choice(_CHANGES)
        data = change(rng, most)[:most]
        if rng.random() < 0.3:
            how, data = mutate(rng, data, most)
            name = f"{name}, {how}"
        return name, data
    kind = rng.choice([*seeds()])
    how, data = mutate(rng, seeds()[kind], most)
    return f"{kind}: {how}", data


@cache
def seeds() -> dict[str, bytes]:
    """Return a small image in every format that the service reads, and in the variants that decoders have code for."""
    from PIL import Image

    image = Image.linear_gradient("L").resize((48, 48)).convert("RGB")
    kinds: dict[str, tuple[Image.Image, str, dict[str, object]]] = {
        "png": (image, "PNG", {}),
        "png, palette": (image.quantize(16), "PNG", {"transparency": 0}),
        "png, 16 bits": (Image.new("I;16", (48, 48), 40000), "PNG", {}),
        "jpeg": (image, "JPEG", {}),
        "jpeg, progressive": (image, "JPEG", {"progressive": True}),
        "jpeg, cmyk": (image.convert("CMYK"), "JPEG", {}),
        "webp": (image, "WEBP", {}),
        "webp, lossless": (image, "WEBP", {"lossless": True}),
        "gif": (image.quantize(16), "GIF", {}),
        "gif, animated": (image.quantize(16), "GIF", {"save_all": True, "append_images": [image.quantize(8)] * 3}),
        "bmp": (image, "BMP", {}),
        "tiff": (image, "TIFF", {}),
        "tiff, lzw": (image, "TIFF", {"compression": "tiff_lzw"}),
        "avif": (image, "AVIF", {}),
    }
    made = {}
    for name, (source, kind, options) in kinds.items():
        buffer = BytesIO()
        try:
            source.save(buffer, kind, **options)
        except (OSError, KeyError):
            # This Pillow was built without it.
            continue
        made[name] = buffer.getvalue()
    return made


def chunk(kind: bytes, data: bytes = b"") -> bytes:
    """Return one chunk of a PNG, with the right checksum."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def _png(chunks: Sequence[bytes], *, width: int = 48, height: int = 48, depth: int = 8, color: int = 2) -> bytes:
    rows = height * (width * 3 + 1)
    pixels = chunk(b"IDAT", zlib.compress(bytes(rows if rows < 10**6 else 1)))
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0))
    return _SIGNATURE + header + b"".join(chunks) + pixels + chunk(b"IEND")


def _many_chunks(rng: random.Random, most: int) -> bytes:
    kind = rng.choice(
        (b"tEXt", b"iTXt", b"zTXt", b"eXIf", b"iCCP", b"fcTL", b"fdAT", b"tIME", b"IDAT", b"zzzz", b"PLTE")
    )
    each = chunk(kind, rng.choice((b"", b"a\0b", rng.randbytes(16))))
    return _png([each * min(rng.choice((10, 1000, 300_000)), most // len(each))])


def _packed_text(rng: random.Random, most: int) -> bytes:
    """Text, a colour profile or EXIF that is small in the file and large when it is unpacked."""
    packed = zlib.compress(bytes(min(most * 100, 50_000_000)), 9)
    kinds = (
        chunk(b"zTXt", b"parameters\0\0" + packed),
        chunk(b"iTXt", b"parameters\0\1\0\0\0" + packed),
        chunk(b"iCCP", b"profile\0\0" + packed),
    )
    return _png([rng.choice(kinds) * rng.choice((1, 1, 3))])


def _lying_size(rng: random.Random, most: int) -> bytes:
    width, height = rng.choice(_SIDES), rng.choice(_SIDES)
    return _png([], width=width, height=height, depth=rng.choice((1, 8, 16, 3)), color=rng.choice((0, 2, 3, 4, 6, 5)))


def _many_scans(rng: random.Random, most: int) -> bytes:
    """A progressive JPEG whose scans come again and again; each costs the whole image."""
    data = seeds()["jpeg, progressive"]
    begin = data.index(b"\xff\xda")
    scans, end = data[begin:-2], data[-2:]
    return data[:begin] + scans * min(rng.choice((2, 50, 1000)), max(1, most // len(scans))) + end


def _tall_jpeg(rng: random.Random, most: int) -> bytes:
    """Few bytes, many pixels: the rest is missing or made of restart markers."""
    data = bytearray(seeds()[rng.choice(("jpeg", "jpeg, progressive"))])
    frame = max(data.find(b"\xff\xc0"), data.find(b"\xff\xc2"))
    data[frame + 5 : frame + 9] = struct.pack(">HH", rng.choice((16, 5600, 65535)), rng.choice((16, 5600, 65535)))
    return bytes(data[:-2]) + b"\xff\xd0" * rng.choice((0, 1000)) + b"\xff\xd9"


def _many_segments(rng: random.Random, most: int) -> bytes:
    data = seeds()["jpeg"]
    marker = rng.choice((0xE0, 0xE1, 0xE2, 0xED, 0xFE, 0xDB, 0xC4, 0xDD))
    body = rng.choice((b"", b"Exif\0\0II*\0\x08\0\0\0", b"ICC_PROFILE\0\1\2", rng.randbytes(60)))
    segment = struct.pack(">BBH", 0xFF, marker, len(body) + 2) + body
    return data[:2] + segment * min(rng.choice((1, 100, 30_000)), most // len(segment)) + data[2:]


def _many_frames(rng: random.Random, most: int) -> bytes:
    data = seeds()["gif, animated"]
    begin = data.index(b"\x21\xf9")
    frames = data[begin:-1]
    return data[:begin] + frames * min(rng.choice((2, 100, 5000)), max(1, most // len(frames))) + b";"


def _looping_tiff(rng: random.Random, most: int) -> bytes:
    """A directory that leads to itself, or has more entries than there are bytes."""
    count = rng.choice((0, 1, 65535))
    entry = struct.pack("<HHII", rng.choice((256, 257, 273, 279, 34665, 700)), rng.choice((1, 3, 4, 7, 99)), 2**31, 8)
    return b"II*\0" + struct.pack("<I", 8) + struct.pack("<H", count) + entry * min(count, most // 12) + b"\x08\0\0\0"


_CHANGES: tuple[tuple[str, Change], ...] = (
    ("png with many chunks", _many_chunks),
    ("png with packed text", _packed_text),
    ("png that lies about its size", _lying_size),
    ("jpeg with many scans", _many_scans),
    ("jpeg that lies about its size", _tall_jpeg),
    ("jpeg with many segments", _many_segments),
    ("gif with many frames", _many_frames),
    ("tiff with a strange directory", _looping_tiff),
)
