"""The sky of every time and weather, the sun and the moon, stars, clouds and lightning."""

import torch
from torch import Tensor

from training.demo.world.fields import Canvas, fixed_noise, mix, smoothstep

# By time (noon, sunset, sunrise, dusk, night): top, middle, horizon, in two variants that are blended.
_TOP = (
    ("#2272cf", "#33318c", "#6f9ed8", "#1b2456", "#040817"),
    ("#3a93e0", "#5a2a78", "#88b4e4", "#232f6b", "#080c2a"),
)
_MIDDLE = (
    ("#6fb3ec", "#d4506e", "#f6bfae", "#56498f", "#0c1a3e"),
    ("#8fcbf0", "#ee6a48", "#fac3c0", "#6a4f96", "#141d52"),
)
_LOW = (
    ("#d4ecfa", "#ffb03f", "#fff0bd", "#cf8fa6", "#213763"),
    ("#e6f5f6", "#ffd070", "#ffe2a4", "#dba596", "#2c3c7c"),
)
_LIGHT = ("#ffffff", "#ffbd98", "#ffe6cf", "#988cba", "#4d5c96")
# By weather (clear, cloudy, storm, fog, snow, rain).
_WEATHER_TOP = ("#ffffff", "#7ea7cf", "#20252f", "#b9c4cb", "#a4b8cd", "#55677a")
_WEATHER_LOW = ("#ffffff", "#dbe7ef", "#6d7a88", "#dde3e5", "#e8eff5", "#b3c1cb")
_WEATHER_SHARE = (0.0, 0.25, 0.93, 0.88, 0.8, 0.88)
_WEATHER_LIGHT = (1.0, 0.97, 0.55, 0.85, 0.95, 0.75)
_SUN_HEIGHT = (0.2, 0.46, 0.44, 0.5, 0.2)


def _table(canvas: Canvas, values: tuple[float, ...], index: Tensor) -> Tensor:
    return torch.tensor(values, device=canvas.grid.device)[index]


def draw_sky(canvas: Canvas, horizon: Tensor, sun_line: Tensor) -> None:
    """Draw gradient, stars, sun or moon, and clouds; set the canvas's light, its haze and the body's position.

    A low sun sits just above ``sun_line``, where the land hides nothing.
    """
    time, weather, variant = canvas.index("time"), canvas.index("weather"), canvas.uniform()
    top, middle, low = (
        mix(canvas.color(codes[0], time), canvas.color(codes[1], time), variant) for codes in (_TOP, _MIDDLE, _LOW)
    )
    canvas.light = canvas.color(_LIGHT, time) * _table(canvas, _WEATHER_LIGHT, weather)
    # The air of a weather takes on the light of the time, but never turns black.
    dim = mix(canvas.color(_LIGHT, time), torch.ones_like(top), 0.15)
    share = _table(canvas, _WEATHER_SHARE, weather) * mix(
        torch.ones_like(variant), 0.75 + 0 * variant, canvas.has("time", "sunset")
    )
    weather_top, weather_low = (canvas.color(codes, weather) * dim for codes in (_WEATHER_TOP, _WEATHER_LOW))
    top, low = mix(top, weather_top, share), mix(low, weather_low, share)
    middle = mix(middle, mix(weather_top, weather_low, 0.5), share)
    canvas.haze = mix(low, middle, 0.25)
    grid = canvas.grid
    height = (grid.y - grid.at_y(0.0)) / (horizon - grid.at_y(0.0))
    canvas.image = mix(top, middle, smoothstep(0.0, 0.62, height)) + (low - middle) * smoothstep(0.45, 1.05, height)
    _stars(canvas)
    _body(canvas, sun_line)
    _clouds(canvas)
    _storm(canvas, horizon)


def _stars(canvas: Canvas) -> None:
    amount = torch.maximum(canvas.has("stars"), 0.55 * canvas.has("time", "night")) * canvas.has("weather", "clear")
    draw_stars(canvas, amount)


