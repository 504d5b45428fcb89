"""Renders scenes to images, each place's scenes as one batch."""

import torch
from torch import Tensor

from training.demo.world.cosmos import draw_alien, draw_space
from training.demo.world.fields import Canvas, Grid
from training.demo.world.land import (
    draw_desert,
    draw_forest,
    draw_hills,
    draw_mountains,
    draw_sea,
    draw_shore,
    reflect,
)
from training.demo.world.patterns import draw_abstract
from training.demo.world.sky import draw_sky
from training.demo.world.spec import FIELDS, PLACES, STANDING
from training.demo.world.styles import apply_mood, apply_style
from training.demo.world.things import draw_things
from training.demo.world.town import draw_city, draw_street
from training.demo.world.weather import draw_weather

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
    """Render scenes.

    Args:
        rows: Scene rows [n, fields], on the generator's device.
        height: In pixels.
        width: In pixels.
        generator: Of whatever a scene leaves open, where there are no seeds.
        seeds: A seed per scene [n]: scenes of one seed and one place have one layout.

    Returns:
        Images [n, 3, height, width] in 0..1.
    """
    grid = Grid(height, width, rows.device)
    images = torch.empty(rows.shape[0], 3, height, width, device=rows.device)
    places = rows[:, FIELDS.index("place")]
    for number, place in enumerate(PLACES):
        chosen = (places == number).nonzero().view(-1)
        if chosen.numel():
            images[chosen] = _draw(
                place, Canvas(grid, rows[chosen], generator, None if seeds is None else seeds[chosen])
            )
    return images


def _draw(place: str, canvas: Canvas) -> Tensor:
    if place == "abstract":
        draw_abstract(canvas)
    elif place == "space":
        draw_space(canvas)
        draw_things(canvas, "thing")
    else:
        _draw_scene(place, canvas)
    apply_mood(canvas)
    apply_style(canvas)
    return canvas.image.clamp(0, 1)


def _draw_scene(place: str, canvas: Canvas) -> None:
    if place == "alien":
        draw_alien(canvas)
    else:
        share, sun_line = _HORIZONS[place]
        horizon = canvas.grid.at_y(share + canvas.uniform(-0.015, 0.015))
        draw_sky(canvas, horizon, canvas.grid.at_y(sun_line))
        _draw_land(place, canvas, horizon)
    draw_things(canvas, "other")
    draw_things(canvas, "thing")
    draw_weather(canvas)


def _draw_land(place: str, canvas: Canvas, horizon: Tensor) -> None:
    if place == "mountains":
        draw_mountains(canvas)
    elif place == "hills":
        draw_hills(canvas)
    elif place == "desert":
        draw_desert(canvas)
    elif place == "forest":
        draw_forest(canvas)
    elif place == "city":
        draw_city(canvas)
    elif place == "street":
        draw_street(canvas)
    elif place == "sea":
        draw_sea(canvas, horizon)
    else:
        draw_mountains(canvas, tops=(0.4, 0.47, 0.56), foot=1.0)
        reflect(canvas, horizon)
    if place in ("sea", "lake"):
        standing = torch.maximum(canvas.has("thing", *STANDING), canvas.has("other", *STANDING))
        if bool(standing.any()):
            draw_shore(canvas, standing)
