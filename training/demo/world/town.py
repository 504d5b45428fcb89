"""City skylines and streets, by day, by night, and in neon."""

import torch
from torch import Tensor

from training.demo.world.fields import Canvas, fixed_noise, mix, smoothstep

_FAR = ("#a9bccf", "#c98a86", "#d6bfb8", "#7a6c9a", "#24304f")
_NEAR = ("#56708c", "#5a3a5c", "#8a7f92", "#37335e", "#0d1428")
_NEON_SKY = ("#1a0b3d", "#5a1a78", "#e0479a")
_NEON = ("#29e7ff", "#ff3fc0", "#ffe14a", "#7a5cff")
_LAND_TINTS = ("#ffffff", "#9fdc9f", "#f4f8ff", "#ff8a7a", "#8ab4ff", "#ffd97a", "#cf9cff")


def draw_neon_sky(canvas: Canvas) -> None:
    """Draw violet air over a city of the future."""
    neon, down = canvas.has("neon"), canvas.grid.down
    top, middle, low = (canvas.plain(code) for code in _NEON_SKY)
    sky = mix(mix(top, middle, smoothstep(0.1, 0.5, down)), low, smoothstep(0.4, 0.85, down) * 0.8)
    share = neon * (0.45 + 0.5 * canvas.has("time", "night", "dusk"))
    canvas.lay(sky, share)
    canvas.haze = mix(canvas.haze, mix(middle, low, 0.5), share)


def _lit(canvas: Canvas) -> Tensor:
    """Return how brightly windows shine, 0..1."""
    dark = canvas.has("time", "night") + 0.85 * canvas.has("time", "dusk") + 0.45 * canvas.has("time", "sunset")
    dark = torch.maximum(dark, 0.6 * canvas.has("weather", "storm", "rain"))
    return torch.maximum(dark, 0.9 * canvas.has("neon"))


def _window_color(canvas: Canvas, number: Tensor) -> Tensor:
    warm = mix(canvas.plain("#ffd56a"), canvas.plain("#fff2c8"), fixed_noise(number, 31))
    neon = mix(canvas.plain(_NEON[0]), canvas.plain(_NEON[1]), (fixed_noise(number, 32) > 0.5).float())
    return mix(warm, neon, canvas.has("neon") * (fixed_noise(number, 33) > 0.25).float())


def draw_city(canvas: Canvas) -> None:
    """Draw three rows of towers; the nearer ones have windows."""
    grid, neon = canvas.grid, canvas.has("neon")
    draw_neon_sky(canvas)
    for row, (foot, tall, columns) in enumerate(((0.86, 0.42, 8.0), (0.93, 0.42, 5.6), (1.02, 0.34, 4.2))):
        depth = row / 2
        x = (grid.x + 3.0) * columns
        cell = x.floor()
        number = cell.long() + canvas.integers(6) * 211 + row * 53
        height = tall * (0.35 + 0.65 * fixed_noise(number, 21)) * (1 + 0.25 * neon)
        margin = 0.03 + 0.08 * fixed_noise(number, 22)
        inner = ((x - cell - 0.5).abs() - 0.5 + margin) / columns
        top = grid.at_y(foot) - height
        # Some towers taper to a spire, more of them in the future.
        spire = (fixed_noise(number, 23) > 0.72 - 0.3 * neon).float()
        taper = inner + spire * (top + 0.1 - grid.y).clamp(min=0) * 0.9
        mast = torch.maximum((x - cell - 0.5).abs() / columns - 0.004, top - 0.08 - grid.y)
        body = torch.maximum(taper, top - grid.y)
        mask = torch.maximum(grid.inside(body), grid.inside(mast) * spire)
        color = mix(canvas.pick("time", _FAR), canvas.pick("time", _NEAR), depth) * canvas.pick("land", _LAND_TINTS)
        color = mix(color, mix(canvas.plain("#3a1f6e"), canvas.plain("#120a2c"), depth), neon * 0.85)
        weather = (
            canvas.has("weather", "fog") * (0.65 - 0.35 * depth) + canvas.has("weather", "snow", "rain", "storm") * 0.35
        )
        color = mix(color, canvas.haze, torch.maximum(weather, 0.3 * (1 - depth) + 0 * weather))
        color = color * (1.0 + 0.12 * ((x - cell) < 0.5).float() - 0.06)
        canvas.lay(mix(color, canvas.haze, 0.15 * smoothstep(0.0, 0.4, grid.y - top) * (1 - 0.6 * depth)), mask)
        if row:
            _windows(canvas, x - cell, number, top, columns, mask * (inner < -0.015).float(), depth)
        snow = canvas.has("weather", "snow") * mask * (grid.y - top < 0.014).float() * (1 - spire)
        canvas.lay(canvas.plain("#f4f8ff"), snow)


