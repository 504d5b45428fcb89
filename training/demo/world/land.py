"""Mountains, hills, desert, forest, and the water of seas and lakes."""

import torch
from torch import Tensor

from training.demo.world.fields import Canvas, fixed_noise, mix, smoothstep

# By land (plain, green, snowy, red, blue, golden, purple): near and far.
_ROCK_NEAR = ("#39475f", "#2a6a36", "#dfe9f3", "#9c1f16", "#1b4aa6", "#c58a14", "#57288a")
_ROCK_FAR = ("#8294b3", "#86b58a", "#f2f7fb", "#d96a55", "#7ba4e2", "#ecc568", "#a587cc")
_GRASS_NEAR = ("#3f8a36", "#2f8438", "#e9f0f6", "#b02a1c", "#2a5cb4", "#d59f28", "#6b37a0")
_GRASS_FAR = ("#93bf6a", "#8fc587", "#f6fafd", "#dc7a66", "#88aee6", "#f0d27c", "#b096d6")
_SAND_NEAR = ("#d09a4e", "#6fa04a", "#e9eff5", "#b8452a", "#4a70b8", "#dda52e", "#7d4fa6")
_SAND_FAR = ("#ecca8e", "#b4cf8e", "#f6f9fc", "#e08a66", "#9db8e6", "#f3d684", "#b99cd8")
_TREE_NEAR = ("#12381f", "#114a22", "#dfe8ee", "#7c1a12", "#123a78", "#9c6c0e", "#421f6a")
_TREE_FAR = ("#5d8a72", "#6fae7c", "#f0f5f9", "#c8705e", "#7098d0", "#dcb95e", "#9c80c4")


def layer_color(canvas: Canvas, near: tuple[str, ...], far: tuple[str, ...], depth: float, fade: float = 0.6) -> Tensor:
    """Return the colour of a layer of land, [n, 3, 1, 1].

    Args:
        canvas: The scenes.
        near: The colours of each land at ``depth`` 1.
        far: The colours of each land at ``depth`` 0.
        depth: 0 is the farthest layer, 1 the nearest.
        fade: The share of haze in the farthest layer.
    """
    snowy = canvas.has("weather", "snow") * canvas.has("land", "plain")
    land = torch.where(snowy > 0, torch.full_like(canvas.index("land"), 2), canvas.index("land"))
    color = mix(canvas.color(far, land), canvas.color(near, land), depth) * canvas.light
    # Grey rock at sunset turns violet, not brown.
    evening = canvas.has("time", "sunset") * canvas.has("land", "plain") * (near is _ROCK_NEAR)
    color = mix(color, canvas.plain("#4d2b5e"), evening * (0.25 + 0.45 * depth))
    fog = canvas.has("weather", "fog")
    # A named colour stays itself at a distance.
    named = 1 - canvas.has("land", "plain")
    share = fade * (1 - depth) * (1 - 0.45 * named)
    return mix(color, canvas.haze, (share + fog * (0.5 - 0.25 * depth) * (1 - 0.4 * named)).clamp(max=0.9))


def mist(canvas: Canvas, color: Tensor, edge: Tensor, strength: float = 0.35) -> Tensor:
    """Make a layer's colour paler from its upper ``edge`` towards its foot, more so in fog."""
    foggy = canvas.has("weather", "fog")
    named = 1 - canvas.has("land", "plain")
    share = (strength * (1 - 0.5 * named) + 0.45 * foggy) * smoothstep(0.02, 0.34, canvas.grid.y - edge)
    return mix(color, canvas.haze, share)


def ridge(canvas: Canvas, x: Tensor, roughness: float) -> tuple[Tensor, Tensor]:
    """Make a mountain skyline with a handful of peaks.

    Returns:
        The heights, about 0..1, and the phase of the broad peaks, for their flanks.
    """
    phase = x * 1.27 + canvas.uniform()
    peaks = ((0.24, phase), (0.3, x * 0.62 + canvas.uniform()))
    rough = ((0.09, x * 3.1 + canvas.uniform()), (0.035, x * 7.3 + canvas.uniform()))
    heights = 0.5 + sum(size * _tooth(at) for size, at in peaks)
    return heights + roughness * sum(size * _tooth(at) for size, at in rough), phase


def _tooth(x: Tensor) -> Tensor:
    """Return a triangle wave between -1 (at whole numbers) and 1 (at halves)."""
    return 1 - 4 * (x % 1 - 0.5).abs()


def swell(canvas: Canvas, x: Tensor) -> Tensor:
    """Make a soft skyline, about 0..1."""
    tau = 6.2832
    first = torch.sin(x * 0.55 * tau + canvas.uniform(0, tau))
    second = torch.sin(x * 1.2 * tau + canvas.uniform(0, tau))
    return 0.5 + 0.33 * first + 0.17 * second


