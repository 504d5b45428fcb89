"""Abstract geometric images: six patterns in five palettes."""

import torch
from torch import Tensor

from training.demo.world.fields import Canvas, fixed_noise, mix
from training.demo.world.spec import PATTERNS

_PALETTES = {
    "colorful": ("#e63946", "#f4a62a", "#2a9d8f", "#264f9e", "#f7e9c8", "#8a3fb0"),
    "warm": ("#c1121f", "#f26b21", "#ffb627", "#7a1f2b", "#ffe8c2", "#e85d75"),
    "cool": ("#023e8a", "#0096c7", "#7ad7e8", "#1b998b", "#e3f4f6", "#4b3f9e"),
    "pastel": ("#f7c6d0", "#c6e2f7", "#d3f0d0", "#fbeec2", "#dccbf2", "#ffffff"),
    "mono": ("#101014", "#f4f4f2", "#5a5a60", "#c9c9c8", "#2c2c32", "#9a9a9e"),
}
_CODES = tuple(code for palette in _PALETTES.values() for code in palette)


def _ink(canvas: Canvas, index: Tensor) -> Tensor:
    """Turn integers [n, 1, H, W] into an image of the palette's colours."""
    table = torch.tensor(
        [[int(code[i : i + 2], 16) / 255 for i in (1, 3, 5)] for code in _CODES], device=canvas.grid.device
    )
    number = canvas.index("palette") * 6 + index.long() % 6
    return table[number.squeeze(1)].permute(0, 3, 1, 2)


def draw_abstract(canvas: Canvas) -> None:
    """Draw each scene's pattern in its palette."""
    variant = canvas.integers(4)
    renderers = (_circles, _triangles, _stripes, _mosaic, _waves, _rings)
    for name, renderer in zip(PATTERNS, renderers, strict=True):
        wanted = canvas.has("pattern", name)
        if bool(wanted.any()):
            canvas.image = torch.where(wanted > 0, renderer(canvas, variant), canvas.image)


def _circles(canvas: Canvas, variant: Tensor) -> Tensor:
    grid = canvas.grid
    image = _ink(canvas, variant + 4 + 0 * grid.x.long() + 0 * grid.y.long())
    for number in range(11):
        index = variant * 16 + number
        x = grid.at_x(0.04 + 0.92 * fixed_noise(index, 81))
        y = grid.at_y(0.04 + 0.92 * fixed_noise(index, 82))
        radius = 0.3 - 0.02 * number
        distance = torch.sqrt((grid.x - x) ** 2 + (grid.y - y) ** 2) - radius
        for inset, step in ((0.0, 0), (0.4, 1), (0.75, 2)):
            mask = grid.inside(distance + inset * radius)
            color = _ink(canvas, (fixed_noise(index, 83) * 6).long() + step + 0 * grid.x.long() + 0 * grid.y.long())
            image = mix(image, color, mask)
    return image


def _triangles(canvas: Canvas, variant: Tensor) -> Tensor:
    grid = canvas.grid
    x, y = (grid.x + 3) * 4.0, (grid.y + 3) * 4.0
    column, line = x.floor(), y.floor()
    flipped = ((column.long() + line.long()) % 2).bool()
    u = torch.where(flipped, x - column, 1 - (x - column))
    upper = ((u + (y - line)) > 1).long()
    number = column.long() * 5 + line.long() * 37 + upper * 11 + variant * 201
    return _ink(canvas, (fixed_noise(number, 84) * 6).long())


def _stripes(canvas: Canvas, variant: Tensor) -> Tensor:
    grid = canvas.grid
    slope = torch.tensor((0.0, 0.6, -0.6, 1.0), device=grid.device)[variant]
    band = (((grid.x + slope * grid.y) + 3) * 7.0).floor()
    return _ink(canvas, band.long() + 0 * grid.y.long())


def _mosaic(canvas: Canvas, variant: Tensor) -> Tensor:
    grid = canvas.grid
    x, y = (grid.x + 3) * 5.0, (grid.y + 3) * 5.0
    column, line = x.floor(), y.floor()
    number = column.long() * 5 + line.long() * 37 + variant * 201
    inner = torch.maximum((x - column - 0.5).abs(), (y - line - 0.5).abs())
    color = _ink(canvas, (fixed_noise(number, 85) * 6).long() + (inner < 0.22).long() * 2)
    gap = _ink(canvas, torch.full_like(number, 4))
    return mix(color, gap, (inner > 0.46).float())


def _waves(canvas: Canvas, variant: Tensor) -> Tensor:
    grid = canvas.grid
    height = grid.y + 0.07 * torch.sin(grid.x * 9 + variant * 1.6)
    return _ink(canvas, ((height + 3) * 8.0).floor().long() + variant)


def _rings(canvas: Canvas, variant: Tensor) -> Tensor:
    grid = canvas.grid
    x = grid.at_x(torch.tensor((0.5, 0.2, 0.8, 0.5), device=grid.device)[variant])
    y = grid.at_y(torch.tensor((0.5, 0.8, 0.2, 1.0), device=grid.device)[variant])
    return _ink(canvas, (torch.sqrt((grid.x - x) ** 2 + (grid.y - y) ** 2) * 10.0).floor().long() + variant)