def _windows(
    canvas: Canvas, x: Tensor, number: Tensor, top: Tensor, columns: float, mask: Tensor, depth: float
) -> None:
    grid = canvas.grid
    rows_each, columns_each = 24.0, 5.0
    u, v = x * columns_each, (grid.y - top - 0.02) * rows_each
    iu, iv = u.floor(), v.floor()
    window = number * 31 + iu.long() * 7 + iv.long() * 131 + 5000
    pane = ((u - iu - 0.5).abs() < 0.27).float() * ((v - iv - 0.5).abs() < 0.3).float() * (v > 0).float()
    on = (fixed_noise(window, 34) < 0.55).float()
    lit = _lit(canvas)
    dark_glass = mix(canvas.haze, canvas.plain("#22384f"), 0.75)
    color = mix(dark_glass, _window_color(canvas, window), lit * on)
    strength = torch.maximum(lit * on * 0.95, 0.4 * (1 - lit) + 0 * on) * (0.6 + 0.4 * depth)
    canvas.lay(color, pane * mask * strength)


def draw_street(canvas: Canvas) -> None:
    """Draw the view down a street: walls of houses on both sides, a road with traffic."""
    grid, neon = canvas.grid, canvas.has("neon")
    draw_neon_sky(canvas)
    lit = _lit(canvas)
    center_y = grid.at_y(0.6)
    aside = grid.x.abs() + 1e-4
    down = grid.y - center_y
    side = (grid.x > 0).long()
    depth = 0.22 / aside
    house = (depth * 1.4).floor()
    number = house.long() * 2 + side + canvas.integers(6) * 211
    tall = 1.3 + 1.7 * fixed_noise(number, 41)
    wall = torch.maximum(-tall * aside - down, down - 0.42 * aside)
    mask = grid.inside(wall / 1.5) * smoothstep(0.012, 0.03, aside)
    base = mix(canvas.pick("time", _NEAR), canvas.pick("time", _FAR), 0.25 + 0.35 * fixed_noise(number, 42))
    base = base * canvas.pick("land", _LAND_TINTS)
    base = mix(base, mix(canvas.plain("#1c1040"), canvas.plain("#34186a"), fixed_noise(number, 42)), neon * 0.9)
    base = mix(
        base, canvas.plain("#b5694e") * canvas.light, 0.35 * (fixed_noise(number, 43) > 0.5).float() * (1 - neon)
    )
    far = torch.exp(-aside / 0.12)
    fog = canvas.has("weather", "fog") * 0.45
    canvas.lay(mix(base, canvas.haze, (0.75 * far + fog).clamp(max=0.92)), mask)
    u, v = depth * 7.0, down / aside * 3.2
    iu, iv = u.floor(), v.floor()
    window = number * 31 + iu.long() * 7 + iv.long() * 131 + 9000
    pane = ((u - iu - 0.5).abs() < 0.26).float() * ((v - iv - 0.5).abs() < 0.3).float() * (v < 0.6).float()
    on = (fixed_noise(window, 44) < 0.5).float()
    glass = mix(mix(canvas.haze, canvas.plain("#22384f"), 0.7), _window_color(canvas, window), lit * on)
    strength = torch.maximum(lit * on * 0.95, 0.45 * (1 - lit) + 0 * on) * smoothstep(0.07, 0.16, aside)
    canvas.lay(glass, pane * mask * strength)
    _signs(canvas, aside, down, mask * neon)
    _road(canvas, aside, down)