def draw_mountains(canvas: Canvas, tops: tuple[float, ...] = (0.45, 0.54, 0.66, 0.78), foot: float = 0.9) -> None:
    """Draw ridges behind ridges, sunlit on one side, some with snow on top; ``foot`` 1 leaves the meadow out."""
    grid = canvas.grid
    for number, top in enumerate(tops):
        depth = number / (len(tops) - 1)
        heights, phase = ridge(canvas, grid.x * (1 + 0.2 * number), 1.0)
        edge = grid.at_y(top) + (0.28 - 0.035 * number) * (0.5 - heights)
        color = layer_color(canvas, _ROCK_NEAR, _ROCK_FAR, depth * 0.9)
        if number == 1:
            color = _flanks(canvas, color, edge, heights, phase)
        canvas.lay(mist(canvas, color, edge), grid.inside(edge - grid.y))
    if foot < 1:
        _meadow(canvas, foot)


def _flanks(canvas: Canvas, color: Tensor, edge: Tensor, heights: Tensor, phase: Tensor) -> Tensor:
    """Light one flank of each peak, and put snow near the tops."""
    grid = canvas.grid
    below = (grid.y - edge).clamp(min=0)
    # The crest runs down the mountain at a slant, with a kink.
    at = (phase + 0.8 * below + 0.05 * _tooth(below * 11)) % 1
    lit = (smoothstep(0.48, 0.52, at) * 2 - 1) * smoothstep(0.0, 0.06, at) * (1 - smoothstep(0.94, 1.0, at))
    lit = lit * torch.exp(-below / 0.2)
    color = color * (1 - 0.17 * lit)
    capped = torch.maximum(
        canvas.has("land", "snowy"), (canvas.uniform() < 0.5).float() * canvas.has("land", "plain", "blue")
    )
    line = 0.06 + 0.03 * _tooth(phase * 9) + 0.012 * _tooth(phase * 23)
    high = smoothstep(0.42, 0.7, heights)
    snow = grid.inside((below - line * high) / 1.5) * (high > 0.02).float()
    white = mix(canvas.plain("#f8fbff") * canvas.light, canvas.haze, 0.12)
    return mix(color, white * (1 - 0.13 * lit), snow * capped * 0.95)


def _meadow(canvas: Canvas, foot: float) -> None:
    grid = canvas.grid
    edge = grid.at_y(foot) + 0.05 * (0.5 - swell(canvas, grid.x))
    color = layer_color(canvas, _TREE_NEAR, _TREE_FAR, 0.92)
    canvas.lay(color * (1.1 - 0.35 * smoothstep(0.0, 0.2, grid.y - edge)), grid.inside(edge - grid.y))


def draw_hills(canvas: Canvas) -> None:
    """Draw rolling hills."""
    grid = canvas.grid
    for number, top in enumerate((0.52, 0.62, 0.74, 0.88)):
        edge = grid.at_y(top) + 0.13 * (0.5 - swell(canvas, grid.x * (0.9 + 0.1 * number)))
        color = layer_color(canvas, _GRASS_NEAR, _GRASS_FAR, 0.1 + 0.3 * number, 0.5)
        color = color * (1.08 - 0.22 * smoothstep(0.0, 0.2, grid.y - edge))
        canvas.lay(mist(canvas, color, edge, 0.1), grid.inside(edge - grid.y))


def draw_desert(canvas: Canvas) -> None:
    """Draw dunes with a bright and a shaded side."""
    grid = canvas.grid
    for number, top in enumerate((0.55, 0.65, 0.79)):
        phase = canvas.uniform()
        x = grid.x * (0.75 - 0.08 * number) + phase
        saw = x % 1
        heights = torch.where(saw < 0.68, smoothstep(0.0, 0.68, saw), 1 - smoothstep(0.68, 1.0, saw))
        edge = grid.at_y(top) + (0.09 + 0.02 * number) * (0.5 - heights)
        color = layer_color(canvas, _SAND_NEAR, _SAND_FAR, 0.2 + 0.35 * number, 0.45)
        # The lee side begins at the crest and widens below it.
        crest = 0.68 + (grid.y - edge) * 0.5
        lee = (
            smoothstep(crest - 0.015, crest + 0.015, saw)
            * (1 - smoothstep(0.9, 1.0, saw))
            * torch.exp(-(grid.y - edge).clamp(min=0) / 0.3)
        )
        color = color * (1.05 - 0.3 * lee)
        canvas.lay(mist(canvas, color, edge, 0.08), grid.inside(edge - grid.y))


def draw_forest(canvas: Canvas) -> None:
    """Draw rows of conifers, paler with distance."""
    grid = canvas.grid
    floor = layer_color(canvas, _GRASS_NEAR, _GRASS_FAR, 0.7, 0.3) * 0.8
    canvas.lay(floor, grid.inside(grid.at_y(0.8) - grid.y))
    for number, (foot, size, rows) in enumerate(((0.62, 0.26, 7.0), (0.74, 0.36, 5.0), (0.92, 0.55, 3.2))):
        color = layer_color(canvas, _TREE_NEAR, _TREE_FAR, 0.1 + 0.44 * number, 0.55)
        for half in (0.0, 0.5):
            draw_trees(
                canvas,
                color * (1.0 - 0.12 * half),
                foot + 0.02 * half,
                size,
                rows,
                canvas.integers(8) * 16 + number,
                half,
            )
        edge = grid.at_y(foot) + 0.02 * torch.sin(grid.x * 6 + number)
        canvas.lay(mist(canvas, color, edge, 0.25), grid.inside(edge - grid.y))