def draw_stars(canvas: Canvas, amount: Tensor, low: float = 0.75) -> None:
    """Draw stars in the upper part of the image, in one of three fixed variants, down to ``low`` of its height."""
    grid, variant = canvas.grid, canvas.integers(3)
    cells = 11.0
    x, y = (grid.x + 2.0) * cells, (grid.y + 2.0) * cells
    column, line = x.floor(), y.floor()
    number = column.long() * 64 + line.long() + variant * 4096 * 7
    dx = x - column - 0.15 - 0.7 * fixed_noise(number, 1)
    dy = y - line - 0.15 - 0.7 * fixed_noise(number, 2)
    size = 0.035 + 0.07 * fixed_noise(number, 3) ** 3
    seen = (fixed_noise(number, 4) > 0.35).float()
    glow = torch.exp(-((dx * dx + dy * dy) / (size * size)).clamp(max=30)) * seen
    fade = 1 - smoothstep(low - 0.25, low, grid.down)
    canvas.image = (canvas.image + glow * fade * amount * (0.6 + 0.4 * fixed_noise(number, 5))).clamp(max=1.0)


def _body(canvas: Canvas, sun_line: Tensor) -> None:
    grid = canvas.grid
    share = _table(canvas, _SUN_HEIGHT, canvas.index("time")) + canvas.uniform(-0.03, 0.03)
    moon = canvas.has("body", "moon", "crescent")
    share = mix(share, 0.2 + canvas.uniform(-0.03, 0.05), moon)
    low_sun = canvas.has("time", "sunset", "sunrise", "dusk") * (1 - moon)
    height = grid.at_y(share)
    height = mix(height, sun_line - canvas.uniform(0.06, 0.11), low_sun)
    canvas.body_x, canvas.body_y = canvas.side("body_side"), height
    present = canvas.has("body", "sun", "moon", "crescent")
    dim = 1 - 0.75 * canvas.has("weather", "storm", "rain") - 0.3 * canvas.has("weather", "fog", "snow")
    radius = mix(0.075 + 0 * share, 0.1 + 0 * share, low_sun) + 0.012 * moon
    distance = torch.sqrt((grid.x - canvas.body_x) ** 2 + (grid.y - canvas.body_y) ** 2)
    sun_color = mix(canvas.plain("#fff6c8"), canvas.plain("#fff0b0"), low_sun)
    glow_color = mix(canvas.plain("#fff1c0"), canvas.plain("#ffa040"), low_sun * canvas.has("time", "sunset", "dusk"))
    color = mix(sun_color, canvas.plain("#f6f3e4"), moon)
    glow_color = mix(glow_color, canvas.plain("#9db4e8"), moon)
    near = torch.exp(-distance / mix(0.16 + 0 * share, 0.3 + 0 * share, low_sun))
    canvas.lay(glow_color, near * present * dim * mix(0.75 + 0 * share, 0.42 + 0 * share, moon))
    disc = grid.inside(distance - radius)
    bite = torch.sqrt((grid.x - canvas.body_x - 0.45 * radius) ** 2 + (grid.y - canvas.body_y + 0.2 * radius) ** 2)
    disc = disc * (1 - grid.inside(bite - 0.85 * radius) * canvas.has("body", "crescent"))
    spots = _craters(canvas, radius) * canvas.has("body", "moon")
    canvas.lay(color * (1 - 0.13 * spots), disc * present * mix(torch.ones_like(dim), dim, 0.8))


def _craters(canvas: Canvas, radius: Tensor) -> Tensor:
    spots = torch.zeros(1, 1, 1, 1, device=canvas.grid.device)
    for x, y, size in ((-0.3, -0.25, 0.28), (0.3, 0.2, 0.34), (-0.2, 0.45, 0.2), (0.35, -0.4, 0.16)):
        dx, dy = canvas.grid.x - canvas.body_x - x * radius, canvas.grid.y - canvas.body_y - y * radius
        spots = torch.maximum(spots, smoothstep(size * radius, 0.7 * size * radius, torch.sqrt(dx * dx + dy * dy)))
    return spots