def _signs(canvas: Canvas, aside: Tensor, down: Tensor, mask: Tensor) -> None:
    for near, wide, high, low, color in (
        (0.3, 0.035, -0.28, -0.1, 0),
        (-0.24, 0.03, -0.3, -0.06, 1),
        (0.17, 0.02, -0.13, -0.03, 1),
        (-0.4, 0.03, -0.2, 0.0, 2),
    ):
        x = canvas.grid.x - near
        box = torch.maximum(x.abs() - wide, torch.maximum(high - down, down - low))
        glow = torch.exp(-box.clamp(min=0) / 0.04) * 0.5
        canvas.lay(canvas.plain(_NEON[color]), torch.maximum(canvas.grid.inside(box) * 0.92, glow) * mask)


def _road(canvas: Canvas, aside: Tensor, down: Tensor) -> None:
    grid, neon, lit = canvas.grid, canvas.has("neon"), _lit(canvas)
    ground = grid.inside((0.42 * aside - down) / 1.5) * (down > 0).float()
    asphalt = mix(canvas.plain("#6b6f76") * canvas.light, canvas.plain("#1a1230"), neon * 0.85)
    asphalt = mix(asphalt, canvas.plain("#e8eff5") * canvas.light, canvas.has("weather", "snow") * 0.75)
    asphalt = mix(asphalt, canvas.haze, 0.6 * torch.exp(-down.clamp(min=0) / 0.06) + 0.1)
    canvas.lay(asphalt, ground)
    walk = grid.inside((aside - down * 2.38) / 1.5) * grid.inside((down * 1.5 - aside) / 1.5) * (down > 0).float()
    canvas.lay(mix(asphalt, canvas.plain("#b9b4ac") * canvas.light, 0.5 * (1 - 0.6 * neon)), walk)
    away = 0.2 / down.clamp(min=0.004)
    dash = grid.inside(aside - 0.035 * down) * ((away * 1.6 % 1) < 0.5).float() * smoothstep(0.02, 0.05, down)
    canvas.lay(mix(canvas.plain("#f2efe0") * canvas.light, canvas.plain(_NEON[2]), neon), dash * 0.85)
    # Neon light reflected on the road.
    for x, color in ((0.12, 0), (-0.12, 1)):
        shine = torch.exp(-(((grid.x - x * (1 + 4 * down)) / 0.07) ** 2)) * smoothstep(0.0, 0.3, down)
        canvas.lay(canvas.plain(_NEON[color]), shine * 0.45 * neon * ground)
    codes = ("#c8342b", "#2d5fb8", "#e2b53a", "#e8e8ea", "#2f8a58", "#3a3d46")
    for number, (x, away_y, size) in enumerate(
        ((0.075, 0.1, 0.05), (-0.085, 0.14, 0.065), (0.2, 0.27, 0.12), (-0.23, 0.3, 0.125))
    ):
        color = canvas.color(codes, (canvas.integers(6) + number) % 6)
        _car(canvas, grid.x - x, grid.y - grid.at_y(0.6) - away_y, size, color, lit, number % 2 == 0)


def _car(canvas: Canvas, x: Tensor, y: Tensor, size: float, color: Tensor, lit: Tensor, leaving: bool) -> None:
    grid = canvas.grid
    u, v = x / size, y / size
    body_color = color * mix(canvas.light, torch.ones_like(canvas.light), 0.35)
    body = torch.maximum(u.abs() - 0.5, (v + 0.28).abs() - 0.2)
    cabin = torch.maximum(u.abs() - 0.36 - 0.25 * (v + 0.48), (v + 0.58).abs() - 0.16)
    wheels = torch.maximum((u.abs() - 0.36).abs() - 0.1, (v + 0.04).abs() - 0.08)
    canvas.lay(canvas.plain("#15161a"), grid.inside(wheels * size))
    canvas.lay(body_color, grid.inside(torch.minimum(body, cabin) * size))
    canvas.lay(
        mix(canvas.plain("#a9c4d8") * canvas.light, canvas.plain("#26303c"), 0.4), grid.inside((cabin + 0.07) * size)
    )
    lamp = torch.sqrt((u.abs() - 0.36) ** 2 + (v + 0.3) ** 2)
    shine = canvas.plain("#ff3a2a") if leaving else canvas.plain("#fff3c0")
    canvas.lay(shine, torch.maximum(grid.inside((lamp - 0.09) * size), torch.exp(-lamp / 0.22) * 0.6 * lit))
