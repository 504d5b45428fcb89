"""JSON bodies: right fields with wrong values, depth, length, doubled keys, and text that is hardly text."""

import json
import random
from collections.abc import Iterator
from typing import Any

from tools.fuzz.case import Case, request
from tools.fuzz.mutate import mutate

_ROUTES: tuple[tuple[str, dict[str, Any]], ...] = (
    ("/api/v1/generate", {"prompt": "a house", "model": "demo", "width": 64, "height": 64, "steps": 1, "seed": 1}),
    (
        "/sdapi/v1/txt2img",
        {"prompt": "a house", "model": "demo", "width": 64, "height": 64, "steps": 1, "cfg_scale": 1},
    ),
    ("/sdapi/v1/img2img", {"prompt": "a house", "model": "demo", "init_images": ["AAAA"], "image_strength": 0.5}),
    ("/sdapi/v1/extra-single-image", {"image": "AAAA", "upscaler_1": "Lanczos", "upscaling_resize": 2}),
    ("/sdapi/v1/extra-batch-images", {"imageList": [{"data": "AAAA", "name": "a"}], "upscaler_1": "Lanczos"}),
    ("/api/v1/jobs/prune", {"older_than_hours": 1000, "dry_run": True}),
    ("/api/v1/models/demo/load", {}),
)
_FIELDS = (
    *("negative_prompt", "seed", "width", "height", "steps", "guidance", "num_images", "lora_files", "lora_scales"),
    *("low_ram", "init_images", "image_strength", "denoising_strength", "sd_model_checkpoint", "model", "prompt"),
    *("batch_size", "n_iter", "sampler_name", "override_settings", "cfg_scale", "mask", "resolution", "softness"),
    *(
        "extend",
        "mask_blur",
        "inpainting_fill",
        "inpainting_mask_invert",
        "inpaint_full_res",
        "inpaint_full_res_padding",
    ),
    *("alwayson_scripts", "script_args", "styles", "upscaling_resize_w", "gfpgan_visibility", "resize_mode", "\0", ""),
)
_WORDS = (
    *("", " ", "\0", "\u202e", "\ud800", "🎨" * 100, "<lora:one:1>" * 50, "<lora:" * 500, "((((a:1.5" * 200),
    *("../../etc/passwd", "%00", "a" * 10_000, "a" * 10_001, " " * 9_999, "\n" * 5000, "NaN", "1e999", "0x10"),
    *("data:image/png;base64,", "http://127.0.0.1/", "[a|b]" * 300, "{{" * 2000, "\\" * 5000, "e\u0301" * 4000),
)
# No side of 2048, which is right and takes a CPU minutes.
_NUMBERS = (-1, 0, 1, 2, 63, 64, 2049, 2**31, 2**53 - 5, 2**64, -(2**63), 10**309, 0.5, -0.0, 1e308, 1e-320)


def cases(rng: random.Random, most: int) -> Iterator[Case]:
    """Yield requests whose body is JSON, nearly JSON or far from it."""
    while True:
        target, valid = rng.choice(_ROUTES)
        how, body = _body(rng, dict(valid), most)
        body = body[:most]
        content_type = rng.choice(
            ("application/json",) * 8 + ("text/plain", "application/json; charset=utf-16", "\xff")
        )
        yield Case("json", f"{target}: {how}", request("POST", target, body, content_type))


def valid() -> tuple[Case, ...]:
    """Return requests that are right."""
    return tuple(
        Case("json", "valid", request("POST", target, json.dumps(body).encode())) for target, body in _ROUTES[:2]
    )


def _body(rng: random.Random, body: dict[str, Any], most: int) -> tuple[str, bytes]:
    choice = rng.randrange(10)
    if choice == 0:
        how, data = mutate(rng, json.dumps(body).encode(), most)
        return f"bytes: {how}", data
    if choice == 1:
        return _deep(rng, most)
    if choice == 2:
        return _long(rng, body, most)
    if choice == 3:
        text = json.dumps(body)
        key = rng.choice(["prompt", "steps", rng.choice(_FIELDS)])
        double = ",".join(f"{json.dumps(key)}:{json.dumps(_value(rng))}" for _ in range(rng.choice((2, 1000))))
        return f"{key!r} doubled", f"{text[:-1]}{',' if body else ''}{double}}}".encode()
    if choice == 4:
        kind = rng.choice(("utf-16", "utf-32", "latin-1", "utf-8-sig", "utf-7"))
        return f"as {kind}", json.dumps(body | {"prompt": "hé"}, ensure_ascii=False).encode(kind)
    if choice == 5:
        top = rng.choice((b"", b"null", b"[]", b"0", b'"a"', b"NaN", b"{", b"}", b"\0", b"{}" * 2, b"//", b"'a'"))
        return f"only {top!r}", top
    for _ in range(rng.choice((1, 1, 2, 5))):
        body[rng.choice([*body, rng.choice(_FIELDS)])] = _value(rng)
    return "strange values", json.dumps(body).encode()


def _value(rng: random.Random, depth: int = 0) -> Any:
    choice = rng.randrange(7 if depth < 2 else 5)
    if choice < 2:
        return rng.choice(_WORDS)
    if choice < 4:
        return rng.choice(_NUMBERS)
    if choice == 4:
        return rng.choice((None, True, False, float("nan"), float("inf")))
    if choice == 5:
        return [_value(rng, depth + 1) for _ in range(rng.choice((0, 1, 4, 40)))]
    return {rng.choice(_FIELDS): _value(rng, depth + 1) for _ in range(rng.choice((0, 1, 5)))}


def _deep(rng: random.Random, most: int) -> tuple[str, bytes]:
    begin, end = rng.choice(((b"[", b"]"), (b'{"a":', b"}")))
    depth = min(rng.choice((50, 900, 5000, 1_000_000)), most // 8)
    inner = begin * depth + (b"1" + end * depth if rng.random() < 0.7 else b"")
    return f"nested {depth} deep", b'{"prompt":"a","x":' + inner + b"}"


def _long(rng: random.Random, body: dict[str, Any], most: int) -> tuple[str, bytes]:
    """Lists and names without end: what a decoder builds of them is much larger than they are."""
    field = rng.choice(("x", "init_images", "lora_files", "lora_scales", "override_settings", "alwayson_scripts"))
    item = rng.choice((b"[]", b"{}", b"0", b'""', b"null", b'{"a":[]}', b"1e5", b'"AAAA"'))
    count = min(rng.choice((5, 1000, 2_000_000)), most // (len(item) + 1))
    text = json.dumps(body).encode()
    if rng.random() < 0.3:
        count = min(count, most // 12)
        names = b",".join(b'"n%d":0' % number for number in range(count))
        return f"{count} unknown fields", text[:-1] + (b"," if body and count else b"") + names + b"}"
    listed = b"[" + item + (b"," + item) * count + b"]"
    return f"{field}: {count} × {item!r}", text[:-1] + (b"," if body else b"") + f'"{field}":'.encode() + listed + b"}"
