"""Outer space and the surfaces of alien worlds."""

import torch
from torch import Tensor

from training.demo.world.fields import Canvas, fixed_noise, mix, smoothstep
from training.demo.world.land import ridge
from training.demo.world.sky import draw_stars

_NEBULA = ("#7a2fa8", "#1f5fc8", "#108a86", "#b0306a")
_PLANETS = ("#c8502e", "#3f7ad0", "#4fa860", "#d9b24a", "#e8e6e0", "#4a4a58", "#e08a3a", "#8a4fc0", "#e07aa8")
# Alien air: top and horizon; and ground: near and far.
_AIR_TOP = ("#23104f", "#053640", "#3c0f2e", "#1d1766")
_AIR_LOW = ("#e558a8", "#6ae6b4", "#ff9d4f", "#86d4ff")
_GROUND_NEAR = ("#2d0f4a", "#083c3c", "#5a1a24", "#1c1f66")
_GROUND_FAR = ("#b64f9c", "#4fbf9a", "#d9714a", "#6f8fe0")
_LANDS_NEAR = ("#2d0f4a", "#0f5a2a", "#dbe6f2", "#8f1d14", "#1b3f9a", "#b8800e", "#4a1f86")
_LANDS_FAR = ("#b64f9c", "#6fbf7c", "#f2f7fb", "#dd6a52", "#6f9be0", "#ecc765", "#a17fd0")


def draw_space(canvas: Canvas) -> None:
    """Draw stars, a nebula, and a planet or two."""
    grid = canvas.grid
    canvas.lay(
        mix(canvas.plain("#05060f"), canvas.plain("#0b1030"), grid.down), torch.ones(1, 1, 1, 1, device=grid.device)
    )
    first = canvas.integers(4)
    for number in range(3):
        color = canvas.color(_NEBULA, (first + number) % 4)
        x, y = grid.at_x(canvas.uniform(0.15, 0.85)), grid.at_y(canvas.uniform(0.15, 0.85))
        size = 0.24 + 0.08 * number
        blob = torch.exp(-(((grid.x - x) ** 2 + 1.6 * (grid.y - y) ** 2) / size**2))
        swirl = 0.75 + 0.25 * torch.sin(grid.x * 9 + 3 * torch.sin(grid.y * 7 + number * 2))
        canvas.lay(color, blob * swirl * 0.5)
    draw_stars(canvas, torch.ones_like(first).float(), 3.0)
    canvas.light = torch.ones_like(canvas.light)
    canvas.haze = canvas.haze * 0 + canvas.plain("#3a3a6a")
    _body_in_space(canvas)
    # A scene that names no planet shows one all the same.
    unnamed = canvas.has("thing", "none") * canvas.has("body", "none")
    color = canvas.color(_PLANETS, canvas.integers(9))
    draw_planet(
        canvas,
        grid.at_x(canvas.uniform(0.25, 0.75)),
        grid.at_y(canvas.uniform(0.35, 0.65)),
        0.2,
        color,
        unnamed,
        canvas.integers(2).float(),
    )


def _body_in_space(canvas: Canvas) -> None:
    """Draw the sun or the moon as seen from space."""
    grid = canvas.grid
    x, y = canvas.side("body_side"), grid.at_y(0.32)
    distance = torch.sqrt((grid.x - x) ** 2 + (grid.y - y) ** 2)
    sun = canvas.has("body", "sun")
    canvas.lay(canvas.plain("#ffb84a"), torch.exp(-distance / 0.14) * 0.9 * sun)
    canvas.lay(canvas.plain("#fff3c4"), grid.inside(distance - 0.1) * sun)
    draw_planet(
        canvas,
        x,
        y,
        0.12,
        canvas.plain("#e6e4dc").expand(canvas.count, 3, 1, 1),
        canvas.has("body", "moon", "crescent"),
        sun * 0,
    )