def _clouds(canvas: Canvas) -> None:
    """Draw flat-bottomed cumulus at fixed heights, drifting sideways."""
    grid = canvas.grid
    night = canvas.has("time", "night")
    few = (
        canvas.has("weather", "clear")
        * canvas.has("time", "noon", "sunrise")
        * (canvas.uniform() < 0.5).float()
        * canvas.has("body", "none")
    )
    amount = canvas.has("weather", "cloudy")
    white = mix(canvas.plain("#ffffff"), canvas.haze, 0.25) * mix(
        canvas.light, torch.ones_like(canvas.light), 0.35 - 0.2 * night
    )
    drift = canvas.uniform(-0.12, 0.12)
    for number, (cx, cy, size) in enumerate(
        ((0.2, 0.17, 1.0), (0.78, 0.26, 0.85), (0.5, 0.09, 0.7), (0.06, 0.36, 0.6), (0.95, 0.42, 0.55))
    ):
        x = (grid.x - grid.at_x(cx) - drift) / (0.21 * size)
        y = (grid.y - grid.at_y(cy)) / (0.21 * size)
        puffs = torch.full_like(x * y, 9.0)
        for px, py, radius in ((-0.55, 0.0, 0.3), (-0.15, -0.16, 0.44), (0.3, -0.08, 0.36), (0.65, 0.03, 0.24)):
            puffs = torch.minimum(puffs, torch.sqrt((x - px) ** 2 + (y - py) ** 2) - radius)
        flat = torch.maximum(puffs, y - 0.16)
        mask = (0.5 - flat * 0.21 * size / (3 * grid.unit)).clamp(0, 1)
        shade = 1 - 0.16 * smoothstep(-0.35, 0.2, y)
        canvas.lay(white * shade, mask * 0.92 * torch.maximum(amount, few if number < 2 else few * 0))


def _storm(canvas: Canvas, horizon: Tensor) -> None:
    """Draw dark scalloped cloud banks and a bolt of lightning."""
    grid, storm = canvas.grid, canvas.has("weather", "storm")
    shift = canvas.uniform(0, 3)
    dark = mix(canvas.light, torch.ones_like(canvas.light), 0.4)
    for bank, (low, code) in enumerate(((0.34, "#565f6d"), (0.24, "#3f4652"), (0.13, "#2a303a"))):
        wave = (torch.sin((grid.x + shift) * (4.3 + bank) + bank)).abs() + 0.55 * (
            torch.sin((grid.x - shift) * 9.1 + 2 * bank)
        ).abs()
        edge = grid.at_y(low) + 0.075 * wave
        canvas.lay(
            canvas.plain(code) * dark * (0.8 + 0.35 * smoothstep(-0.25, 0.0, grid.y - edge)),
            grid.inside((grid.y - edge) / 3) * storm,
        )
    x0 = grid.at_x(canvas.uniform(0.2, 0.8))
    top, bottom = grid.at_y(0.3), horizon
    t = ((grid.y - top) / (bottom - top)).clamp(0, 1)
    zigzag = ((t * 2.3) % 1 - 0.5).abs() - 0.25 + 0.35 * (((t * 5.3) % 1 - 0.5).abs() - 0.25)
    path = x0 + 0.17 * zigzag + 0.12 * t
    across = (grid.x - path).abs()
    along = (grid.y > top).float() * (grid.y < bottom).float()
    glow = torch.exp(-across / 0.03) * 0.45 + torch.exp(-across / 0.15) * 0.22
    canvas.lay(canvas.plain("#cfd8ff"), glow * along * storm)
    canvas.lay(canvas.plain("#fffef2"), grid.inside(across - 0.009 * (1.2 - t)) * along * storm)
