"""What falls and drifts in front of everything: rain, snow, fog.

The patterns never vary, so they are learnt sharply.
"""

import torch

from training.demo.world.fields import Canvas, fixed_noise, mix, smoothstep


def draw_weather(canvas: Canvas) -> None:
    """Draw rain, snowflakes and fog over the finished scene."""
    _fog(canvas)
    _rain(canvas)
    _snow(canvas)


def _fog(canvas: Canvas) -> None:
    grid, fog = canvas.grid, canvas.has("weather", "fog")
    bands = 0.2 + 0.22 * torch.exp(-(((grid.down - 0.6) / 0.12) ** 2)) + 0.06 * torch.sin(grid.x * 4 + grid.y * 11)
    canvas.lay(mix(canvas.haze, torch.ones_like(canvas.haze), 0.12), bands * fog)


def _rain(canvas: Canvas) -> None:
    grid = canvas.grid
    rain = torch.maximum(canvas.has("weather", "rain"), 0.6 * canvas.has("weather", "storm"))
    slant = grid.x + 0.18 * grid.y + 3
    for number, (columns, length, strength) in enumerate(((22.0, 0.2, 0.42), (35.0, 0.13, 0.26))):
        u = slant * columns
        cell = u.floor()
        v = (grid.y + 3) / length / 2.2 + fixed_noise(cell, 61 + number)
        drop = ((u - cell - 0.5).abs() < 0.07 + 0.03 * number).float()
        phase = v - v.floor()
        streak = drop * smoothstep(0.0, 0.2, phase) * (1 - smoothstep(0.35, 0.5, phase))
        canvas.lay(mix(canvas.haze, torch.ones_like(canvas.haze), 0.6), streak * strength * rain)


def _snow(canvas: Canvas) -> None:
    grid, snow = canvas.grid, canvas.has("weather", "snow")
    for number, (cells, size) in enumerate(((6.0, 0.085), (10.0, 0.085))):
        x, y = (grid.x + 3) * cells, (grid.y + 3) * cells
        column, line = x.floor(), y.floor()
        index = column.long() * 64 + line.long()
        dx = x - column - 0.2 - 0.6 * fixed_noise(index, 71 + number)
        dy = y - line - 0.2 - 0.6 * fixed_noise(index, 73 + number)
        flake = 1 - smoothstep(0.5 * size, 1.5 * size, torch.sqrt(dx * dx + dy * dy))
        canvas.lay(torch.ones_like(canvas.haze), flake * 0.9 * snow)