def draw_planet(
    canvas: Canvas, x: Tensor, y: Tensor, radius: float, color: Tensor, present: Tensor, ringed: Tensor
) -> None:
    """Draw a banded ball lit from the upper left, with a ring where ``ringed`` is 1."""
    grid = canvas.grid
    u, v = (grid.x - x) / radius, (grid.y - y) / radius
    distance = torch.sqrt(u * u + v * v)
    bands = 1 + 0.1 * torch.sin(v * 9 + 0.8 * u)
    lit = (0.62 - 0.5 * (u * 0.6 + v * 0.6)).clamp(0.1, 1.12)
    canvas.lay(color, torch.exp(-(distance - 1).clamp(min=0) / 0.16) * 0.35 * present)
    tilted = v * 0.95 + u * 0.3
    along = u * 0.95 - v * 0.3
    oval = torch.sqrt((along / 1.85) ** 2 + (tilted / 0.42) ** 2)
    band = grid.inside((oval - 1) * radius * 0.42) * grid.inside((0.66 - oval) * radius * 0.42)
    ring_color = mix(color, canvas.plain("#fff4dc"), 0.55)
    canvas.lay(ring_color, band * present * ringed * 0.85)
    canvas.lay(color * bands * lit, grid.inside((distance - 1) * radius) * present)
    canvas.lay(ring_color, band * (tilted > 0).float() * present * ringed * 0.9)


def draw_alien(canvas: Canvas) -> None:
    """Draw a strange sky with two moons, over spires of rock."""
    grid = canvas.grid
    kind = canvas.integers(4)
    night = canvas.has("time", "night", "dusk")
    dim = 1 - 0.55 * night
    top, low = canvas.color(_AIR_TOP, kind) * dim, canvas.color(_AIR_LOW, kind) * dim
    canvas.image = mix(top, low, smoothstep(0.05, 0.75, grid.down))
    canvas.haze = mix(low, top, 0.2)
    canvas.light = mix(torch.ones_like(canvas.light), canvas.haze, 0.35) * (1 - 0.45 * night)
    draw_stars(canvas, 0.35 + 0.65 * torch.maximum(night, canvas.has("stars")), 0.5)
    mirrored = canvas.integers(2).float()
    bare = canvas.has("body", "none") * canvas.has("thing", "none")
    for number, (cx, cy, size) in enumerate(((0.3, 0.26, 0.17), (0.72, 0.16, 0.075))):
        share = mix(torch.full_like(mirrored, cx), torch.full_like(mirrored, 1 - cx), mirrored)
        color = mix(canvas.color(_AIR_LOW, (kind + 1 + number) % 4), canvas.plain("#fff6ea"), 0.35)
        ringed = (bare if number == 0 else bare * 0) * (kind % 2 == 0).float()
        draw_planet(canvas, grid.at_x(share), grid.at_y(cy), size, color, bare, ringed)
    _body_in_space(canvas)
    plain = canvas.has("land", "plain")
    near = mix(canvas.pick("land", _LANDS_NEAR), canvas.color(_GROUND_NEAR, kind), plain)
    far = mix(canvas.pick("land", _LANDS_FAR), canvas.color(_GROUND_FAR, kind), plain)
    for number, (foot, size) in enumerate(((0.7, 0.2), (0.82, 0.16), (0.95, 0.1))):
        color = mix(far, near, number / 2) * mix(canvas.light, torch.ones_like(canvas.light), 0.5)
        color = mix(color, canvas.haze, 0.4 * (1 - number / 2) * (1 - 0.5 * (1 - plain)))
        edge = grid.at_y(foot) + size * 0.6 * (0.5 - ridge(canvas, grid.x * 0.8, 0.3)[0])
        _spires(canvas, color, edge, 4.0 - 0.6 * number, canvas.integers(6) * 31 + number * 7, 0.42 - 0.1 * number)
        canvas.lay(color * (1.05 - 0.25 * smoothstep(0.0, 0.25, grid.y - edge)), grid.inside(edge - grid.y))


def _spires(canvas: Canvas, color: Tensor, edge: Tensor, rows: float, variant: Tensor, size: float) -> None:
    grid = canvas.grid
    x = (grid.x + 3.0) * rows
    cell = x.floor()
    number = cell.long() + variant
    height = size * (0.25 + 0.75 * fixed_noise(number, 51)) * (fixed_noise(number, 53) > 0.35).float() + 1e-3
    dx = (x - cell - 0.5 - 0.3 * (fixed_noise(number, 52) - 0.5)) / rows
    t = ((grid.y - edge + height) / height).clamp(0, 2)
    width = 0.07 * (size / 0.3) * t**1.6
    canvas.lay(
        color * (1 + 0.12 * (dx < 0).float()),
        grid.inside(dx.abs() - width) * (t > 0).float() * (grid.y < edge + 0.12).float(),
    )
