"""What the self-test reads and writes: images to compare, and a small LoRA that needs no library."""

import json
import math
import random
import struct
from pathlib import Path

from mflux_api.system.threads import read_in_thread

_RANK = 4
_SPREAD = 0.05
_MAX_LEVEL = 255.0


def write_noise_lora(path: Path, checkpoint: Path) -> None:
    """Write a LoRA of rank 4 for one layer of a diffusers checkpoint: the same noise each time, plain to see at 1."""
    config = json.loads((checkpoint / "transformer" / "config.json").read_text("utf-8"))
    width = config["num_attention_heads"] * config["attention_head_dim"]
    layer = "transformer.transformer_blocks.0.attn.to_q"
    draw = random.Random(1)
    header: dict[str, object] = {}
    data = b""
    for part, shape in (("lora_A", [_RANK, width]), ("lora_B", [width, _RANK])):
        values = [draw.gauss(0.0, _SPREAD) for _ in range(_RANK * width)]
        packed = struct.pack(f"<{len(values)}f", *values)
        header[f"{layer}.{part}.weight"] = {
            "dtype": "F32",
            "shape": shape,
            "data_offsets": [len(data), len(data) + len(packed)],
        }
        data += packed
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


async def rgb_of(path: Path) -> bytes:
    """Return the pixels of an image file, RGB8 row by row."""

    def read() -> bytes:
        # Imported here: the other commands do not need it.
        from PIL import Image

        with Image.open(path) as image:
            return image.convert("RGB").tobytes()

    return await read_in_thread(read)


def psnr(one: bytes, other: bytes) -> float:
    """Return the peak signal-to-noise ratio of two images of one size in dB; infinite where they are equal."""
    if len(one) != len(other):
        return 0.0
    squares = sum((a - b) ** 2 for a, b in zip(one, other, strict=True))
    return math.inf if squares == 0 else 10 * math.log10(_MAX_LEVEL**2 * len(one) / squares)
