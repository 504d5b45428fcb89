"""Scenes to pictures: each place's scenes are painted as one batch."""

import torch
from torch import Tensor

from training.demo.world.cosmos import paint_alien, paint_space
from training.demo.world.fields import Canvas, Grid
from training.demo.world.land import (
    paint_desert,
    paint_forest,
    paint_hills,
    paint_mountains,
    paint_sea,
    paint_shore,
    reflect,
)
from training.demo.world.patterns import paint_abstract
from training.demo.world.sky import paint_sky
from training.demo.world.spec import FIELDS, PLACES, STANDING
from training.demo.world.styles import paint_mood, paint_style
from training.demo.world.things import paint_things
from training.demo.world.town import paint_city, paint_street
from training.demo.world.weather import paint_weather

# As shares of the height: where the sky ends, and what a low sun sits above.
_HORIZONS = {
    "mountains": (0.5, 0.4),
    "hills": (0.56, 0.54),
    "desert": (0.58, 0.55),
    "sea": (0.58, 0.575),
    "forest": (0.55, 0.36),
    "lake": (0.6, 0.38),
    "city": (0.75, 0.43),
    "street": (0.6, 0.5),
}


@torch.no_grad()
def render(rows: Tensor, height: int, width: int, generator: torch.Generator, seeds: Tensor | None = None) -> Tensor:
    """Pictures [n, 3, height, width] in 0..1 of scene ``rows`` [n, fields], which are on the generator's device.

    With ``seeds`` [n] the renderer's own chance comes from them: scenes of one seed and one place have one layout.
    """
    grid = Grid(height, width, rows.device)
    pictures = torch.empty(rows.shape[0], 3, height, width, device=rows.device)
    places = rows[:, FIELDS.index("place")]
    for number, place in enumerate(PLACES):
        chosen = (places == number).nonzero().view(-1)
        if chosen.numel():
            pictures[chosen] = _paint(
                place, Canvas(grid, rows[chosen], generator, None if seeds is None else seeds[chosen])
            )
    return pictures


def _paint(place: str, canvas: Canvas) -> Tensor:
    if place == "abstract":
        paint_abstract(canvas)
    elif place == "space":
        paint_space(canvas)
        paint_things(canvas, "thing")
    else:
        _paint_scene(place, canvas)
    paint_mood(canvas)
    paint_style(canvas)
    return canvas.image.clamp(0, 1)


def _paint_scene(place: str, canvas: Canvas) -> None:
    if place == "alien":
        paint_alien(canvas)
    else:
        share, sun_line = _HORIZONS[place]
        horizon = canvas.grid.at_y(share + canvas.chance(-0.015, 0.015))
        paint_sky(canvas, horizon, canvas.grid.at_y(sun_line))
        _paint_land(place, canvas, horizon)
    paint_things(canvas, "other")
    paint_things(canvas, "thing")
    paint_weather(canvas)


def _paint_land(place: str, canvas: Canvas, horizon: Tensor) -> None:
    if place == "mountains":
        paint_mountains(canvas)
    elif place == "hills":
        paint_hills(canvas)
    elif place == "desert":
        paint_desert(canvas)
    elif place == "forest":
        paint_forest(canvas)
    elif place == "city":
        paint_city(canvas)
    elif place == "street":
        paint_street(canvas)
    elif place == "sea":
        paint_sea(canvas, horizon)
    else:
        paint_mountains(canvas, tops=(0.4, 0.47, 0.56), foot=1.0)
        reflect(canvas, horizon)
    if place in ("sea", "lake"):
        standing = torch.maximum(canvas.has("thing", *STANDING), canvas.has("other", *STANDING))
        if bool(standing.any()):
            paint_shore(canvas, standing)
