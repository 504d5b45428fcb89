"""Mutations that know nothing of a format: bits, bytes, cuts, repeats and numbers at the edge."""

import random
import struct

_EDGES = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 0x7FFFFFFFFFFFFFFF)


def mutate(rng: random.Random, data: bytes, most: int) -> tuple[str, bytes]:
    """Return what was done and the changed bytes, no more than ``most`` of them."""
    done: list[str] = []
    for _ in range(rng.choice((1, 1, 1, 2, 4, 16))):
        name, change = rng.choice(_CHANGES)
        data = change(rng, data or b"\0")[:most]
        done.append(name)
    return ", ".join(done), data


def _flip(rng: random.Random, data: bytes) -> bytes:
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 8, 64))):
        changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def _replace(rng: random.Random, data: bytes) -> bytes:
    begin = rng.randrange(len(data))
    return data[:begin] + rng.randbytes(rng.choice((1, 2, 4, 32))) + data[begin + rng.randrange(8) :]


def _cut(rng: random.Random, data: bytes) -> bytes:
    return data[: rng.randrange(len(data))]


def _drop(rng: random.Random, data: bytes) -> bytes:
    begin = rng.randrange(len(data))
    return data[:begin] + data[begin + rng.randrange(1, 64) :]


def _repeat(rng: random.Random, data: bytes) -> bytes:
    begin = rng.randrange(len(data))
    part = data[begin : begin + rng.randrange(1, 64)]
    return data[:begin] + part * rng.choice((2, 3, 16, 1000)) + data[begin:]


def _edge(rng: random.Random, data: bytes) -> bytes:
    """Put a number of which some program will be afraid where a length may stand."""
    order, (size, code) = rng.choice("<>"), rng.choice(((2, "H"), (4, "I"), (8, "Q")))
    number = struct.pack(f"{order}{code}", rng.choice(_EDGES) & ((1 << 8 * size) - 1))
    begin = rng.randrange(len(data))
    return data[:begin] + number + data[begin + size :]


_CHANGES = (
    ("bits flipped", _flip),
    ("bytes replaced", _replace),
    ("cut off", _cut),
    ("bytes dropped", _drop),
    ("a part repeated", _repeat),
    ("an extreme number", _edge),
)
