"""Things with a colour and a side: house, tree, boat, castle, balloon, bird, planet."""

import torch
from torch import Tensor

from training.demo.world.cosmos import draw_planet
from training.demo.world.fields import Canvas, mix, smoothstep

COLOR_CODES = ("#d8231c", "#1f57d0", "#229a3c", "#f5cf1f", "#f6f6f2", "#1c1c22", "#f08a1c", "#7d35b8", "#f280b0")


class _Brush:
    """One thing of each scene: its local coordinates, where v is 0 on the ground and negative above."""

    def __init__(self, canvas: Canvas, field: str, kind: str, height: float, size: float) -> None:
        grid = canvas.grid
        self.canvas, self.size = canvas, size
        self.x, self.y = canvas.side(f"{field}_side"), grid.at_y(height) + canvas.uniform(-0.012, 0.012)
        self.u, self.v = (grid.x - self.x) / size, (grid.y - self.y) / size
        self.present = canvas.has(field, kind)
        # A thing keeps its colour in any light.
        self.light = mix(canvas.light, torch.ones_like(canvas.light), 0.62)
        self.color = canvas.pick(f"{field}_color", COLOR_CODES)

    def lay(self, color: Tensor, distance: Tensor, strength: float | Tensor = 1.0, lit: bool = False) -> None:
        """Draw where the local ``distance`` is negative; ``lit`` shines by itself."""
        shown = color if lit else color * self.light
        self.canvas.lay(shown, self.canvas.grid.inside(distance * self.size) * self.present * strength)

    def box(self, u: float, v: float, half_u: float, half_v: float) -> Tensor:
        """Return the signed distance to a rectangle around (u, v)."""
        return torch.maximum((self.u - u).abs() - half_u, (self.v - v).abs() - half_v)

    def disc(self, u: float, v: float, radius: float, flat: float = 1.0) -> Tensor:
        """Return the signed distance to a circle, or to an ellipse ``flat`` times as high."""
        return torch.sqrt((self.u - u) ** 2 + ((self.v - v) / flat) ** 2) - radius

    def wedge(self, u: float, top: float, foot: float, half: float) -> Tensor:
        """Return the signed distance to an upright triangle."""
        t = (self.v - top) / (foot - top)
        return torch.maximum((self.u - u).abs() - half * t, torch.maximum(top - self.v, self.v - foot))

    def window(self) -> Tensor:
        """Return the colour of glass: dark by day, lit by night."""
        dark = self.canvas.has("time", "night", "dusk")
        return mix(self.canvas.plain("#34485c"), self.canvas.plain("#ffdf7a"), dark)


def draw_things(canvas: Canvas, field: str) -> None:
    """Draw the things that ``field`` ("thing" or "other") names."""
    kinds = set(canvas.index(field).view(-1).tolist())
    for number, renderer in enumerate((_house, _tree, _boat, _castle, _balloon, _bird, _planet), start=1):
        if number in kinds:
            canvas.branch(("other", "thing").index(field))
            renderer(canvas, field)


def _house(canvas: Canvas, field: str) -> None:
    brush = _Brush(canvas, field, "house", 0.93, 0.42)
    dark = brush.color * 0.55 + 0.03
    # A white or a black house needs a roof of another shade.
    brush.lay(canvas.plain("#5a4a48"), brush.box(0.2, -0.72, 0.05, 0.14))
    brush.lay(brush.color * (1 - 0.1 * (brush.u > 0.12).float()), brush.box(0.0, -0.25, 0.36, 0.25))
    brush.lay(dark, brush.wedge(0.0, -0.86, -0.47, 0.48))
    brush.lay(canvas.plain("#4a2f22"), brush.box(0.0, -0.13, 0.07, 0.13))
    for u in (-0.21, 0.21):
        brush.lay(canvas.plain("#f2ead8"), brush.box(u, -0.29, 0.085, 0.095))
        brush.lay(brush.window(), brush.box(u, -0.29, 0.065, 0.075), lit=True)


def _tree(canvas: Canvas, field: str) -> None:
    brush = _Brush(canvas, field, "tree", 0.93, 0.46)
    brush.lay(
        canvas.plain("#5c3d26"),
        torch.maximum(brush.u.abs() - 0.05 - 0.04 * (brush.v + 0.5), (brush.v + 0.22).abs() - 0.22),
    )
    for u, v, radius, shade in (
        (0.0, -0.6, 0.32, 0.86),
        (-0.2, -0.52, 0.22, 0.86),
        (0.21, -0.52, 0.22, 0.8),
        (-0.07, -0.69, 0.2, 1.06),
        (0.13, -0.6, 0.13, 1.0),
    ):
        brush.lay((brush.color * shade).clamp(0, 1), brush.disc(u, v, radius))