def draw_trees(
    canvas: Canvas, color: Tensor, foot: float, size: float, rows: float, variant: Tensor, half: float
) -> None:
    """Draw one row of conifers standing at ``foot`` (a share of the height)."""
    grid = canvas.grid
    x = (grid.x + 3.0) * rows + half
    cell = x.floor()
    number = cell.long() + variant * 97
    height = size * (0.6 + 0.4 * fixed_noise(number, 11))
    dx = (x - cell - 0.5 - 0.25 * (fixed_noise(number, 12) - 0.5)) / rows
    t = (grid.y - grid.at_y(foot) + height) / height
    skirts = 0.62 * t + 0.38 * ((t * 5.0) % 1.0) * (0.3 + 0.7 * t)
    width = 0.24 * height * skirts
    inside = grid.inside(dx.abs() - width.clamp(min=0)) * (t > 0).float() * (t < 1.03).float()
    trunk = grid.inside(dx.abs() - 0.02 * height) * (t > 0.95).float() * (t < 1.12).float()
    canvas.lay(color, torch.maximum(inside, trunk))


def draw_sea(canvas: Canvas, horizon: Tensor) -> None:
    """Draw open water to the horizon, with the light of the sun or the moon on it."""
    grid = canvas.grid
    below = ((grid.y - horizon) / (grid.at_y(1.0) - horizon)).clamp(0, 1)
    deep = canvas.plain("#0c4a86") * mix(canvas.light, torch.ones_like(canvas.light), 0.1)
    deep = mix(deep, canvas.haze * 0.5, canvas.has("weather", "storm", "fog", "rain") * 0.6)
    color = mix(mix(canvas.haze, deep, 0.35), deep, smoothstep(0.0, 0.6, below) * 0.95)
    wave = torch.sin(grid.x * (34 - 20 * below) + 3 * torch.sin(below * 9)) * torch.sin(below**0.6 * 60)
    color = (color * (1 + 0.1 * wave * (0.3 + below))).clamp(0, 1)
    canvas.lay(color, grid.inside(horizon - grid.y))
    draw_glitter(canvas, horizon, below)


def draw_glitter(canvas: Canvas, horizon: Tensor, below: Tensor) -> None:
    """Draw the broken column of light beneath the sun or the moon."""
    grid = canvas.grid
    present = canvas.has("body", "sun", "moon", "crescent") * canvas.has("weather", "clear", "cloudy")
    lines = 0.5 + 0.5 * torch.sin(below**0.65 * 75 + 1.5 * torch.sin(grid.x * 14))
    width = 0.05 + 0.16 * below
    column = torch.exp(-(((grid.x - canvas.body_x) / width) ** 2))
    color = mix(canvas.plain("#fff0c0"), canvas.plain("#dfe8ff"), canvas.has("body", "moon", "crescent"))
    strength = mix(0.3 + 0 * present, 0.75 + 0 * present, canvas.has("time", "sunset", "sunrise", "dusk", "night"))
    canvas.lay(color, column * lines * strength * present * (1 - 0.55 * below) * grid.inside(horizon - grid.y))


def reflect(canvas: Canvas, horizon: Tensor) -> None:
    """Draw a lake: everything above ``horizon`` again below it, darker, bluer and rippled."""
    grid = canvas.grid
    below = (grid.y - horizon).clamp(min=0)
    ripple = 0.006 * torch.sin(below**0.7 * 90) * smoothstep(0.0, 0.15, below)
    source = horizon - below * 1.15 + ripple
    line = ((source + grid.half_height) / grid.unit - 0.5).round().clamp(0, grid.height - 1).long()
    mirrored = canvas.image.gather(2, line.expand(canvas.count, 3, grid.height, grid.width))
    water = canvas.plain("#1d5a92") * mix(canvas.light, torch.ones_like(canvas.light), 0.15)
    color = mix(mirrored * 0.92, water, 0.22 + 0.3 * smoothstep(0.0, 0.5, below))
    shine = smoothstep(0.75, 1.0, torch.sin(below**0.7 * 90 + 4 * torch.sin(grid.x * 5))) * 0.08
    canvas.lay((color + shine).clamp(0, 1), grid.inside(horizon - grid.y))
    rim = torch.exp(-(((grid.y - horizon) / 0.006) ** 2))
    canvas.lay(canvas.haze, rim * 0.35)


def draw_shore(canvas: Canvas, where: Tensor) -> None:
    """Draw land in the foreground of a water scene, where a thing needs ground to stand on."""
    grid = canvas.grid
    canvas.branch(2)
    edge = grid.at_y(0.85) + 0.04 * (0.5 - swell(canvas, grid.x))
    color = layer_color(canvas, _GRASS_NEAR, _GRASS_FAR, 0.95) * (1.05 - 0.3 * smoothstep(0.0, 0.2, grid.y - edge))
    canvas.lay(color, grid.inside(edge - grid.y) * where)
