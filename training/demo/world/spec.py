"""What a scene is made of: named choices, stored as one row of small integers."""

from dataclasses import astuple, dataclass, fields

PLACES = (
    "mountains",
    "hills",
    "desert",
    "sea",
    "forest",
    "lake",
    "city",
    "street",
    "space",
    "alien",
    "abstract",
)
TIMES = ("noon", "sunset", "sunrise", "dusk", "night")
WEATHERS = ("clear", "cloudy", "storm", "fog", "snow", "rain")
# "plain" is the place's own colour.
LANDS = ("plain", "green", "snowy", "red", "blue", "golden", "purple")
BODIES = ("none", "sun", "moon", "crescent")
SIDES = ("left", "center", "right")
THINGS = ("none", "house", "tree", "boat", "castle", "balloon", "bird", "planet")
COLORS = ("red", "blue", "green", "yellow", "white", "black", "orange", "purple", "pink")
STYLES = ("none", "watercolor", "pixel", "ink", "poster")
MOODS = ("none", "vibrant", "pastel")
PATTERNS = ("circles", "triangles", "stripes", "mosaic", "waves", "rings")
# Colours of abstract images.
PALETTES = ("colorful", "warm", "cool", "pastel", "mono")

FLYING = ("balloon", "bird")
STANDING = ("house", "tree", "castle")


@dataclass
class Scene:
    """What one image shows; the renderer decides at random what is not listed here, like exact shapes and positions."""

    place: str = "mountains"
    time: str = "noon"
    weather: str = "clear"
    land: str = "plain"
    body: str = "none"
    body_side: str = "center"
    thing: str = "none"
    thing_color: str = "red"
    thing_side: str = "center"
    other: str = "none"
    other_color: str = "blue"
    other_side: str = "left"
    style: str = "none"
    mood: str = "none"
    neon: bool = False
    stars: bool = False
    pattern: str = "circles"
    palette: str = "colorful"

    def row(self) -> list[int]:
        """Return the scene as integers, in the order of ``FIELDS``."""
        return [
            int(value) if isinstance(value, bool) else CHOICES[name].index(value)
            for name, value in zip(FIELDS, astuple(self), strict=True)
        ]


FIELDS = tuple(field.name for field in fields(Scene))
CHOICES: dict[str, tuple[str, ...]] = {
    "place": PLACES,
    "time": TIMES,
    "weather": WEATHERS,
    "land": LANDS,
    "body": BODIES,
    "body_side": SIDES,
    "thing": THINGS,
    "thing_color": COLORS,
    "thing_side": SIDES,
    "other": THINGS,
    "other_color": COLORS,
    "other_side": SIDES,
    "style": STYLES,
    "mood": MOODS,
    "pattern": PATTERNS,
    "palette": PALETTES,
}