def _boat(canvas: Canvas, field: str) -> None:
    brush = _Brush(canvas, field, "boat", 0.79, 0.44)
    hull = torch.maximum(brush.u.abs() - 0.42 - 0.7 * (-brush.v - 0.16), (brush.v + 0.09).abs() - 0.09)
    mirror = torch.maximum(brush.u.abs() - 0.4 + 0.5 * brush.v, (brush.v - 0.06).abs() - 0.06)
    brush.lay(brush.color * 0.6, mirror, 0.45)
    brush.lay(canvas.plain("#6b4a30"), brush.box(-0.02, -0.55, 0.014, 0.4))
    main = torch.maximum(torch.maximum(0.015 - brush.u, brush.v + 0.24), brush.u - 0.02 - 0.4 * (brush.v + 0.95) / 0.71)
    jib = torch.maximum(torch.maximum(brush.u + 0.05, brush.v + 0.24), -brush.u - 0.05 - 0.28 * (brush.v + 0.88) / 0.64)
    brush.lay(brush.color, main)
    brush.lay(mix(brush.color, canvas.plain("#ffffff"), 0.3), jib)
    brush.lay(brush.color * 0.85, hull)
    brush.lay(canvas.plain("#f4efe2"), torch.maximum(hull, (brush.v + 0.15).abs() - 0.018))


def _castle(canvas: Canvas, field: str) -> None:
    brush = _Brush(canvas, field, "castle", 0.93, 0.5)
    roof = brush.color * 0.5 + 0.04
    teeth = ((brush.u * 7.0 + 0.25) % 1.0 < 0.5).float() * 0.05
    brush.lay(brush.color * 0.94, torch.maximum(brush.u.abs() - 0.34, torch.maximum(-0.36 - teeth - brush.v, brush.v)))
    brush.lay(brush.color * 0.82, brush.box(0.0, -0.36, 0.1, 0.24))
    brush.lay(roof, brush.wedge(0.0, -0.86, -0.6, 0.14))
    for u in (-0.36, 0.36):
        brush.lay(brush.color, brush.box(u, -0.27, 0.1, 0.27))
        brush.lay(roof, brush.wedge(u, -0.8, -0.54, 0.14))
        brush.lay(brush.window(), brush.box(u, -0.38, 0.025, 0.05), lit=True)
    brush.lay(brush.window(), brush.box(0.0, -0.46, 0.025, 0.05), lit=True)
    gate = torch.minimum(brush.box(0.0, -0.08, 0.075, 0.08), brush.disc(0.0, -0.16, 0.075))
    brush.lay(canvas.plain("#2c2018"), gate)


def _balloon(canvas: Canvas, field: str) -> None:
    brush = _Brush(canvas, field, "balloon", 0.34, 0.4)
    neck = torch.maximum(brush.u.abs() - 0.29 * (1 - (brush.v - 0.13) / 0.3), (brush.v - 0.24).abs() - 0.13)
    envelope = torch.minimum(brush.disc(0.0, 0.0, 0.36), neck)
    stripes = smoothstep(-0.25, 0.25, torch.cos(brush.u / (0.36**2 - brush.v**2).clamp(min=0.03).sqrt() * 7.8))
    color = mix(brush.color, mix(brush.color, canvas.plain("#ffffff"), 0.3), stripes)
    for u in (-0.07, 0.07):
        brush.lay(canvas.plain("#4a3524"), brush.box(u * 0.9, 0.42, 0.008, 0.08))
    brush.lay((color * (1.04 - 0.3 * smoothstep(0.0, 0.4, brush.u))).clamp(0, 1), envelope)
    brush.lay(canvas.plain("#8a5a2c"), brush.box(0.0, 0.53, 0.08, 0.055))


def _bird(canvas: Canvas, field: str) -> None:
    brush = _Brush(canvas, field, "bird", 0.34, 0.36)
    body = torch.sqrt((brush.u / 0.26) ** 2 + ((brush.v + 0.12 * brush.u) / 0.1) ** 2) - 1
    head = brush.disc(0.25, -0.07, 0.085)
    tail = torch.maximum(
        (brush.v - 0.1 * brush.u - 0.03).abs() - 0.22 * (-brush.u - 0.12),
        torch.maximum(brush.u + 0.15, -0.46 - brush.u),
    )
    lift = -brush.v
    wing_far = torch.maximum(
        (brush.u - 0.05 - 0.22 * lift).abs() - 0.13 * (1 - lift / 0.5), torch.maximum(-lift, lift - 0.5)
    )
    wing_near = torch.maximum(
        (brush.u + 0.06 + 0.42 * lift).abs() - 0.15 * (1 - lift / 0.52), torch.maximum(-lift, lift - 0.52)
    )
    beak = torch.maximum((brush.v + 0.06).abs() - 0.4 * (0.42 - brush.u), 0.3 - brush.u)
    brush.lay(brush.color * 0.7, wing_far)
    brush.lay(canvas.plain("#e8a02c"), beak)
    brush.lay(brush.color, torch.minimum(torch.minimum(body * 0.1, tail), head))
    brush.lay(brush.color * 0.86 + 0.05, wing_near)
    brush.lay(canvas.plain("#0c0c10"), brush.disc(0.28, -0.09, 0.018))


def _planet(canvas: Canvas, field: str) -> None:
    grid = canvas.grid
    color = canvas.pick(f"{field}_color", COLOR_CODES)
    # A black planet is dark grey, else it could not be seen.
    color = torch.maximum(color, canvas.plain("#3c3c46"))
    draw_planet(
        canvas,
        canvas.side(f"{field}_side"),
        grid.at_y(0.42 + canvas.uniform(-0.03, 0.03)),
        0.19,
        color,
        canvas.has(field, "planet"),
        canvas.integers(2).float(),
    )
